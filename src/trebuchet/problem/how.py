"""How a door is told what is trained, and how: a whole `Problem`, or its parts as arguments."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypedDict, cast

import torch

from trebuchet._checks import anything, shown
from trebuchet._doors import Check
from trebuchet.errors import InputError
from trebuchet.problem.batches import SizeOf
from trebuchet.problem.problem import Problem, a_model
from trebuchet.problem.schedules import Schedule


class How(TypedDict, total=False):
    """What a `Problem` has beside model, loss, data and optimizer, as keywords of every door."""

    batch_size: int | None
    test: object
    accumulate: int
    micro_batch: int | None
    autocast: torch.dtype | None
    schedule: Schedule | None
    clip_grad_norm: float | None
    clip_grad_value: float | None
    weights: Sequence[float] | None
    size_of: SizeOf | None
    name: str
    facts: Mapping[str, str] | None


HOW: dict[str, Check] = dict.fromkeys(How.__annotations__, anything)
"""For a door's checks: a `Problem` looks at each itself."""


def as_problem(
    model: object,
    loss: object,
    data: object,
    how: Mapping[str, Any],
    *,
    optimizer: Any = None,
    called: str = "model",
) -> Problem:
    """The problem that a door was given, whole or in parts.

    Args:
        model: A `Problem`, or what it takes.
        loss: The loss; None beside a problem.
        data: The data; None beside a problem.
        how: Keywords of the door, of which those of `How` are used. Beside a problem they take the
            place of its own.
        optimizer: The same; None is not given.
        called: What the door calls its first argument.

    Returns:
        The problem.

    Raises:
        InputError: If a loss or data are given beside a whole one, or a part is not what was
            expected.

    Example:
        >>> from torch import nn
        >>> problem = as_problem(nn.Linear(1, 1), "mse", ([[1.0]], [[2.0]]), {})
        >>> as_problem(problem, None, None, {}) is problem
        True
        >>> as_problem(problem, None, None, {"batch_size": 1}).batch_size
        1
    """
    given = {name: how[name] for name in HOW if name in how}
    if optimizer is not None:
        given["optimizer"] = optimizer
    if not isinstance(model, Problem):
        return Problem(a_model(called, model), cast(Any, loss), data, **given)
    for name, value in {"loss": loss, "data": data}.items():
        if value is not None:
            msg = (
                f"{name}: expected nothing beside a Problem, which says what is trained, got "
                f"{shown(value)}; make the Problem with it, or dataclasses.replace(problem, "
                f"{name}=...)"
            )
            raise InputError(msg)
    return replace(model, **given) if given else model
