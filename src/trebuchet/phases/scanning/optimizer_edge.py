"""Whose critical rate is known in closed form: what an optimizer's settings do to 2/λ₀."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from trebuchet.curvature.result import TopEigen
from trebuchet.problem.optimizers import make_factory
from trebuchet.theory.stability import critical_lr

KNOWN = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)
"""Exactly these: a subclass may step as it likes."""


@dataclass(frozen=True, slots=True)
class OptimizerEdge:
    """How an optimizer's critical rate follows from the top eigenvalue.

    Attributes:
        seen: The optimizer, for ``top_eigen``; None where plain curvature is measured, because no
            closed form holds.
        missing: Why none holds; empty if one does.
        held: The model's parameters that it updates; None if all.
        decay: Weight decay w that is added to every eigenvalue.
        dampening: The share of each gradient that momentum leaves out.
        remarks: Settings that the closed form leaves out.
    """

    seen: Optimizer | None = None
    missing: str = ""
    held: list[nn.Parameter] | None = None
    decay: float = 0.0
    dampening: float = 0.0
    remarks: tuple[str, ...] = ()

    @property
    def adaptive(self) -> bool:
        """Whether curvature is measured in the optimizer's own coordinates."""
        return isinstance(self.seen, (torch.optim.Adam, torch.optim.AdamW))

    def rate(self, top: TopEigen) -> float:
        """The critical rate; NaN where no closed form holds, infinite without curvature.

        Args:
            top: λ, measured with `seen`.

        Returns:
            η.
        """
        curvature = top.value + self.decay
        if self.seen is None or math.isnan(curvature):
            return math.nan
        if curvature <= 0:
            return math.inf
        return critical_lr(top.optimizer, curvature, **top.settings) / (1 - self.dampening)

    def formula(self, top: TopEigen) -> str:
        """The closed form, with the settings that are in it and those that are not.

        Args:
            top: λ, measured with `seen`.

        Returns:
            A phrase; for heavy-ball momentum also where catapults begin.
        """
        if self.seen is None:
            return f"no critical rate: {self.missing}"
        top_eigenvalue = "(λ₀+w)" if self.decay else "λ₀"
        below = f"(1−d){top_eigenvalue}" if self.dampening else top_eigenvalue
        beta = next(iter(top.settings.values()), 0.0)
        text = {
            "sgd": f"2/{below}",
            "momentum": f"2(1+β)/{f'({below})' if self.dampening else below}, β = {beta:g}",
            "nesterov": f"2(1+β)/((1+2β){below}), β = {beta:g}",
        }.get(top.optimizer, f"2(1+β₁)/((1−β₁){below}), β₁ = {beta:g}")
        settings = [text]
        settings += [f"dampening d = {self.dampening:g}"] * bool(self.dampening)
        settings += [f"weight decay w = {self.decay:g}"] * bool(self.decay)
        settings += self.remarks
        later = "; catapults begin at 2/λ₀" if top.optimizer == "momentum" else ""
        return ", ".join(settings) + later

    def coordinates(self) -> str:
        """In whose coordinates λ is, where they are not the parameters' own."""
        if self.seen is None or not self.adaptive:
            return ""
        stepped = any("exp_avg_sq" in state for state in self.seen.state.values())
        return " in Adam's coordinates " + ("of its state" if stepped else "after its first step")


def edge_of(optimizer: object, params: Sequence[nn.Parameter]) -> OptimizerEdge:
    """Find out whether an optimizer's critical rate is known.

    Args:
        optimizer: A name, a factory or an optimizer, as given to ``scan``.
        params: The model's trainable parameters.

    Returns:
        The edge. Where an optimizer is known but its settings take it out of the closed form, the
        reason is in it.

    Example:
        >>> net = nn.Linear(2, 1)
        >>> edge_of(torch.optim.RMSprop, list(net.parameters())).missing
        'there is no closed form for RMSprop'
    """
    made: Any = optimizer
    if not isinstance(made, Optimizer):
        made = make_factory(optimizer, params, check=False)(params, 1e-3)
    wanted = {id(p) for p in params}
    groups = [g for g in made.param_groups if any(id(p) in wanted for p in g["params"])]
    updated = {id(p) for g in groups for p in g["params"]}
    held = [p for p in params if id(p) in updated]
    if not held:
        return OptimizerEdge(missing="the optimizer holds none of the model's parameters")
    some = held if len(held) < len(params) else None
    missing = _missing(made, groups)
    if missing:
        return OptimizerEdge(missing=missing, held=some)
    decays = {float(g["weight_decay"]) for g in groups}
    dampening = decay = 0.0
    remarks: tuple[str, ...] = ()
    if isinstance(made, torch.optim.SGD):
        dampening = float(groups[0]["dampening"]) if groups[0]["momentum"] else 0.0
        if len(decays) == 1:
            (decay,) = decays
            decays = {0.0}
    if decays != {0.0}:
        remarks = (f"weight decay of {' and '.join(f'{w:g}' for w in sorted(decays))} left out",)
    return OptimizerEdge(made, "", some, decay, dampening, remarks)


def _missing(optimizer: Optimizer, groups: Sequence[dict[str, Any]]) -> str:
    """Why there is no closed form; empty if there is."""
    if type(optimizer) not in KNOWN:
        return f"there is no closed form for {type(optimizer).__name__}"
    rates = [float(g["lr"]) for g in groups]
    if max(rates) - min(rates) > 1e-9 * max(rates):
        return "the parameter groups have different rates"
    if any(g.get("maximize") for g in groups):
        return "the optimizer maximises"
    keys = ("momentum", "nesterov", "dampening") if "momentum" in groups[0] else ("betas",)
    for key in keys:
        if len({repr(g[key]) for g in groups}) > 1:
            return f"the parameter groups differ in {key}"
    if groups[0].get("momentum") and not groups[0]["dampening"] < 1:
        return "dampening leaves nothing of any gradient but the first"
    return ""
