"""The engine's self-check: the weight-norm law, at every recorded step of a net that scales.

With α and k of `trebuchet.models.scaling` and W = Σ α_i|θ_i|², a step θ' = θ − ηu changes W by
−2ηΣ α_i θ_i·u_i + η²Σ α_i|u_i|², and Euler gives Σ α_i θ_i·∇_iL = k Σ z·∂L/∂z: outputs foretell what
the weights do, whatever the loss.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trebuchet.errors import LawViolationError

SAFETY = 8.0
"""Deviations: a sum of N rounded terms is off by more than 8√N half-units with odds of 1e-13."""

TOGETHER = 2**20
"""Numbers of several tensors that are put into one, where calls cost more than sums."""


@dataclass(frozen=True, slots=True)
class Law:
    """What is checked.

    Attributes:
        degree: k.
        alphas: α of each tensor of weights; one of its own for each run where it is a tensor.
        terms: N, of the longest sum of a step: over weights, or over inputs.
        eps: What rounding is, of the coarsest weights.
        tiny: Their smallest normal number.
    """

    degree: float
    alphas: Sequence[float | Tensor]
    terms: int
    eps: float
    tiny: float

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
        return cls(degree, alphas, terms, max(k.eps for k in kinds), max(k.tiny for k in kinds))

    @property
    def allowed(self) -> float:
        """The violation that rounding may make, relative to W and what it moves by.

        A forward and a backward pass are k + 1 sums of at most N terms each way, one after the
        other. Errors of a sum of N rounded terms grow like √N (Higham & Mary, doi
        10.1137/18M1226312), and weigh no more than W and its change do.
        """
        return SAFETY * (self.degree + 1) * math.sqrt(self.terms) * self.eps

    @property
    def uniform(self) -> bool:
        """Whether W is |θ|²."""
        return all(not isinstance(a, Tensor) and a == 1 for a in self.alphas)


@dataclass(slots=True)
class Prediction:
    """W_{t+1} of every run as the law has it, and the size of what was added up.

    Attributes:
        norm: W_{t+1}, ``(R,)``; without |θ_{t+1} − θ_t|² where there is `before`.
        scale: What `norm` was added up from, in size.
        defect: By how much Euler's identity fails, in units of W.
        before: θ_t, where the square of the step is taken from the step itself.
    """

    norm: Tensor
    scale: Tensor
    defect: Tensor | float = 0.0
    before: Sequence[Tensor] = ()


@dataclass(frozen=True, slots=True)
class Update:
    """How some of the weights are stepped: θ' = θ − η(a(∇L + wθ) + bv).

    Attributes:
        index: Which.
        lr: η of every run, float64 ``(R,)``.
        decay: w.
        fresh: a.
        kept: b.
        velocity: v of each, ``(R, …)``; none where b is 0.
    """

    index: Sequence[int]
    lr: Tensor
    decay: float = 0.0
    fresh: float = 1.0
    kept: float = 0.0
    velocity: Sequence[Tensor] = ()


def norm(law: Law, params: Sequence[Tensor]) -> Tensor:
    """W of every run, float64 ``(R,)``.

    Args:
        law: The law.
        params: θ, each ``(R, …)``.

    Returns:
        Σ α_i|θ_i|².
    """
    chosen = [i for i, alpha in enumerate(law.alphas) if isinstance(alpha, Tensor) or alpha]
    parts = _pieces(law, chosen, [params[i] for i in chosen])
    return _sum(_dot(theta, theta, alpha) for alpha, (theta,) in parts)


def inner(law: Law, left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """Σ α_i l_i·r_i of every run, float64 ``(R,)``."""
    parts = _pieces(law, range(len(left)), left, right)
    return _sum(_dot(a, b, alpha) for alpha, (a, b) in parts)


def foretell(
    law: Law,
    params: Sequence[Tensor],
    gradients: Sequence[Tensor],
    updates: Sequence[Update],
    euler: tuple[Tensor, Tensor],
    clip: Tensor | None = None,
) -> Prediction:
    """What the law says of a step, from its gradients and from outputs.

    Args:
        law: The law.
        params: θ, each ``(R, …)``.
        gradients: ∇L, of the same shapes.
        updates: How they are stepped; those in none of them are not.
        euler: Σ z·∂L/∂z of every run, and the sum of its terms' sizes, float64 ``(R,)``.
        clip: What gradients are multiplied with before the step, ``(R,)``.

    Returns:
        The prediction.
    """
    zero = torch.zeros_like(euler[0])
    expected, scale, dot, fastest = zero, zero, zero, zero
    held = {i for update in updates for i in update.index}
    idle = [i for i in range(len(params)) if i not in held]
    for update in [*updates, Update(idle, zero)]:
        lr = update.lr
        fastest = torch.maximum(fastest, lr * update.fresh)
        tensors = [[params[i] for i in update.index], [gradients[i] for i in update.index]]
        for alpha, (theta, g, *v) in _pieces(law, update.index, *tensors, *_one(update.velocity)):
            weight = _dot(theta, theta, alpha)
            slope = _dot(theta, g, alpha)
            dot = dot + slope
            u = g if clip is None else g * clip.unsqueeze(1)
            if update.decay:
                u = u + update.decay * theta
            if update.fresh != 1:
                u = update.fresh * u
            if v:
                u = u + update.kept * v[0]
            along = slope if u is g else _dot(theta, u, alpha)
            square = lr**2 * _dot(u, u, alpha)
            expected = expected + weight - 2 * lr * along + square
            scale = scale + weight + square
    factor = 2 * fastest * (1 if clip is None else clip)
    defect = factor * (law.degree * euler[0] - dot).abs()
    return Prediction(expected, scale + factor * law.degree * euler[1], defect)


def residual(
    law: Law, prediction: Prediction, params: Sequence[Tensor], after: Tensor, **where: Any
) -> NDArray[np.float64]:
    """The violation of the law relative to W and the terms it moved by.

    Args:
        law: The law.
        prediction: As made before the step.
        params: θ_{t+1}, each ``(R, …)``.
        after: W_{t+1} as measured.
        **where: What to name in the error.

    Returns:
        The relative violation of each run; NaN where a number is not finite.

    Raises:
        LawViolationError: If it is beyond rounding.
    """
    expected, scale = prediction.norm, prediction.scale
    if prediction.before:
        steps = [p - b for p, b in zip(params, prediction.before, strict=True)]
        square = inner(law, steps, steps)
        expected, scale = expected + square, scale + square
    # Weights that decay into the subnormal numbers lose their digits there: not a violation.
    found = ((after - expected).abs() + prediction.defect) / (scale + law.tiny / law.eps)
    known = found.isfinite() & after.isfinite()
    violation: NDArray[np.float64] = found.where(known, torch.nan).cpu().numpy()
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


def _one(velocity: Sequence[Tensor]) -> list[Sequence[Tensor]]:
    return [velocity] if velocity else []


def _sum(parts: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(parts)).sum(0)


def _dot(a: Tensor, b: Tensor, alpha: Tensor | None) -> Tensor:
    """Σ α a·b of every run, ``(R,)``; α ``(n,)``, ``(R, 1)``, or None for 1."""
    return torch.linalg.vecdot(a, b if alpha is None else alpha * b)


def _pieces(
    law: Law, index: Iterable[int], *tensors: Sequence[Tensor]
) -> Iterator[tuple[Tensor | None, list[Tensor]]]:
    """Tensors of the same shapes as rows ``(R, n)`` in float64, with their α.

    Few numbers come in one piece, so that a small net costs few calls; many in pieces, so that a
    large one costs no memory.
    """
    alphas = [law.alphas[i] for i in index]
    rows = [[t.detach().flatten(1) if t.ndim > 1 else t.detach().unsqueeze(1) for t in each] for each in tensors]
    if not rows[0]:
        return
    plain = not any(isinstance(a, Tensor) for a in alphas)
    if plain and sum(r.shape[1] for r in rows[0]) <= TOGETHER:
        alpha = None
        if any(a != 1 for a in alphas):
            each = [r.new_full((r.shape[1],), float(a), dtype=torch.float64) for a, r in zip(alphas, rows[0], strict=True)]  # type: ignore[arg-type]
            alpha = torch.cat(each)
        yield alpha, [torch.cat(each, 1).double() for each in rows]
        return
    for k, one in enumerate(alphas):
        weight = one.double().unsqueeze(1) if isinstance(one, Tensor) else None
        if weight is None and one != 1:
            weight = torch.tensor(one, dtype=torch.float64, device=rows[0][k].device)
        for parts in zip(*(each[k].split(TOGETHER, 1) for each in rows), strict=True):
            yield weight, [part.double() for part in parts]
