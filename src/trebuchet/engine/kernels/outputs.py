"""What the engine asks of a stack of runs."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from trebuchet.curvature.warm_top import SplitGram
from trebuchet.engine import law
from trebuchet.engine.law import FloatArray, Law
from trebuchet.models.scaling import Scaling


class OutputKernel(ABC):
    """R runs of one model on one data set, their parameters stacked.

    The engine takes any loss apart at the outputs z: the kernel maps weights to z, the loss maps z
    to ∂L/∂z, and the kernel pulls that back, so that every model works with every loss and the
    gradient is never formed where it can be added to the weights at once.

    Attributes:
        params: Trainable tensors, each of shape ``(R, …)``; the engine updates them in place.
        scaling: How z scales with the weights; the reason where it does not.
        column: Whether the module itself returns z as a column, ``(D, 1)``, where the kernel has
            ``(D,)``; known after ``forward``.
        mixes_seeds: Whether runs from different initialisations can share a stack.
        sparsity: Share of (sample, unit) pre-activations < 0 of each hidden layer, shape
            ``(R, layers)``, as of the last ``forward(sparsity=True)``; None without ReLUs.
    """

    mixes_seeds: ClassVar[bool] = True

    params: list[Tensor]
    scaling: Scaling | str = "nobody has looked"
    column: bool = False
    sparsity: Tensor | None = None

    @property
    def sparsity_layers(self) -> int:
        """How many hidden layers have a sparsity."""
        return 0

    @property
    def counts_every_weight_once(self) -> bool:
        """Whether every α is 1."""
        return not isinstance(self.scaling, str) and self.scaling.uniform

    def reached(self) -> Sequence[bool]:
        """Of each tensor in `params`, whether a gradient reaches it: torch steps no others."""
        return [True] * len(self.params)

    def alphas(self) -> list[float | Tensor]:
        """α of each tensor in `params`, of a net that scales; ``(R,)`` where runs differ."""
        assert not isinstance(self.scaling, str)
        return list(self.scaling.weights.values())

    def unlike(self, found: Scaling) -> str:
        """Why a scaling is not that of the present weights, by gradients; empty where it is.

        Args:
            found: The scaling.

        Returns:
            The reason; of formulas that are written out, none.
        """
        del found
        return ""

    @property
    def runs(self) -> int:
        """R."""
        return self.params[0].shape[0]

    @abstractmethod
    def forward(self, *, sparsity: bool = False) -> Tensor:
        """z on the training inputs, ``(R, D)`` or ``(R, D, K)``; keeps what the rest needs."""

    @abstractmethod
    def add_vjp_(self, into: Sequence[Tensor], dz: Tensor) -> None:
        """Add Jᵀdz to `into`, which may be the parameters themselves; after ``forward``."""

    @abstractmethod
    def gram(self) -> Tensor:
        """H = JJᵀ/D of every run, ``(R, D·K, D·K)``; after ``forward``."""

    def split_gram(self) -> SplitGram:
        """H in two parts, where one of them need not be formed to be multiplied with."""
        return SplitGram(self.gram())

    @abstractmethod
    def outputs(self, x: Tensor) -> Tensor:
        """z on other inputs, ``(R, B)`` or ``(R, B, K)``."""

    @abstractmethod
    def subset(self, index: Sequence[int]) -> "OutputKernel":
        """A kernel of the runs `index` only, in that order, with parameters of its own."""

    @abstractmethod
    def model_of(self, run: int) -> nn.Module:
        """A module of its own with the weights of one run."""

    @abstractmethod
    def bytes_per_run(self) -> int:
        """Memory one run adds to the stack, buffers included."""

    def weight_norm(self) -> Tensor:
        """|θ|² of every run, float64 ``(R,)``, summed in float64."""
        total = torch.zeros(self.runs, dtype=torch.float64, device=self.params[0].device)
        for p in self.params:
            total += norm_squared(p)
        return total

    def along(self, of: Law, u: Sequence[Tensor]) -> FloatArray:
        """Σ α θ·u of every run, ``(R,)``; after ``forward``.

        Args:
            of: The law, with its α.
            u: Of the shapes of `params`.

        Returns:
            The products.
        """
        return law.inner(of, self.params, u, runs=self.runs)[:, 0, 1]

    def mark(self, into: list[Tensor]) -> list[Tensor]:
        """Copies of what says where the runs are; after ``forward``.

        Args:
            into: Earlier copies, to be written over; or none.

        Returns:
            The copies.
        """
        return copied(self.params, into)

    def moved(self, of: Law, mark: Sequence[Tensor]) -> FloatArray:
        """Σ α|θ − θ′|² of every run, ``(R,)``, from θ′ as marked; after ``forward``.

        Args:
            of: The law, with its α.
            mark: The copies, which are written over.

        Returns:
            The squares.
        """
        steps = [before.sub_(p) for p, before in zip(self.params, mark, strict=True)]
        return law.norm(of, steps, self.runs)


def copied(tensors: Sequence[Tensor], into: list[Tensor]) -> list[Tensor]:
    """Copies, in memory that stays: pages of their own at every step cost more than copying."""
    into = into or [torch.empty_like(t) for t in tensors]
    for copy, t in zip(into, tensors, strict=True):
        copy.copy_(t)
    return into


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Σ a_r b_r of every run r, rows summed in their own dtype and their sums in float64."""
    rows: Tensor = torch.linalg.vecdot(a, b)
    return rows.double().flatten(1).sum(1)


def norm_squared(p: Tensor) -> Tensor:
    """|p_r|² of every run r, summed in float64; shape ``(R,)``."""
    flat = p.reshape(p.shape[0], -1)
    norm: Tensor = torch.linalg.vector_norm(flat, dim=1, dtype=torch.float64)
    return norm.square()


def nbytes(*shape: int, dtype: torch.dtype) -> int:
    """Bytes of a tensor of that shape."""
    total = torch.empty((), dtype=dtype).element_size()
    for size in shape:
        total *= size
    return total
