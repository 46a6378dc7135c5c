"""From the search's runs to one rate, with how much to trust it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trebuchet._content import ByContent
from trebuchet._types import Phase, Status
from trebuchet.engine.advance import Run
from trebuchet.phases.interval import Interval
from trebuchet.scans.choice import WORST, Shortfalls, shortfalls
from trebuchet.scans.halving import SOFT
from trebuchet.scans.level import scatter
from trebuchet.scans.rates import Rates

WORTH = math.log(1.05)
"""Softened losses closer than this, and twice the noise, are equally good: the interval."""
TOLD = 0.7 * WORST
"""Rates that fall short by more are outside, whatever the noise."""
WIDEST = 4.0
"""Half octaves from the suggestion to an end of its interval, at most."""
SPACING, ALONE = 1.0, 2.0
"""And at least: nothing is known of what lies closer than rates are apart; and where a single run
reached the horizon, little of its neighbours."""


@dataclass(frozen=True, slots=True, eq=False)
class Suggestion(ByContent):
    """One rate to use.

    Attributes:
        rate: η.
        low: Rates from here …
        high: … to here are expected within 5 % of the same loss.
        expected_loss: Loss at the horizon, from the runs around it.
        loss_ratio: The same over the loss at the start.
        margin: Smallest rate known to fail, over the suggestion; infinite if none was met.
        phase: What the run nearest to this rate does: lazy or catapult.
        reason: A sentence.
        reliable: Whether runs reached the horizon around it.
        noise: Standard deviation, between seeds at one rate near the suggestion, of the softened
            log loss that rates are ranked by; 0 without randomness, NaN where no two were run.
    """

    rate: float
    low: float
    high: float
    expected_loss: float
    loss_ratio: float
    margin: float
    phase: Phase
    reason: str
    reliable: bool
    noise: float = math.nan

    def __float__(self) -> float:
        return self.rate


def suggest(rates: Rates, lr_max: Interval) -> Suggestion:
    """Suggest a rate.

    Args:
        rates: The search's runs.
        lr_max: The measured upper edge.

    Returns:
        The suggestion.
    """
    runs = {i: run for (i, seed), run in rates.runs.items() if seed == rates.seed(i)}
    # A run at an exact minimum stopped because every later step would be the same.
    steps = {
        i: rates.horizon if run.status is Status.GRADIENT_ZERO else run.steps
        for i, run in runs.items()
    }
    furthest = max((steps[i] for i in runs if not runs[i].dead), default=0)
    reached = [i for i in runs if steps[i] == furthest and not runs[i].dead]
    found = shortfalls(rates, steps)
    place = min(steps) if found is None else found.choice()
    noise = noise_of_seeds(rates, rates.rate(place))
    if math.isnan(noise) and rates.free_looks:
        noise = 0.0
    unsure = noise_of_looks(rates, runs, reached) if math.isnan(noise) else noise
    ends = (place - WIDEST, place) if found is None else interval(found, unsure, len(reached))
    low, high = map(rates.rate, ends)
    rate = rates.rate(place)
    if lr_max.closed:
        # What looks good is not put next to a rate that is known to fail.
        rate = min(rate, max(lr_max.low, lr_max.high / math.sqrt(2)))
        high = max(rate, min(high, lr_max.value))
    expected = _between(_ends(rates, runs, reached, found), place)
    start = rates.closing_first()[1] if furthest >= rates.horizon else rates.loss_first
    nearest = min(reached or runs, key=lambda i: (abs(i - place), i))
    phase = Phase.CATAPULT if rates.rose(runs[nearest]) else Phase.LAZY
    reliable = furthest >= rates.horizon and expected < start
    ratio = expected / start if start else math.nan
    margin = lr_max.high / rate
    return Suggestion(
        rate, min(low, rate), high, expected, ratio, margin, phase,
        _reason(
            rates, rate, (start, expected), lr_max, len(runs), len(reached), runs[nearest], furthest
        ),
        reliable, noise,
    )  # fmt: skip


def interval(found: Shortfalls, unsure: float, reached: int) -> tuple[float, float]:
    """Places that are as good as the choice, as far as can be told.

    Args:
        found: How far rates fall short.
        unsure: Standard deviation of their scores.
        reached: How many runs went furthest.

    Returns:
        The lowest and the highest.
    """
    place, least = found.choice(), ALONE if reached < 2 else SPACING
    low, high = found.interval(min(WORTH + 2 * unsure, TOLD), WIDEST)
    return min(low, place - least), max(high, place + least)


def noise_of_seeds(rates: Rates, rate: float) -> float:
    """Standard deviation between seeds of the score, at rates within an octave of the suggestion.

    Args:
        rates: The runs.
        rate: The suggestion.

    Returns:
        NaN where no rate was run with two seeds for half as long as the longest run.
    """
    every = [r for r in rates.all_runs() if not r.dead]
    enough = 0.5 * max((r.steps for r in every), default=0)
    groups: dict[str, list[Run]] = {}
    for run in every:
        if run.steps >= enough and abs(math.log2(run.rate / rate)) <= 1:
            groups.setdefault(f"{run.rate:.9g}", []).append(run)
    spreads = []
    for group in groups.values():
        if len(group) > 1:
            steps = min(r.steps for r in group)
            spreads.append(np.var([rates.smoothed(r, steps) for r in group], ddof=1))
    return float(np.sqrt(np.mean(spreads))) if spreads else math.nan


def noise_of_looks(rates: Rates, runs: Mapping[float, Run], reached: Sequence[float]) -> float:
    """Scatter of the softened log loss around a line, over the later half of the longest runs.

    Args:
        rates: The runs.
        runs: Those of the search, by place.
        reached: Those that went furthest.

    Returns:
        The largest standard deviation; 0 where there are too few looks.
    """
    found = [0.0]
    for i in reached:
        at, losses = runs[i].trace()
        late = at >= runs[i].steps / 2
        found.append(scatter(at[late], rates.softened(losses[late], runs[i].loss_first)))
    return max(found)


def _final(run: Run) -> float:
    horizon = run.loss_horizon
    return horizon if math.isfinite(horizon) else run.last_loss


def _ends(
    rates: Rates, runs: Mapping[float, Run], reached: Sequence[float], found: Shortfalls | None
) -> dict[float, float]:
    """Last losses of the runs that went furthest, and what those close behind would come to."""
    ends = {i: _final(runs[i]) for i in reached}
    if found is None or not ends or not all(map(math.isfinite, ends.values())):
        return ends
    short = dict(zip(found.places, found.values, strict=True))
    floor = rates.floor()
    for i in found.far:
        if i not in ends:
            near = min(reached, key=lambda j: (abs(i - j), j))
            by = (
                rates.softened(np.array([ends[near]]), rates.loss_first)[0] + short[i] - short[near]
            )
            end = floor + (rates.loss_first - floor) * max(0.0, math.exp(by) - SOFT)
            ends[i] = min(end, runs[i].last_loss)
    return ends


def _between(losses: Mapping[float, float], place: float) -> float:
    """Interpolate losses between two places, in logarithms where they are positive."""
    if not losses:
        return math.nan
    x = sorted(losses)
    y = [losses[i] for i in x]
    if min(y) > 0:
        return float(np.exp(np.interp(place, x, np.log(y))))
    return float(np.interp(place, x, y))


def _reason(
    rates: Rates,
    rate: float,
    losses: tuple[float, float],
    lr_max: Interval,
    tried: int,
    reached: int,
    nearest: Run,
    steps: int,
) -> str:
    start, expected = losses
    if not math.isfinite(expected) or expected >= start:
        return (
            f"no run of {steps} steps ended below the loss at the start ({reached} of {tried} "
            "rates went so far), so this one is only the least bad; look at the data, the loss "
            "and the model first"
        )
    text = (
        f"lowest loss of {tried} rates tried from the same start, {reached} of them for "
        f"{steps} steps: {expected:.3g} from {start:.3g}"
    )
    if reached == 1 and not rates.free_looks:
        text += "; as one run went so far, its interval is a guess"
    if rates.rose(nearest):
        where = "" if math.isclose(nearest.rate, rate, rel_tol=0.02) else f" at {nearest.rate:.3g}"
        text += f"; the loss rises above its start first{where} and comes back, a catapult"
    if math.isfinite(lr_max.high):
        text += f"; training fails from {lr_max.high:.3g}, {lr_max.high / rate:.1f} times this rate"
    else:
        text += "; no rate that was tried fails"
    return text
