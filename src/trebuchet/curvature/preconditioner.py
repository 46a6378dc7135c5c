"""An optimizer's view of curvature: the operator in the coordinates that it steps in.

Adam divides the step in each parameter by P = √v̂ + ε, v̂ its bias-corrected running mean of squared
gradients; others divide by other things (``problem.optimizer_rows``). Around fixed P it is momentum
descent on P^{1/2}-scaled parameters, so what limits its learning rate is
λ_max(P^{-1/2} A P^{-1/2}) = λ_max(P⁻¹A), for A the Hessian or Gauss–Newton.

Before any step P is unknown; then P after the first step is used: for Adam |g| + ε with the
gradient g at these parameters, since bias correction makes v̂ = g² exactly.

Weight decay that an optimizer adds to the gradient before it divides makes the operator
P⁻¹(A + W), W the decay of every parameter on the diagonal.

References:
    Cohen et al., Adaptive gradient methods at the edge of stability, arXiv 2207.14484.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from trebuchet.curvature.evaluation import Evaluation
from trebuchet.curvature.lanczos import Product
from trebuchet.curvature.operators import Operator
from trebuchet.errors import InputError
from trebuchet.problem.optimizer_edge import OptimizerEdge, divisors, edge_of


@dataclass(frozen=True, slots=True)
class OptimizerView:
    """How an optimizer sees curvature.

    Attributes:
        edge: Whose edge it is, with the settings in it.
        scale: s = P^{-1/2}, shape (P,), for optimizers that divide; else None.
        shift: Weight decay on the diagonal, w s², shape (P,), where it is part of the operator.
    """

    edge: OptimizerEdge
    scale: Tensor | None = None
    shift: Tensor | None = None


class Shifted:
    """v ↦ A v + w v, entry by entry, for an operator on the parameter side.

    Args:
        operator: A.
        shift: w, shape (P,).
    """

    side = "parameters"
    metric: Product | None = None

    def __init__(self, operator: Operator, shift: Tensor) -> None:
        self.operator, self.shift, self.dim = operator, shift, operator.dim

    def product(self, v: Tensor) -> Tensor:
        """Return A v + w v, shape (P,)."""
        return self.operator.product(v) + self.shift * v

    def random_start(self, generator: torch.Generator) -> tuple[Tensor, Callable[[float], float]]:
        """The start of the operator itself."""
        return self.operator.random_start(generator)

    def to_parameters(self, y: Tensor, value: float) -> Tensor:
        """Return y itself: it lives here."""
        del value
        return y


def view_of(
    optimizer: object, evaluation: Evaluation, gradient: Callable[[], Tensor]
) -> OptimizerView:
    """Read off an optimizer what decides its critical rate.

    Args:
        optimizer: A name, a factory or an instance, as for ``scan`` (its state is read, never
            changed); or None for gradient descent.
        evaluation: Whose parameters the scale is for.
        gradient: Gives ∂L/∂θ, flat, shape (P,), for an optimizer without state.

    Returns:
        The view.

    Raises:
        InputError: If no edge is known for the optimizer, or it does not hold the parameters.
    """
    if optimizer is None:
        return OptimizerView(OptimizerEdge())
    params = list(evaluation.params.values())
    edge = edge_of(optimizer, params)
    if edge.held is not None or edge.optimizer is None:
        held = {id(p) for p in edge.held or ()}
        name = next(n for n, p in evaluation.params.items() if id(p) not in held)
        msg = (
            f"optimizer: does not hold the parameter {name!r}; make it for this model's "
            "parameters, or leave out the others by params="
        )
        raise InputError(msg)
    if edge.missing:
        msg = (
            f"optimizer: {edge.missing}, so it has no one stability edge; leave optimizer out for "
            "the curvature itself"
        )
        raise InputError(msg)
    first: list[Tensor] = []

    def gradients() -> list[Tensor]:
        if not first:
            flat = gradient()
            first.extend(g.view_as(p) for g, p in zip(_split(flat, params), params, strict=True))
        return first

    divided, decays = divisors(edge.optimizer, params, gradients)
    scale = shift = None
    if divided is not None:
        scale = torch.cat([d.detach().reshape(-1).to(evaluation.dtype) for d in divided]).rsqrt()
    if edge.coupled:
        parts = [
            torch.full((p.numel(),), w, dtype=p.dtype) for p, w in zip(params, decays, strict=True)
        ]
        shift = torch.cat(parts).to(evaluation.device, evaluation.dtype)
        shift = shift if scale is None else shift * scale.square()
    return OptimizerView(edge, scale, shift)


def _split(flat: Tensor, params: list[torch.nn.Parameter]) -> tuple[Tensor, ...]:
    return torch.split(flat, [p.numel() for p in params])
