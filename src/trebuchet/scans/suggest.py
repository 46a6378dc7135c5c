"""From the search's runs to one rate, with how much to trust it."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trebuchet._content import ByContent
from trebuchet._types import Phase, Status
from trebuchet.engine.advance import Run
from trebuchet.phases.interval import Interval
from trebuchet.scans.rates import Rates

RISK = 0.1
"""Share of a worse right neighbour's excess loss that a rate is charged: fresh seeds vary."""
WORTH = math.log(1.05)
"""Softened losses closer than this, and twice the noise, are equally good: the interval."""
WIDEST = 4.0
"""Half octaves from the suggestion to an end of its interval, at most."""
UNMEASURED, ALONE = 1.0, 2.0
"""And at least, where no two seeds were run side by side; and where moreover a single run reached
the horizon: a factor √2, and 2. Three pairs of seeds of a small language model, 30 steps long, gave
rates a factor 4 apart."""


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
        rates: The search's runs.
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
    noise = 0.0 if rates.free_looks else noise_of_seeds(rates, rate)
    furthest = max((steps[i] for i in runs if not runs[i].dead), default=0)
    reached = [i for i in runs if steps[i] == furthest and not runs[i].dead]
    half = half_width(curvature, noise, noise_of_looks(rates, runs, reached), len(reached))
    low, high = rates.rate(place - half), rates.rate(place + half)
    if lr_max.closed:
        high = max(rate, min(high, lr_max.value))
    expected = _between({i: _final(runs[i]) for i in reached}, place)
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


def half_width(curvature: float, noise: float, of_looks: float, reached: int) -> float:
    """How far the interval reaches from the suggestion, in half octaves.

    To where the fitted parabola is worse by 5 % and twice the noise: that between seeds where it
    was measured, and else the noise of the looks, which is no more than a part of it.

    Args:
        curvature: Of the parabola; NaN: none.
        noise: Between seeds; NaN: not measured.
        of_looks: Of the looks within a run.
        reached: How many runs went furthest.

    Returns:
        The half width.

    Example:
        >>> half_width(1.0, 0.0, 0.0, 2) < half_width(1.0, math.nan, 0.0, 2)
        True
    """
    known = not math.isnan(noise)
    least = ALONE if reached < 2 and noise != 0 else UNMEASURED if not known else 0.0
    worth = WORTH + 2 * (noise if known else of_looks)
    half = math.sqrt(worth / curvature) if math.isfinite(curvature) else math.sqrt(worth / WORTH)
    return min(max(half if noise != 0 else min(half, 2.0), least), WIDEST)


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
        x, y = at[late].astype(float), rates.softened(losses[late])
        if x.size > 3 and np.isfinite(y).all():
            rest = y - np.polyval(np.polyfit(x, y, 1), x)
            found.append(float(np.sqrt((rest**2).sum() / (x.size - 2))))
    return max(found)


def _final(run: Run) -> float:
    horizon = run.loss_horizon
    return horizon if math.isfinite(horizon) else run.last_loss


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
