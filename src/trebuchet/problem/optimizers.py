"""Optimizers made fresh for every run, at that run's rate."""

import copy
import inspect
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn

import torch
from torch import nn
from torch.optim import Optimizer

from trebuchet._checks import one_line
from trebuchet.errors import InputError
from trebuchet.problem.risk import out_of_memory

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


def make_factory(
    optimizer: object, params: Sequence[nn.Parameter], *, check: bool = True
) -> Factory:
    """Return a function that makes an optimizer at a rate, and check that a scan can use it.

    One step with zero gradients is tried. The parameters are put back, and nothing is left of it.

    Args:
        optimizer: A name, a factory, or an optimizer already made: then every run starts from its
            state, and the rate is that of its first group, the others' keeping their ratio to it.
        params: The trainable parameters.
        check: False where it was checked before.

    Returns:
        The factory.

    Raises:
        InputError: If `optimizer` is unknown, makes no optimizer, ignores the rate, maximises, is
            not for the model's parameters and only them, or cannot make a step by itself.
    """
    if isinstance(optimizer, Optimizer):
        factory = _from_instance(optimizer)
        if check:
            _check_parameters(optimizer, params)
            _check_step(factory(params, 1e-3), params)
        return factory
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
    if check:
        made = _check_heeds(factory, params)
        _check_parameters(made, params)
        _check_step(made, params)
    return factory


def _called(optimizer: Callable[..., Any]) -> Factory:
    inner = optimizer.func if isinstance(optimizer, partial) else optimizer
    if isinstance(inner, type) and issubclass(inner, Optimizer):
        return lambda p, rate: optimizer(p, lr=rate)
    return lambda p, rate: optimizer(p, rate)


def _check_heeds(factory: Factory, params: Sequence[nn.Parameter]) -> Optimizer:
    """Make two optimizers, and return one if their rates are those asked for."""
    try:
        made = [factory(params, rate) for rate in (1e-3, 2e-3)]
    except InputError:
        raise
    except Exception as error:  # the user's factory may raise anything
        advice = "expected a name or a factory(params, rate) that returns an optimizer"
        _explain("could not be made for this model", advice, error)
    if not all(isinstance(o, Optimizer) for o in made):
        msg = (
            "optimizer: the factory must return a torch.optim.Optimizer, got a "
            f"{type(made[0]).__name__}"
        )
        raise InputError(msg)
    low, high = (_rates(o) for o in made)
    if len(low) != len(high) or not all(
        abs(b - 2 * a) <= 1e-6 * abs(b) and b != 0 for a, b in zip(low, high, strict=True)
    ):
        msg = (
            "optimizer: the factory ignores the rate it is given (at rates 0.001 and 0.002 its "
            f"groups have lr {low} and {high}); pass the second argument on as lr, of every group"
        )
        raise InputError(msg)
    return made[0]


def _check_parameters(optimizer: Optimizer, params: Sequence[nn.Parameter]) -> None:
    known = {id(p) for p in params}
    held = [p for group in optimizer.param_groups for p in group["params"]]
    if not any(id(p) in known for p in held):
        msg = (
            "optimizer: holds none of the model's parameters; make it for this model's (a copy "
            "has others), or give a factory(params, rate)"
        )
        raise InputError(msg)
    # Frozen parameters of the model may be among them: no step moves those.
    others = sum(id(p) not in known and p.requires_grad for p in held)
    if others:
        msg = (
            f"optimizer: holds {others} parameters that are not the model's (a loss's own?); put "
            "them into one module with the model and give a closure loss(model, batch)"
        )
        raise InputError(msg)
    if any(group.get("maximize") for group in optimizer.param_groups):
        msg = (
            "optimizer: expected one that lowers the loss, got maximize=True; scan minus the loss "
            "with maximize=False"
        )
        raise InputError(msg)


def _check_step(made: Optimizer, params: Sequence[nn.Parameter]) -> None:
    """Try one step; the parameters and their gradients are put back."""
    rules = inspect.signature(made.step).parameters.values()
    if any(r.default is r.empty and r.kind is r.POSITIONAL_OR_KEYWORD for r in rules):
        _refuse_closure(made)
    kept = [(p, p.detach().clone(), p.grad) for p in params]
    try:
        for p in params:
            p.grad = torch.zeros_like(p)
        made.step()
    except Exception as error:  # an optimizer may raise anything
        if "closure" in str(error):
            _refuse_closure(made, error)
        what = f"{type(made).__name__} cannot make a step on this model"
        _explain(what, "change its settings, or give a factory(params, rate)", error)
    finally:
        with torch.no_grad():
            for p, value, grad in kept:
                p.copy_(value)
                p.grad = grad


def _refuse_closure(made: Optimizer, error: Exception | None = None) -> NoReturn:
    msg = (
        f"optimizer: its step needs a closure ({type(made).__name__}), which a scan cannot give; "
        "choose one whose step() works from the gradients alone"
    )
    raise InputError(msg) from error


def _explain(what: str, advice: str, error: Exception) -> NoReturn:
    if out_of_memory(error):
        raise error
    msg = f"optimizer: {what} ({one_line(error)}); {advice}"
    raise InputError(msg) from error


def _rates(optimizer: Optimizer) -> list[float]:
    return [float(group.get("lr", math.nan)) for group in optimizer.param_groups]


def _from_instance(optimizer: Optimizer) -> Factory:
    rates = _rates(optimizer)
    if not (rates[0] > 0 and all(map(math.isfinite, rates))):
        msg = (
            f"optimizer: its first group has lr {rates[0]:g}, so the other groups' ratio to it is "
            "undefined; give the groups finite rates, the first a positive one"
        )
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
