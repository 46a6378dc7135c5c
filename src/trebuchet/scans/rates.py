"""The rates of a scan, in half octaves from a scale, with a run behind each."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trebuchet._types import Phase, Status
from trebuchet.engine.advance import Engine, Run
from trebuchet.phases.tail import consecutive, rounding_of, tail_of
from trebuchet.phases.verdict import Evidence, phases, trained
from trebuchet.results.levels import risen
from trebuchet.scans.fresh import Fresh
from trebuchet.scans.halving import SOFT, BudgetSpentError
from trebuchet.scans.level import level

STUCK = 0.9
"""A loss that stays this close to its start, long after it landed, is not worth waiting for."""


def landing(at: NDArray[np.int64], losses: NDArray[np.float64], start: float) -> float:
    """The step at which a loss that rose came back below its start, or will if it falls on.

    It falls on as it has fallen on average since its peak, by a constant factor a step.

    Args:
        at: Steps looked at.
        losses: The losses there.
        start: The loss to come back below.

    Returns:
        The step, the first after the last one above; infinite for a loss at its peak, and for one
        that stays just below its start: what a net that has collapsed does.

    Example:
        From its peak of 100 at step 10 to 10 at step 20: below 1 from step 30 on.

        >>> at, losses = np.array([0, 10, 20]), np.array([1.0, 100.0, 10.0])
        >>> landing(at, losses, 1.0)
        30.0
    """
    top = int(np.argmax(losses))
    last, peak = float(losses[-1]), float(losses[top])
    if last <= start:
        above = np.flatnonzero(losses > start)
        landed = float(at[above[-1] + 1]) if above.size else 0.0
        return math.inf if last > STUCK * start and landed < at[-1] / 2 else landed
    if last >= peak or start <= 0:
        return math.inf
    pace = math.log(peak / last) / float(at[-1] - at[top])
    return round(float(at[-1]) + math.log(last / start) / pace, 9)


class Rates:
    """Runs by their place on the grid, rate = scale · 2^(i/2).

    Neighbouring rates take their batches in different orders (seeds), rates an octave apart in the
    same: so two seeds have a say, and octaves are compared on common random numbers.

    Args:
        engine: Takes the runs on.
        scale: η at i = 0.
        seeds: Orders of the batches.
        smoothing: The last fraction of the steps that a score is taken from.
        budget: Gradient evaluations that may be spent; None is no limit.
        fresh: Other initialisations, for runs that are made again; none unless given.
    """

    def __init__(
        self,
        engine: Engine,
        scale: float,
        seeds: Sequence[int],
        *,
        smoothing: float,
        budget: int | None = None,
        fresh: Fresh | None = None,
    ) -> None:
        self.engine, self.scale, self.seeds = engine, scale, tuple(seeds)
        self.delta, self.smoothing, self.budget = engine.plan.delta, smoothing, budget
        self.horizon, self.fresh = engine.horizon, fresh
        self.named: dict[float, float] = {}  # place: η to the last digit, where the user named it
        self.runs: dict[tuple[float, int], Run] = {}  # (place, seed)
        self.extra: list[Run] = []  # off the grid: the edges' bisections

    @property
    def free_looks(self) -> bool:
        """Whether the loss of a step is the loss that runs are judged by."""
        return self.engine.host.free_looks

    def closing_first(self) -> tuple[float, float]:
        """What losses at the horizon are compared with, as looks are taken and in both modes."""
        return self.engine.host.closing_first()

    def rate(self, i: float) -> float:
        """η at place `i`."""
        return self.named.get(i, float(self.scale * 2.0 ** (i / 2)))

    def name(self, rates: Sequence[float]) -> tuple[float, ...]:
        """Take rates as the user names them.

        Args:
            rates: η.

        Returns:
            Their places, ascending.
        """
        self.named |= {2 * math.log2(rate / self.scale): rate for rate in rates}
        return tuple(sorted(self.named))

    def seed(self, i: float) -> int:
        """The order in which the run at place `i` sees its batches."""
        return self.seeds[round(i) % len(self.seeds)]

    def run(self, i: float) -> Run | None:
        """The search's run at place `i`, if it was started."""
        return self.runs.get((i, self.seed(i)))

    def advance(self, places: Sequence[float], steps: int) -> None:
        """Train the runs at some places up to `steps`; starts them if need be.

        Args:
            places: The places.
            steps: Updates since the initialisation.
        """
        keys = [(i, self.seed(i)) for i in places]
        runs = [
            self.runs.get((i, seed)) or self.engine.start(self.rate(i), seed) for i, seed in keys
        ]
        try:
            self.take(runs, min(steps, self.horizon))
        finally:
            self.runs |= {
                key: run for key, run in zip(keys, runs, strict=True) if run.steps or run.stopped()
            }

    def again(self, i: float, steps: int) -> None:
        """Train at place `i` once more: from other weights, or in another order of the batches.

        Args:
            i: The place.
            steps: Updates since the initialisation.
        """
        done, _ = self.repeats(i)
        other = None if self.fresh is None else self.fresh.engine(done)
        if other is not None:
            seed, engine = other
        elif self._orders(i):
            seed, engine = self._orders(i)[0], self.engine
        else:
            return
        run = self.runs[i, seed] = engine.start(self.rate(i), seed)
        self.take([run], min(steps, self.horizon))

    def repeats(self, i: float) -> tuple[int, int]:
        """How often place `i` was trained again, and how often it still can be."""
        done = sum(place == i for place, _ in self.runs) - 1
        fresh = 0 if self.fresh is None else len(self.fresh.engines) + self.fresh.left()
        return done, max(0, fresh - done) or len(self._orders(i))

    def _orders(self, i: float) -> list[int]:
        """Orders of the batches that place `i` was not trained in."""
        return [seed for seed in self.seeds if (i, seed) not in self.runs]

    def abandon(self) -> None:
        """Give up the runs that were being trained: they were interrupted."""
        for engine in (self.engine, *(self.fresh or ())):
            engine.abandon()

    @property
    def all_seeds(self) -> tuple[int, ...]:
        """Of the orders, and of other initialisations."""
        return (*self.seeds, *(() if self.fresh is None else self.fresh.seeds))

    def trial(self, rate: float, seed: int) -> Run:
        """Return a run at any rate: the one that there is, or a new one.

        Args:
            rate: η.
            seed: The order of its batches.

        Returns:
            The run; it is among `all_runs` once it has made a step.
        """
        for run in self.all_runs():
            if run.seed == seed and math.isclose(run.rate, rate, rel_tol=1e-9):
                return run
        run = self.engine.start(rate, seed)
        self.extra.append(run)
        return run

    def left(self) -> float:
        """Gradient evaluations that may still be spent."""
        spent = self.engine.host.objective.cost.gradients
        return np.inf if self.budget is None else self.budget - spent

    def take(self, runs: Sequence[Run], steps: int) -> None:
        """Take runs to a step, as far as the budget goes.

        Args:
            runs: The runs; nothing happens to one that has stopped or is there already.
            steps: Updates since the initialisation.

        Raises:
            BudgetSpentError: If the steps of one do not fit into the budget; it and those after it
                make none then.
        """
        affordable, left = [], self.left()
        for run in runs:
            if run.stopped() or run.steps >= steps:
                continue
            left -= steps - run.steps
            if left < 0:
                break
            affordable.append(run)
        for engine in dict.fromkeys(run.engine for run in affordable):
            engine.advance([run for run in affordable if run.engine is engine], steps)
        if left < 0:
            raise BudgetSpentError

    def score(self, i: float) -> float:
        """Softened log loss at place `i`; infinite if a run diverged, or none was started."""
        run = self.run(i)
        return np.inf if run is None else self.score_at(i, run.steps)

    def score_at(self, i: float, steps: int) -> float:
        """The score of place `i` at `steps`: the mean over the seeds that came so far."""
        runs = [run for (place, _), run in self.runs.items() if place == i]
        if not runs or any(run.dead for run in runs):
            return np.inf
        far = [run for run in runs if run.steps >= steps or run.stopped()] or runs
        return float(np.mean([self.smoothed(run, steps) for run in far]))

    def smoothed(self, run: Run, steps: int | None = None) -> float:
        """Level of a run's softened log loss at its end, or at `steps`."""
        at, losses = run.trace()
        end = run.steps if steps is None else min(steps, run.steps)
        if end < run.steps:
            at, losses = at[at <= end], losses[at <= end]
        late = at > (1 - self.smoothing) * end
        late[-1] = True
        value = level(at[late], self.softened(losses[late], run.loss_first), end)
        whole = steps is None or steps >= run.steps
        last = run.loss_horizon
        if whole and self.engine.host.objective.has_batch_norm and np.isfinite(last):
            value = 0.5 * (value + float(self.softened(np.array([last]), run.loss_first)[0]))
        return value

    def softened(self, losses: np.ndarray, first: float) -> np.ndarray:
        """log(L/L₀ + 0.02); losses that can be negative are counted from the lowest seen."""
        floor = self.floor()
        return np.log(np.maximum(losses - floor, 0) / (first - floor) + SOFT)

    def floor(self) -> float:
        """Zero; if losses are negative the lowest one seen, and in any case one below the start."""
        first = self.loss_first
        seen = [r.number("loss_min") for r in self.all_runs()]
        lowest = min([first, *(v for v in seen if np.isfinite(v))])
        if lowest > 0 or (lowest == 0 and first > 0):
            return 0.0
        return min(lowest, first - 0.01 * (abs(first) or 1.0))

    def landing(self, i: float) -> float:
        """When the run at `i`, above its start, will be back below it; infinite if in no time."""
        run = self.run(i)
        if run is None or run.dead or not self.rose(run):
            return math.inf
        return landing(*run.trace(), run.loss_first)

    def below_start(self, i: float) -> bool:
        """Whether the run at `i` is below its start now."""
        run = self.run(i)
        return run is not None and not run.dead and run.last_loss < run.loss_first

    @property
    def loss_first(self) -> float:
        """L₀ of the model's own weights, on the set that runs are compared on."""
        return self.engine.host.loss_first

    def rose(self, run: Run) -> bool:
        """Whether the loss was ever above (1 + δ) L₀."""
        return bool(run.dead or risen(run.peak, run.loss_first, self.delta))

    def trained(self, run: Run) -> bool:
        """Whether the run reached the horizon below its start."""
        return bool(trained(self.evidence(run), self.phase(run)))

    def evidence(self, run: Run) -> Evidence:
        """What the verdict on a run rests on."""
        start = run.number("loss_closing_first")
        return Evidence(
            run.loss_first, run.peak, run.number("loss_final"), run.number("last_above"),
            run.steps, str(run.status), run.number("output_spread"), run.number("loss_min"),
            run.loss_first if np.isnan(start) else start, period=self._period(run),
        )  # fmt: skip

    def _period(self, run: Run) -> float:
        """Of the cycle that a run's loss has settled on, where it can be judged by its tail."""
        host = self.engine.host
        if not host.deterministic or run.status is not Status.MAX_STEPS:
            return float("nan")
        dtype = str(host.objective.params[0].dtype).removeprefix("torch.")
        losses = consecutive(*run.trace(), run.steps)
        return tail_of(losses, run.loss_first, rounding_of(dtype)).period

    def phase(self, run: Run) -> Phase:
        """The verdict; a run that was dropped before the horizon is unsettled."""
        blowup = self.engine.plan.stop.blowup
        return Phase(str(phases(self.evidence(run), delta=self.delta, blowup=blowup)))

    def all_runs(self) -> list[Run]:
        """Every run that made a step, by rate and seed."""
        trials = [run for run in self.extra if run.steps or run.stopped()]
        return sorted([*self.runs.values(), *trials], key=lambda r: (r.rate, r.seed))

    def own_runs(self) -> list[Run]:
        """Those from the model's own weights, which the edges are of."""
        return [run for run in self.all_runs() if run.engine is self.engine]
