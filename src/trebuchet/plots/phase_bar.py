"""Which phase a rate is in, over the seeds: as shading behind a plot, and as a bar of its own."""

from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from numpy.typing import ArrayLike, NDArray

from trebuchet._checks import array, flag
from trebuchet._doors import door, rule
from trebuchet._types import Phase, Status
from trebuchet.plots import checks
from trebuchet.plots.style import INK, PHASE_COLOURS
from trebuchet.results.schema import results
from trebuchet.results.summary import shown_phases

# red lies close to orange once both are pale, so it is drawn stronger
STRONG = (Phase.DIVERGENT, Phase.CHAOTIC)
SHADE: dict[str, float] = {phase: 0.27 if phase in STRONG else 0.17 for phase in Phase}
GREY_HATCH = "#AAAAAA"
DROPPED = str(Status.DROPPED)


@door(ds=checks.labelled)
def majority_phase(ds: Any) -> tuple[NDArray[np.str_], NDArray[np.float64]]:
    """The phase that most seeds are in, at each rate.

    A tie goes to the phase that claims less: divergent, then collapsed, unsettled, chaotic,
    periodic, catapult, lazy.
    Runs that a scan dropped have no vote.

    Args:
        ds: A labelled results dataset, or a ``Scan``.

    Returns:
        Phases ``(lr,)``, "dropped" where every run was, empty where there is none; and the share of
        the seeds that have a vote which are in them ``(lr,)``.

    Raises:
        InputError: If the dataset is not labelled.
    """
    phases = shown_phases(ds)  # (lr, seed)
    cautious = [
        Phase.DIVERGENT, Phase.COLLAPSED, Phase.UNSETTLED, Phase.CHAOTIC, Phase.PERIODIC,
        Phase.CATAPULT, Phase.LAZY,
    ]  # fmt: skip
    counts = np.stack([(phases == str(phase)).sum(axis=1) for phase in cautious])  # (5, lr)
    winner = counts.argmax(axis=0)  # the first of equals
    votes = counts.sum(axis=0)
    dropped = (phases == DROPPED).any(axis=1)
    found = np.array([str(cautious[k]) for k in winner])
    found = np.where(votes > 0, found, np.where(dropped, DROPPED, ""))
    return found, np.where(votes > 0, counts.max(axis=0) / np.maximum(votes, 1), 1.0)


@door(ds=results, x=checks.x_axis)
def rate_axis(ds: Any, x: str | None = None) -> NDArray[np.float64]:
    """Where each rate lies on an axis of ηλ₀ (``"lr_ratio"``) or η (``"lr"``), ``(lr,)``.

    Where seeds differ (λ₀ does, at one η), it is their median.

    Args:
        ds: A results dataset, or a ``Scan``.
        x: "lr_ratio" or "lr"; unless given the first where ηλ₀ was swept, or is known and the
            optimizer is gradient descent.

    Returns:
        Positions, increasing.

    Raises:
        InputError: If `x` is neither, or the dataset lacks it.
    """
    held = checks.X[checks.along(ds, x)]
    return np.asarray(ds[held].median("seed").values, dtype=np.float64)


def spread_out(x: NDArray[np.float64]) -> bool:
    """Whether rates are an axis's ones in logarithms: over decades, and more even there.

    Args:
        x: Increasing, ``(N,)``.

    Returns:
        False for rates that were chosen in equal steps.
    """
    if len(x) < 3 or not x[0] > 0 or x[-1] < 10 * x[0]:
        return False
    steps, ratios = np.diff(x), np.diff(np.log(x))
    return bool(np.std(ratios) / np.mean(ratios) < np.std(steps) / np.mean(steps))


def set_rate_axis(ax: Axes, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give axes an x axis for rates, linear or logarithmic, as they were chosen.

    Args:
        ax: The axes.
        x: Increasing, ``(N,)``.

    Returns:
        Borders of the rates' cells ``(N + 1,)``, whose ends the axis has too.
    """
    if spread_out(x):
        ax.set_xscale("log")
        borders = np.exp(cell_edges(np.log(x)))
    else:
        borders = cell_edges(x)
    ax.set_xlim(borders[0], borders[-1])
    return borders


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
def shade_phases(ax: Axes, ds: Any, *, x: str | None = None, names: bool = True) -> Axes:
    """Shade the background by the majority's phase; hatch the rates on which seeds disagree.

    Rates at which a scan dropped every run stay white.

    Args:
        ax: Where to draw; its x axis is set to the rates, a logarithmic one where they were chosen
            evenly in logarithms, over decades.
        ds: A labelled results dataset, or a ``Scan``.
        x: "lr_ratio" or "lr"; unless given the first where ηλ₀ was swept, or is known and the
            optimizer is gradient descent.
        names: Write the phases above the axes, where there is room.

    Returns:
        The axes.

    Raises:
        InputError: If an argument is not what was expected.
    """
    position = rate_axis(ds, x)
    phases, share = majority_phase(ds)
    borders = set_rate_axis(ax, position)
    log = ax.get_xscale() == "log"
    ends = np.log(borders) if log else borders
    for start, stop in _stretches(phases):
        if phases[start] not in PHASE_COLOURS:
            continue
        colour = PHASE_COLOURS[phases[start]]
        left, right = borders[start], borders[stop]
        ax.axvspan(left, right, color=colour, alpha=SHADE[phases[start]], linewidth=0, zorder=0)
        share_of_axis = (ends[stop] - ends[start]) / (ends[-1] - ends[0])
        if names and share_of_axis > 0.017 * len(phases[start]) + 0.02:
            ax.text(
                float(np.sqrt(left * right)) if log else (left + right) / 2,
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
    return ax


@door(ds=checks.labelled, ax=checks.optional_axes, x=checks.x_axis)
def phase_bar(ds: Any, *, ax: Axes | None = None, x: str | None = None) -> Axes:
    """One row of cells a seed, one column a rate, coloured by phase.

    A run that a scan dropped is a hollow cell; where nothing was run there is none.

    Args:
        ds: A labelled results dataset, or a ``Scan``.
        ax: Where to draw, its x axis as in `shade_phases`; a new figure's axes unless given.
        x: "lr_ratio" or "lr"; unless given the first where ηλ₀ was swept, or is known and the
            optimizer is gradient descent.

    Returns:
        The axes.

    Raises:
        InputError: If an argument is not what was expected.
    """
    phases = shown_phases(ds)  # (lr, seed)
    ax = checks.drawn_on(ax)
    x = checks.along(ds, x)
    borders = set_rate_axis(ax, rate_axis(ds, x))
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
                **_cell(phases[start, seed]),
            )
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
def phase_handles(ds: Any) -> list[Patch]:
    """Legend entries for the phases that occur, and for the hatching where seeds disagree.

    Args:
        ds: A labelled results dataset, or a ``Scan``.

    Returns:
        Patches with labels.

    Raises:
        InputError: If the dataset is not labelled.
    """
    present = set(shown_phases(ds).ravel().tolist())
    handles = [
        Patch(facecolor=colour, alpha=SHADE[phase] + 0.13, label=str(phase))
        for phase, colour in PHASE_COLOURS.items()
        if str(phase) in present
    ]
    if DROPPED in present:
        handles.append(Patch(label="dropped early", **_cell(DROPPED)))
    if (majority_phase(ds)[1] < 1).any():
        handles.append(
            Patch(facecolor="none", edgecolor=GREY_HATCH, hatch="////", label="seeds disagree")
        )
    return handles


def _cell(phase: str) -> dict[str, Any]:
    """How a run is drawn: filled by its phase, hollow if it was dropped before it had one."""
    if phase == DROPPED:
        return {"facecolor": "white", "edgecolor": GREY_HATCH, "linewidth": 0.7}
    return {"color": PHASE_COLOURS[phase], "alpha": 0.8, "linewidth": 0}


def _stretches(values: NDArray[Any]) -> list[tuple[int, int]]:
    """Start and stop of every stretch of equal neighbours."""
    change = np.flatnonzero(values[1:] != values[:-1]) + 1
    borders = [0, *change.tolist(), len(values)]
    return list(pairwise(borders))


def _darker(colour: str) -> tuple[float, float, float]:
    """The colour, dark enough to be read as text on its own pale shade."""
    red, green, blue = (int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5))
    return (0.62 * red, 0.62 * green, 0.62 * blue)


__all__ = [
    "cell_edges",
    "majority_phase",
    "phase_bar",
    "phase_handles",
    "rate_axis",
    "shade_phases",
]
