"""What the runs of a sweep have in common: when they end, what is recorded, and when."""

from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from trebuchet.engine.looks import looks
from trebuchet.engine.recording import Recording
from trebuchet.engine.runner import Plan, asked
from trebuchet.engine.stopping import StopRule
from trebuchet.errors import InputError
from trebuchet.observables.base import Observable, UnavailableError
from trebuchet.observables.held_out_loss import HeldOutLoss
from trebuchet.observables.registry import OBSERVABLES
from trebuchet.observables.weight_norm import WeightNorm
from trebuchet.sweeps.binding import Binding


def plan_of(
    bound: Binding,
    stop: StopRule,
    record: Recording | None,
    chosen: Sequence[Observable],
    delta: float | None,
    checkpoint_seconds: float,
) -> Plan:
    """What all runs have in common; where looks are apart from steps, as a scan has it.

    Args:
        bound: The problem.
        stop: When runs end.
        record: Which steps are recorded; None for the usual ones.
        chosen: What is recorded.
        delta: δ; None for the usual one.
        checkpoint_seconds: How often an unfinished chunk is saved.

    Returns:
        The plan.

    Raises:
        InputError: If runs are to end at a loss that is not the one they are judged by.
    """
    if not bound.free_looks and stop.tolerance is not None:
        msg = (
            "tolerance: expected None, since a loss of batches, or one with noise, changes in "
            "every step; give a number of steps instead"
        )
        raise InputError(msg)
    if record is None and not bound.free_looks:
        schedule = looks(stop.max_steps)
    else:
        schedule = (record or Recording()).steps(stop.max_steps)
    beside = [o for o in chosen if o.name != "weight_norm" and o.recorded]
    at_end = [o for o in chosen if not o.recorded]
    if bound.problem.test is not None and "test_loss" not in {o.name for o in chosen}:
        at_end.append(HeldOutLoss())
    return Plan(
        stop=stop,
        schedule=schedule,
        observables=(WeightNorm(), *beside),
        only_at_the_end=tuple(at_end),
        delta=bound.delta(delta),
        checkpoint_seconds=checkpoint_seconds,
    )


def try_out(bound: Binding, chosen: Sequence[Observable], rate: float) -> None:
    """Measure once, at a start, what others defined, before anything is made or spent.

    Args:
        bound: The problem.
        chosen: What is recorded.
        rate: Any η.

    Raises:
        InputError: If an observable is not what it should be.
    """
    theirs = [o for o in chosen if type(o) is not OBSERVABLES.get(o.name)]
    if not theirs:
        return
    runs = 1 if bound.most_in_a_stack == 1 else 2  # a stack, where there are any
    kernel = bound.kernel([rate] * runs, [0] * runs)
    kernel.ready(frozenset(o.name for o in theirs))
    for observable in theirs:
        with suppress(UnavailableError):
            start = observable.start(kernel)
            rows = np.arange(runs)
            asked(observable, kernel, observable.extent(kernel), start, rows)
