"""One look for every picture: colours that colour-blind readers tell apart, one per phase."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike, NDArray

from trebuchet._types import Phase

# Okabe & Ito (2008): told apart under every common colour blindness, and in grey by lightness
BLUE, SKY, GREEN, ORANGE, RED, PURPLE = (
    "#0072B2",
    "#56B4E9",
    "#009E73",
    "#E69F00",
    "#D55E00",
    "#CC79A7",
)
INK, GREY, DARK_RED = "#222222", "#7F7F7F", "#9C3F00"

PHASE_COLOURS: dict[str, str] = {
    Phase.LAZY: SKY,
    Phase.CATAPULT: ORANGE,
    Phase.DIVERGENT: RED,
    Phase.COLLAPSED: PURPLE,
    Phase.PERIODIC: GREEN,
    Phase.CHAOTIC: BLUE,
    Phase.UNSETTLED: GREY,
}
SERIES_COLOURS = (BLUE, RED, GREEN, PURPLE, INK)

RC: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # ships with matplotlib, and has every glyph used here
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.direction": "out",
    "ytick.direction": "out",
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "legend.fontsize": 8,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "savefig.dpi": 160,
}


@contextmanager
def style() -> Iterator[None]:
    """Draw in this look inside a ``with`` block; the reader's own settings come back after it.

    Example:
        >>> from matplotlib.figure import Figure
        >>> with style():
        ...     ax = Figure().add_subplot()
        >>> ax.spines["top"].get_visible()
        False
    """
    with mpl.rc_context(RC):
        yield


def rate_colours(count: int) -> list[Any]:
    """A colour for each of `count` rates, dark for small ones to light for large ones.

    Args:
        count: How many.

    Returns:
        RGBA tuples from viridis, without its palest fifth, which is lost on white.
    """
    colours: Colormap = mpl.colormaps["viridis"]
    return [colours(0.85 * k / max(count - 1, 1)) for k in range(count)]


def seed_band(
    ax: Axes, x: ArrayLike, values: NDArray[np.floating[Any]], *, colour: Any, **line: Any
) -> Line2D:
    """The median over seeds as a line, their range as a band; one seed is a line alone.

    Args:
        ax: Where to draw.
        x: Positions, ``(N,)``.
        values: One column a seed, ``(N, seeds)``. NaN is missing; +inf, a run that diverged,
            counts as largest for the median, which breaks off once half of the seeds are gone; the
            band is of those that are left.
        colour: Of line and band.
        **line: Passed to ``ax.plot``.

    Returns:
        The median's line.
    """
    x = np.asarray(x)
    known = ~np.isnan(values).all(axis=1)
    finite = np.where(np.isfinite(values), values, np.nan)
    some = np.isfinite(finite).any(axis=1)
    middle, low, high = (np.full(len(x), np.nan) for _ in range(3))
    # by hand, since interpolating between two infinities gives NaN with a warning
    lower, upper = (
        np.nanquantile(values[known], 0.5, axis=1, method=method) for method in ("lower", "higher")
    )
    middle[known] = np.where(np.isinf(upper), np.inf, (lower + upper) / 2)
    low[some], high[some] = np.nanmin(finite[some], axis=1), np.nanmax(finite[some], axis=1)
    middle[np.isinf(middle)] = np.nan
    if values.shape[1] > 1:
        ax.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
    return ax.plot(x, middle, color=colour, **line)[0]
