"""Whose critical rate is known in closed form: what an optimizer's settings do to 2/λ₀.

The one place that reads an optimizer's settings for its edge; ``scan`` and ``top_eigen`` both come
here, and the number itself is ``theory.stability``'s.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trebuchet.problem.optimizer_copies import Together, has_hooks
from trebuchet.problem.optimizer_rows import Row, Terms, row_of, step_of
from trebuchet.problem.optimizers import NO_CLIP, Clip, called, given, made_at
from trebuchet.theory.stability import OptimizerName, earliest_rise, edge_at

# Settings that the edge depends on, as named in a parameter group; others may differ.
_DECIDING = (
    "momentum", "nesterov", "dampening", "betas", "momentum_decay", "lr_decay",
    "decoupled_weight_decay",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class OptimizerEdge:
    """How an optimizer's critical rate follows from the top eigenvalue.

    Attributes:
        optimizer: The optimizer that was read; None for plain gradient descent.
        name: Its row in ``theory.stability.TABLE``.
        settings: For ``theory.stability.coefficients``.
        missing: Why there is no closed form; empty if there is one.
        held: The model's parameters that it updates; None if all.
        coupled: Whether weight decay is part of the operator, P⁻¹(H + w).
        remarks: What the closed form leaves out.
    """

    optimizer: Optimizer | None = None
    name: OptimizerName = "sgd"
    settings: dict[str, float] = field(default_factory=dict)
    missing: str = ""
    held: list[nn.Parameter] | None = None
    coupled: bool = False
    remarks: tuple[str, ...] = ()

    @property
    def adaptive(self) -> bool:
        """Whether curvature is measured in the optimizer's own coordinates."""
        row = None if self.optimizer is None or self.missing else row_of(self.optimizer)
        return row is not None and row.divisor is not None

    @property
    def seen(self) -> Optimizer | None:
        """The optimizer, for ``top_eigen``; None where plain curvature is to be measured."""
        return None if self.missing else self.optimizer

    def rate(self, curvature: float) -> float:
        """The critical rate.

        Args:
            curvature: λ, in the optimizer's coordinates.

        Returns:
            η; NaN where no closed form holds, infinite without curvature.
        """
        return math.nan if self.missing else edge_at(self.name, curvature, **self.settings)

    def earliest(self, curvature: float) -> float:
        """The smallest rate at which a quadratic's loss can rise above its start.

        Args:
            curvature: λ.

        Returns:
            η; NaN where it is not known: with a preconditioner, a state, or hooks.
        """
        if self.missing or self.remarks or (self.optimizer is not None and self.optimizer.state):
            return math.nan
        known = {k: v for k, v in self.settings.items() if k in ("momentum", "dampening")}
        curvature += self.settings.get("weight_decay", 0.0)
        product = earliest_rise(self.name, **known)
        return product / curvature if curvature > 0 else math.inf * product

    def formula(self) -> str:
        """The closed form, with the settings that are in it and those that are not."""
        if self.missing:
            return f"no critical rate: {self.missing}"
        given = self.settings
        w, d = given.get("weight_decay", 0.0), given.get("dampening", 0.0)
        top = "(λ₀+w)" if w else "λ₀"
        below = f"(1−d){top}" if d else top
        beta, beta1 = given.get("momentum", 0.0), given.get("beta1", 0.0)
        plus = " + (1+β₁)w" if w else ""

        def averaging(slope: str) -> str:
            inner = f"{slope}λ₀{plus}"
            return f"2(1+β₁)/({inner}), β₁ = {beta1:g}"

        texts: dict[str, str] = {
            "sgd": f"2/{below}",
            "momentum": f"2(1+β)/{f'({below})' if d else below}, β = {beta:g}",
            "nesterov": f"2(1+β)/((1+2β){below}), β = {beta:g}",
            "nadam": f"{averaging('(1+β₁−2μβ₁)')}, μ = {given.get('mix', 0.0):.3g}",
            "radam": f"{averaging('r(1−β₁)')}, r = {given.get('factor', 1.0):.3g}",
            "rmsprop": f"2(1+β)/λ₀, β = {beta:g}" if beta else "2/λ₀",
            "adagrad": "2/λ₀",
        }
        parts = [texts.get(self.name, averaging("(1−β₁)"))]
        if self.name == "adagrad" and given.get("factor", 1.0) != 1:
            parts = [f"2/(fλ₀), f = {given['factor']:.3g}"]
        parts += [f"dampening d = {d:g}"] * bool(d)
        parts += [f"weight decay w = {w:g}"] * bool(w)
        parts += ["weight decay in λ₀"] * self.coupled
        return ", ".join([*parts, *self.remarks])

    def coordinates(self) -> str:
        """In whose coordinates λ is, where they are not the parameters' own."""
        if not self.adaptive or self.optimizer is None:
            return ""
        stepped = any(step_of(state) for state in self.optimizer.state.values())
        whose = type(self.optimizer).__name__
        whose = "Adam" if whose == "AdamW" else whose
        return f" in {whose}'s coordinates " + (
            "of its state" if stepped else "after its first step"
        )


def edge_of(
    optimizer: object, params: Sequence[nn.Parameter], clip: Clip = NO_CLIP
) -> OptimizerEdge:
    """Find out whether an optimizer's critical rate is known.

    Args:
        optimizer: A name, a factory or an optimizer, as given to ``scan``.
        params: The model's trainable parameters.
        clip: Gradient clipping before every step.

    Returns:
        The edge. Where an optimizer is known but its settings take it out of the closed form, the
        reason is in it.

    Raises:
        InputError: If none can be made.

    Example:
        >>> net = nn.Linear(2, 1)
        >>> edge_of(torch.optim.Adadelta, list(net.parameters())).missing
        'there is no closed form for Adadelta'
        >>> edge_of("momentum", list(net.parameters())).rate(3.8)
        1.0
    """
    made: Any = given(optimizer)
    if not isinstance(made, Optimizer):
        made = made_at([1e-3], called(made), params, named=isinstance(made, str))[0]
    wanted = {id(p) for p in params}
    groups = {id(p): g for g in made.param_groups for p in g["params"] if id(p) in wanted}
    held = [p for p in params if id(p) in groups]
    if not held:
        why = "the optimizer holds none of the model's parameters"
        return OptimizerEdge(made, missing=why, held=[])
    some = held if len(held) < len(params) else None
    try:
        terms = _terms(made, [groups[id(p)] for p in held], held)
    except ValueError as error:  # the row's or this file's own, with the reason
        return OptimizerEdge(made, missing=str(error), held=some)
    settings, coupled = dict(terms[0].settings), any(t.coupled for t in terms)
    decays = sorted({float(groups[id(p)]["weight_decay"]) for p in held})
    remarks = []
    if "weight_decay" in settings and len(decays) > 1:
        del settings["weight_decay"]
        # SGD's is a part of the Hessian, entry by entry; decoupled decay is not.
        coupled = isinstance(made, torch.optim.SGD)
        if not coupled:
            remarks.append(f"weight decay of {' and '.join(f'{w:g}' for w in decays)} left out")
    if has_hooks(made):
        remarks.append("what its step hooks do left out")
    if clip:
        limits = [f"{n} {v:g}" for n, v in (("norm", clip.norm), ("value", clip.value)) if v]
        remarks.append(f"where gradients are not clipped ({' and '.join(limits)})")
    return OptimizerEdge(made, terms[0].name, settings, "", some, coupled, tuple(remarks))


def divisors(
    optimizer: Optimizer, params: Sequence[nn.Parameter], first: Callable[[], Sequence[Tensor]]
) -> tuple[list[Tensor] | None, list[float]]:
    """What the optimizer divides every parameter's step by, P, and the decay in its gradient.

    Args:
        optimizer: One whose edge is known; its state is read, never changed.
        params: Parameters that it holds.
        first: Gives ∂L/∂p of each, as the first step will see it, where there is no state.

    Returns:
        P of each parameter, in its shape, or None where nothing is divided; and w of each.
    """
    row = row_of(optimizer)
    assert row is not None
    groups = {id(p): g for g in optimizer.param_groups for p in g["params"]}
    decays = [_coupled(row, groups[id(p)], optimizer.state.get(p, {})) for p in params]
    if row.divisor is None:
        return None, decays
    found: list[Tensor] = []
    for i, p in enumerate(params):

        def gradient(i: int = i, p: nn.Parameter = p) -> Tensor:
            own = first()[i]
            return own + decays[i] * p.detach().to(own.dtype) if decays[i] else own

        found.append(row.divisor(groups[id(p)], optimizer.state.get(p, {}), gradient))
    return found, decays


def _coupled(row: Row, group: dict[str, Any], state: dict[str, Any]) -> float:
    if row.kind is torch.optim.SGD:
        return float(group["weight_decay"])
    return 0.0 if row.terms is None else row.terms(group, state).coupled


def _terms(
    optimizer: Optimizer, groups: Sequence[dict[str, Any]], held: Sequence[nn.Parameter]
) -> list[Terms]:
    """The terms of every parameter; ValueError with the reason where they have no one edge."""
    if isinstance(optimizer, Together):
        msg = "there is no closed form for several optimizers together"
        raise ValueError(msg)
    row = row_of(optimizer)
    if row is None or row.terms is None:
        msg = f"there is no closed form for {type(optimizer).__name__}"
        raise ValueError(msg)
    rates = [float(g["lr"]) for g in groups]
    if max(rates) - min(rates) > 1e-9 * max(rates):
        msg = "the parameter groups have different rates"
        raise ValueError(msg)
    if any(g.get("maximize") for g in groups):
        msg = "the optimizer maximises"
        raise ValueError(msg)
    for key in (k for k in _DECIDING if k in groups[0]):
        if len({repr(g[key]) for g in groups}) > 1:
            msg = f"the parameter groups differ in {key}"
            raise ValueError(msg)
    terms = [
        row.terms(g, optimizer.state.get(p, {})) for g, p in zip(groups, held, strict=True)
    ]  # fmt: skip
    if any({**t.settings, "weight_decay": 0.0} != {**terms[0].settings, "weight_decay": 0.0}
           for t in terms):  # fmt: skip
        msg = "its parameters have made different numbers of steps"
        raise ValueError(msg)
    return terms
