"""When runs are judged, and what counts as a rise: the same for a sweep and a scan."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trebuchet.engine.recording import Recording
from trebuchet.problem.batches import Batch
from trebuchet.problem.bound import Bound
from trebuchet.problem.risk import Objective
from trebuchet.problem.stream import Stream
from trebuchet.results.levels import DELTA

EARLY = (1, 2, 3, 5, 7, 10, 15, 20, 25, 30)
"""Steps at which a mini-batch run is looked at: a catapult's peak is in the first few."""
DENSE = 100_000
"""A run whose looks are free is recorded at every step up to here."""
LEAST_RISE = 1e-2
"""A loss of mini-batch training has risen if it is so far above its start …"""
RISES = 2.0
"""… and so many times the noise of a look above it."""
NOISE_BATCHES, NOISE_SEED = 8, 31_415
"""Batches that the noise is measured on, and their order: a seed that no run is likely to have."""


def looks(steps: int) -> NDArray[np.int64]:
    """Steps at which a run is looked at where that costs extra: early ones, forty more, the end.

    Args:
        steps: Of a whole run.

    Returns:
        The steps, ascending from 0.

    Example:
        >>> looks(50)[:9].tolist(), len(looks(200))
        ([0, 1, 2, 3, 5, 7, 10, 15, 20], 45)
    """
    every = max(1, steps // 40)
    regular = set(range(max(EARLY) + every, steps, every))
    return np.array(sorted({0, steps, *(s for s in EARLY if s <= steps), *regular}), np.int64)


def schedule(steps: int, *, free: bool) -> NDArray[np.int64]:
    """The steps at which runs are judged unless somebody says otherwise.

    Args:
        steps: Of a whole run.
        free: Whether a look costs nothing.

    Returns:
        The steps, ascending from 0.
    """
    return Recording(dense=DENSE, per_decade=1000).steps(steps) if free else looks(steps)


def least_rise(trained: Bound, delta: float | None) -> tuple[float, float]:
    """δ: by how much a loss must be above its start to have risen.

    Args:
        trained: The problem, its model at the start.
        delta: As given; None to find it out.

    Returns:
        δ, and the relative noise of a look that it rests on, 0 where looks have none.
    """
    noise = 0.0
    if not trained.free_looks:
        noise = noise_of_looks(trained.objective, trained.stream, trained.fixed)
    if delta is not None:
        return delta, noise
    return max(DELTA if trained.free_looks else LEAST_RISE, RISES * noise), noise


def noise_of_looks(objective: Objective, stream: Stream, fixed: Sequence[Batch]) -> float:
    """How far a look may be off by chance, relative to the loss at the start.

    The standard deviation of the loss of single training batches at the start, in training mode
    with its random numbers, brought from their size to that of the set that looks are taken on: its
    standard error as a sample of the data.

    Args:
        objective: The model, at the start.
        stream: What batches are drawn from.
        fixed: The set that looks are taken on.

    Returns:
        The ratio; 0 where fewer than two batches have a finite loss.
    """
    drawn = [stream.batches(NOISE_SEED, step)[0] for step in range(NOISE_BATCHES)]
    losses = np.array([objective.in_training(batch, k) for k, batch in enumerate(drawn)])
    finite = losses[np.isfinite(losses)]
    if finite.size < 2 or not finite.any():
        return 0.0
    share = float(np.mean([b.size for b in drawn])) / sum(b.size for b in fixed)
    return float(finite.std(ddof=1) * math.sqrt(share) / abs(finite.mean()))
