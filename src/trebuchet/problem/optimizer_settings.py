"""The settings of an optimizer in any form that a `Problem` takes, and the same with another."""

import inspect
from dataclasses import fields, is_dataclass, replace
from functools import partial
from typing import Any

from torch.optim import Optimizer

from trebuchet._checks import nearest, shown
from trebuchet.errors import InputError
from trebuchet.problem.optimizer_copies import copied
from trebuchet.problem.optimizer_names import lookup
from trebuchet.problem.optimizer_rows import NAMED
from trebuchet.problem.optimizers import describe

HOW_IT_RUNS = {"lr", "params", "foreach", "capturable", "differentiable", "fused", "maximize"}
"""Settings of torch's optimizers that are not varied: how they run, or what a sweep gives."""


def settings_of(optimizer: Any) -> tuple[str, ...]:
    """Names of the settings of an optimizer that may vary; none where they are not known.

    Args:
        optimizer: As a `Problem` takes it.

    Returns:
        The names.

    Raises:
        InputError: If it is a name that no optimizer has.
    """
    try:
        return _settings(_maker(optimizer))
    except InputError:
        raise
    except Exception:  # it may be anything: who trains with it says so
        return ()


def _settings(made: Any) -> tuple[str, ...]:
    if isinstance(made, Optimizer):
        return tuple(name for name in made.defaults if name not in HOW_IT_RUNS)
    if is_dataclass(made):
        return tuple(f.name for f in fields(made))
    parameters = inspect.signature(made).parameters.values()
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    inner = made.func if isinstance(made, partial) else made
    given = 0 if isinstance(inner, type) else 2  # of a function, the parameters and the rate
    return tuple(name for name in named[given:] if name not in HOW_IT_RUNS)


def _maker(optimizer: Any) -> Any:
    """What makes the optimizer of a name; anything else as it is."""
    return NAMED.get(lookup(optimizer), optimizer) if isinstance(optimizer, str) else optimizer


def with_setting(optimizer: Any, name: str, value: Any) -> Any:
    """The same optimizer, with another value of one setting.

    Args:
        optimizer: As a `Problem` takes it.
        name: Of the setting.
        value: Of the setting.

    Returns:
        An optimizer as a `Problem` takes it.

    Raises:
        InputError: If it has no such setting.
    """
    known = settings_of(optimizer)
    if name not in known:
        if not known:
            msg = (
                f"axes: expected an optimizer with a setting {shown(name)}, got "
                f"{shown(optimizer)}; give a class, or a factory(params, rate, {name}=...)"
            )
            raise InputError(msg)
        has = nearest(name, known) or f"it has {', '.join(known)}"
        msg = f"axes: {describe(optimizer)} has no setting {shown(name)}; {has}"
        raise InputError(msg)
    made = _maker(optimizer)
    if isinstance(made, Optimizer):
        made = copied(made)
        for group in (made.defaults, *made.param_groups):
            group[name] = value
        return made
    if is_dataclass(made):
        return replace(made, **{name: value})  # type: ignore[type-var]  # an instance
    return partial(made, **{name: value})
