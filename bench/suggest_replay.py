"""Try a search on recorded curves: a change of it is measured in seconds, on hundreds of problems.

    python bench/suggest_grids.py --zoo development --curves    # once, an hour
    python bench/suggest_replay.py [--zoo development …] [--only WORD] [--budget N …] [--worst 10]

Replayed is the search of ``trebuchet.scans`` itself, its rates placed on the recorded ones: at
three offsets of its grid, half an octave apart, and from every initialisation, in every assignment
of batch orders to rates. The regret is that of ``suggest.py``, read off the pair's grid, or off its
curves where the grid does not reach. What a real scan spends before its search is left out: a
budget of 740 here is one of 800 there. Printed besides: how often the three offsets agree, each
within the interval of every other.
"""

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from suggest_grids import (
    CHOOSING,
    CURVES,
    GRIDS,
    HORIZON,
    LISTS,
    OCTAVES,
    SOFT,
    Pair,
    curves,
    grid,
    pairs,
    softened,
)
from trebuchet.scans.choice import Shortfalls, shortfalls
from trebuchet.scans.halving import BudgetSpentError, Plan, finish, rescue, successive_halving
from trebuchet.scans.level import level, scatter
from trebuchet.scans.rates import landing
from trebuchet.scans.suggest import interval

BUDGETS = (740,)
OFFSETS = (-1, 0, 1)
BLOWUP = 1e8
FLIGHT = 1.01


class Recorded:
    """All that is known of a pair: curves to search on, and what every rate is worth."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        kept, known = curves(pair), grid(pair)
        self.at = kept["at"].astype(int)
        self.losses = kept["losses"]
        first = self.losses[..., :1]
        with np.errstate(invalid="ignore"):
            sound = np.isfinite(self.losses) & (self.losses < BLOWUP * first)
        self.died = np.where(sound.all(-1), HORIZON + 1, self.at[np.argmax(~sound, -1)])
        self.scores = np.log(np.where(sound, self.losses, first) / first + SOFT)
        self.levels: dict[tuple[int, ...], float] = {}
        self.places = np.round(2 * OCTAVES).astype(int)
        self._judge(kept["rates"], kept["final"], known)

    def _judge(self, rates: Any, final: Any, known: Any) -> None:
        n = len(CHOOSING)
        y = softened(known.losses, known.starts)
        lost = ~(known.losses[:, n:] < known.starts[n:])
        at = 2 * np.log2(known.rates / rates[self.places == 0])
        best = int(y[:, :n].mean(1).argmin())
        self.best, self.worth_best = float(at[best]), float(np.median(y[best, n:]))
        starts = self.losses[..., 0]
        rough = softened(final, starts).reshape(len(final), -1)
        failed = ~(final < starts).reshape(len(final), -1)
        found = {
            float(p): (float(np.median(rough[k])), float(failed[k].mean()))
            for k, p in enumerate(self.places)
            if p < at[0] - 0.1 or p > at[-1] + 0.1
        }
        found |= {
            float(p): (float(np.median(y[k, n:])), float(lost[k].mean())) for k, p in enumerate(at)
        }
        self.x = np.array(sorted(found))
        self.y, self.lost = np.array([found[p] for p in self.x]).T

    def regret(self, place: float) -> float:
        """Of a place on the recorded grid."""
        return math.exp(float(np.interp(place, self.x, self.y)) - self.worth_best)

    def lost_at(self, place: float) -> float:
        """Share of trainings lost there."""
        return float(np.interp(place, self.x, self.lost))


class Replayed:
    """The search's view of the curves; see ``trebuchet.scans.halving.Arms``.

    Args:
        recorded: The pair.
        start: Index of the initialisation.
        swap: Which of the orders the even places take.
        fresh: Whether rates are trained again from the other initialisations, not in other orders.
        budget: Gradients.
        offset: Half octaves by which the search's grid is moved.
        smoothing: As in the search.
    """

    horizon = HORIZON

    def __init__(
        self,
        recorded: Recorded,
        start: int,
        swap: int,
        budget: float,
        offset: int,
        *,
        fresh: bool,
        smoothing: float = Plan().smoothing,
    ) -> None:
        self.recorded, self.start, self.swap, self.offset = recorded, start, swap, offset
        starts, self.orders = recorded.losses.shape[1:3]
        others = [(start + k) % starts for k in range(1, starts)] if fresh else []
        self.others = [(other, k) for k in range(self.orders) for other in others]
        if not self.others:
            self.others = [(start, k) for k in range(1, self.orders)]
        self.budget, self.smoothing, self.spent = budget, smoothing, 0
        self.steps: dict[float, int] = {}
        self.again_: dict[float, int] = {}

    def _row(self, i: float, nth: int = 0) -> tuple[int, int, int]:
        start, order = (self.start, 0) if nth == 0 else self.others[nth - 1]
        k = round(i) + self.offset - int(self.recorded.places[0])
        return k, start, (round(i) + self.swap + order) % self.orders

    def _there(self, i: float) -> bool:
        return 0 <= self._row(i)[0] < len(self.recorded.places)

    def _died(self, i: float, nth: int = 0) -> int:
        return int(self.recorded.died[self._row(i, nth)]) if self._there(i) else 0

    def advance(self, places: Sequence[float], steps: int) -> None:
        """Train rates up to `steps`."""
        for i in places:
            before = self.steps.get(i, 0)
            after = max(before, min(steps, self._died(i)))
            if after - before > self.left():
                raise BudgetSpentError
            self.spent += after - before
            self.steps[i] = after

    def again(self, i: float, steps: int) -> None:
        """Train rate `i` from its next seed."""
        self.again_[i] = self.again_.get(i, 0) + 1
        self.spent += min(steps, self._died(i, self.again_[i]))

    def repeats(self, i: float) -> tuple[int, int]:
        """How often rate `i` was trained again, and still can be."""
        done = self.again_.get(i, 0)
        return done, len(self.others) - done

    def score(self, i: float) -> float:
        """Softened log loss where rate `i` stands."""
        return self.score_at(i, self.steps[i])

    def score_at(self, i: float, steps: int) -> float:
        """The same at a step; infinite if it has diverged by now."""
        found = []
        for nth in range(self.again_.get(i, 0) + 1):
            if self._died(i, nth) <= (HORIZON if nth else self.steps[i]):
                return math.inf
            found.append(self._level(self._row(i, nth), steps))
        return sum(found) / len(found)

    def _level(self, row: tuple[int, int, int], steps: int) -> float:
        """Of one run at a step."""
        at, known = self.recorded.at, self.recorded.levels
        if (*row, steps) not in known:
            high = int(np.searchsorted(at, steps, "right"))
            early = int(np.searchsorted(at, (1 - self.smoothing) * steps, "right"))
            low = min(early, high - 1)
            known[(*row, steps)] = level(at[low:high], self.recorded.scores[row][low:high], steps)
        return known[(*row, steps)]

    def unsure(self, place: float) -> float:
        """Standard deviation of scores: between seeds near a place, else of the looks of a run."""
        furthest, spreads = max(self.steps.values()), []
        for i, times in self.again_.items():
            rows = [self._row(i, nth) for nth in range(times + 1) if self._died(i, nth) > HORIZON]
            if abs(i - place) <= 2 and 2 * self.steps[i] >= furthest and len(rows) > 1:
                spreads.append(np.var([self._level(r, self.steps[i]) for r in rows], ddof=1))
        if spreads:
            return float(np.sqrt(np.mean(spreads)))
        at = self.recorded.at
        late = (at >= furthest / 2) & (at <= furthest)
        rows = [self._row(i) for i in self.reached()]
        return max([0.0, *(scatter(at[late], self.recorded.scores[row][late]) for row in rows)])

    def reached(self) -> list[float]:
        """The rates that went furthest."""
        furthest = max(self.steps.values())
        return [i for i, n in self.steps.items() if n == furthest and self._died(i) > n]

    def landing(self, i: float) -> float:
        """The step at which rate `i`, above its start, comes back below it."""
        if self._died(i) <= self.steps[i]:
            return math.inf
        seen = self.recorded.at <= self.steps[i]
        losses = self.recorded.losses[self._row(i)][seen]
        if losses.max() <= FLIGHT * losses[0]:
            return math.inf
        return landing(self.recorded.at[seen], losses, losses[0])

    def below_start(self, i: float) -> bool:
        """Whether rate `i` is below its start."""
        return self.score(i) < math.log(1 + SOFT)

    def left(self) -> float:
        """Gradients left."""
        return self.budget - self.spent


@dataclass(frozen=True)
class Outcome:
    """One replayed search."""

    pair: str
    group: tuple[Any, ...]
    place: float
    interval: tuple[float, float]
    regret: float
    lost: float
    spent: int


def replay(recorded: Recorded, budget: float, plan: Plan, *, fresh: bool) -> Iterator[Outcome]:
    """Search from every start at every offset.

    Args:
        recorded: The pair.
        budget: Gradients.
        plan: The search's stages.
        fresh: Whether every seed has an initialisation of its own.

    Yields:
        The outcomes.
    """
    starts, orders = recorded.losses.shape[1:3]
    for start in range(starts):
        for swap in range(orders):
            for offset in OFFSETS:
                arms = Replayed(recorded, start, swap, budget, offset, fresh=fresh)
                course = successive_halving(arms, plan)
                finish(arms, course)
                rescue(arms, course)
                found: Shortfalls | None = shortfalls(arms, arms.steps)
                place, low, high = min(arms.steps), min(arms.steps), min(arms.steps)
                if found is not None:
                    place, unsure = found.choice(), arms.unsure(found.choice())
                    low, high = interval(found, unsure, len(arms.reached()))
                yield Outcome(
                    str(recorded.pair), (str(recorded.pair), start, swap), place + offset,
                    (low + offset, high + offset), recorded.regret(place + offset),
                    recorded.lost_at(place + offset), arms.spent,
                )  # fmt: skip


def agreeing(outcomes: Sequence[Outcome]) -> float:
    """Share of searches whose rates at three offsets are in the intervals of one another."""
    groups: dict[tuple[Any, ...], list[Outcome]] = {}
    for o in outcomes:
        groups.setdefault(o.group, []).append(o)
    agreed = [
        all(a.interval[0] <= b.place <= a.interval[1] for a in group for b in group)
        for group in groups.values()
    ]
    return float(np.mean(agreed))


def say(name: str, outcomes: Sequence[Outcome], worst: int = 0) -> None:
    """Print a line, and the pairs that lost most."""
    regrets = np.array([o.regret for o in outcomes])
    print(
        f"{name:24s} {len(outcomes)} searches: geometric mean "
        f"{np.exp(np.log(regrets).mean()):.4f}, {100 * (regrets > 1.25).mean():.1f} % above 1.25, "
        f"worst {regrets.max():.2f}, {100 * np.mean([o.lost for o in outcomes]):.2f} % lost, "
        f"{np.mean([o.spent for o in outcomes]):.0f} gradients, offsets agree in "
        f"{100 * agreeing(outcomes):.0f} %",
        flush=True,
    )
    each: dict[str, list[float]] = {}
    for o in outcomes:
        each.setdefault(o.pair, []).append(math.log(o.regret))
    for pair, logs in sorted(each.items(), key=lambda item: -np.mean(item[1]))[:worst]:
        print(f"    {pair}: {math.exp(np.mean(logs)):.3f}, worst {math.exp(max(logs)):.2f}")


def main() -> None:
    """Replay, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--zoo", nargs="+", choices=tuple(LISTS), default=["development", "seen"])
    parser.add_argument("--only", default="")
    parser.add_argument("--budget", type=int, nargs="+", default=BUDGETS)
    parser.add_argument("--worst", type=int, default=0)
    options = parser.parse_args()
    every = [
        Recorded(pair)
        for zoo in options.zoo
        for pair in pairs(zoo, options.only)
        if (GRIDS / pair.file).exists() and (CURVES / pair.file).exists()
    ]
    for fresh in (False, True):
        for budget in options.budget:
            found = [o for r in every for o in replay(r, budget, Plan(), fresh=fresh)]
            say(f"{'fresh' if fresh else 'one'} start, {budget}", found, options.worst)


if __name__ == "__main__":
    main()
