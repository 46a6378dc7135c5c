"""Learning-rate schedules: a multiplier of the rate at step t, or one of torch's schedulers.

torch's schedulers are made for one optimizer, so a scan, which has one optimizer a run, takes what
makes them: a function of an optimizer. It is called for every run, whose rate the optimizer has
when the scheduler is made, and steps once after every update. So a multiplier is relative to the
run's rate, a cycle of the momentum happens too, and what a scheduler sets by itself (``max_lr``)
must come from the optimizer that it is given.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from trebuchet._checks import as_real, one_line, shown
from trebuchet.errors import InputError
from trebuchet.problem.optimizers import Factory

Multiplier = Callable[[int], float]
MakeScheduler = Callable[[Optimizer], LRScheduler]
Schedule = Multiplier | MakeScheduler
"""A multiplier of the rate at step t, or a function that makes a scheduler for an optimizer."""

EVERY_STEP = 100_000
"""A schedule is evaluated beforehand at every step up to here."""


def makes_scheduler(schedule: object) -> bool:
    """Whether a schedule is one that makes torch's schedulers, rather than a function of the step.

    Args:
        schedule: As given.

    Returns:
        True for a scheduler class, a partial of one, and a function that gives no number for step
        0 but a scheduler for an optimizer.

    Raises:
        InputError: If it is a scheduler that is made already, or not callable.
    """
    if isinstance(schedule, LRScheduler):
        kind = type(schedule).__name__
        msg = (
            f"schedule: expected a function of the step or of an optimizer, got a {kind} that "
            f"belongs to one optimizer; give what makes it, such as lambda optimizer: "
            f"{kind}(optimizer, ...)"
        )
        raise InputError(msg)
    inner = schedule.func if isinstance(schedule, partial) else schedule
    if isinstance(inner, type) and issubclass(inner, LRScheduler):
        return True
    if not callable(schedule):
        msg = (
            "schedule: expected a function of the step t that returns a multiplier of the rate, or "
            f"of an optimizer that returns a scheduler, got {shown(schedule)}; give a function "
            "such as lambda t: 1 / (1 + t)"
        )
        raise InputError(msg)
    try:
        return as_real(schedule(0)) is None and isinstance(schedule(_probe()), LRScheduler)
    except Exception:  # the user's function may raise anything of what it does not take
        try:
            return isinstance(schedule(_probe()), LRScheduler)
        except Exception as error:
            # One for optimizers of another kind: SGD without momentum has none to cycle.
            return "optimizer" in str(error).lower() and not isinstance(error, TypeError)


def _probe() -> Optimizer:
    import torch

    return torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=1e-3)


def attach(schedule: MakeScheduler, optimizer: Optimizer) -> LRScheduler:
    """Make a run's scheduler.

    Args:
        schedule: Makes it.
        optimizer: The run's, at its rate.

    Returns:
        The scheduler, which has set the rates of the first step.
    """
    # Schedulers of schedulers warn about their own doing.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return schedule(optimizer)


def advance(scheduler: LRScheduler) -> None:
    """Go to the next step."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        scheduler.step()


def _looked_at(horizon: int) -> Iterable[int]:
    """Every step, or, of more than a function can be asked about, the first and some others."""
    if horizon <= EVERY_STEP:
        return range(horizon)
    return [*range(EVERY_STEP), *range(EVERY_STEP, horizon, horizon // EVERY_STEP), horizon - 1]


def check_multiplier(schedule: Multiplier, horizon: int) -> None:
    """Evaluate it at every step of a run: a multiplier that is none would end one in the middle.

    Args:
        schedule: The multiplier.
        horizon: Steps of a run.

    Raises:
        InputError: If it is none at one of them.
    """
    highest = 0.0
    for t in _looked_at(horizon):
        try:
            factor = schedule(t)
        except Exception as error:  # the user's function may raise anything
            msg = (
                f"schedule: expected a multiplier of the rate for every step t from 0 to "
                f"{horizon - 1}, got {one_line(error)} at t = {t}; mend the function there"
            )
            raise InputError(msg) from error
        number = as_real(factor)
        if number is None or not 0 <= number < math.inf:
            msg = (
                "schedule: expected finite multipliers >= 0 of the rate, got "
                f"{shown(factor)} at t = {t}; mend the function there"
            )
            raise InputError(msg)
        highest = max(highest, number)
    if highest == 0:
        msg = (
            f"schedule: expected a multiplier above 0 at some step, got 0 at all {horizon}; "
            "nothing would be trained"
        )
        raise InputError(msg)


def check_scheduler(
    schedule: MakeScheduler, factory: Factory, params: Sequence[nn.Parameter], horizon: int
) -> None:
    """Run a scheduler through a whole horizon at two rates, without a step of the optimizer.

    Args:
        schedule: Makes the scheduler.
        factory: Makes the optimizer.
        params: The trainable parameters.
        horizon: Steps of a run.

    Raises:
        InputError: If it cannot be made or ends early, needs a validation loss, gives rates that
            are none, or does not heed the optimizer's rate.
    """
    traces = [_trace(schedule, factory(params, rate), horizon) for rate in (1e-3, 2e-3)]
    low, high = (max(trace) for trace in traces)
    if high == 0:
        msg = (
            f"schedule: expected a rate above 0 at some step, got 0 at all {horizon}; nothing "
            "would be trained"
        )
        raise InputError(msg)
    if not high > 1.5 * low:
        msg = (
            f"schedule: the scheduler does not heed the optimizer's rate (its highest is {low:g} "
            f"for rate 0.001 and {high:g} for 0.002); take what it sets from the optimizer, such "
            "as max_lr=optimizer.param_groups[0]['lr']"
        )
        raise InputError(msg)


def _trace(schedule: MakeScheduler, optimizer: Optimizer, horizon: int) -> list[float]:
    """The first group's rate at every step."""
    made: Any = None
    found: list[float] = []
    try:
        made = attach(schedule, optimizer)
        if isinstance(made, LRScheduler) and not isinstance(made, ReduceLROnPlateau):
            for t in range(horizon):
                found.append(float(optimizer.param_groups[0]["lr"]))
                if t < horizon - 1:
                    advance(made)
    except Exception as error:  # the user's function may raise anything
        msg = (
            "schedule: expected a scheduler for every step of the run from 0 to "
            f"{horizon - 1}, got {one_line(error)} at step {len(found)}; mend it, or shorten the "
            "horizon"
        )
        raise InputError(msg) from error
    if isinstance(made, ReduceLROnPlateau):
        msg = (
            "schedule: ReduceLROnPlateau waits for a validation loss, which a scan has not; give a "
            "schedule that is a function of the step"
        )
        raise InputError(msg)
    if not isinstance(made, LRScheduler):
        msg = (
            "schedule: expected a function of an optimizer that returns a scheduler, got one that "
            f"returns a {type(made).__name__}; return the scheduler itself"
        )
        raise InputError(msg)
    bad = next((t for t, rate in enumerate(found) if not 0 <= rate < math.inf), None)
    if bad is not None:
        msg = (
            f"schedule: expected finite rates >= 0, got {found[bad]:g} at step {bad}; mend the "
            "scheduler there"
        )
        raise InputError(msg)
    return found


def describe_schedule(schedule: object) -> str:
    """Return a name for tables and files; empty for none."""
    if schedule is None:
        return ""
    inner = schedule.func if isinstance(schedule, partial) else schedule
    return str(getattr(inner, "__name__", type(inner).__name__))
