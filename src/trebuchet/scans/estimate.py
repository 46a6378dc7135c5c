"""What a scan will cost: gradients before it starts, seconds after the first few."""

import math
import time

import numpy as np

from trebuchet.scans.halving import Plan
from trebuchet.scans.setup import Setup

FEW_GRADIENTS, FEW_SECONDS = 10, 0.5
"""What is measured before the first estimate, at least."""
OCTAVE = math.log(2)
"""Width of the bracket that the search leaves of an edge, in log rate."""
WHOLE_RUNS = 3
"""Runs that come to the horizon, mostly: λ at their end is outside the budget."""


class _Spent:
    """Gradients, forward passes and seconds of some steps."""

    def __init__(self) -> None:
        self.gradients, self.forwards, self.seconds = 0, 0.0, 0.0


class Estimate:
    """The cost of a scan whose search is about to start.

    Gradients and the forward passes of looks are timed apart: looks lie close together at the start
    of a run and far apart later, so that seconds a gradient would promise too many.

    Args:
        setup: The scan.

    Attributes:
        gradients: In all, those spent already included.
    """

    def __init__(self, setup: Setup) -> None:
        self._cost, self._samples = setup.objective.cost, setup.stream.samples_per_step
        self._plain, self._looked = _Spent(), _Spent()
        self._last = self._cost.gradients, self._cost.forwards, time.monotonic()
        edges = _trials(setup)
        self._bounded = not edges
        self.gradients = setup.asked.limit + edges
        size = sum(batch.size for batch in setup.fixed) / self._samples
        # A gradient, on average.
        self._forwards = 0.0 if setup.rates.free_looks else _looks(setup) * size
        final = setup.asked.curvature == "final"
        self._apart = WHOLE_RUNS * setup.seconds_of_curvature if final else 0.0

    def said(self) -> str:
        """The gradients, in words."""
        most, many = "at most" if self._bounded else "about", "s" * (self._samples != 1)
        return f"{most} {self.gradients} gradients of {self._samples} sample{many}"

    def seconds_left(self) -> float | None:
        """Seconds until the scan ends, if it spends its budget; to be asked after every step.

        Returns:
            None until the first few gradients are measured.
        """
        now = self._cost.gradients, self._cost.forwards, time.monotonic()
        gradients, forwards, seconds = (a - b for a, b in zip(now, self._last, strict=True))
        self._last = now
        plain, looked = self._plain, self._looked
        spent = plain if gradients and not forwards else looked
        spent.gradients += int(gradients)
        spent.forwards += forwards
        spent.seconds += seconds
        measured, took = plain.gradients + looked.gradients, plain.seconds + looked.seconds
        if measured < FEW_GRADIENTS or took < FEW_SECONDS:
            return None
        left = max(0, self.gradients - self._cost.gradients)
        if not plain.gradients or not looked.forwards:
            return left * took / measured + self._apart
        gradient = plain.seconds / plain.gradients
        forward = max(0.0, looked.seconds - gradient * looked.gradients) / looked.forwards
        return left * (gradient + self._forwards * forward) + self._apart


def _looks(setup: Setup) -> float:
    """Looks a step, on average over the runs of a search as it is planned."""
    horizon, plan = setup.rates.horizon, Plan()
    ends = np.round(np.array([plan.opening, *(r.fraction for r in plan.rungs)]) * horizon)
    runs = np.array([len(plan.first), *(r.keep for r in plan.rungs)])
    looks = np.searchsorted(setup.engine.plan.schedule, ends, side="right")
    return float((runs * np.diff(looks, prepend=0)).sum() / (runs * np.diff(ends, prepend=0)).sum())


def _trials(setup: Setup) -> int:
    """Gradients that bisecting both edges takes, about, where no budget limits it."""
    rtol = setup.asked.edge_rtol
    if rtol is None or math.isfinite(setup.asked.limit_with_edges):
        return 0
    halvings = max(1, math.ceil(math.log2(OCTAVE / math.log1p(rtol))))
    return 2 * halvings * len(setup.rates.seeds) * setup.asked.horizon
