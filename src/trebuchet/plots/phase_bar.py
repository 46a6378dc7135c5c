"""Which phase a rate is in, over the seeds: as shading behind a plot, and as a bar of its own."""

from itertools import pairwise
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from numpy.typing import ArrayLike, NDArray

from trebuchet._checks import array, flag
from trebuchet._doors import door, rule
from trebuchet._types import Phase
from trebuchet.errors import InputError
from trebuchet.plots import checks
from trebuchet.plots.style import INK, PHASE_COLOURS
from trebuchet.results.schema import results

# red lies close to orange once both are pale, so it is drawn stronger
SHADE: dict[str, float] = {phase: 0.27 if phase is Phase.DIVERGENT else 0.17 for phase in Phase}
GREY_HATCH = "#AAAAAA"


@door(ds=checks.labelled)
def majority_phase(ds: xr.Dataset) -> tuple[NDArray[np.str_], NDArray[np.float64]]:
    """The phase that most seeds are in, at each rate.

    A tie goes to the phase that claims less: divergent, then collapsed, unsettled, catapult, lazy.

    Args:
        ds: A labelled results dataset.

    Returns:
        Phases ``(lr,)``, and the share of seeds that are in them ``(lr,)``.

    Raises:
        InputError: If the dataset is not labelled.
    """
    phases = _phases(ds)  # (lr, seed)
    cautious = [Phase.DIVERGENT, Phase.COLLAPSED, Phase.UNSETTLED, Phase.CATAPULT, Phase.LAZY]
    counts = np.stack([(phases == str(phase)).sum(axis=1) for phase in cautious])  # (5, lr)
    winner = counts.argmax(axis=0)  # the first of equals
    ran = np.maximum((phases != "").sum(axis=1), 1)  # of a scan, not every seed at every rate
    return np.array([str(cautious[k]) for k in winner]), counts.max(axis=0) / ran


@door(ds=results, x=checks.x_axis)
def rate_axis(ds: xr.Dataset, x: str | None = None) -> NDArray[np.float64]:
    """Where each rate lies on an axis of ηλ₀ (``"lr_ratio"``) or η (``"lr"``), ``(lr,)``.

    Where seeds differ (λ₀ does, at one η), it is their median.

    Args:
        ds: A results dataset.
        x: "lr_ratio" or "lr"; the first where λ₀ is known, unless given.

    Returns:
        Positions, increasing.

    Raises:
        InputError: If `x` is neither, or the dataset lacks it.
    """
    x = checks.along(ds, x)
    if checks.X[x] not in ds:
        raise InputError(f"x: expected 'lr_ratio' or 'lr', held by the dataset, got {x!r}")
    return np.asarray(ds[checks.X[x]].median("seed").values, dtype=np.float64)


@door(x=rule(array, 1))
def cell_edges(x: ArrayLike) -> NDArray[np.float64]:
    """Borders of the cells around points on a line: midpoints, and as far again at the ends.

    Args:
        x: Increasing, ``(N,)``.

    Returns:
        ``(N + 1,)``.

    Raises:
        InputError: If it is no list of numbers.

    Example:
        >>> cell_edges([1.0, 2.0, 4.0]).tolist()
        [0.5, 1.5, 3.0, 5.0]
    """
    x = np.asarray(x, dtype=np.float64)
    if len(x) == 1:
        return np.array([x[0] * 0.95, x[0] * 1.05])
    middle = (x[1:] + x[:-1]) / 2
    return np.concatenate([[2 * x[0] - middle[0]], middle, [2 * x[-1] - middle[-1]]])


@door(ax=checks.axes, ds=checks.labelled, x=checks.x_axis, names=flag)
def shade_phases(ax: Axes, ds: xr.Dataset, *, x: str | None = None, names: bool = True) -> Axes:
    """Shade the background by the majority's phase; hatch the rates on which seeds disagree.

    Args:
        ax: Where to draw; its x axis is set to the rates.
        ds: A labelled results dataset.
        x: "lr_ratio" or "lr"; the first where λ₀ is known, unless given.
        names: Write the phases above the axes, where there is room.

    Returns:
        The axes.

    Raises:
        InputError: If an argument is not what was expected.
    """
    position = rate_axis(ds, x)
    phases, share = majority_phase(ds)
    borders = _borders(ax, position)
    place = np.log if ax.get_xscale() == "log" else np.asarray
    width = float(place(borders[-1]) - place(borders[0]))
    for start, stop in _stretches(phases):
        colour = PHASE_COLOURS[phases[start]]
        left, right = borders[start], borders[stop]
        ax.axvspan(left, right, color=colour, alpha=SHADE[phases[start]], linewidth=0, zorder=0)
        if names and float(place(right) - place(left)) / width > 0.017 * len(phases[start]) + 0.02:
            ax.text(
                _middle(ax, left, right),
                1.01,
                phases[start],
                transform=ax.get_xaxis_transform(),
                ha="center",
                va="bottom",
                fontsize=7.5,
                color=_darker(colour),
                fontweight="bold",
            )
    for start, stop in _stretches(share < 1):
        if share[start] < 1:
            ax.axvspan(
                borders[start],
                borders[stop],
                facecolor="none",
                edgecolor=INK,
                alpha=0.18,
                hatch="////",
                linewidth=0,
                zorder=0.5,
            )
    ax.set_xlim(borders[0], borders[-1])
    return ax


@door(ds=checks.labelled, ax=checks.optional_axes, x=checks.x_axis)
def phase_bar(ds: xr.Dataset, *, ax: Axes | None = None, x: str | None = None) -> Axes:
    """One row of cells a seed, one column a rate, coloured by phase.

    Args:
        ds: A labelled results dataset.
        ax: Where to draw; a new figure's axes unless given.
        x: "lr_ratio" or "lr"; the first where λ₀ is known, unless given.

    Returns:
        The axes.

    Raises:
        InputError: If an argument is not what was expected.
    """
    phases = _phases(ds)  # (lr, seed)
    ax = checks.drawn_on(ax)
    x = checks.along(ds, x)
    borders = _borders(ax, rate_axis(ds, x))
    n_seeds = phases.shape[1]
    for seed in range(n_seeds):
        for start, stop in _stretches(phases[:, seed]):
            if not phases[start, seed]:  # not run
                continue
            ax.barh(
                seed,
                borders[stop] - borders[start],
                left=borders[start],
                height=0.82,
                color=PHASE_COLOURS[phases[start, seed]],
                alpha=0.8,
                linewidth=0,
            )
    ax.set_xlim(borders[0], borders[-1])
    ax.set_ylim(n_seeds - 0.5, -0.5)
    few = n_seeds <= 6
    ax.set_yticks(range(n_seeds) if few else [], [str(s) for s in ds["seed"].values] if few else [])
    if not ax.get_xlabel():
        ax.set_xlabel("ηλ₀" if x == "lr_ratio" else "learning rate η")
    ax.set_ylabel("seed" if few else f"{n_seeds} seeds")
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    return ax


@door(ds=checks.labelled)
def phase_handles(ds: xr.Dataset) -> list[Patch]:
    """Legend entries for the phases that occur, and for the hatching where seeds disagree.

    Args:
        ds: A labelled results dataset.

    Returns:
        Patches with labels.

    Raises:
        InputError: If the dataset is not labelled.
    """
    present = set(_phases(ds).ravel().tolist())
    handles = [
        Patch(facecolor=colour, alpha=SHADE[phase] + 0.13, label=str(phase))
        for phase, colour in PHASE_COLOURS.items()
        if str(phase) in present
    ]
    if (majority_phase(ds)[1] < 1).any():
        handles.append(
            Patch(facecolor="none", edgecolor=GREY_HATCH, hatch="////", label="seeds disagree")
        )
    return handles


WIDE = 50.0
"""Rates over more than this factor lie on a logarithmic axis."""


def _borders(ax: Axes, position: NDArray[np.float64]) -> NDArray[np.float64]:
    """Borders of the cells around rates, on the axis that suits them."""
    if position[-1] <= WIDE * position[0]:
        return cell_edges(position)
    ax.set_xscale("log")
    return np.exp(cell_edges(np.log(position)))


def _middle(ax: Axes, left: float, right: float) -> float:
    return float(np.sqrt(left * right)) if ax.get_xscale() == "log" else (left + right) / 2


def _phases(ds: xr.Dataset) -> NDArray[np.str_]:
    return np.asarray(ds["phase"].transpose("lr", "seed").values).astype(str)


def _stretches(values: NDArray[Any]) -> list[tuple[int, int]]:
    """Start and stop of every stretch of equal neighbours."""
    change = np.flatnonzero(values[1:] != values[:-1]) + 1
    borders = [0, *change.tolist(), len(values)]
    return list(pairwise(borders))


def _darker(colour: str) -> tuple[float, float, float]:
    """The colour, dark enough to be read as text on its own pale shade."""
    red, green, blue = (int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5))
    return (0.62 * red, 0.62 * green, 0.62 * blue)
