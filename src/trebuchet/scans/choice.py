"""Which rate a search comes to: how far each falls short of the best, smoothed over an octave.

From one initialisation every rate's loss has its accidents, and the rate with the lowest one is
often next to rates that fail. So a rate is judged together with its neighbours. The numbers here
and in ``halving`` were chosen by replaying recorded curves (``bench/suggest_replay.py``);
docs/log.md says what others did.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

KERNEL = ((-2, 0.1), (-1, 0.2), (0, 0.4), (1, 0.2), (2, 0.1))
"""Half octaves from a rate, and what the rate there counts."""
WORST = 0.3
"""Of a rate that diverges, and of every other at most: how bad a bad neighbour is makes no odds."""
FAR = 0.6
"""A run has come far if it has come this fraction of the furthest run's steps."""
SCALED = 0.5
"""Half the steps at twice the rate would do the same, were there no noise and no curvature; this
much of what that says is believed of a lower rate that was left early."""
BEYOND = 0.5
"""Half octaves from a run that came far to the choice, and to the ends of its interval, at most."""
EARLY = 0.05
"""Shortfall of a rate that was left early, at least, for every half octave from the best."""
FINE = 0.25
"""Half octaves between rates that are compared."""


class Scored(Protocol):
    """Runs with scores: softened log losses."""

    def score(self, i: float) -> float:
        """Score of rate `i` where it stands, infinite if it diverged."""

    def score_at(self, i: float, steps: int) -> float:
        """Score of rate `i` when it was at `steps`."""


@dataclass(frozen=True, slots=True)
class Shortfalls:
    """By how much rates fall short of the best, in softened log loss, between 0 and `WORST`.

    Attributes:
        places: Rates, in half octaves from a scale, ascending.
        values: Their shortfalls.
        far: Places that came far.
        best: The best of them.
        closed: Whether the highest place is as bad as can be: so is all above it.
    """

    places: tuple[float, ...]
    values: tuple[float, ...]
    far: tuple[float, ...]
    best: float
    closed: bool

    def at(self, place: float) -> float:
        """Shortfall of a place; what was not tried lies between, and below all that was is bad."""
        right = WORST if self.closed else self.values[-1]
        return float(np.interp(place, self.places, self.values, left=WORST, right=right))

    def smoothed(self, place: float) -> float:
        """Weighted mean around a place."""
        return sum(weight * self.at(place + step) for step, weight in KERNEL)

    def choice(self) -> float:
        """Return the place with the least smoothed shortfall, near the best, and near runs."""
        low, high = self._reach
        near = self.best + np.arange(-3, 3 + FINE, FINE)
        return float(min(near[(low <= near) & (near <= high)], key=self.smoothed))

    @property
    def _reach(self) -> tuple[float, float]:
        """Where runs came far: beyond that little is known."""
        return min(self.far) - BEYOND, max(self.far) + BEYOND

    def interval(self, worth: float, widest: float) -> tuple[float, float]:
        """Find the places around the choice that fall short by no more than `worth`.

        By themselves as well as with their neighbours, compared with the choice and its own.

        Args:
            worth: In softened log loss.
            widest: Half octaves from the choice, at most.

        Returns:
            The lowest and the highest of them.
        """
        middle = self.choice()
        ends = []
        for way, limit in zip((-FINE, FINE), self._reach, strict=True):
            end = middle
            while abs(end + way - middle) <= widest and abs(end - limit) >= FINE:
                if self.at(end + way) > worth:
                    break
                if self.smoothed(end + way) > self.smoothed(middle) + worth:
                    break
                end += way
            ends.append(end)
        return ends[0], ends[1]


def shortfalls(runs: Scored, steps: Mapping[float, int]) -> Shortfalls | None:
    """Compare rates that were taken to different steps.

    Where several runs went furthest, those are compared, else all that came far. They are compared
    at the last step that all of them reached, and one that got worse after it is charged for that;
    one that was left early with the best run as it was then. A lower rate that was left early looks
    better then than it would be: early on rates differ least. So it is at least as bad as part of
    what the best run lacked at its own fraction of the steps.

    Args:
        runs: The runs.
        steps: Place → steps it was trained.

    Returns:
        The shortfalls; None if every run diverged.
    """
    alive = [i for i in steps if steps[i] > 0 and math.isfinite(runs.score(i))]
    if not alive:
        return None
    furthest = max(steps[i] for i in alive)
    far = [i for i in alive if steps[i] == furthest]
    if len(far) < 2:
        far = [i for i in alive if steps[i] >= FAR * furthest]
    common = min(steps[i] for i in far)

    def level(i: float) -> float:
        return max(runs.score_at(i, common), runs.score_at(i, steps[i]))

    best = min(far, key=level)

    def shortfall(i: float) -> float:
        if i not in alive:
            return WORST
        if i in far:
            return min(level(i) - level(best), WORST)
        short = runs.score_at(i, steps[i]) - runs.score_at(best, steps[i])
        if i < best:
            slower = max(1, round(steps[best] * 2 ** ((i - best) / 2)))
            lacked = runs.score_at(best, slower) - runs.score_at(best, steps[best])
            short = max(short, SCALED * lacked)
        return min(max(short, EARLY * abs(i - best)), WORST)

    places = tuple(sorted(steps))
    values = tuple(shortfall(i) for i in places)
    return Shortfalls(places, values, tuple(far), best, closed=places[-1] not in alive)
