"""The rates of a scan, in half octaves from a scale, with a run behind each."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trebuchet._types import Phase
from trebuchet.phases.scanning.race import SOFT
from trebuchet.phases.scanning.runs import Run
from trebuchet.phases.scanning.training import Trainer
from trebuchet.phases.verdict import Evidence, peak_ratios, phases, recovery_steps, trained
from trebuchet.results.levels import risen


def lands(at: NDArray[np.int64], losses: NDArray[np.float64], start: float, horizon: int) -> bool:
    """Whether a loss above its start comes back below it before the horizon, if it falls on.

    It falls on as it has fallen on average since its peak, by a constant factor a step.

    Args:
        at: Steps looked at.
        losses: The losses there.
        start: The loss to come back below.
        horizon: The last step.

    Returns:
        False also for a loss that is below its start, or at its peak.

    Example:
        From its peak of 100 at step 10 to 10 at step 20: below 1 from step 30 on.

        >>> at, losses = np.array([0, 10, 20]), np.array([1.0, 100.0, 10.0])
        >>> lands(at, losses, 1.0, 29), lands(at, losses, 1.0, 30)
        (False, True)
    """
    top = int(np.argmax(losses))
    last, peak = float(losses[-1]), float(losses[top])
    if not (start < last < peak) or start <= 0:
        return False
    pace = np.log(peak / last) / (at[-1] - at[top])
    return bool(at[-1] + np.log(last / start) / pace <= horizon + 1e-9)


class Rates:
    """Runs by their place on the grid, rate = scale · 2^(i/2).

    Neighbouring rates take their batches in different orders (seeds), rates an octave apart in the
    same: so two seeds have a say, and octaves are compared on common random numbers.

    Args:
        trainer: Trains the runs.
        scale: η at i = 0.
        seeds: Orders of the batches.
        delta: A loss above (1 + δ) of its start has risen.
        smoothing: The last fraction of the steps that a score averages over.
        flight: A loss above (1 + this) of its start may be in a catapult, which the race protects;
            `delta` unless given.
    """

    def __init__(
        self,
        trainer: Trainer,
        scale: float,
        seeds: Sequence[int],
        *,
        delta: float,
        smoothing: float,
        flight: float | None = None,
    ) -> None:
        self.trainer, self.scale, self.seeds = trainer, scale, tuple(seeds)
        self.delta, self.smoothing = delta, smoothing
        self.flight = delta if flight is None else flight
        self.horizon = trainer.horizon
        self.runs: dict[tuple[float, int], Run] = {}  # (place, seed)
        self.extra: list[Run] = []  # off the grid: the edges' bisections

    def rate(self, i: float) -> float:
        """η at place `i`."""
        return float(self.scale * 2.0 ** (i / 2))

    def seed(self, i: float) -> int:
        """The order in which the run at place `i` sees its batches."""
        return self.seeds[round(i) % len(self.seeds)]

    def run(self, i: float) -> Run | None:
        """The race's run at place `i`, if it was started."""
        return self.runs.get((i, self.seed(i)))

    def advance(self, places: Sequence[float], steps: int) -> None:
        """Train the runs at some places up to `steps`; starts them if need be.

        Args:
            places: The places.
            steps: Updates since the initialisation.
        """
        keys = [(i, self.seed(i)) for i in places]
        runs = [
            self.runs.get((i, seed)) or self.trainer.start(self.rate(i), seed) for i, seed in keys
        ]
        try:
            self.trainer.advance(runs, min(steps, self.horizon))
        finally:
            self.runs |= {
                key: run for key, run in zip(keys, runs, strict=True) if run.steps or run.stopped()
            }

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
        run = self.trainer.start(rate, seed)
        self.extra.append(run)
        return run

    def left(self) -> float:
        """Gradient evaluations that may still be spent."""
        return self.trainer.left()

    def score(self, i: float) -> float:
        """Softened log loss of the run at place `i`; infinite if it diverged or was not started."""
        run = self.run(i)
        return np.inf if run is None or run.dead else self.smoothed(run)

    def score_at(self, i: float, steps: int) -> float:
        """The score that the run at place `i` had at `steps`."""
        run = self.run(i)
        return np.inf if run is None or run.dead else self.smoothed(run, steps)

    def smoothed(self, run: Run, steps: int | None = None) -> float:
        """Mean softened log loss over the last part of a run's steps, or of its first `steps`."""
        at, losses = run.trace()
        if steps is not None and steps < run.steps:
            at, losses = at[at <= steps], losses[at <= steps]
        late = at > (1 - self.smoothing) * (run.steps if steps is None else min(steps, run.steps))
        late[-1] = True
        value = float(self.softened(losses[late]).mean())
        whole = steps is None or steps >= run.steps
        if whole and self.trainer.objective.has_batch_norm and np.isfinite(run.loss_final):
            value = 0.5 * (value + float(self.softened(np.array([run.loss_final]))[0]))
        return value

    def softened(self, losses: np.ndarray) -> np.ndarray:
        """log(L/L₀ + 0.02); losses that can be negative are counted from the lowest seen."""
        floor = self.floor()
        return np.log(np.maximum(losses - floor, 0) / (self.loss_first - floor) + SOFT)

    def floor(self) -> float:
        """Zero; if losses are negative the lowest one seen, and in any case one below the start."""
        first = self.loss_first
        seen = [v for r in self.all_runs() for v in r.losses if np.isfinite(v)]
        lowest = min([first, *seen])
        if lowest > 0 or (lowest == 0 and first > 0):
            return 0.0
        return min(lowest, first - 0.01 * (abs(first) or 1.0))

    def in_flight(self, i: float) -> bool:
        """Whether the run at `i` is above its start, and falling fast enough to land in time."""
        run = self.run(i)
        if run is None or not (run.dead or risen(max(run.losses), self.loss_first, self.flight)):
            return False
        return self.lands(run)

    def below_start(self, i: float) -> bool:
        """Whether the run at `i` is below its start now."""
        run = self.run(i)
        return run is not None and not run.dead and run.losses[-1] < self.loss_first

    def lands(self, run: Run) -> bool:
        """Whether a run, falling on as it does, comes back below its start before the horizon."""
        return not run.dead and lands(*run.trace(), self.loss_first, self.horizon)

    @property
    def loss_first(self) -> float:
        """L₀ on the set that runs are compared on."""
        return self.trainer.loss_first

    def rose(self, run: Run) -> bool:
        """Whether the loss was ever above (1 + δ) L₀."""
        return bool(run.dead or risen(np.nanmax(run.losses), self.loss_first, self.delta))

    def trained(self, run: Run) -> bool:
        """Whether the run reached the horizon below its start."""
        return bool(trained(self.evidence(run), self.phase(run)))

    def evidence(self, run: Run) -> Evidence:
        """What the verdict on a run rests on."""
        at, losses = run.trace()
        above = at[risen(losses, self.loss_first, self.delta)]
        finite = losses[np.isfinite(losses)]
        final, start = float(losses[-1]), self.loss_first
        if run.whole and not run.dead:
            final, start = run.loss_closing, self.trainer.closing_first()[0]
        return Evidence(
            self.loss_first, finite.max(), final, above[-1] if above.size else -1, run.steps,
            str(run.status), run.output_spread, finite.min(), start,
        )  # fmt: skip

    def phase(self, run: Run) -> Phase:
        """The verdict; a run that was dropped before the horizon is unsettled."""
        found = phases(self.evidence(run), delta=self.delta, blowup=self.trainer.blowup)
        return Phase(str(found))

    def recovery_step(self, run: Run) -> float:
        """The first step after the last look above the start; NaN: never rose, or not back."""
        return float(recovery_steps(self.evidence(run), self.phase(run)))

    def peak_ratio(self, run: Run) -> float:
        """The largest loss over L₀; infinite where a loss was not finite."""
        return float(peak_ratios(self.evidence(run)))

    def all_runs(self) -> list[Run]:
        """Every run that made a step, by rate and seed."""
        trials = [run for run in self.extra if run.steps or run.stopped()]
        return sorted([*self.runs.values(), *trials], key=lambda r: (r.rate, r.seed))
