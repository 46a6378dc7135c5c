"""Axes on which a catapult fits: a floor under losses, and linear up to a point, log beyond."""

import math

from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator, ScalarFormatter

from trebuchet.plots.style import GREY

LOSS_FLOOR = 1e-10
"""Of L₀: below it a loss of zero is being rounded, and no phase hangs on it."""

LINEAR = {"lr_ratio": 4.0, "weight_norm": 2.0}
"""How far these axes stay linear: ηλ to 4, the weight norm to twice its start."""


def linear_then_log(ax: Axes, low: float, top: float, linear: float) -> Axes:
    """A y axis from 0 that is linear up to `linear` and logarithmic above, where that is needed.

    Values that differ by less than a fifth get an axis of their own range instead, not from 0.

    Args:
        ax: Where.
        low: The smallest value to show.
        top: The largest value to show. Up to four times `linear` the axis stays linear.
        linear: Where the logarithm begins, rounded up to one digit.

    Returns:
        The axes.
    """
    if low > 0.8 * top and top <= linear:
        margin = max(0.15 * (top - low), 1e-3 * top)  # no finer than a part in a thousand
        ax.set_ylim(low - margin, top + margin)
        ax.yaxis.set_major_formatter(ScalarFormatter(useOffset=False))
        return ax
    if top <= 4 * linear:
        ax.set_ylim(0, 1.08 * max(top, 0.5 * linear))
        return ax
    linear = _round_up(linear)
    decades = max(math.log10(top / linear), 0.5)
    # the linear part takes half of the height, whatever lies above it
    ax.set_yscale("symlog", linthresh=linear, linscale=decades, base=10)
    ax.set_ylim(0, top * 10 ** (0.08 * decades))
    small = [0, linear / 4, linear / 2, 3 * linear / 4, linear]
    every = math.ceil(decades / 4)
    first = math.floor(math.log10(linear)) + 1
    first += math.log10(10**first / linear) < 0.12 * decades  # too near for both numbers
    large = [10.0**k for k in range(first, math.floor(math.log10(top)) + 1, every)]
    ax.yaxis.set_major_locator(FixedLocator(small + large))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))
    ax.axhline(linear, color=GREY, linewidth=0.5, zorder=0.8)
    ax.text(
        0.995,
        linear,
        "log above",
        transform=ax.get_yaxis_transform(),
        ha="right",
        va="bottom",
        fontsize=6,
        color=GREY,
    )
    return ax


def stability_line(ax: Axes) -> Axes:
    """The line ηλ = 2, under which gradient descent is linearly stable.

    Args:
        ax: With ηλ as its y axis.

    Returns:
        The axes.
    """
    ax.axhline(2, color=GREY, linewidth=0.9, linestyle=(0, (1, 1.5)), zorder=1)
    # On the left: runs end near 2, and would be drawn over it on the right.
    ax.text(
        0.005,
        2,
        "ηλ = 2",
        transform=ax.get_yaxis_transform(),
        ha="left",
        va="bottom",
        fontsize=6.5,
        color=GREY,
        path_effects=[withStroke(linewidth=2, foreground="white")],
    )
    return ax


def say_floor(ax: Axes) -> Axes:
    """Say what a triangle on the lower rim means.

    Args:
        ax: With a loss as its y axis.

    Returns:
        The axes.
    """
    ax.text(
        0.99,
        0.07,
        "▾ below 10⁻¹⁰ L₀",
        transform=ax.transAxes,
        ha="right",
        va="bottom",
        fontsize=6.5,
        color=GREY,
    )
    return ax


def _round_up(value: float) -> float:
    """To one significant digit, forgiving 5 %: 1.97 and 2.03 both become 2."""
    unit = 10.0 ** math.floor(math.log10(value))
    return math.ceil(value / unit - 0.05) * unit


def _tick(value: float) -> str:
    """1.5 as it is, 1000 as 10³."""
    if value < 10:
        return f"{value:g}"
    power = round(math.log10(value))
    return f"$10^{{{power}}}$" if math.isclose(value, 10**power) else f"{value:g}"
