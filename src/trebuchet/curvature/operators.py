"""What Gauss–Newton, NTK and Hessian operators have in common: their two sides, and a start.

Every operator is a symmetric map on one of two spaces:

- the *parameter side*, vectors of length P: G = Jᵀ H J, or the Hessian;
- the *output side*, vectors of length D·K: J Jᵀ H, symmetric in ⟨u, v⟩ = uᵀ H v, with the same
  non-zero eigenvalues. Where D·K < P its vectors are shorter: for a 10M-parameter model and a
  batch of 512 × 10 outputs, two thousand times.
"""

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from trebuchet.curvature.evaluation import Evaluation
from trebuchet.curvature.lanczos import Product, Start
from trebuchet.curvature.linearised import Linearised


class Operator(Protocol):
    """A symmetric operator that Lanczos can run on.

    Attributes:
        side: ``"parameters"`` or ``"outputs"``.
        dim: Length n of its vectors.
        metric: v ↦ M v for the inner product uᵀ M v; None for the dot product.
    """

    side: str
    dim: int
    metric: Product | None

    def product(self, v: Tensor) -> Tensor:
        """Return A v, shape (n,)."""
        ...

    def random_start(self, generator: torch.Generator) -> tuple[Tensor, Callable[[float], float]]:
        """Return a random vector and its overlap with a unit eigenvector, see `Start`."""
        ...

    def to_parameters(self, y: Tensor, value: float) -> Tensor:
        """Return the unit eigenvector in parameter space, shape (P,), for one of this side."""
        ...


class Linearisations:
    """One :class:`Linearised` a micro-batch, kept while they fit in memory, else made anew.

    Args:
        evaluation: The evaluation.
        keep: How many may be kept at once.
    """

    def __init__(self, evaluation: Evaluation, keep: int) -> None:
        self.evaluation, self.keep = evaluation, keep
        self._kept: dict[int, Linearised] = {}

    def __len__(self) -> int:
        return len(self.evaluation.batches)

    def __getitem__(self, i: int) -> Linearised:
        if i in self._kept:
            return self._kept[i]
        linearised = Linearised(self.evaluation, self.evaluation.batches[i])
        if len(self._kept) < self.keep:
            self._kept[i] = linearised
        return linearised


def random_direction(n: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform numbers of unit variance, from `generator`: the user's random state is not touched.

    As good as Gaussian ones for the certificate (certificate.py), at a third of their cost, which
    for large models is a good part of a gradient.

    Args:
        n: How many.
        like: Gives the dtype and device.
        generator: On the CPU, so that every device and every rank starts alike.

    Returns:
        Shape (n,).
    """
    numbers = torch.rand(n, generator=generator, dtype=like.dtype, device="cpu")
    return numbers.sub_(0.5).mul_(math.sqrt(12)).to(like.device)


def mixed_start(
    fresh: Tensor,
    overlap: Callable[[float], float],
    warm: Tensor | None,
    metric: Product | None,
    share: float,
) -> Start:
    """Return ŵ + τ ĝ: a warm start with a guaranteed share of a fresh random direction.

    Args:
        fresh: The random vector g, shape (n,).
        overlap: Its overlap with a unit eigenvector, see `Start`.
        warm: The warm vector w, shape (n,), or None for a cold start.
        metric: The inner product both are normalised in.
        share: τ.

    Returns:
        The start.
    """
    if warm is None:
        return Start(fresh, overlap)
    g_norm, w_norm = (_norm(x, metric) for x in (fresh, warm))
    if not (w_norm > 0 and g_norm > 0):
        return Start(fresh, overlap)
    factor = share / g_norm
    return Start(
        torch.add(warm / w_norm, fresh, alpha=factor), lambda value: factor * overlap(value)
    )


def _norm(x: Tensor, metric: Product | None) -> float:
    return math.sqrt(max(float(torch.dot(x, x if metric is None else metric(x))), 0.0))
