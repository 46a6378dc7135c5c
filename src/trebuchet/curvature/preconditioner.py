"""Adam's view of curvature: the operator in the coordinates the optimizer steps in.

Adam divides the step in each parameter by P = √v̂ + ε, v̂ its bias-corrected running mean of squared
gradients. Around fixed v̂ it is momentum descent on P^{-1/2}-scaled parameters, so what limits its
learning rate is λ_max(P^{-1/2} A P^{-1/2}) = λ_max(P⁻¹A), for A the Hessian or Gauss–Newton.

Before any step v̂ is unknown; then v̂ after the first step is used, which is g² exactly (bias
correction makes it so), hence P = |g| + ε with the gradient g at these parameters.

References:
    Cohen et al., Adaptive gradient methods at the edge of stability, arXiv 2207.14484.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trebuchet.curvature.problem import Problem
from trebuchet.errors import InputError
from trebuchet.theory.stability import OptimizerName

_ADAM = (torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RAdam)


@dataclass(frozen=True, slots=True)
class OptimizerView:
    """How an optimizer sees curvature.

    Attributes:
        name: Its row in theory/stability.py.
        settings: Its ``momentum`` or ``beta1``.
        scale: s = P^{-1/2}, shape (P,), for Adam's family; else None.
    """

    name: OptimizerName
    settings: dict[str, float]
    scale: Tensor | None = None


def view_of(
    optimizer: torch.optim.Optimizer | str | None,
    problem: Problem,
    gradient: Callable[[], Tensor],
) -> OptimizerView:
    """Read off an optimizer what decides its critical rate.

    Args:
        optimizer: An instance (its state is read, never changed), a name with the usual settings,
            or None for gradient descent.
        problem: Whose parameters the scale is for.
        gradient: Gives ∂L/∂θ, flat, shape (P,), for an Adam without state.

    Returns:
        The view.

    Raises:
        InputError: If the optimizer is of an unknown kind, does not hold the parameters, or its
            groups have different settings.
    """
    if optimizer is None:
        return OptimizerView("sgd", {})
    if isinstance(optimizer, str):
        if optimizer == "adam":
            scale = (gradient().abs() + 1e-8).rsqrt()
            return OptimizerView("adam", {"beta1": 0.9}, scale)
        if optimizer == "sgd":
            return OptimizerView("sgd", {})
        if optimizer == "momentum":
            return OptimizerView("momentum", {"momentum": 0.9})
        if optimizer == "nesterov":
            return OptimizerView("nesterov", {"momentum": 0.9})
        msg = f"optimizer: expected sgd, momentum, nesterov, adam or an instance, got {optimizer!r}"
        raise InputError(msg)
    held = {id(p): g for g in optimizer.param_groups for p in g["params"]}
    groups = []
    for name, p in problem.params.items():
        if id(p) not in held:
            msg = (
                f"optimizer: does not hold the parameter {name!r}; it must be made from this model"
            )
            raise InputError(msg)
        groups.append(held[id(p)])
    if isinstance(optimizer, torch.optim.SGD):
        momentum = _common(groups, "momentum")
        if momentum == 0:
            return OptimizerView("sgd", {})
        kind: OptimizerName = "nesterov" if _common(groups, "nesterov") else "momentum"
        return OptimizerView(kind, {"momentum": momentum})
    if isinstance(optimizer, _ADAM):
        beta1 = float(_common(groups, "betas")[0])
        return OptimizerView(
            "adam", {"beta1": beta1}, _adam_scale(optimizer, problem, groups, gradient)
        )
    msg = (
        f"optimizer: no stability edge is known for {type(optimizer).__name__}; "
        "use SGD (plain, momentum, Nesterov) or one of Adam, AdamW, NAdam, RAdam"
    )
    raise InputError(msg)


def _common(groups: Sequence[dict[str, Any]], key: str) -> Any:
    values = {repr(g[key]): g[key] for g in groups}
    if len(values) > 1:
        msg = f"optimizer: its groups differ in {key} ({', '.join(values)}), so it has no one edge"
        raise InputError(msg)
    return next(iter(values.values()))


def _adam_scale(
    optimizer: torch.optim.Optimizer,
    problem: Problem,
    groups: Sequence[dict[str, Any]],
    gradient: Callable[[], Tensor],
) -> Tensor:
    parts: list[Tensor] = []
    first_step: Tensor | None = None
    at = 0
    for p, group in zip(problem.params.values(), groups, strict=True):
        state = optimizer.state.get(p, {})
        second = state.get("max_exp_avg_sq", state.get("exp_avg_sq"))
        eps = float(group["eps"])
        if second is None:
            if first_step is None:
                first_step = gradient()
            denominator = first_step[at : at + p.numel()].abs() + eps
        else:
            correction = 1 - float(group["betas"][1]) ** float(state["step"])
            denominator = (second.detach().reshape(-1) / correction).sqrt() + eps
        parts.append(denominator.to(problem.dtype).rsqrt())
        at += p.numel()
    return torch.cat(parts)
