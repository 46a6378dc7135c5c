"""The Gauss–Newton operator G = Jᵀ H J, on either side.

With z = z(θ) the outputs, J = ∂z/∂θ (DK × P) and H = ∂²L/∂z² (DK × DK) the loss's own Hessian at
the outputs, G is the Hessian of the loss with the model replaced by its linearisation: what is left
of the Hessian when residuals vanish or the model is linear. H comes from autodiff of the loss as
given, so that every factor of ½, 1/D or 1/K is in it.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from trebuchet.curvature.distributed import Ranks
from trebuchet.curvature.evaluation import Evaluation
from trebuchet.curvature.lanczos import Product
from trebuchet.curvature.operators import Linearisations, random_direction


class GGN:
    """v ↦ Σ_b w_b J_bᵀ H_b J_b v on the parameter side, v of length P.

    Args:
        evaluation: Model, loss, micro-batches and their weights.
        linearisations: One a micro-batch.
        ranks: The processes that share the samples.
        scale: s of the preconditioned S G S, S = diag(s), shape (P,); None is the identity.
        identity: Take H_b = I / D instead of the loss's: the NTK's spectrum (ntk.py).
    """

    side = "parameters"
    metric: Product | None = None

    def __init__(
        self,
        evaluation: Evaluation,
        linearisations: Linearisations,
        *,
        ranks: Ranks,
        scale: Tensor | None = None,
        identity: bool = False,
    ) -> None:
        self.evaluation, self.linearisations = evaluation, linearisations
        self.ranks, self.scale, self.identity = ranks, scale, identity
        self.dim = evaluation.n_parameters

    def product(self, v: Tensor) -> Tensor:
        """Return G v, shape (P,)."""
        out = torch.zeros_like(v)
        parts = self.evaluation.unflatten(v if self.scale is None else v * self.scale)
        for i, weight in enumerate(self.evaluation.weights):
            linearised = self.linearisations[i]
            jv = linearised.jvp(parts)
            if self.identity:
                hjv, weight = jv, 1.0 / self.evaluation.n_samples
            else:
                hjv = linearised.loss_hessian(jv)
            self.evaluation.add_flat(out, linearised.vjp(hjv), weight)
        self.ranks.sum_(out)
        return out if self.scale is None else out.mul_(self.scale)

    def random_start(self, generator: torch.Generator) -> tuple[Tensor, Callable[[float], float]]:
        """Return a random g of unit variance, and 1, its overlap's scale for any unit vector."""
        like = torch.empty(0, dtype=self.evaluation.dtype, device=self.evaluation.device)
        return random_direction(self.dim, like, generator), lambda _: 1.0

    def to_parameters(self, y: Tensor, value: float) -> Tensor:
        """Return y itself: it lives here."""
        del value
        return y


class OutputGGN:
    """u ↦ J Jᵀ u in the inner product of M = w H, on the output side, u of length D·K.

    J Jᵀ M and G = Jᵀ M J have the same non-zero eigenvalues; from q with J Jᵀ M q = λ q and
    qᵀ M q = 1 the parameter-side eigenvector is Jᵀ M q / √λ.

    For one micro-batch, and losses convex in the outputs (M ⪰ 0). Without a metric it is the NTK
    J Jᵀ / D itself.

    Args:
        evaluation: Model, loss, one micro-batch.
        linearisations: Its linearisation.
        scale: As in :class:`GGN`: the operator becomes J S² Jᵀ.
        identity: M = I / D: the NTK.
    """

    side = "outputs"

    def __init__(
        self,
        evaluation: Evaluation,
        linearisations: Linearisations,
        *,
        scale: Tensor | None = None,
        identity: bool = False,
    ) -> None:
        self.evaluation, self.linearised = evaluation, linearisations[0]
        self.identity = identity
        self.weight = 1.0 / evaluation.n_samples if identity else evaluation.weights[0]
        self.dim = self.linearised.size
        self.metric: Product | None = None if identity else self._metric
        self.squared = None if scale is None else evaluation.unflatten(scale.square())
        self.scale = None if scale is None else evaluation.unflatten(scale)

    def _metric(self, u: Tensor) -> Tensor:
        return self.linearised.loss_hessian(u) * self.weight

    def product(self, v: Tensor) -> Tensor:
        """Return J S² Jᵀ v (times 1/D for the NTK), shape (D·K,)."""
        grads = self.linearised.vjp(v)
        if self.squared is not None:
            grads = [None if g is None else g * s for g, s in zip(grads, self.squared, strict=True)]
        out = self.linearised.jvp(grads).to(v.dtype)
        return out * self.weight if self.identity else out

    def random_start(self, generator: torch.Generator) -> tuple[Tensor, Callable[[float], float]]:
        """Return J S g, g random in parameter space: isotropic where it matters.

        A random u would be short of directions in which H is small; J S g has an overlap of scale
        √λ with the eigenvector of eigenvalue λ: ⟨q, J S g⟩_M = (S Jᵀ M q)·g, |S Jᵀ M q|² = λ.
        """
        z = self.linearised.outputs
        if self.identity:
            like = torch.empty(0, dtype=self.evaluation.dtype, device=z.device)
            return random_direction(self.dim, like, generator), lambda _: 1.0
        parts = []
        for i, p in enumerate(self.evaluation.leaves):
            g = random_direction(p.numel(), p, generator).view(p.shape)
            parts.append(g if self.scale is None else g * self.scale[i])
        start = self.linearised.jvp(parts).to(self.evaluation.dtype)
        return start, lambda value: math.sqrt(max(value, 0.0))

    def to_parameters(self, y: Tensor, value: float) -> Tensor:
        """Return S Jᵀ M y / √λ, normalised, shape (P,); zero if λ is."""
        out = y.new_zeros(self.evaluation.n_parameters)
        if value <= 0:
            return out
        grads = self.linearised.vjp(y if self.metric is None else self.metric(y))
        if self.scale is not None:
            grads = [None if g is None else g * s for g, s in zip(grads, self.scale, strict=True)]
        self.evaluation.add_flat(out, grads)
        return out.div_(torch.linalg.vector_norm(out))
