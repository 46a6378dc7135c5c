"""One row an optimizer: how it is made, which settings decide its edge, and what it divides by.

The formulas are in ``theory.stability``. A row says which of them is an optimizer's, and reads the
numbers in it off a parameter group and the state of a parameter. For optimizers that divide the
step in every parameter it also gives that divisor P: from the state, or, before any step, as the
first step's gradient will make it.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from trebuchet.theory.stability import OptimizerName

Group = Mapping[str, Any]
State = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Terms:
    """What decides the edge.

    Attributes:
        name: The row of ``theory.stability.TABLE``.
        settings: For ``theory.stability.coefficients``.
        coupled: Weight decay of an optimizer with a divisor: part of the operator, P⁻¹(H + w).
    """

    name: OptimizerName
    settings: dict[str, float]
    coupled: float = 0.0


@dataclass(frozen=True, slots=True)
class Row:
    """An optimizer class of torch.

    Attributes:
        kind: The class; a subclass may step as it likes, and has no row.
        presets: Names, each with the settings that it stands for.
        terms: Reads the edge off a group and a state; None where none is known. Its ValueError says
            why these settings have none.
        divisor: P from a group, a state and the gradient of the first step, which is asked for only
            where the state does not tell; None where nothing is divided.
    """

    kind: type[Optimizer]
    presets: Mapping[str, Mapping[str, Any]]
    terms: Callable[[Group, State], Terms] | None = None
    divisor: Callable[[Group, State, Callable[[], Tensor]], Tensor] | None = None


def step_of(state: State) -> int:
    """Steps made so far; 0 before the first."""
    return int(float(state.get("step", 0)))


def _below_one(name: str, value: float) -> float:
    if not 0 <= value < 1:
        msg = f"{name} of {value:g} never lets a velocity fade"
        raise ValueError(msg)
    return float(value)


def _sgd(group: Group, state: State) -> Terms:
    del state
    decay = {"weight_decay": float(group["weight_decay"])}
    if not group["momentum"]:
        return Terms("sgd", decay)  # torch dampens with momentum only
    beta = {"momentum": _below_one("momentum", group["momentum"]), **decay}
    if group["nesterov"]:
        return Terms("nesterov", beta)
    if not group["dampening"] < 1:
        msg = "dampening leaves nothing of any gradient but the first"
        raise ValueError(msg)
    return Terms("momentum", {**beta, "dampening": float(group["dampening"])})


def _decays(group: Group, *, decoupled: bool) -> tuple[dict[str, float], float]:
    decay = float(group["weight_decay"])
    return ({"weight_decay": decay}, 0.0) if decoupled else ({}, decay)


def _adam(group: Group, state: State) -> Terms:
    del state
    decoupled = bool(group.get("decoupled_weight_decay", False))
    settings, coupled = _decays(group, decoupled=decoupled)
    beta = _below_one("β₁", group["betas"][0])
    return Terms("adamw" if decoupled else "adam", {"beta1": beta, **settings}, coupled)


def _adamw(group: Group, state: State) -> Terms:
    del state
    settings, _ = _decays(group, decoupled=True)
    return Terms("adamw", {"beta1": _below_one("β₁", group["betas"][0]), **settings})


def _nadam(group: Group, state: State) -> Terms:
    settings, coupled = _decays(group, decoupled=bool(group.get("decoupled_weight_decay", False)))
    beta = _below_one("β₁", group["betas"][0])
    mix = beta * (1 - 0.5 * 0.96 ** ((step_of(state) + 1) * group["momentum_decay"]))
    return Terms("nadam", {"beta1": beta, "mix": mix, **settings}, coupled)


def rectification(beta2: float, step: int) -> float:
    """RAdam's factor r of step t; NaN in the first steps, which are not divided by anything."""
    whole = 2 / (1 - beta2) - 1
    rho = whole - 2 * step * beta2**step / (1 - beta2**step)
    if rho <= 5:
        return math.nan
    return math.sqrt((rho - 4) * (rho - 2) * whole / ((whole - 4) * (whole - 2) * rho))


def _radam(group: Group, state: State) -> Terms:
    settings, coupled = _decays(group, decoupled=bool(group.get("decoupled_weight_decay", False)))
    beta = _below_one("β₁", group["betas"][0])
    factor = rectification(float(group["betas"][1]), step_of(state) + 1)
    if math.isnan(factor):
        msg = "the first steps of RAdam are not divided by anything, and those after them ramp up"
        raise ValueError(msg)
    return Terms("radam", {"beta1": beta, "factor": factor, **settings}, coupled)


def _adamax(group: Group, state: State) -> Terms:
    del state
    return Terms(
        "adamax", {"beta1": _below_one("β₁", group["betas"][0])}, float(group["weight_decay"])
    )


def _rmsprop(group: Group, state: State) -> Terms:
    del state
    beta = _below_one("momentum", group["momentum"])
    return Terms("rmsprop", {"momentum": beta}, float(group["weight_decay"]))


def _adagrad(group: Group, state: State) -> Terms:
    factor = 1 / (1 + step_of(state) * float(group["lr_decay"]))
    return Terms("adagrad", {"factor": factor}, float(group["weight_decay"]))


def _adam_divisor(group: Group, state: State, first: Callable[[], Tensor]) -> Tensor:
    eps, second = float(group["eps"]), state.get("max_exp_avg_sq", state.get("exp_avg_sq"))
    if second is None or not step_of(state):
        return first().abs() + eps  # bias correction makes v̂ = g²
    correction = 1 - float(group["betas"][1]) ** step_of(state)
    root: Tensor = (second.detach() / correction).sqrt()
    return root + eps


def _radam_divisor(group: Group, state: State, first: Callable[[], Tensor]) -> Tensor:
    del first  # there is no edge before the state has one
    correction = 1 - float(group["betas"][1]) ** step_of(state)
    second: Tensor = state["exp_avg_sq"]
    # Its ε is added before the bias correction, unlike Adam's.
    return (second.detach().sqrt() + float(group["eps"])) / math.sqrt(correction)


def _adamax_divisor(group: Group, state: State, first: Callable[[], Tensor]) -> Tensor:
    if not step_of(state):
        return first().abs() + float(group["eps"])
    top: Tensor = state["exp_inf"]
    return top.detach()


def _rmsprop_divisor(group: Group, state: State, first: Callable[[], Tensor]) -> Tensor:
    if step_of(state):
        second = state["square_avg"].detach()
        if group["centered"]:
            second = second - state["grad_avg"].detach().square()
    else:
        kept = 1 - float(group["alpha"])
        # After one step v = (1 − α)g² and, if it is centred, the mean is (1 − α)g.
        second = first().square() * (kept - kept**2 if group["centered"] else kept)
    root: Tensor = second.clamp_min(0).sqrt()
    return root + float(group["eps"])


def _adagrad_divisor(group: Group, state: State, first: Callable[[], Tensor]) -> Tensor:
    total = state.get("sum")
    if total is None or not step_of(state):
        total = first().square() + float(group["initial_accumulator_value"])
    root: Tensor = total.detach().sqrt()
    return root + float(group["eps"])


_optim: Any = torch.optim  # Adafactor and Muon are younger than the oldest torch that will do
ROWS: tuple[Row, ...] = (
    Row(
        torch.optim.SGD,
        {
            "sgd": {},
            "momentum": {"momentum": 0.9},
            "nesterov": {"momentum": 0.9, "nesterov": True},
        },
        _sgd,
    ),
    Row(torch.optim.Adam, {"adam": {}}, _adam, _adam_divisor),
    Row(torch.optim.AdamW, {"adamw": {}}, _adamw, _adam_divisor),
    Row(torch.optim.NAdam, {"nadam": {}}, _nadam, _adam_divisor),
    Row(torch.optim.RAdam, {"radam": {}}, _radam, _radam_divisor),
    Row(torch.optim.Adamax, {"adamax": {}}, _adamax, _adamax_divisor),
    Row(torch.optim.RMSprop, {"rmsprop": {}}, _rmsprop, _rmsprop_divisor),
    Row(torch.optim.Adagrad, {"adagrad": {}}, _adagrad, _adagrad_divisor),
    Row(torch.optim.Adadelta, {"adadelta": {}}),
    Row(torch.optim.ASGD, {"asgd": {}}),
    Row(torch.optim.Rprop, {"rprop": {}}),
    *(
        Row(getattr(_optim, name), {name.lower(): {}})
        for name in ("Adafactor", "Muon")
        if hasattr(_optim, name)
    ),
)
"""Every optimizer that has a name here."""

NAMED: dict[str, Callable[..., Optimizer]] = {
    name: partial(row.kind, **settings) if settings else row.kind
    for row in ROWS
    for name, settings in row.presets.items()
}
"""Optimizers by name, with torch's defaults; momentum β = 0.9."""


def row_of(optimizer: Optimizer) -> Row | None:
    """The row of an optimizer's class; None for a subclass, and for a class not known here."""
    return next((row for row in ROWS if row.kind is type(optimizer)), None)
