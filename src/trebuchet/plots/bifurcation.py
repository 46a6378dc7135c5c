"""Bifurcation diagrams: where runs are at the end of training, against the learning rate."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from trebuchet._checks import shown, text
from trebuchet._doors import door
from trebuchet.errors import InputError
from trebuchet.plots import checks
from trebuchet.plots.phase_bar import rate_axis
from trebuchet.plots.style import GREY, PHASE_COLOURS
from trebuchet.results.schema import RUN
from trebuchet.results.summary import shown_phases

LAST = 256
"""So many of the last recorded steps are drawn."""


@door(ds=checks.labelled, quantity=text, ax=checks.optional_axes, x=checks.x_axis)
def bifurcation(
    ds: Any, quantity: str = "loss", *, ax: Axes | None = None, x: str | None = None
) -> Axes:
    """The last values of every run against the rate: a point for a fixed one, p for a cycle.

    Args:
        ds: A labelled results dataset, with the last steps of its runs recorded
            (``record=Recording(tail=…)``), or a ``Scan``.
        quantity: What is drawn: "loss", or another number that was recorded along the runs; or one
            number a run, such as "lyapunov_exponent", for the panel below: it has a line at zero.
        ax: Where to draw; a new figure's axes unless given.
        x: "lr_ratio" or "lr"; unless given the first where ηλ₀ was swept, or is known and the
            optimizer is gradient descent.

    Returns:
        The axes. Colours are the phases; runs that diverged are not drawn.

    Raises:
        InputError: If an argument is not what was expected, or the dataset lacks the quantity.

    Example:
        >>> from trebuchet.paper.beyond.bifurcation import map_runs
        >>> ax = bifurcation(map_runs([0.9, 1.1, 1.25]), x="lr")
        >>> [len(set(points.get_ydata().round(9))) for points in ax.lines]
        [1, 6]
    """
    if quantity not in ds or set(ds[quantity].dims) - {"step"} != set(RUN):
        msg = (
            f"quantity: expected a number that the dataset holds of each run, got {shown(quantity)}"
        )
        raise InputError(msg)
    ax, x = checks.drawn_on(ax), checks.along(ds, x)
    position, phases = rate_axis(ds, x), shown_phases(ds)
    values = ds[quantity]
    along = "step" in values.dims
    values = values.transpose("lr", "seed", "step") if along else values.transpose("lr", "seed")
    held = values.values if along else values.values[..., None]  # (lr, seed, step)
    held = held[..., -LAST:]
    small = 1.3 if position.size > 60 and along else 2.5
    for phase, colour in PHASE_COLOURS.items():
        if phase == "divergent":
            continue
        mine = (phases == str(phase))[..., None] & np.isfinite(held)
        rates = np.broadcast_to(position[:, None, None], held.shape)
        if mine.any():
            ax.plot(rates[mine], held[mine], ".", color=colour, markersize=small, label=str(phase),
                    markeredgewidth=0, rasterized=True)  # fmt: skip
    if not along:
        ax.axhline(0, color=GREY, linewidth=0.8, zorder=0)
    ax.set_xlim(float(position.min()), float(position.max()))
    ax.set_xlabel(f"{'learning-rate ratio' if x == 'lr_ratio' else 'learning rate'} "
                  f"{checks.rate_name(x)}")  # fmt: skip
    ax.set_ylabel(str(values.attrs.get("long_name", quantity)))
    return ax
