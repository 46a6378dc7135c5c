"""What a sweep varies beside rates and seeds, and the problem of each cell."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from trebuchet._checks import as_index, as_real, items, mapping, nearest, refuse, shown
from trebuchet.errors import InputError
from trebuchet.problem.optimizer_settings import settings_of, with_setting
from trebuchet.problem.optimizers import describe
from trebuchet.problem.problem import Problem
from trebuchet.results.schema import COORDINATES, VARIABLES

FIELDS = (
    "loss", "optimizer", "batch_size", "accumulate", "micro_batch", "autocast", "schedule",
    "clip_grad_norm", "clip_grad_value",
)  # fmt: skip
"""Of a `Problem`, those that may vary."""
OPTIMIZER = "optimizer."
DIMS = {"loss": "loss_name"}
"""What the dim is called, where results have a variable of the axis's own name."""


@dataclass(frozen=True, slots=True)
class Axis:
    """A name, and what it takes.

    Attributes:
        name: Of a keyword of the model's factory, a field of the problem, or a setting of the
            optimizer.
        values: What it takes.
        labels: The same as results hold it: numbers, or names.
    """

    name: str
    values: tuple[Any, ...]
    labels: NDArray[Any]

    @property
    def dim(self) -> str:
        """What results call it."""
        return DIMS.get(self.name, self.name)

    @property
    def coordinate(self) -> xr.Variable:
        """What results hold."""
        of = f"{self.name.removeprefix(OPTIMIZER)} of the optimizer"
        name = of if self.name.startswith(OPTIMIZER) else self.name.replace("_", " ")
        about = {"units": "1" if self.labels.dtype.kind in "if" else "", "long_name": name}
        return xr.Variable((self.dim,), self.labels, about)


@dataclass(frozen=True, slots=True)
class Cell:
    """One place on every axis.

    Attributes:
        problem: The problem there.
        name: Where that is, such as "width=64, batch_size=16".
    """

    problem: Problem
    name: str


def axes_given(name: str, value: object) -> tuple[Axis, ...]:
    """The axes of a call: for each name different values, in a list, or by names in a dict."""
    found = []
    for key, given in mapping(name, value).items():
        if not isinstance(key, str):
            refuse(name, "names as keys, such as {'width': [64, 256]}", key)
        found.append(_axis(f"{name}[{shown(key)}]", key, given))
    if not found:
        refuse(name, "one axis or more, such as {'width': [64, 256]}", value)
    return tuple(found)


def _axis(called: str, key: str, given: object) -> Axis:
    named = isinstance(given, Mapping)
    listed: Any = list(given.values()) if isinstance(given, Mapping) else given
    if isinstance(listed, (str, bytes)) or not isinstance(listed, Iterable) or _is_number(listed):
        refuse(called, "a list of values", given, f"a single one is [{shown(given)}]")
    values = tuple(v.item() if isinstance(v, np.generic) else v for v in items(listed, _itself))
    if not values:
        refuse(called, "one value or more", given)
    if isinstance(given, Mapping):
        labels = np.array([str(name) for name in given])
    else:
        labels = _labels(called, key, values)
    seen: set[Any] = set()
    for label in labels.tolist():
        if label in seen:
            advice = "" if named else "; give a dict of names where different values share one"
            msg = f"{called}: expected different values, got {shown(label)} twice{advice}"
            raise InputError(msg)
        seen.add(label)
    return Axis(key, values, labels)


def _itself(value: object) -> object:
    return value


def _is_number(value: object) -> bool:
    return as_real(value) is not None


def _labels(called: str, key: str, values: Sequence[Any]) -> NDArray[Any]:
    numbers = [as_real(v) for v in values]
    if any(n is not None and not np.isfinite(n) for n in numbers):
        refuse(called, "finite numbers", list(values))
    if all(as_index(v) is not None for v in values):
        return np.array([as_index(v) for v in values], dtype=np.int64)
    if all(n is not None for n in numbers):
        return np.array(numbers, dtype=np.float64)
    return np.array([_label(key, v) for v in values])


def _label(key: str, value: Any) -> str:
    """What a value that is no number is called."""
    if isinstance(value, str) and key != "optimizer":
        return value
    if value is None or isinstance(value, (bool, int, float, tuple, list)):
        return str(value)
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if is_dataclass(value) and not isinstance(value, type):
        return shown(value)
    if key == "optimizer":
        return describe(value)
    return str(getattr(value, "__name__", type(value).__name__))


def cells(problem: Problem, axes: Sequence[Axis], observables: Iterable[str]) -> list[Cell]:
    """The problem of every cell, the last axis fastest.

    Args:
        problem: What the axes vary.
        axes: The axes.
        observables: Names of what is recorded, which no axis may have.

    Returns:
        The cells; each problem is one that can be swept by itself.

    Raises:
        InputError: If there is nothing of an axis's name that can vary, results have something
            else of that name, or a value is not what was expected there.
    """
    for axis in axes:
        _check_name(problem, axes, axis, {*COORDINATES, *VARIABLES, *observables})
    found = []
    for places in product(*(range(len(axis.values)) for axis in axes)):
        chosen = {a.name: a.values[i] for a, i in zip(axes, places, strict=True)}
        labels = [f"{a.name}={a.labels[i]}" for a, i in zip(axes, places, strict=True)]
        found.append(Cell(_changed(problem, chosen), ", ".join(labels)))
    return found


def _changed(problem: Problem, chosen: Mapping[str, Any]) -> Problem:
    """The problem with what was chosen for a cell: the only place where one is made."""
    known = factory_takes(problem)
    made = {n: v for n, v in chosen.items() if n in known and n not in FIELDS}
    changes = {n: v for n, v in chosen.items() if n in FIELDS}
    optimizer = changes.get("optimizer", problem.optimizer)
    for name, value in chosen.items():
        if name.startswith(OPTIMIZER):
            optimizer = with_setting(optimizer, name.removeprefix(OPTIMIZER), value)
            changes["optimizer"] = optimizer
    if made:
        changes["model"] = partial(_factory(problem), **made)
        _check_complete(changes["model"], made)
    return replace(problem, **changes)


def _check_complete(factory: Callable[..., Any], made: Mapping[str, Any]) -> None:
    try:
        signature = inspect.signature(factory)
        signature.bind(0)
    except TypeError as error:
        msg = (
            f"axes: expected one for every argument that the model's function needs beside the "
            f"seed, got {', '.join(made)} ({error}); name the others too, or give them defaults"
        )
        raise InputError(msg) from error


def _factory(problem: Problem) -> Callable[..., Any]:
    factory: Any = problem.model
    return factory  # type: ignore[no-any-return]


def factory_takes(problem: Problem) -> tuple[str, ...]:
    """Keywords of the model's function beside the seed; none of a module.

    Args:
        problem: The problem.

    Returns:
        Their names.
    """
    if not problem.reseeds:
        return ()
    try:
        parameters = list(inspect.signature(_factory(problem)).parameters.values())
    except (TypeError, ValueError):  # written in C
        return ()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    first = next(iter(parameters), None)  # the seed
    return tuple(p.name for p in named if p is not first)


def _check_name(problem: Problem, axes: Sequence[Axis], axis: Axis, taken: set[str]) -> None:
    factory = factory_takes(problem)
    own = next((a.values for a in axes if a.name == "optimizer"), (problem.optimizer,))
    settings = [
        f"{OPTIMIZER}{name}" for name in dict.fromkeys(n for o in own for n in settings_of(o))
    ]
    known = [*factory, *FIELDS, *settings]
    if axis.name in factory and axis.name in FIELDS:
        msg = (
            f"axes: {axis.name!r} is an argument of the model's function and a field of the "
            "Problem; rename the function's argument"
        )
        raise InputError(msg)
    if axis.dim in taken:
        msg = (
            f"axes: expected a name that results do not have, got {shown(axis.name)}"
            + ("; give lr= or lr_ratio=" if axis.name in ("lr", "lr_ratio") else "")
            + ("; give seeds=" if axis.name == "seed" else "")
            + ("; rename the argument of the model's function" if axis.name in factory else "")
        )
        raise InputError(msg)
    if axis.name in known or (axis.name.startswith(OPTIMIZER) and not settings):
        return
    if axis.name == f"{OPTIMIZER}lr":
        msg = "axes: 'optimizer.lr' is what lr= and lr_ratio= sweep; leave it out"
        raise InputError(msg)
    bare = nearest(axis.name, [name.removeprefix(OPTIMIZER) for name in settings])
    near = nearest(axis.name, known) or bare.replace("mean '", f"mean '{OPTIMIZER}")
    msg = (
        f"axes: nothing called {shown(axis.name)} can vary here; {near + ' ' if near else ''}"
        f"These can: {', '.join(known)}"
    )
    if not factory:
        msg += "; the model's own, once the model is a function such as lambda seed, width: ..."
    raise InputError(msg)
