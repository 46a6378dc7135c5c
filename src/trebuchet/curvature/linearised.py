"""A model's outputs linearised at its parameters, once, for many products.

With z = z(θ) ∈ R^{D×K} on a micro-batch and J = ∂z/∂θ (DK × P), every Gauss–Newton or NTK product
is built from J v and Jᵀ u. One graph serves all of them: the backward pass g(u) = Jᵀ u is recorded
with u as a variable, and since g is linear in u, differentiating ⟨g(u), v⟩ by u gives J v. Forward
and backward pass are paid once; each product then costs one backward pass through the model (Jᵀ u)
and one through the recorded backward pass (J v), about 1.3 times a gradient evaluation together.
Where that does not work, push.py has other routes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from trebuchet.curvature.evaluation import Evaluation
from trebuchet.curvature.loss_curvature import LossCurvature
from trebuchet.curvature.push import Push, pushed
from trebuchet.curvature.suspects import suspects
from trebuchet.errors import InputError
from trebuchet.problem.batches import Batch


class Linearised:
    """z, J v, Jᵀ u and the loss's Hessian at the outputs, for one micro-batch.

    Args:
        evaluation: The evaluation; its policy must hold while this object is used.
        batch: The micro-batch.
    """

    def __init__(self, evaluation: Evaluation, batch: Batch) -> None:
        self.evaluation, self.batch = evaluation, batch
        self.outputs = evaluation.outputs(batch)
        if not self.outputs.requires_grad:
            msg = "model: its outputs do not depend on the selected parameters; check params="
            raise InputError(msg)
        if not bool(torch.isfinite(self.outputs.detach()).all()):
            msg = "model: its outputs are NaN or infinite; curvature needs finite outputs"
            raise InputError(msg)
        if evaluation.doubted is None:
            evaluation.doubted = suspects(self.outputs)
        self.push: Push | None = None
        self._loss: LossCurvature | None = None

    @property
    def size(self) -> int:
        """D·K, the number of output entries."""
        return self.outputs.numel()

    def vjp(self, u: Tensor) -> Sequence[Tensor | None]:
        """Return Jᵀ u, a tensor (or None for zero) a parameter; `u` is flat, length D·K."""
        u = u.view(self.outputs.shape).to(self.outputs.dtype)
        grads: Sequence[Tensor | None] = torch.autograd.grad(
            self.outputs, self.evaluation.leaves, u, retain_graph=True, allow_unused=True
        )
        return grads

    def jvp(self, v: Sequence[Tensor | None]) -> Tensor:
        """Return J v, flat, length D·K; `v` is a tensor (or None for zero) a parameter."""
        return pushed(self, v)

    def loss_hessian(self, u: Tensor) -> Tensor:
        """Return (∂²L_b/∂z²) u, flat; zero where the loss is linear in z."""
        if self._loss is None:
            self._loss = LossCurvature(self.evaluation, self.outputs, self.batch)
        return self._loss.product(u).reshape(-1).to(u.dtype)
