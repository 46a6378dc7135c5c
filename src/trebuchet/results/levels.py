"""When a loss has risen above its start, and when it has blown up: the same for every run."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

DELTA = 1e-3
"""δ of a loss without noise, unless another is given."""


def risen(loss: ArrayLike, first: ArrayLike, delta: float) -> NDArray[np.bool_]:
    """Whether a loss is above (1 + δ) times its start, L > L₀ + δ|L₀|.

    Args:
        loss: L, any shape; NaN has not risen.
        first: L₀, which may be negative.
        delta: δ.

    Returns:
        In the shape that both broadcast to.

    Example:
        >>> risen([1.0, 1.002, -0.9], [1.0, 1.0, -1.0], 1e-3).tolist()
        [False, True, True]
    """
    start = np.asarray(first, np.float64)
    with np.errstate(over="ignore", invalid="ignore"):  # a start near the largest float
        found: NDArray[Any] = np.asarray(loss, np.float64) > start + delta * np.abs(start)
    return found


def blown_up(loss: ArrayLike, first: ArrayLike, blowup: float) -> NDArray[np.bool_]:
    """Whether a loss is above `blowup` times its start, L > blowup · |L₀|, where L₀ is not zero.

    Args:
        loss: L, any shape; infinity has, NaN has not.
        first: L₀.
        blowup: The factor.

    Returns:
        In the shape that both broadcast to.

    Example:
        >>> blown_up([1e9, 1e9, 1e7], [1.0, 0.0, -1.0], 1e8).tolist()
        [True, False, False]
    """
    size = np.abs(np.asarray(first, np.float64))
    with np.errstate(over="ignore", invalid="ignore"):
        found: NDArray[Any] = (np.asarray(loss, np.float64) > blowup * size) & (size > 0)
    return found
