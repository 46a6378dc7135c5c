"""Fewer points of a trace, of which none that a reader looks for is missing."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

FEWEST = 16
"""Points of a trace below which its shape is lost."""


def kept(values: NDArray[np.floating[Any]], most: int) -> NDArray[np.intp]:
    """Which points of a trace to keep: the ends, and the extremes of equal stretches between.

    A peak is kept at its own step and height, however short it was.

    Args:
        values: The trace, ``(N,)``; what is not finite is never kept.
        most: How many to keep at most, 4 or more.

    Returns:
        Indices, increasing.

    Example:
        >>> trace = np.ones(1000)
        >>> trace[137] = 50.0
        >>> index = kept(trace, 20)
        >>> len(index) <= 20, 137 in index, 0 in index, 999 in index
        (True, True, True, True)
    """
    known = np.flatnonzero(np.isfinite(values))
    if len(known) <= most:
        return known
    stretches = np.array_split(known[1:-1], (most - 2) // 2)
    found = {int(known[0]), int(known[-1])}
    for stretch in stretches:
        if len(stretch):
            part = values[stretch]
            found |= {int(stretch[part.argmin()]), int(stretch[part.argmax()])}
    return np.array(sorted(found), dtype=np.intp)


def every(size: int, most: int) -> NDArray[np.intp]:
    """Positions of at most so many of a row, evenly, the ends among them.

    Args:
        size: Of the row.
        most: How many to keep, 2 or more.

    Returns:
        Indices, increasing.

    Example:
        >>> every(9, 5).tolist(), every(3, 5).tolist()
        ([0, 2, 4, 6, 8], [0, 1, 2])
    """
    if size <= most:
        return np.arange(size)
    return np.unique(np.linspace(0, size - 1, most).round().astype(np.intp))
