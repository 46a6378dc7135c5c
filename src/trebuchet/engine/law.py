"""The engine's self-check: the weight-norm law, at every recorded step of a net that scales.

With α and k of `trebuchet.models.scaling` and W = Σ α_i|θ_i|², a step θ' = θ − ηu changes W by
−2ηΣ α_i θ_i·u_i + η²Σ α_i|u_i|², and Euler gives Σ α_i θ_i·∇_iL = k Σ z·∂L/∂z: outputs foretell
what the weights do, whatever the loss.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trebuchet.errors import LawViolationError

FloatArray = NDArray[np.float64]

SAFETY = 8.0
"""Deviations: a sum of N rounded terms is off by more than 8√N half-units with odds of 1e-13."""

TOGETHER = 2**20
"""Numbers of several tensors that are put into one, where calls cost more than sums."""


APART = 2**14
"""Numbers a tensor from which a call for each is faster than all of them put into one."""


@dataclass(frozen=True, slots=True)
class Law:
    """What is checked.

    Attributes:
        degree: k.
        alphas: α of each tensor of weights; one of its own for each run where it is a tensor.
        terms: N, of the longest sum of a step: over weights, or over inputs.
        eps: What rounding is, of the coarsest weights.
        tiny: Their smallest normal number.
        convolves: Whether some are kernels of convolutions, as their dimensions have it.
    """

    degree: float
    alphas: Sequence[float | Tensor]
    terms: int
    eps: float
    tiny: float
    convolves: bool = False
    _rows: dict[tuple[int, ...], Tensor | None] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls, degree: float, alphas: Sequence[float | Tensor], params: Sequence[Tensor], inputs: int
    ) -> "Law":
        """The law of some weights.

        Args:
            degree: k.
            alphas: α of each.
            params: The weights of one run.
            inputs: Numbers that go into one step.

        Returns:
            The law.
        """
        kinds = [torch.finfo(p.dtype) for p in params]
        terms = max(1, inputs, sum(p.numel() for p in params))
        eps, tiny = max(k.eps for k in kinds), max(k.tiny for k in kinds)
        return cls(degree, alphas, terms, eps, tiny, any(p.ndim > 2 for p in params))

    @property
    def allowed(self) -> float:
        """The violation that rounding may make, relative to W and what it moves by.

        A forward and a backward pass are k + 1 sums of at most N terms each way, one after the
        other. Errors of a sum of N rounded terms grow like √N (Higham & Mary, doi
        10.1137/18M1226312), and weigh no more than W and its change do.
        """
        return SAFETY * (self.degree + 1) * math.sqrt(self.terms) * self.eps

    def row(self, index: tuple[int, ...], like: Sequence[Tensor], runs: int) -> Tensor | None:
        """α of every number of some tensors, ``(n,)``; None where all are 1.

        Args:
            index: Which α.
            like: The tensors, ``(R, …)``.
            runs: R.

        Returns:
            A row, kept for the next step.
        """
        if index not in self._rows:
            parts = [
                torch.full((t.numel() // runs,), float(self.alphas[i]), dtype=torch.float64)
                for i, t in zip(index, like, strict=True)
            ]
            whole = torch.cat(parts).to(like[0].device)
            self._rows[index] = None if bool((whole == 1).all()) else whole
        return self._rows[index]


@dataclass(slots=True)
class Prediction:
    """W_{t+1} of every run as the law has it, and the size of what was added up.

    Attributes:
        norm: W_{t+1}, ``(R,)``; without that of θ_{t+1} − θ_t where there is a `mark`.
        scale: What `norm` was added up from, in size.
        defect: By how much Euler's identity fails, in units of W.
        mark: Of θ_t, where the square of the step is taken from the step itself.
    """

    norm: FloatArray
    scale: FloatArray
    defect: FloatArray | float = 0.0
    mark: Sequence[Tensor] = ()


@dataclass(frozen=True, slots=True)
class Update:
    """How some of the weights are stepped: θ' = θ − η(a(∇L + wθ) + bv).

    Attributes:
        index: Which.
        lr: η of every run, ``(R,)``.
        decay: w.
        fresh: a.
        kept: b.
        velocity: v of each, ``(R, …)``; none where b is 0.
    """

    index: Sequence[int]
    lr: FloatArray
    decay: float = 0.0
    fresh: float = 1.0
    kept: float = 0.0
    velocity: Sequence[Tensor] = ()


@torch.no_grad()
def inner(
    law: Law, *tensors: Sequence[Tensor], runs: int, index: Sequence[int] | None = None
) -> FloatArray:
    """Σ α_i a_i·b_i of every two lists of tensors, for every run.

    Args:
        law: The law.
        *tensors: m lists, each of one tensor ``(R, …)`` for every α; of a single run also ``(…)``.
        runs: R.
        index: Which α, where it is not all.

    Returns:
        Float64, ``(R, m, m)``.
    """
    total: Tensor | float = 0.0
    index = range(len(law.alphas)) if index is None else index
    for alpha, rows in _pieces(law, index, tensors, runs):
        total = total + torch.bmm(rows if alpha is None else alpha * rows, rows.mT)
    if not isinstance(total, Tensor):
        return np.zeros((runs, len(tensors), len(tensors)))
    found: FloatArray = total.cpu().numpy()
    return found


@torch.no_grad()
def norm(law: Law, params: Sequence[Tensor], runs: int) -> FloatArray:
    """W of every run, float64 ``(R,)``.

    Args:
        law: The law.
        params: θ, each ``(R, …)``.
        runs: R.

    Returns:
        Σ α_i|θ_i|².
    """
    if sum(p.numel() for p in params) < APART * len(params):
        return inner(law, params, runs=runs)[:, 0, 0]
    total: Tensor | float = 0.0
    for alpha, p in zip(law.alphas, params, strict=True):
        if isinstance(alpha, Tensor) or alpha != 0:
            length = torch.linalg.vector_norm(p.reshape(runs, -1), dim=1, dtype=torch.float64)
            total = total + alpha * length.square()
    found: FloatArray = torch.as_tensor(total, dtype=torch.float64).expand(runs).cpu().numpy()
    return found


@np.errstate(over="ignore", invalid="ignore")
def foretell(
    law: Law,
    params: Sequence[Tensor],
    gradients: Sequence[Tensor],
    updates: Sequence[Update],
    euler: tuple[FloatArray, FloatArray],
    clip: FloatArray | float = 1.0,
) -> Prediction:
    """What the law says of a step, from its gradients and from outputs.

    Args:
        law: The law.
        params: θ, each ``(R, …)``.
        gradients: ∇L, of the same shapes.
        updates: How they are stepped; those in none of them are not.
        euler: Σ z·∂L/∂z of every run, and the sum of its terms' sizes, ``(R,)``.
        clip: What gradients are multiplied with before the step.

    Returns:
        The prediction.
    """
    expected = scale = dot = fastest = np.zeros_like(euler[0])
    held = {i for update in updates for i in update.index}
    idle = [i for i in range(len(params)) if i not in held]
    for update in [*updates, *([Update(idle, np.zeros_like(dot))] if idle else [])]:
        lr, a, b, index = update.lr, update.fresh, update.kept, update.index
        fastest = np.maximum(fastest, lr * a)
        lists = [[params[i] for i in index], [gradients[i] for i in index], update.velocity]
        products = inner(law, *(x for x in lists if x), runs=dot.size, index=index)
        weight, slope, square = (
            products[:, 0, 0],
            products[:, 0, 1] * clip,
            products[:, 1, 1] * clip**2,
        )
        dot = dot + slope
        # Of d = ∇L + wθ, then of u = ad + bv.
        along = slope + update.decay * weight
        size = square + 2 * update.decay * slope + update.decay**2 * weight
        along, size, sizes = a * along, a**2 * size, a**2 * (square + update.decay**2 * weight)
        if update.velocity:
            pull = products[:, 1, 2] * clip + update.decay * products[:, 0, 2]
            along = along + b * products[:, 0, 2]
            size = size + 2 * a * b * pull + b**2 * products[:, 2, 2]
            sizes = sizes + b**2 * products[:, 2, 2]
        expected = expected + weight - 2 * lr * along + lr**2 * size
        scale = scale + weight + lr**2 * sizes
    factor = 2 * fastest
    defect = factor * np.abs(law.degree * euler[0] * clip - dot)
    return Prediction(expected, scale + factor * law.degree * euler[1] * clip, defect)


def residual(
    law: Law,
    prediction: Prediction,
    after: FloatArray,
    square: FloatArray | float = 0.0,
    **where: Any,
) -> FloatArray:
    """The violation of the law relative to W and the terms it moved by.

    Args:
        law: The law.
        prediction: As made before the step.
        after: W_{t+1} as measured.
        square: Σ α|θ_{t+1} − θ_t|², where the prediction leaves it to the step.
        **where: What to name in the error.

    Returns:
        The relative violation of each run; NaN where a number is not finite.

    Raises:
        LawViolationError: If it is beyond rounding.
    """
    # Weights that decay into the subnormal numbers lose their digits there: not a violation.
    floor = law.tiny / law.eps
    with np.errstate(invalid="ignore", over="ignore"):
        expected, scale = prediction.norm + square, prediction.scale + square
        found = (np.abs(after - expected) + prediction.defect) / (scale + floor)
    violation: FloatArray = np.where(np.isfinite(found) & np.isfinite(after), found, np.nan)
    if (violation > law.allowed).any():
        worst = float(np.nanmax(violation))
        place = ", ".join(f"{k} {v}" for k, v in where.items())
        msg = (
            f"the weight-norm law is violated by {worst:.2e} of W = Σ α|θ|² ({place}; rounding "
            f"allows {law.allowed:.0e}): the model is not homogeneous of the degree it states or "
            "is found to have, or the step taken was not the gradient step; a model whose forward "
            "pass changes its form may say degree = None, and is not checked"
        )
        raise LawViolationError(msg)
    return violation


def _pieces(
    law: Law, index: Sequence[int], lists: Sequence[Sequence[Tensor]], runs: int
) -> Iterator[tuple[Tensor | None, Tensor]]:
    """Lists of tensors as rows ``(R, m, n)`` in float64, with their α; those of α = 0 left out.

    Few numbers come in one piece, so that a small net costs few calls; many in pieces, so that a
    large one costs no memory.

    Yields:
        α, ``(n,)`` or one a run, or None for 1; and the rows.
    """
    alphas = [law.alphas[i] for i in index]
    plain = not any(isinstance(a, Tensor) for a in alphas)
    if plain and sum(t.numel() for t in lists[0]) <= TOGETHER * runs:
        flat = [torch.cat([t.reshape(runs, -1) for t in each], 1) for each in lists]
        rows = torch.stack(flat, 1).double()
        yield law.row(tuple(index), lists[0], runs), rows
        return
    for k, one in enumerate(alphas):
        weight = one.double().reshape(-1, 1, 1) if isinstance(one, Tensor) else one
        if not isinstance(weight, Tensor) and weight == 0:
            continue
        if not isinstance(weight, Tensor):
            weight = torch.tensor(weight, dtype=torch.float64, device=lists[0][k].device)
        pieces = [torch.split(each[k].reshape(runs, -1), TOGETHER, 1) for each in lists]
        for parts in zip(*pieces, strict=True):
            yield weight, torch.stack(parts, 1).double()
