"""Optimizers made fresh for every run, at that run's rate."""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from trebuchet.errors import InputError

Factory = Callable[[Sequence[nn.Parameter], float], Optimizer]
"""``factory(params, rate) -> optimizer``; an optimizer class, or a ``partial`` of one, is one."""

NAMED: dict[str, Callable[..., Optimizer]] = {
    "sgd": torch.optim.SGD,
    "momentum": partial(torch.optim.SGD, momentum=0.9),
    "nesterov": partial(torch.optim.SGD, momentum=0.9, nesterov=True),
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}
"""Optimizers by name, with torch's defaults; momentum β = 0.9."""


def make_factory(optimizer: object, params: Sequence[nn.Parameter]) -> Factory:
    """Return a function that makes an optimizer at a rate, and check that it heeds the rate.

    Args:
        optimizer: A name, a factory, or an optimizer already made: then every run starts from its
            state, and the rate is that of its first group, the others' keeping their ratio to it.
        params: The trainable parameters.

    Returns:
        The factory.

    Raises:
        InputError: If `optimizer` is unknown, makes no optimizer, or ignores the rate.
    """
    if isinstance(optimizer, Optimizer):
        return _from_instance(optimizer)
    if isinstance(optimizer, str):
        if optimizer not in NAMED:
            names = ", ".join(repr(n) for n in NAMED)
            msg = f"optimizer: expected {names} or a factory(params, rate), got {optimizer!r}"
            raise InputError(msg)
        make = NAMED[optimizer]
        return lambda p, rate: make(p, lr=rate)
    if not callable(optimizer):
        msg = (
            "optimizer: expected a name, an optimizer, or a factory(params, rate), got a "
            f"{type(optimizer).__name__}"
        )
        raise InputError(msg)
    factory = _called(optimizer)
    _check_heeds(factory, params)
    return factory


def _called(optimizer: Callable[..., Any]) -> Factory:
    inner = optimizer.func if isinstance(optimizer, partial) else optimizer
    if isinstance(inner, type) and issubclass(inner, Optimizer):
        return lambda p, rate: optimizer(p, lr=rate)
    return lambda p, rate: optimizer(p, rate)


def _check_heeds(factory: Factory, params: Sequence[nn.Parameter]) -> None:
    made = [factory(params, rate) for rate in (1e-3, 2e-3)]
    if not all(isinstance(o, Optimizer) for o in made):
        msg = (
            "optimizer: the factory must return a torch.optim.Optimizer, got a "
            f"{type(made[0]).__name__}"
        )
        raise InputError(msg)
    low, high = ([float(g["lr"]) for g in o.param_groups] for o in made)
    if any(abs(b - 2 * a) > 1e-6 * abs(b) or b == 0 for a, b in zip(low, high, strict=True)):
        msg = (
            "optimizer: the factory ignores the rate it is given (at rates 0.001 and 0.002 its "
            f"groups have lr {low} and {high}); pass the second argument on as lr, of every group"
        )
        raise InputError(msg)


def _from_instance(optimizer: Optimizer) -> Factory:
    rates = [float(g["lr"]) for g in optimizer.param_groups]
    if not rates[0] > 0:
        msg = "optimizer: its first group has lr 0, so the other groups' ratio to it is undefined"
        raise InputError(msg)

    def factory(params: Sequence[nn.Parameter], rate: float) -> Optimizer:
        made = copy.copy(optimizer)
        made.param_groups = [
            {**group, "params": list(group["params"]), "lr": rate * lr / rates[0]}
            for group, lr in zip(optimizer.param_groups, rates, strict=True)
        ]
        made.state = type(optimizer.state)(
            optimizer.state.default_factory,
            {p: copy.deepcopy(state) for p, state in optimizer.state.items()},
        )
        return made

    return factory


def describe(optimizer: object) -> str:
    """Return a name for tables and files."""
    if isinstance(optimizer, str):
        return optimizer
    if isinstance(optimizer, Optimizer):
        return type(optimizer).__name__
    inner = optimizer.func if isinstance(optimizer, partial) else optimizer
    return str(getattr(inner, "__name__", type(inner).__name__))
