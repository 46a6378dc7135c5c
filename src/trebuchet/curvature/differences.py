"""The Hessian by finite differences of the gradient, in float64.

Where automatic differentiation has no second derivative, or a wrong one, a central difference of
first derivatives has it: H v ≈ (∇L(θ + h v) − ∇L(θ − h v)) / 2h. In float64, whatever the model's
own precision, it is good to about nine digits. It is also the independent witness that products by
automatic differentiation are held against.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from trebuchet.curvature.distributed import Ranks
from trebuchet.curvature.evaluation import Evaluation
from trebuchet.curvature.lanczos import Product
from trebuchet.curvature.operators import random_direction
from trebuchet.curvature.twin import Twin

STEPS = (1e-6, 1e-8)
"""Steps h as fractions of ‖θ‖. The second, for the witness alone, crosses a hundred times fewer
kinks of a ReLU net; what it loses is digits."""

ROUNDING = 1e-9
"""Relative error of a product by differences: rounding/h, and h² of a function that is smooth."""


class DifferenceHessian:
    """v ↦ (∂²L/∂θ²) v by a central difference of the gradient, two gradients a product.

    Args:
        evaluation: Model, loss (or closure), micro-batches and weights.
        ranks: The processes that share the samples.
        scale: s of S (∂²L) S, shape (P,); None is the identity.
    """

    side = "parameters"
    metric: Product | None = None

    def __init__(
        self, evaluation: Evaluation, *, ranks: Ranks, scale: Tensor | None = None
    ) -> None:
        self.evaluation, self.ranks, self.scale = evaluation, ranks, scale
        self.dim = evaluation.n_parameters
        self.twin = Twin(evaluation)

    def product(self, v: Tensor, step: float = STEPS[0]) -> Tensor:
        """Return the Hessian times v, shape (P,)."""
        w = v.double() if self.scale is None else v.double() * self.scale
        norm = float(torch.linalg.vector_norm(w))
        if norm == 0.0:
            return torch.zeros_like(v)
        parts = _shaped(w / norm, self.evaluation)
        h = step * self.twin.reach
        out = self.twin.gradient(parts, h).sub_(self.twin.gradient(parts, -h)).mul_(norm / (2 * h))
        self.ranks.sum_(out)
        return (out if self.scale is None else out.mul_(self.scale)).to(v.dtype)

    def random_start(self, generator: torch.Generator) -> tuple[Tensor, Callable[[float], float]]:
        """Return a random g of unit variance, and 1, its overlap's scale for any unit vector."""
        like = torch.empty(0, dtype=self.evaluation.dtype, device=self.evaluation.device)
        return random_direction(self.dim, like, generator), lambda _: 1.0

    def to_parameters(self, y: Tensor, value: float) -> Tensor:
        """Return y itself: it lives here."""
        del value
        return y

    def disagreement(self, v: Tensor, hv: Tensor, size: float) -> float | None:
        """Hold a product by automatic differentiation against differences.

        Kinks make differences wrong at large steps and rounding does at small ones, so that the
        better of two steps counts.

        Args:
            v: A vector, shape (P,).
            hv: What is said to be the Hessian times v.
            size: λ, a scale for what matters.

        Returns:
            ‖difference‖ relative to the larger of ‖hv‖ and |λ| ‖v‖; None where the rounding of
            differences is too large for an answer.
        """
        unit = max(float(hv.double().norm()), abs(size) * float(v.double().norm()))
        found: list[float] = []
        for step in STEPS:
            ours = self.product(v.double(), step)
            off = float((ours - hv.double()).norm())
            scale = max(unit, float(ours.norm()))
            if scale == 0.0:
                return 0.0
            found.append(off / scale)
            if found[-1] < 1e-5:
                break
            noise = 1e-15 * self._gradient_norm() * float(v.double().norm()) / (
                step * self.twin.reach
            )  # fmt: skip
            if noise > 1e-2 * scale:
                found.pop()
        return min(found) if found else None

    def _gradient_norm(self) -> float:
        zero = _shaped(torch.zeros(self.dim, device=self.evaluation.device), self.evaluation)
        return float(self.ranks.sum_(self.twin.gradient(zero, 0.0)).norm())


def _shaped(v: Tensor, evaluation: Evaluation) -> list[Tensor]:
    out, at = [], 0
    for p in evaluation.leaves:
        out.append(v[at : at + p.numel()].view(p.shape))
        at += p.numel()
    return out
