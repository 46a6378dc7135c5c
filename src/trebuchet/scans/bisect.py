"""The measured edges: where the loss first rises, and where training ends."""

import math
from collections.abc import Callable, Sequence

from trebuchet.engine.advance import Run
from trebuchet.phases.interval import Interval
from trebuchet.scans.halving import BudgetSpentError
from trebuchet.scans.rates import Rates


def loss_edge(rates: Rates) -> Interval:
    """Bracket lr_loss, the smallest rate whose loss rises above its start.

    A run that was dropped early and had not risen counts as one that does not rise: a rise from
    the initialisation comes in the first steps.

    Args:
        rates: The runs.

    Returns:
        The interval.
    """
    rising = [r.rate for r in rates.own_runs() if rates.rose(r)]
    high = min(rising, default=math.inf)
    calm = [r.rate for r in rates.own_runs() if not rates.rose(r) and r.rate < high]
    return Interval(max(calm, default=0.0), high)


def training_edge(rates: Rates) -> Interval:
    """Bracket lr_max, the largest rate that trains: below its start at the horizon.

    Args:
        rates: The runs.

    Returns:
        The interval; its high end diverged, or was still above its start at the horizon.
    """
    runs = [r for r in rates.own_runs() if r.whole]
    failed = [r.rate for r in runs if not rates.trained(r)]
    low = max((r.rate for r in runs if rates.trained(r)), default=0.0)
    if low == 0.0:
        return Interval(0.0, min(failed, default=math.inf))
    return Interval(low, min((f for f in failed if f > low), default=math.inf))


OUTWARD = 12
"""Octaves that an open end is moved out, at most: there may be no edge."""

Judge = Callable[[Run], bool | None]
"""Whether a run is beyond an edge; None while that is open."""


def judge_training(rates: Rates, *, patience: int | None = None) -> Judge:
    """Judge whether runs fail to train.

    Args:
        rates: The runs.
        patience: Steps after which a run that is below its start counts as trained; one that has
            *settled* (over the later half of its steps it was never above its start) does so
            earlier. None: nothing counts but the horizon.

    Returns:
        The judge.
    """

    def judge(run: Run) -> bool | None:
        if run.stopped():
            return not rates.trained(run)
        if patience is None:
            return None
        if settled(rates, run):
            return False
        return None if run.steps < patience else not run.last_loss < rates.loss_first

    return judge


def settled(rates: Rates, run: Run) -> bool:
    """Whether a run was below its start throughout the later half of its steps."""
    at, losses = run.trace()
    late = losses[at >= run.steps / 2]
    return bool(not run.dead and late.size > 1 and (late < rates.loss_first).all())


def judge_rise(rates: Rates, *, patience: int) -> Judge:
    """Judge whether the loss rises above its start within the first `patience` steps."""

    def judge(run: Run) -> bool | None:
        if rates.rose(run):
            return True
        return False if run.steps >= patience or run.stopped() else None

    return judge


def quick_training_edge(rates: Rates, at_least: int) -> Interval:
    """The bracket of lr_max, with runs dropped after `at_least` steps that had settled."""
    edge = training_edge(rates)
    inside = [r.rate for r in rates.own_runs() if edge.low < r.rate < edge.high
              and r.steps >= at_least and settled(rates, r)]  # fmt: skip
    return Interval(max([edge.low, *inside]), edge.high)


def narrow(
    rates: Rates, edge: Interval, judge: Judge, *, rtol: float, looks: Sequence[int]
) -> Interval:
    """Bisect an edge, in log rate, until its ends are within a factor 1 + rtol.

    Every trial is run with all seeds, and is beyond the edge if one of them is: an edge is where
    one can no longer rely on training.

    Args:
        rates: The runs; trials are added to its `extra`.
        edge: Where to start; open ends are moved out by factors of two first.
        judge: Whether a run is beyond the edge.
        rtol: The relative width to reach.
        looks: Steps at which a trial is judged, ascending; at the last one None is beyond the edge.

    Returns:
        The narrower interval; wider than asked for if the budget ended.
    """
    if edge.low <= 0 and math.isinf(edge.high):  # no run came far enough to say anything
        return edge
    outward = 0
    try:
        while not edge.within(rtol) and outward < OUTWARD:
            outward += not edge.closed
            trial = edge.trial(out=2.0)
            edge = edge.after(trial, beyond=_beyond(rates, trial, judge, looks))
    except BudgetSpentError:
        pass
    return edge


def _beyond(rates: Rates, rate: float, judge: Judge, looks: Sequence[int]) -> bool:
    for seed in rates.seeds:
        run = rates.trial(rate, seed)
        verdict = None
        for steps in looks:
            rates.take([run], steps)
            verdict = judge(run)
            if verdict is not None:
                break
        if verdict is not False:
            return True
    return False
