"""How many runs to stack: measured on the machine at hand, within a bound on memory."""

import time
from collections.abc import Callable

import torch

from trebuchet.engine.kernels import OutputKernel

MEMORY_BYTES = 2 * 2**30
"""Bound on what the chunks in flight may take together, unless the caller sets another."""

TRIAL_STEPS = 3


def candidates(runs: int, bytes_per_run: int, memory: int, workers: int) -> list[int]:
    """Chunk sizes worth trying, ascending: powers of four up to an even share of the runs.

    Args:
        runs: How many runs there are.
        bytes_per_run: Memory of one run.
        memory: Bound on all chunks in flight together.
        workers: How many chunks are in flight at a time.

    Returns:
        At least one size; 1 even where the bound is too small for one run.

    Example:
        >>> candidates(runs=84, bytes_per_run=10, memory=1000, workers=2)
        [1, 4, 16, 42]
    """
    share = -(-runs // workers)
    most = max(1, min(share, memory // (workers * max(bytes_per_run, 1))))
    sizes = [1]
    while sizes[-1] * 4 <= most:
        sizes.append(sizes[-1] * 4)
    return sizes if sizes[-1] == most else [*sizes, most]


def fastest(make: Callable[[int], OutputKernel], sizes: list[int]) -> int:
    """The chunk size whose step costs least a run; the smaller of two that are within 5 %.

    Args:
        make: Makes a kernel of that many runs.
        sizes: Candidates, ascending.

    Returns:
        One of the sizes.
    """
    if len(sizes) == 1:
        return sizes[0]
    best, best_cost = sizes[0], float("inf")
    for size in sizes:
        cost = _seconds_a_step(make(size)) / size
        if cost < 0.95 * best_cost:
            best, best_cost = size, cost
        elif cost > 2 * best_cost:
            break  # the stack has left the cache; larger ones will not come back
    return best


def _seconds_a_step(kernel: OutputKernel) -> float:
    times = []
    for _ in range(TRIAL_STEPS + 1):  # the first one warms up
        start = time.perf_counter()
        dz = torch.zeros_like(kernel.forward())  # of zeros: the weights stay where they are
        kernel.add_vjp_(kernel.params, dz)
        if dz.is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])
