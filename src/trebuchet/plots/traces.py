"""A quantity over the steps of training, at a few learning rates."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator
from numpy.typing import NDArray

from trebuchet._checks import choice
from trebuchet._doors import door, rule
from trebuchet._types import Phase, Status
from trebuchet.errors import InputError
from trebuchet.plots import checks
from trebuchet.plots.phase_bar import DROPPED, majority_phase, rate_axis
from trebuchet.plots.scales import (
    LINEAR,
    LOSS_FLOOR,
    linear_then_log,
    say_floor,
    stability_line,
)
from trebuchet.plots.style import rate_colours, seed_band
from trebuchet.results.summary import NO_END

LONG = 150  # steps past which a linear axis would squeeze the first catapult into a corner


@dataclass(frozen=True, slots=True)
class _Quantity:
    title: str
    label: str
    log: bool


QUANTITIES = {
    "loss": _Quantity("Loss", "training loss L", True),
    "test_loss": _Quantity("Test loss", "test loss", True),
    "weight_norm": _Quantity("Weight norm", "|θ|²/P", False),
    "lr_ratio": _Quantity("Learning rate × top eigenvalue", "ηλₜ", False),
}


@door(
    ds=checks.labelled, quantity=rule(choice, QUANTITIES, quoted=False), ax=checks.optional_axes,
    rates=checks.positions, colours=checks.colours,
)  # fmt: skip
def traces(
    ds: Any,
    quantity: str = "loss",
    *,
    ax: Axes | None = None,
    rates: Sequence[int] | None = None,
    colours: Sequence[Any] | None = None,
) -> Axes:
    """Loss, weight norm or ηλ_t over steps: medians over seeds, with their range as a band.

    A finished run keeps its last value; the line of one that a scan dropped, or Ctrl-C met, ends. A
    cross marks where the median run diverged (a hollow one, where the first of a minority did), and
    a triangle where a loss leaves the picture through the floor at 1e-10 L₀. Steps run on a
    logarithmic axis (linear below 1) where there are more than 150.

    Args:
        ds: A labelled results dataset, or a ``Scan``.
        quantity: "loss", "test_loss", "weight_norm" (divided by P where the dataset knows it) or
            "lr_ratio" (ηλ_t).
        ax: Where to draw; a new figure's axes unless given.
        rates: Indices along ``lr``; chosen by `choose_rates` unless given.
        colours: One a rate.

    Returns:
        The axes.

    Raises:
        InputError: If the quantity is unknown or was not recorded.
    """
    chosen = choose_rates(ds) if rates is None else checks.within(rates, ds)
    colours = rate_colours(len(chosen)) if colours is None else checks.as_many(colours, chosen)
    look = QUANTITIES[quantity]
    step = ds["step"].values
    ax = checks.drawn_on(ax)
    names = rate_names(ds)
    drawn = []
    for rate, colour in zip(chosen, colours, strict=True):
        values = _trace(ds, quantity, rate)  # (step, seed)
        line = seed_band(ax, step, values, colour=colour, label=names[rate])
        drawn.append((line, values))
    end = _end(ds, chosen)
    if end > LONG:
        ax.set_xscale("symlog", linthresh=1, linscale=0.25)
        ax.set_xticks([0, *(10**k for k in range(int(np.log10(end)) + 1))])
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xlim(0, end)
    else:
        ax.set_xlim(0, end)
    _set_height(ax, quantity, drawn, look.log)
    for line, values in drawn:
        _mark_divergence(ax, step, values, line)
    ax.set_xlabel("step t")
    ax.set_ylabel(_label(ds, quantity))
    if quantity == "lr_ratio":
        stability_line(ax)
    return ax


@door(ds=checks.labelled)
def choose_rates(ds: Any) -> list[int]:
    """A few rates that tell the story: lazy, catapult, the last that trained, the first lost.

    Args:
        ds: A labelled results dataset, or a ``Scan``.

    Returns:
        Up to five indices along ``lr``, increasing.

    Raises:
        InputError: If the dataset is not labelled.
    """
    phases, _ = majority_phase(ds)
    chosen: set[int] = set()
    lazy = np.flatnonzero(phases == str(Phase.LAZY))
    catapult = np.flatnonzero(phases == str(Phase.CATAPULT))
    failed = np.flatnonzero((phases == str(Phase.DIVERGENT)) | (phases == str(Phase.COLLAPSED)))
    if len(lazy):
        chosen.add(int(lazy[len(lazy) // 2]))
    if len(catapult):
        chosen |= {int(catapult[k]) for k in (len(catapult) // 8, len(catapult) // 2, -1)}
    if len(failed):
        after = failed[failed > max(chosen, default=-1)]
        chosen.add(int(after[0] if len(after) else failed[0]))
    elif not len(catapult):
        judged = np.flatnonzero((phases != DROPPED) & (phases != ""))
        chosen |= {int(judged[0]), int(judged[-1])} if len(judged) > 1 else {0, len(phases) - 1}
    return sorted(chosen)


def rate_names(ds: xr.Dataset) -> list[str]:
    """What a legend calls each rate: by ηλ₀ or η, as the axis of rates is.

    Args:
        ds: A results dataset.

    Returns:
        One a rate.
    """
    sign = checks.rate_name(checks.along(ds, None))
    return [f"{sign} = {value:.3g}" for value in rate_axis(ds)]


@door(ds=checks.labelled, rates=checks.positions, colours=checks.colours)
def trace_handles(
    ds: Any, rates: Sequence[int] | None, colours: Sequence[Any] | None = None
) -> list[Line2D]:
    """Legend entries for rates: value and phase.

    Args:
        ds: A labelled results dataset, or a ``Scan``.
        rates: Indices along ``lr``; None for those of `choose_rates`.
        colours: One a rate.

    Returns:
        Lines with labels.

    Raises:
        InputError: If an argument is not what was expected.
    """
    chosen = choose_rates(ds) if rates is None else checks.within(rates, ds)
    colours = rate_colours(len(chosen)) if colours is None else checks.as_many(colours, chosen)
    phases, _ = majority_phase(ds)
    names = rate_names(ds)
    return [
        Line2D([], [], color=colour, label=f"{names[rate]}  {phases[rate]}")
        for rate, colour in zip(chosen, colours, strict=True)
    ]


def _end(ds: xr.Dataset, rates: Sequence[int]) -> float:
    """The step at which the last of the runs ended: after it all lines are level."""
    recorded = float(ds["step"][-1])
    made = float(ds["steps"].isel(lr=list(rates)).max()) if "steps" in ds else recorded
    return max(min(made, recorded), 1.0)


def _trace(ds: xr.Dataset, quantity: str, rate: int) -> NDArray[np.float64]:
    """``(step, seed)``; a finished run keeps its last value, a diverged one is +inf after it.

    Between the steps at which a run was looked at, which a scan's runs do not all share, it is
    interpolated: a gap would break the line.

    Args:
        ds: A results dataset.
        quantity: One of `QUANTITIES`.
        rate: Index along ``lr``.

    Returns:
        Values, NaN where the run had not begun or was cut short.

    Raises:
        InputError: If the quantity was not recorded.
    """
    name = {"lr_ratio": "top_eigenvalue"}.get(quantity, quantity)
    if name not in ds:
        raise InputError(f"quantity: expected one that was recorded; the dataset has no {name!r}")
    run = ds.isel(lr=rate)
    values = np.array(run[name].transpose("step", "seed").values, dtype=np.float64)
    if quantity == "lr_ratio":
        values = values * run["learning_rate"].values
    if quantity == "weight_norm" and "n_parameters" in ds.attrs:
        values = values / ds.attrs["n_parameters"]
    over = np.isin(run["status"].values, [str(Status.NON_FINITE), str(Status.BLEW_UP)])
    cut = np.isin(run["status"].values, [*NO_END, str(Status.INTERRUPTED)])
    step = ds["step"].values.astype(np.float64)
    for seed in range(values.shape[1]):
        known = np.flatnonzero(np.isfinite(values[:, seed]))
        last = known[-1] if len(known) else -1
        if len(known):
            within = slice(known[0], last + 1)
            values[within, seed] = _interpolated(
                step[within], step[known], values[known, seed], log=QUANTITIES[quantity].log
            )
        after = np.inf if over[seed] else np.nan if cut[seed] or last < 0 else values[last, seed]
        values[last + 1 :, seed] = after
    return values


def _interpolated(
    at: NDArray[np.float64], step: NDArray[np.float64], values: NDArray[np.float64], *, log: bool
) -> NDArray[np.float64]:
    """Straight between what is known, on the axis that it is drawn on."""
    if log and (values > 0).all():
        found = np.exp(np.interp(at, step, np.log(values)))
        found[np.isin(at, step)] = values  # as recorded, to the last digit
        return found
    return np.interp(at, step, values)


def _set_height(
    ax: Axes, quantity: str, drawn: Sequence[tuple[Line2D, NDArray[np.float64]]], log: bool
) -> None:
    """Limits from the runs that came back, so that a blow-up does not flatten all others."""
    finite = [values[np.isfinite(values)] for _, values in drawn]
    pooled = np.concatenate(finite) if finite else np.array([1.0])
    calm = [v[:, np.isfinite(v[-1])] for _, v in drawn if np.isfinite(v[-1]).any()]
    top = max((float(np.nanmax(v)) for v in calm), default=float(pooled.max(initial=1.0)))
    if log and (pooled < 0).any():  # such as a loss with a constant taken off
        low = float(pooled.min())
        ax.set_ylim(low - 0.06 * (top - low), top + 0.06 * max(top - low, 1e-300))
        return
    if not log:
        begun = [float(np.nanmax(v[0])) for _, v in drawn if np.isfinite(v[0]).any()]
        top = max([top, *begun])
        low = 0.0 if quantity == "lr_ratio" else float(pooled.min(initial=top))
        linear_then_log(ax, low, top, LINEAR[quantity] * _start(drawn, quantity))
        return
    positive = pooled[pooled > 0]
    ax.set_yscale("log")
    if not len(positive):
        return
    floor = LOSS_FLOOR * _start(drawn, quantity)
    bottom = max(positive.min(), floor) if floor > 0 else positive.min()
    ax.set_ylim(bottom / 2, min(positive.max() * 3, 1e4 * top))
    left = [
        (line, np.flatnonzero(np.asarray(line.get_ydata(), dtype=np.float64) < bottom / 2))
        for line, _ in drawn
    ]
    for line, under in left:
        if len(under):
            _mark(ax, float(np.asarray(line.get_xdata())[under[0]]), 0.0, "v", line)
    if any(len(under) for _, under in left):
        say_floor(ax)


def _start(drawn: Sequence[tuple[Line2D, NDArray[np.float64]]], quantity: str) -> float:
    """The unit of an axis: 1 for ηλ, the norm or the loss at the start for norms and losses."""
    if quantity == "lr_ratio":
        return 1.0
    begun = np.concatenate([v[0] for _, v in drawn])
    return float(np.median(begun[~np.isnan(begun)])) if not np.isnan(begun).all() else 1.0


def _mark_divergence(
    ax: Axes, step: NDArray[Any], values: NDArray[np.float64], line: Line2D
) -> None:
    """A cross where the median run was lost, a hollow one where the first of a minority was.

    On the upper rim, if the run had left the picture before it ended.
    """
    y = np.asarray(line.get_ydata(), dtype=np.float64)
    seen = np.flatnonzero(np.isfinite(y))
    lost = np.isinf(values[-1])
    if not len(seen) or not lost.any():
        return
    top = ax.get_ylim()[1]
    if np.isfinite(y[-1]):
        first = np.flatnonzero((values[:, lost] > top).any(axis=1))[0]
        _mark(ax, float(step[first]), 1.0, "X", line, hollow=True)
        return
    beyond = np.flatnonzero(y > top)
    if len(beyond):
        _mark(ax, float(step[beyond[0]]), 1.0, "X", line)
    else:
        last = seen[-1]
        _mark(ax, float(step[last]), float(y[last]), "X", line, rim=False)


def _mark(
    ax: Axes,
    x: float,
    height: float,
    marker: str,
    line: Line2D,
    *,
    hollow: bool = False,
    rim: bool = True,
) -> None:
    """A marker at a height in data units, or, on a rim, in shares of the axes."""
    colour = line.get_color()
    ax.plot(
        x,
        height,
        marker=marker,
        markersize=7,
        markerfacecolor="white" if hollow else colour,
        markeredgecolor=colour if hollow else "white",
        transform=ax.get_xaxis_transform() if rim else ax.transData,
        clip_on=False,
        zorder=5,
    )


def _label(ds: xr.Dataset, quantity: str) -> str:
    if quantity == "weight_norm" and "n_parameters" not in ds.attrs:
        return "|θ|²"
    return QUANTITIES[quantity].label


__all__ = ["choose_rates", "trace_handles", "traces"]
