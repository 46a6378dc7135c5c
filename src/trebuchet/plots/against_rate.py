"""Where runs end up, against the learning rate they were trained at."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from trebuchet._checks import as_text, flag, items, refuse
from trebuchet._doors import door
from trebuchet._types import Phase
from trebuchet.errors import InputError
from trebuchet.plots import checks
from trebuchet.plots.edge_lines import Edges, an_edges, draw_edges
from trebuchet.plots.phase_bar import DROPPED, rate_axis, set_rate_axis, shade_phases
from trebuchet.plots.scales import LINEAR, LOSS_FLOOR, linear_then_log, say_floor, stability_line
from trebuchet.plots.style import DARK_RED, GREY, SERIES_COLOURS, seed_band
from trebuchet.results.summary import shown_phases


@dataclass(frozen=True, slots=True)
class _Final:
    label: str  # of the axis, when alone
    short: str  # in a legend
    log: bool


FINALS = {
    "lr_ratio_final": _Final("final ηλ", "final ηλ", False),
    "weight_norm_final": _Final("final |θ|²/P", "|θ|²/P", False),
    "loss_max": _Final("peak loss", "peak loss", True),
    "loss_final": _Final("final training loss", "final training loss", True),
    "test_loss_final": _Final("final test loss", "final test loss", True),
    "sparsity_final": _Final("sparsity", "layer", False),
}


def _quantities(name: str, value: object) -> list[str]:
    names = [value] if isinstance(value, str) else items(value, as_text)
    if not names or not all(isinstance(n, str) and n in FINALS for n in names):
        refuse(name, f"some of {', '.join(FINALS)}", value)
    return [str(n) for n in names]


@door(
    ds=checks.labelled, quantities=_quantities, ax=checks.optional_axes, x=checks.x_axis,
    edges=an_edges, edge_labels=flag, shade=flag,
)  # fmt: skip
def against_rate(
    ds: Any,
    quantities: str | Sequence[str] = "lr_ratio_final",
    *,
    ax: Axes | None = None,
    x: str | None = None,
    edges: Edges | None = None,
    edge_labels: bool = True,
    shade: bool = True,
) -> Axes:
    """Final numbers against ηλ₀ or η: medians over seeds with their range, phases behind them.

    A diverged run has no final number: it is a cross on the upper rim, filled where every seed
    diverged, hollow where some did; the line is of those that remain. Of runs that a scan dropped
    the last number is a small hollow mark, in no line.

    Args:
        ds: A labelled results dataset, or a ``Scan``.
        quantities: One or several of "lr_ratio_final" (final ηλ), "weight_norm_final",
            "loss_max", "loss_final", "test_loss_final", "sparsity_final" (a line a layer). Losses
            go on a logarithmic axis.
        ax: Where to draw; a new figure's axes unless given.
        x: "lr_ratio" or "lr"; unless given the first where ηλ₀ was swept, or is known and the
            optimizer is gradient descent.
        edges: Drawn as vertical lines (see `draw_edges`).
        edge_labels: Write their names.
        shade: Shade the phases.

    Returns:
        The axes.

    Raises:
        InputError: If an argument is not what was expected, or a quantity is not in the dataset.
    """
    names = [quantities] if isinstance(quantities, str) else list(quantities)
    ax, x = checks.drawn_on(ax), checks.along(ds, x)
    position = rate_axis(ds, x)
    set_rate_axis(ax, position)
    if shade:
        shade_phases(ax, ds, x=x)
    lines = [item for name in names for item in _series(ds, name)]
    log = any(FINALS[name].log for name in names) and not any((v < 0).any() for _, v in lines)
    shown = shown_phases(ds)
    diverged, dropped = shown == str(Phase.DIVERGENT), shown == DROPPED
    there = ~(dropped | (shown == "")).all(axis=1)
    floor = LOSS_FLOOR * float(np.nanmedian(ds["loss_first"])) if log else -np.inf
    pooled, sunk = [], False
    for (label, values), colour in zip(lines, _cycle(len(lines)), strict=True):
        kept = np.where(diverged | ~np.isfinite(values), np.nan, values)
        under = kept < floor
        kept = np.where(under, floor, kept)
        left, kept = np.where(dropped, kept, np.nan), np.where(dropped, np.nan, kept)
        seed_band(
            ax, position[there], kept[there], colour=colour, label=label, marker="o", markersize=2.6
        )
        if dropped.any():
            ax.plot(position, left, "o", color=colour, markerfacecolor="white", markersize=3.2)
        if kept.shape[1] > 1:  # every seed, faintly: a median of few hides how they fell
            ax.plot(position, kept, ".", color=colour, alpha=0.3, markersize=2.5)
        sunk |= bool(under.any())
        every = np.flatnonzero(under.all(axis=1))
        if len(every):
            ax.plot(position[every], kept[every, 0], "v", color=colour, markersize=4.5, zorder=4)
        pooled += [kept[np.isfinite(kept)], left[np.isfinite(left)]]
    if sunk:
        say_floor(ax)
    _set_height(ax, names, np.concatenate(pooled), ds, log=log)
    _mark_diverged(ax, position, ds)
    if "lr_ratio_final" in names:
        _ratio_guides(ax, x)
    if len(lines) > 1:
        # losses leave room above them, sparsity rises and leaves it below
        ax.legend(
            loc="upper left" if log else "lower right",
            handlelength=1.5,
            labelspacing=0.3,
            borderaxespad=0.3,
        )
    draw_edges(ax, edges, x=x, labels=edge_labels)
    ax.set_xlabel("ηλ₀" if x == "lr_ratio" else "learning rate η")
    ax.set_ylabel(_axis_label(ds, names))
    return ax


def _series(ds: xr.Dataset, name: str) -> list[tuple[str, NDArray[np.float64]]]:
    """Legend label and values ``(lr, seed)`` of each line that a quantity draws."""
    held = {"lr_ratio_final": "top_eigenvalue_final"}.get(name, name)
    if held not in ds:
        raise InputError(f"quantities: {name!r} needs {held!r}, which the dataset does not hold")
    if name == "sparsity_final":
        layers = ds[held].transpose("layer", "lr", "seed").values
        return [(f"hidden layer {k + 1}", np.asarray(v)) for k, v in enumerate(layers)]
    values = ds[held] * ds["learning_rate"] if name == "lr_ratio_final" else ds[held]
    if name == "weight_norm_final":
        values = values / ds.attrs.get("n_parameters", 1)
    return [(FINALS[name].short, np.asarray(values.transpose("lr", "seed").values))]


def _set_height(
    ax: Axes, names: Sequence[str], values: NDArray[np.float64], ds: xr.Dataset, *, log: bool
) -> None:
    if log:
        ax.set_yscale("log")
    if not len(values):
        return
    if names == ["sparsity_final"]:
        ax.set_ylim(max(0.0, np.floor(10 * values.min() - 0.5) / 10), 1.03)
    elif log and values.max() > 0:
        positive = values[values > 0]
        room = 0.35 if len(names) > 1 else 0.08  # for the legend
        decades = max(np.log10(positive.max() / positive.min()), 1.0)
        ax.set_ylim(
            positive.min() / 10 ** (0.04 * decades), positive.max() * 10 ** (room * decades)
        )
    elif names == ["lr_ratio_final"]:
        linear_then_log(ax, 0.0, max(1.25 * float(values.max()), 2.7), LINEAR["lr_ratio"])
    elif names == ["weight_norm_final"] and "weight_norm_first" in ds:
        start = float(np.nanmedian(ds["weight_norm_first"])) / ds.attrs.get("n_parameters", 1)
        linear_then_log(ax, float(values.min()), float(values.max()), LINEAR["weight_norm"] * start)
    else:
        low, high = min(0.0, float(values.min())), float(values.max())
        ax.set_ylim(low - 0.12 * (high - low) * (low < 0), high + 0.12 * (high - low))


CROSS: dict[str, Any] = {
    "marker": "X",
    "linestyle": "none",
    "markersize": 5,
    "markeredgecolor": DARK_RED,
    "markeredgewidth": 0.6,
}


def diverged_handles(ds: xr.Dataset) -> list[Line2D]:
    """Legend entries for the crosses that occur.

    Args:
        ds: A labelled results dataset.

    Returns:
        Markers with labels.
    """
    every, some = _diverged_rates(ds)
    handles = []
    if every.any():
        handles.append(Line2D([], [], color=DARK_RED, label="diverged", **CROSS))
    if some.any():
        handles.append(Line2D([], [], color="white", label="some seeds diverged", **CROSS))
    return handles


def _diverged_rates(ds: xr.Dataset) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    shown = shown_phases(ds)
    diverged = shown == str(Phase.DIVERGENT)
    every = diverged.any(axis=1) & (diverged | (shown == DROPPED) | (shown == "")).all(axis=1)
    return every, diverged.any(axis=1) & ~every


def _mark_diverged(ax: Axes, x: NDArray[np.float64], ds: xr.Dataset) -> None:
    every, some = _diverged_rates(ds)
    for where, fill in ((every, DARK_RED), (some, "white")):
        if where.any():
            ax.plot(
                x[where],
                np.full(int(where.sum()), 0.965),
                color=fill,
                clip_on=False,
                zorder=5,
                transform=ax.get_xaxis_transform(),
                **CROSS,
            )


def _ratio_guides(ax: Axes, x: str) -> None:
    """ηλ = 2, and, over ηλ₀, the diagonal of a kernel that did not change."""
    stability_line(ax)
    if x == "lr_ratio":
        left, right = ax.get_xlim()
        right = min(4.0, right)
        log = ax.get_xscale() == "log"
        reach = np.geomspace(min(left, right), right, 50) if log else np.array([0, right])
        ax.plot(
            reach,
            reach,
            color=GREY,
            linewidth=0.9,
            linestyle=(0, (1, 1.5)),
            zorder=1,
            scalex=False,
            scaley=False,
        )


def _axis_label(ds: xr.Dataset, names: Sequence[str]) -> str:
    if len(names) > 1:
        return "loss" if all("loss" in name for name in names) else "final value"
    if names[0] == "weight_norm_final" and "n_parameters" not in ds.attrs:
        return "final |θ|²"
    return FINALS[names[0]].label


def _cycle(count: int) -> list[str]:
    return [SERIES_COLOURS[k % len(SERIES_COLOURS)] for k in range(count)]
