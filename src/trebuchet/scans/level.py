"""Where a noisy loss stands at the end of a stretch, and how noisy it is, by a straight line."""

import numpy as np
from numpy.typing import NDArray

DOUBT = 4.0
"""Squared standard errors of the line's lift at which half of it is believed."""


def level(at: NDArray[np.int64], values: NDArray[np.float64], end: float) -> float:
    """Value at `end`: the mean of `values`, and of a straight line's rise beyond it what is sure.

    A mean lags behind a loss that falls, the end of a fitted line is noisy. So the line is believed
    by w = r² / (r² + 4 σ²), with r its rise from the middle to `end` and σ the standard error of r.

    Args:
        at: Steps, increasing, shape ``(n,)``.
        values: What was seen there, shape ``(n,)``.
        end: The step in question.

    Returns:
        The value; the mean of fewer than three.

    Example:
        >>> steps = np.array([0, 10, 20, 30])
        >>> level(steps, np.array([3.0, 2.0, 1.0, 0.0]), 30)
        0.0
        >>> round(level(steps, np.array([1.0, -1.0, 1.0, -1.1]), 30), 1)
        -0.1
    """
    mean = float(values.mean())
    if values.size < 3 or not np.isfinite(values).all():
        return mean
    x = at - at.mean()
    spread = float(x @ x)
    slope = float(x @ values) / spread
    rest = values - mean - slope * x
    ahead = end - float(at.mean())
    rise, error = slope * ahead, float(rest @ rest) / (values.size - 2) / spread * ahead**2
    if rise == 0:
        return mean
    return mean + rise * rise**2 / (rise**2 + DOUBT * error)


def scatter(at: NDArray[np.int64], values: NDArray[np.float64]) -> float:
    """Standard deviation around a straight line.

    Args:
        at: Steps, increasing, shape ``(n,)``.
        values: What was seen there, shape ``(n,)``.

    Returns:
        The deviation; 0 of fewer than four, or where one is not finite.
    """
    if values.size < 4 or not np.isfinite(values).all():
        return 0.0
    x = at - at.mean()
    rest = values - values.mean() - x * float(x @ values) / float(x @ x)
    return float(np.sqrt(rest @ rest / (values.size - 2)))
