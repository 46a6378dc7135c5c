"""The Hessian of the loss at the outputs, ∂²L_b/∂z²: from the loss as given, whatever it is.

By differentiating the loss's gradient again. Where that is not implemented (CTC), or is not to be
believed (a fused loss whose backward pass computes with plain numbers), by central differences of
the gradient in float64: the loss alone is cheap.
"""

import torch
from torch import Tensor

from trebuchet.curvature.basis import normal
from trebuchet.curvature.evaluation import Evaluation
from trebuchet.curvature.explain import NoDerivativeError, missing
from trebuchet.curvature.suspects import suspects
from trebuchet.curvature.twin import Twin
from trebuchet.errors import InputError
from trebuchet.problem.batches import Batch

STEP = 1e-6
"""h of the central difference, as a fraction of the outputs' size."""


class LossCurvature:
    """u ↦ (∂²L_b/∂z²) u.

    Args:
        evaluation: Gives the loss.
        z: Outputs; only their values count.
        batch: Their micro-batch.
    """

    def __init__(self, evaluation: Evaluation, z: Tensor, batch: Batch) -> None:
        self.evaluation, self.batch = evaluation, batch
        self.z = z.detach().requires_grad_()
        self._twin: Twin | None = None
        loss = evaluation.loss_at(self.z, batch)
        gradient: Tensor | None = None
        if loss.requires_grad:
            doubted = suspects(loss)
            (gradient,) = torch.autograd.grad(loss, self.z, create_graph=True, allow_unused=True)
        self.gradient = None if gradient is None or not gradient.requires_grad else gradient
        if gradient is not None and doubted:
            probe = normal(self.z.shape, self.z)
            if not self._agree(self.product(probe), self._differences(probe)):
                self._by_differences(f"the second derivative of {', '.join(doubted)} is wrong")

    @property
    def zero(self) -> bool:
        """Whether the loss is linear in z: no curvature."""
        return self.gradient is None and self._twin is None

    def product(self, u: Tensor) -> Tensor:
        """Return (∂²L_b/∂z²) u in the shape of z; zero where the loss is linear in z.

        Args:
            u: As many entries as z has.

        Returns:
            In the shape and dtype of z.
        """
        u = u.reshape(self.z.shape).to(self.z.dtype)
        if self._twin is not None:
            return self._differences(u)
        if self.gradient is None:
            return torch.zeros_like(self.z)
        try:
            return self._again(u)
        except (RuntimeError, NotImplementedError) as error:
            self._by_differences(f"{missing(error, self.evaluation.model)} has none")
            return self._differences(u)

    def matrix(self) -> Tensor:
        """Return ∂²L_b/∂z² whole, shape (D·K, D·K), float64."""
        n = self.z.numel()
        if self.zero:
            return self.z.new_zeros((n, n), dtype=torch.float64)
        eye = torch.eye(n, dtype=self.z.dtype, device=self.z.device)
        rows = torch.stack([self.product(e).reshape(-1) for e in eye]).double()
        return (rows + rows.T) / 2

    def _again(self, u: Tensor) -> Tensor:
        assert self.gradient is not None
        (hu,) = torch.autograd.grad(
            self.gradient, self.z, u.to(self.gradient.dtype), retain_graph=True, allow_unused=True
        )
        return torch.zeros_like(self.z) if hu is None else hu.to(self.z.dtype)

    def _by_differences(self, why: str) -> None:
        self._twin = self._twin or Twin(self.evaluation)
        self.evaluation.inexact = True
        remark = f"the loss's second derivative is by finite differences: {why}"
        if remark not in self.evaluation.remarks:
            self.evaluation.remarks.append(remark)

    def _differences(self, u: Tensor) -> Tensor:
        twin = self._twin or Twin(self.evaluation)
        size, wide = float(u.double().norm()), u.double()
        if size == 0.0:
            return torch.zeros_like(u)
        h = STEP * max(float(self.z.detach().double().norm()), 1.0)
        ends = []
        for sign in (1, -1):
            z = (self.z.detach().double() + sign * h / size * wide).requires_grad_()
            try:
                (g,) = torch.autograd.grad(twin.loss_at(z, self.batch), z)
            except InputError as error:
                msg = f"loss: has no second derivative, and in float64 {error}"
                raise NoDerivativeError(msg) from error
            ends.append(g)
        return ((ends[0] - ends[1]) * (size / (2 * h))).to(u.dtype)

    @staticmethod
    def _agree(a: Tensor, b: Tensor) -> bool:
        return float((a - b).double().norm()) <= 1e-4 * float(b.double().norm())
