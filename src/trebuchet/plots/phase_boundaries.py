"""Where phases part along the rates: as measured, and as the theory has it."""

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from trebuchet.plots import checks
from trebuchet.results.cells import cells_of

FloatArray = NDArray[np.float64]
Flags = NDArray[np.bool_]


def boundaries(inside: Flags, known: Flags, at: FloatArray) -> FloatArray:
    """The rate up to which runs are inside, averaged over seeds in logarithms.

    Args:
        inside: Whether each run is, shape ``(y, lr, seed)``; small rates are.
        known: Whether it is known.
        at: The rates, increasing, shape ``(y, lr)``.

    Returns:
        One for each y; NaN where fewer than half of the seeds have runs on both sides.

    Example:
        >>> inside = np.array([[[True], [True], [False]]])
        >>> boundaries(inside, np.ones_like(inside), np.array([[1.0, 2.0, 8.0]])).tolist()
        [4.0]
    """
    found = np.full(len(at), np.nan)
    for i, logs in enumerate(np.log(at)):
        there = known[i] & np.isfinite(logs)[:, None]
        seeds = [_split(inside[i, k, s], logs[k]) for s, k in enumerate(there.T)]
        both = [value for value in seeds if np.isfinite(value)]
        if both and 2 * len(both) >= len(seeds):
            found[i] = np.exp(np.mean(both))
    return found


def _split(inside: Flags, logs: FloatArray) -> float:
    """The middle of the two rates between which the fewest runs are on the wrong side."""
    outside_before = np.concatenate([[0], np.cumsum(~inside)])
    inside_after = np.concatenate([np.cumsum(inside[::-1])[::-1], [0]])
    best = int(np.argmin(outside_before + inside_after))
    if best in (0, len(logs)):
        return float("nan")
    return float(logs[best - 1] + logs[best]) / 2


def critical(ds: xr.Dataset, x: str, y: str) -> FloatArray:
    """Where ηλ₀ is 2.

    Args:
        ds: Runs over y.
        x: "lr_ratio" or "lr": what is meant.
        y: An axis.

    Returns:
        One for each y; NaN where λ₀ is not known, or the runs are not of gradient descent.
    """
    found = []
    for i in range(ds.sizes[y]):
        row = next(cell for _, cell in cells_of(ds.isel({y: [i]})))
        known = checks.is_descent(row) and "lr_ratio" in row
        top = float((row["lr_ratio"] / row["learning_rate"]).median()) if known else np.nan
        found.append(np.nan if np.isnan(top) else 2.0 if x == "lr_ratio" else 2.0 / top)
    return np.array(found)
