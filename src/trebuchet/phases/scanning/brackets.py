"""The measured edges: where the loss first rises, and where training ends."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trebuchet.phases.scanning.field import Rates
from trebuchet.phases.scanning.training import BudgetSpentError, Run


@dataclass(frozen=True, slots=True)
class Interval:
    """An edge is somewhere between two rates that were tried.

    Attributes:
        low: The largest rate on the near side; 0 if even the smallest tried is beyond the edge.
        high: The smallest rate on the far side; infinite if none that was tried is.
    """

    low: float
    high: float

    @property
    def value(self) -> float:
        """Best single number: the geometric middle, or the finite end of a one-sided interval."""
        if self.low <= 0 or math.isinf(self.high):
            return self.low if math.isinf(self.high) else self.high
        return math.sqrt(self.low * self.high)

    @property
    def closed(self) -> bool:
        """Whether both sides were seen."""
        return self.low > 0 and math.isfinite(self.high)

    def __contains__(self, rate: float) -> bool:
        return self.low <= rate <= self.high

    def __str__(self) -> str:
        """Both ends, to three digits."""
        if math.isinf(self.high):
            return f"above {self.low:.3g}"
        if self.low <= 0:
            return f"below {self.high:.3g}"
        return f"{self.low:.3g} to {self.high:.3g}"


def loss_edge(rates: Rates) -> Interval:
    """Bracket lr_loss, the smallest rate whose loss rises above its start.

    A run that was dropped early and had not risen counts as one that does not rise: a rise from
    the initialisation comes in the first steps.

    Args:
        rates: The runs.

    Returns:
        The interval.
    """
    rising = [r.rate for r in rates.all_runs() if rates.rose(r)]
    high = min(rising, default=math.inf)
    calm = [r.rate for r in rates.all_runs() if not rates.rose(r) and r.rate < high]
    return Interval(max(calm, default=0.0), high)


def training_edge(rates: Rates) -> Interval:
    """Bracket lr_max, the largest rate that trains: below its start at the horizon.

    Args:
        rates: The runs.

    Returns:
        The interval; its high end diverged, or was still above its start at the horizon.
    """
    runs = [r for r in rates.all_runs() if r.status is not None]
    failed = [r.rate for r in runs if not rates.trained(r)]
    low = max((r.rate for r in runs if rates.trained(r)), default=0.0)
    if low == 0.0:
        return Interval(0.0, min(failed, default=math.inf))
    return Interval(low, min((f for f in failed if f > low), default=math.inf))


def narrow(
    rates: Rates,
    edge: Interval,
    beyond: Callable[[Sequence[Run]], bool],
    *,
    rtol: float,
    looks: Sequence[int],
) -> Interval:
    """Bisect an edge, in log rate, until its ends are within a factor 1 + rtol.

    Every trial is run with all seeds, and is beyond the edge if one of them is: an edge is where
    one can no longer rely on training.

    Args:
        rates: The runs; trials are added to its `extra`.
        edge: Where to start; open ends are moved out by factors of two first.
        beyond: Whether the runs of one rate are beyond the edge.
        rtol: The relative width to reach.
        looks: Steps at which a trial is looked at; it ends at the first that is beyond the edge.

    Returns:
        The narrower interval; wider than asked for if the budget ended.
    """
    low, high = edge.low, edge.high
    try:
        for _ in range(60):
            if low > 0 and math.isfinite(high) and high <= low * (1 + rtol):
                break
            if low <= 0:
                trial = high / 2
            elif math.isinf(high):
                trial = low * 2
            else:
                trial = math.sqrt(low * high)
            if not 1e-30 < trial < 1e30:
                break
            if beyond(_try(rates, trial, looks, beyond)):
                high = trial
            else:
                low = trial
    except BudgetSpentError:
        pass
    return Interval(low, high)


def _try(
    rates: Rates, rate: float, looks: Sequence[int], beyond: Callable[[Sequence[Run]], bool]
) -> list[Run]:
    runs: list[Run] = []
    for seed in rates.seeds:
        run = rates.trainer.start(rate, seed)
        runs.append(run)
        rates.extra.append(run)
        for steps in looks:
            rates.trainer.advance(run, steps)
            if beyond(runs):
                return runs
    return runs
