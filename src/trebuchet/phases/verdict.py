"""The verdict: from a run's numbers to its phase. Nothing else in trebuchet decides a phase."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trebuchet._types import Phase, Status
from trebuchet.results.levels import blown_up, risen

SWINGING_TAIL = 0.1
"""A run that ended on its budget is still swinging if its loss was above L₀ in this last part."""
ERRORS = 4.0
"""An exponent is positive if it is so many of its standard errors above zero …"""
LEAST_GROWTH = 1e-2
"""… and above this, one factor e in a hundred steps: nearby runs part by powers of time, or on the
edge of stability for a while, without chaos."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What verdicts rest on: arrays of one shape, one entry a run.

    Attributes:
        first: L₀.
        peak: The largest loss; a NaN is none.
        final: The loss at the end.
        last_above: Last step with a loss above (1 + δ) L₀; −1: never.
        steps: Updates made.
        status: Why the run stopped, as text; anything that is no `Status`, such as "dropped",
            says that it did not end by itself.
        output_spread: How far outputs differ over the inputs and the inputs doubled; NaN unknown.
        lowest: The smallest loss; `final` unless given.
        final_start: What `final` is compared with: L₀ on the same samples; `first` unless given.
        period: Of the cycle that the loss has settled on, at least 2; NaN for none, or unknown
            (`trebuchet.phases.tail`).
        steady: Whether the loss swings without a trend.
        exponent: The Lyapunov exponent; NaN unknown.
        exponent_error: Its standard error.
    """

    first: ArrayLike
    peak: ArrayLike
    final: ArrayLike
    last_above: ArrayLike
    steps: ArrayLike
    status: ArrayLike
    output_spread: ArrayLike = np.nan
    lowest: ArrayLike | None = None
    final_start: ArrayLike | None = None
    period: ArrayLike = np.nan
    steady: ArrayLike = False
    exponent: ArrayLike = np.nan
    exponent_error: ArrayLike = np.nan

    def below(self) -> NDArray[np.bool_]:
        """Whether the loss ended below its start."""
        start = self.first if self.final_start is None else self.final_start
        return np.asarray(np.asarray(self.final) < np.asarray(start))

    def of(self, *statuses: Status) -> NDArray[np.bool_]:
        """Whether the run stopped for one of these reasons."""
        return np.isin(np.asarray(self.status, dtype=str), [str(s) for s in statuses])


def phases(runs: Evidence, *, delta: float, blowup: float) -> NDArray[np.str_]:
    """Judge runs.

    - divergent: a non-finite loss, or one above `blowup` × L₀.
    - collapsed: the gradient is exactly zero and the output no longer depends on the input, with
      loss left over: above zero, or above the lowest that the run had reached.
    - catapult: the loss rose above (1+δ)L₀ and came back below L₀ (and, where the run ended on
      its budget, had stayed down for its last tenth).
    - lazy: the loss never rose above (1+δ)L₀ and ended below L₀. A loss of zero throughout counts.
    - periodic: the budget ended, and the loss had settled on a cycle of two steps or more; whether
      it rose before, and how high the cycle is, does not matter.
    - chaotic: the budget ended, and the loss had settled on no cycle, showed no trend, and the
      exponent is positive beyond its error (`ERRORS`, `LEAST_GROWTH`). Without one nothing is.
    - unsettled: none of these; also a run that was interrupted, or dropped.

    Args:
        runs: Their numbers.
        delta: δ.
        blowup: The factor past which a loss has diverged.

    Returns:
        Values of `Phase`, one a run.

    Example:
        >>> runs = Evidence([1, 1], [1, 40], [0.1, 0.1], [-1, 7], [80, 80], ["max_steps"] * 2)
        >>> phases(runs, delta=1e-3, blowup=1e8).tolist()
        ['lazy', 'catapult']
    """
    first, peak, final = (np.asarray(v, np.float64) for v in (runs.first, runs.peak, runs.final))
    above, below = risen(peak, first, delta), runs.below()
    spread = np.asarray(runs.output_spread, np.float64)
    lowest = final if runs.lowest is None else np.asarray(runs.lowest, np.float64)

    non_finite = runs.of(Status.NON_FINITE) | np.isinf(peak) | np.isinf(final)
    divergent = non_finite | runs.of(Status.BLEW_UP) | blown_up(peak, first, blowup)
    ended = runs.of(Status.CONVERGED, Status.GRADIENT_ZERO)
    steps, last_above = np.asarray(runs.steps), np.asarray(runs.last_above)
    settled = ended | (last_above < (1 - SWINGING_TAIL) * steps)
    left_over = (final > 0) | (final > lowest)
    collapsed = runs.of(Status.GRADIENT_ZERO) & (spread == 0) & left_over
    # A run whose start already had no loss has nowhere to fall to.
    solved = (first == 0) & (peak == 0) & (final == 0)
    over = _over(runs)
    budget, cycle = runs.of(Status.MAX_STEPS), np.asarray(runs.period, np.float64) >= 2
    growth = np.asarray(runs.exponent, np.float64)
    chaos = growth > np.maximum(ERRORS * np.asarray(runs.exponent_error), LEAST_GROWTH)
    chaos = chaos & np.asarray(runs.steady, np.bool_)

    found = np.full(np.broadcast_shapes(first.shape, below.shape), str(Phase.UNSETTLED), "<U9")
    for name, verdict in (
        (Phase.LAZY, over & ~above & (below | solved)),
        (Phase.CATAPULT, over & above & below & settled),
        (Phase.CHAOTIC, budget & chaos),
        (Phase.PERIODIC, budget & cycle),
        (Phase.COLLAPSED, collapsed),
        (Phase.DIVERGENT, divergent),
    ):
        found[np.broadcast_to(verdict, found.shape)] = str(name)
    return found


def _over(runs: Evidence) -> NDArray[np.bool_]:
    """Whether runs ended by themselves."""
    left = (Status.INTERRUPTED, Status.DROPPED, Status.NOT_RUN)
    return runs.of(*(s for s in Status if s not in left))


def trained(runs: Evidence, phase: ArrayLike) -> NDArray[np.bool_]:
    """Whether runs ended by themselves, below their start: also those that were still swinging.

    Args:
        runs: Their numbers.
        phase: Their phases.

    Returns:
        False for what diverged, collapsed, was interrupted or dropped.
    """
    lost = np.isin(np.asarray(phase, dtype=str), [str(Phase.DIVERGENT), str(Phase.COLLAPSED)])
    return np.asarray(_over(runs) & runs.below() & ~lost)


def recovery_steps(runs: Evidence, phase: ArrayLike) -> NDArray[np.float64]:
    """The first step after the loss was last above (1+δ)L₀, of runs that came back below L₀.

    Args:
        runs: Their numbers.
        phase: Their phases.

    Returns:
        NaN where the loss was never above, or never came back.
    """
    last = np.asarray(runs.last_above, np.float64)
    back = (last >= 0) & (last < np.asarray(runs.steps)) & runs.below()
    divergent: Any = np.asarray(phase, dtype=str) == str(Phase.DIVERGENT)
    return np.where(back & ~divergent, last + 1.0, np.nan)


def peak_ratios(runs: Evidence) -> NDArray[np.float64]:
    """The largest loss over L₀: infinite for a run that ended in a loss that is not finite.

    Args:
        runs: Their numbers.

    Returns:
        NaN where L₀ is zero.
    """
    first = np.asarray(runs.first, np.float64)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        ratio = np.where(first == 0, np.nan, np.asarray(runs.peak, np.float64) / first)
    return np.where(runs.of(Status.NON_FINITE), np.inf, ratio)
