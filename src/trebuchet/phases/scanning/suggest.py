"""From the race's runs to one rate, with how much to trust it."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from trebuchet._content import ByContent
from trebuchet._types import Phase, Status
from trebuchet.phases.scanning.brackets import Interval
from trebuchet.phases.scanning.field import Rates
from trebuchet.phases.scanning.runs import Run

RISK = 0.1
"""Share of a worse right neighbour's excess loss that a rate is charged: fresh seeds vary."""
WORTH = math.log(1.05)
"""Softened losses closer than this are equally good: the suggestion's interval."""


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

    def __float__(self) -> float:
        return self.rate


def choose(
    places: Mapping[float, int],
    scores: Mapping[float, float],
    score_at: Callable[[float, int], float] | None = None,
) -> tuple[float, float]:
    """Choose a place on the grid of half octaves.

    The best of the rates that came furthest, a rate paying for a worse neighbour on its right;
    then the minimum of a parabola through the places within an octave, all at the step that each
    of them reached, at most a half octave away from the best.

    Args:
        places: Place → steps it was trained.
        scores: Place → softened log loss, infinite if it diverged.
        score_at: The score of a place at a step; the last one's unless given.

    Returns:
        The place (not an integer), and the parabola's curvature (NaN: none).

    Example:
        >>> place, curvature = choose({0: 200, 2: 200, 4: 200}, {0: 1.0, 2: 0.2, 4: 0.6})
        >>> round(place, 2), round(curvature, 2)
        (2.33, 0.15)
    """
    furthest = max(places.values())
    finite = [i for i in places if math.isfinite(scores[i])]
    if not finite:
        return float(min(places)), math.nan
    far = [i for i in finite if places[i] >= 0.6 * furthest] or finite

    def cost(i: float) -> float:
        right = [j for j in places if j > i]
        if not right:
            return scores[i]
        j = min(right)
        if math.isfinite(scores[j]) and places[j] < 0.15 * furthest:
            return scores[i]  # too short a run to be held against its neighbour
        excess = max(0.0, min(scores[j], 1.0) - scores[i])
        return scores[i] + RISK * excess / (j - i) ** 2

    best = min(far, key=cost)
    near = [i for i in finite if abs(i - best) <= 2 and places[i] >= 0.5 * furthest]
    if len(near) < 3:
        return float(best), math.nan
    common = min(places[i] for i in near)
    at = {i: scores[i] if score_at is None else score_at(i, common) for i in near}
    x = np.array(near, float) - best
    y = np.minimum([at[i] for i in near], at[best] + 1.0)
    a, b, _ = np.polyfit(x, y, 2, w=[places[i] / furthest for i in near])
    if a < 1e-6:
        return float(best), math.nan
    shift = float(np.clip(-b / (2 * a), -1.0, 1.0))
    return best + shift, float(a)


def suggest(rates: Rates, lr_max: Interval) -> Suggestion:
    """Suggest a rate.

    Args:
        rates: The race's runs.
        lr_max: The measured upper edge.

    Returns:
        The suggestion.
    """
    runs = {i: run for (i, seed), run in rates.runs.items() if seed == rates.seed(i)}
    scores = {i: rates.score(i) for i in runs}
    # A run at an exact minimum stopped because every later step would be the same.
    steps = {
        i: rates.horizon if run.status is Status.GRADIENT_ZERO else run.steps
        for i, run in runs.items()
    }
    place, curvature = choose(steps, scores, rates.score_at)
    rate = rates.rate(place)
    if lr_max.closed:
        # A fitted minimum is not moved next to a rate that is known to fail.
        rate = min(rate, max(lr_max.low, lr_max.high / math.sqrt(2)))
    half = math.sqrt(WORTH / curvature) if math.isfinite(curvature) else 1.0
    half = min(half, 2.0)
    low, high = rates.rate(place - half), rates.rate(place + half)
    if lr_max.closed:
        high = max(rate, min(high, lr_max.value))
    floor_first = rates.loss_first
    furthest = max((steps[i] for i in runs if not runs[i].dead), default=0)
    reached = [i for i in runs if steps[i] == furthest and not runs[i].dead]
    expected = _between({i: _final(runs[i]) for i in reached}, place)
    nearest = min(reached or runs, key=lambda i: (abs(i - place), i))
    phase = Phase.CATAPULT if rates.rose(runs[nearest]) else Phase.LAZY
    reliable = furthest >= rates.horizon and expected < floor_first
    ratio = expected / floor_first if floor_first else math.nan
    margin = lr_max.high / rate
    return Suggestion(
        rate, min(low, rate), high, expected, ratio, margin, phase,
        _reason(rates, rate, expected, lr_max, len(runs), len(reached), runs[nearest], furthest),
        reliable,
    )  # fmt: skip


def _final(run: Run) -> float:
    return run.loss_final if math.isfinite(run.loss_final) else run.losses[-1]


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
    expected: float,
    lr_max: Interval,
    tried: int,
    reached: int,
    nearest: Run,
    steps: int,
) -> str:
    if not math.isfinite(expected) or expected >= rates.loss_first:
        return (
            f"no run of {steps} steps ended below the loss at the start ({reached} of {tried} "
            "rates went so far), so this one is only the least bad; look at the data, the loss "
            "and the model first"
        )
    text = (
        f"lowest loss of {tried} rates raced from the same start, {reached} of them for "
        f"{steps} steps: {expected:.3g} from {rates.loss_first:.3g}"
    )
    if rates.rose(nearest):
        where = "" if math.isclose(nearest.rate, rate, rel_tol=0.02) else f" at {nearest.rate:.3g}"
        text += f"; the loss rises above its start first{where} and comes back, a catapult"
    if math.isfinite(lr_max.high):
        text += f"; training fails from {lr_max.high:.3g}, {lr_max.high / rate:.1f} times this rate"
    else:
        text += "; no rate that was tried fails"
    return text
