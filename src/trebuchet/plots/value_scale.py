"""An axis for the values that somebody chose: numbers, even or in steps of a factor, or names."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from numpy.typing import NDArray

from trebuchet.plots.phase_bar import cell_edges

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Scale:
    """Where values lie on an axis.

    Attributes:
        values: Increasing numbers, or 0, 1, … for names.
        names: What stands there; None for numbers.
        log: Whether it is logarithmic.
    """

    values: FloatArray
    names: list[str] | None = None
    log: bool = False

    def borders(self, values: FloatArray) -> FloatArray:
        """Borders of the cells around points."""
        return np.exp(cell_edges(np.log(values))) if self.log else cell_edges(values)


def scale_of(values: NDArray[Any]) -> Scale:
    """The scale of values, logarithmic where they are more even in steps of a factor.

    Args:
        values: Increasing numbers, or words.

    Returns:
        The scale.

    Example:
        >>> scale_of(np.array([32, 64, 128])).log, scale_of(np.array([10, 20, 30])).log
        (True, False)
    """
    if values.dtype.kind not in "iuf":
        return Scale(np.arange(len(values), dtype=np.float64), [str(v) for v in values])
    found = values.astype(np.float64)
    if len(found) < 2 or found[0] <= 0 or found[-1] < 4 * found[0]:
        return Scale(found)
    steps, ratios = np.diff(found), np.diff(np.log(found))
    even = np.std(ratios) / np.mean(ratios) < np.std(steps) / np.mean(steps)
    return Scale(found, log=bool(even) or len(found) == 2)


def set_axis(axis: Any, set_scale: Any, scale: Scale, *, few: bool) -> None:
    """Give an axis its scale, and ticks.

    Args:
        axis: ``ax.xaxis`` or ``ax.yaxis``.
        set_scale: ``ax.set_xscale`` or ``ax.set_yscale``.
        scale: What lies along it.
        few: Name every value.
    """
    if scale.log:
        set_scale("log")
    if scale.names is not None:
        axis.set_ticks(scale.values, scale.names)
        return
    if few:
        axis.set_ticks(scale.values)
    elif scale.log:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if _decades(scale) < 3 else (1,)))
    if scale.log or few:
        axis.set_major_formatter(
            FuncFormatter(lambda value, _: f"{value:.3g}" if value < 1000 else f"{value:g}")
        )
        axis.set_minor_locator(NullLocator())


def _decades(scale: Scale) -> float:
    return float(np.log10(scale.values[-1] / scale.values[0]))
