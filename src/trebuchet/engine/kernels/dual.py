"""Stacked MLPs whose first layer is held by its dual coordinates: one product a step for two."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trebuchet.engine.kernels.mlp import MLPKernel
from trebuchet.engine.kernels.outputs import copied, dot, nbytes, norm_squared
from trebuchet.engine.law import FloatArray, Law
from trebuchet.models.mlp import MLP

CONDITION = 1e3
"""Of X, beyond which dual coordinates may grow so large that rounding in XXᵀA is felt."""


@dataclass(frozen=True, slots=True)
class Dual:
    """Inputs that span as many dimensions as there are samples.

    Attributes:
        inner: XXᵀ, shape ``(D, D)``, rounded once.
        root: A triangular factor of it, which has the same inner products as X has.
    """

    inner: Tensor
    root: Tensor


def dual_of(x: Tensor) -> Dual | None:
    """What a `DualMLPKernel` needs of inputs; None where weights are the better coordinates.

    Of fewer dimensions than samples some coordinates would move no weight, and could grow for ever.

    Args:
        x: Inputs, shape ``(D, d)``.

    Returns:
        Inner products, in the dtype of x, if D < d and the singular values of X lie within 10³.
    """
    samples, dimensions = x.shape
    if not samples < dimensions:
        return None
    wide = x.double()
    inner = wide @ wide.T
    if not bool(torch.isfinite(inner).all()):
        return None
    eigenvalues = torch.linalg.eigvalsh(inner)  # squares of the singular values
    if not float(eigenvalues[0]) * CONDITION**2 >= float(eigenvalues[-1]) > 0:
        return None
    return Dual(inner.to(x.dtype), torch.linalg.cholesky(inner).to(x.dtype))


class DualMLPKernel(MLPKernel):
    """R runs of a bias-free MLP with U = cU₀ + XᵀA for the first layer, U ``(d, n)``.

    A full-batch step adds −ηXᵀ(G ∘ ∂L/∂z) to U, and so −ηG ∘ ∂L/∂z to A, ``(D, n)``: no product.
    What is left is the forward pass, h = cXU₀ + XXᵀA. A starts at 0, so that h is known to more
    digits than from U, and so is |U|² = c²|U₀|² + ⟨A, h + cXU₀⟩. Only weight decay moves c.

    h is kept: it is that of the present weights after ``forward``, which `weight_norm`, `along` and
    `moved` take for granted.

    Args:
        models: One network a run, all of one shape, with slopes a₊ > 0 and a₋ ≥ 0.
        x: Training inputs, shape ``(D, d)``.
        dual: Of x.
    """

    def __init__(self, models: Sequence[MLP], x: Tensor, dual: Dual) -> None:
        with torch.no_grad():
            super().__init__(models, dual.root)
            self._inner, self.data = dual.inner, x
            self.start = self._at_start(x.double()).to(x.dtype)  # XU₀, (R, D, n)
            self.size = norm_squared(self.params[0])  # |U₀|², float64 (R,)
            self.params[0] = torch.zeros_like(self.start)
            self.params.append(torch.ones(len(models), 1, dtype=torch.float64, device=x.device))

    def _allocate(self) -> None:
        super()._allocate()
        self._h = torch.empty_like(self._a[0])

    def _first(self) -> Tensor:
        torch.mul(self.start, self._factor(), out=self._h)
        return torch.baddbmm(
            self._h, self._inner.expand(self.runs, -1, -1), self.params[0], out=self._h
        )

    def _pull_first(self, into: Tensor, g: Tensor, rows: Tensor | None) -> None:
        if rows is None:
            into.add_(g)
        else:
            into.addcmul_(g, rows)

    def weight_norm(self) -> Tensor:
        """|θ|², of the weights of the last ``forward``."""
        c = self.params[-1][:, 0].double()
        first = c * (c * self.size + dot(self.params[0], self.start))
        first += dot(self.params[0], self._h)
        return sum((norm_squared(w) for w in self._layers()[1:]), start=first)

    def along(self, of: Law, u: Sequence[Tensor]) -> FloatArray:
        """θ·u of every run, of the weights of the last ``forward``."""
        del of  # every α is 1
        c, move = self.params[-1][:, 0].double(), u[-1][:, 0].double()
        found = move * (c * self.size + dot(self.params[0], self.start)) + dot(u[0], self._h)
        for p, v in zip(self._layers()[1:], u[1:], strict=False):
            found += dot(p, v)
        return found.cpu().numpy()

    def mark(self, into: list[Tensor]) -> list[Tensor]:
        """Copies of the coordinates and of h."""
        return copied([*self.params, self._h], into)

    def moved(self, of: Law, mark: Sequence[Tensor]) -> FloatArray:
        """|θ − θ′|² of every run, θ being that of the last ``forward``, and θ′ marked."""
        del of  # every α is 1
        # ⟨d, d⟩ of d = δc U₀ + XᵀδA, where δh = δc XU₀ + XXᵀδA.
        step, shift = mark[0].sub_(self.params[0]), mark[-1].sub_(self._h)
        change = (mark[-2] - self.params[-1])[:, 0].double()
        found = change * (change * self.size + dot(step, self.start)) + dot(step, shift)
        for p, before in zip(self._layers()[1:], mark[1:], strict=False):
            found += norm_squared(before.sub_(p))
        return found.cpu().numpy()

    def _first_of(self, x: Tensor) -> Tensor:
        return (x @ self.data.T) @ self.params[0] + self._factor() * self._at_start(x)

    def subset(self, index: Sequence[int]) -> "DualMLPKernel":
        """The runs `index`, with buffers of their size."""
        other = super().subset(index)
        assert isinstance(other, DualMLPKernel)
        rows = list(index)
        other.start, other.size = self.start[rows], self.size[rows]
        return other

    def model_of(self, run: int) -> nn.Module:
        """The net with weights in place of coordinates."""
        weights = [w[run].T.clone() for w in self._layers()]
        moved = self.params[0][run].T @ self.data
        weights[0] = self._factor()[run] * self.initial[run].weights[0].detach() + moved
        return MLP(weights, self.slopes)

    def bytes_per_run(self) -> int:
        """Those of an `MLPKernel`, h and h at the start."""
        samples, width = self.params[0].shape[1:]
        return super().bytes_per_run() + 2 * nbytes(samples, width, dtype=self.x.dtype)
