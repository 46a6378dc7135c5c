"""Which phase runs are in over two things that vary: rates, and an axis such as the width."""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from trebuchet._checks import nearest, refuse, text
from trebuchet._doors import door, maybe
from trebuchet._types import Phase
from trebuchet.errors import InputError
from trebuchet.plots import checks
from trebuchet.plots.phase_bar import DROPPED
from trebuchet.plots.phase_boundaries import boundaries, critical
from trebuchet.plots.style import BLUE, DARK_RED, INK, PHASE_COLOURS
from trebuchet.plots.value_scale import Scale, scale_of, set_axis
from trebuchet.results.cells import axes_of, cells_of
from trebuchet.results.schema import results
from trebuchet.results.summary import shown_phases

FloatArray = NDArray[np.float64]
FILLED = 0.78
"""How much of a phase's colour an area has; the rest is white."""
MANY_TICKS, FEW_ALONG = 12, 8
"""Up to so many values are all named on the y axis, and on the x axis."""
MANY_CELLS = 2000
"""Above, areas are pixels in a file of vectors."""


def grid(name: str, value: object) -> xr.Dataset:
    """Labelled runs over an axis beside rates and seeds."""
    ds = results(name, value)
    if "phase" not in ds:
        msg = f"{name}: expected a labelled dataset, got none of 'phase'; call label(ds)"
        raise InputError(msg)
    if not axes_of(ds):
        msg = (
            f"{name}: expected runs over an axis beside lr and seed, such as a sweep with "
            "axes={'width': [64, 256]} makes, got none; draw one sweep with plots.phase_bar"
        )
        raise InputError(msg)
    return ds


@door(ds=grid, x=maybe(text), y=maybe(text), ax=checks.optional_axes)
def phase_diagram(
    ds: Any, *, x: str | None = None, y: str | None = None, ax: Axes | None = None
) -> Axes:
    """Areas of each phase over rates and an axis, or over two axes.

    A cell is the runs of all seeds at one place. Where they are in several phases it is filled from
    below by their shares. A cell without runs is white. Lines are drawn at ηλ₀ = 2, for runs of
    gradient descent, at the measured end of the lazy phase, and where divergent or collapsed runs
    begin: at the rate that parts the runs of a seed best into the ones and the others, averaged
    over seeds in logarithms.

    Args:
        ds: Labelled runs over an axis, from a sweep with ``axes=``.
        x: "lr_ratio", "lr", or an axis; unless given ηλ₀ where it was swept, or is known and the
            optimizer is gradient descent, else η.
        y: An axis; the only other one unless given.
        ax: Where to draw; a new figure's axes unless given. The legend stands on its right.

    Returns:
        The axes; logarithmic ones where values are in steps of a factor.

    Raises:
        InputError: If the dataset is not labelled or has no axis, or has others than `x` and `y`.

    Example:
        >>> import trebuchet as tb
        >>> problem = tb.Problem(lambda seed, width: tb.MLP.draw(1, width, generator=seed),
        ...                      "half_mse", ([[1.0]], [0.0]))
        >>> runs = tb.sweep(problem, lr_ratio=[1, 3, 9], steps=20, axes={"width": [8, 32, 128]})
        >>> ax = tb.plots.phase_diagram(tb.label(runs))
        >>> ax.get_xlabel(), ax.get_ylabel(), ax.get_yscale()
        ('ηλ₀', 'width', 'log')
    """
    x, y = _chosen(ds, x, y)
    ax = checks.drawn_on(ax)
    along = "lr" if x in checks.X else x
    ds = _sorted(_sorted(ds, y), along)
    others = {dim: 0 for dim in (*axes_of(ds), "lr") if dim not in (y, along)}
    ds = ds.isel(others)
    phases = shown_phases(ds, (y, along, "seed"))
    rows = scale_of(ds[y].values)
    at = _positions(ds, x, y)
    if x in checks.X:  # rates that a row did not try are no cells of its own
        at = np.where((phases == "").all(axis=2), np.nan, at)
    known = [row[np.isfinite(row)] for row in at if np.isfinite(row).any()]
    if not known:
        msg = f"x: expected rates that are known in some cell, got none of {x!r}"
        raise InputError(msg)
    columns = scale_of(known[0] if x in checks.X else ds[x].values)
    _fill(ax, phases, at, columns, rows)
    handles = _handles(phases, missing=len(known) < len(at) or x not in checks.X)
    if x in checks.X:
        handles += _lines(ax, ds, phases, at, x, y, columns, rows)
    alike = all(np.array_equal(row, known[0]) for row in known)
    set_axis(ax.xaxis, ax.set_xscale, columns, few=alike and len(columns.values) <= FEW_ALONG)
    set_axis(ax.yaxis, ax.set_yscale, rows, few=len(rows.values) <= MANY_TICKS)
    borders = np.concatenate([columns.borders(row) for row in known])
    ax.set_xlim(borders.min(), borders.max())
    ends = rows.borders(rows.values)
    ax.set_ylim(ends[0], ends[-1])
    ax.set_xlabel(checks.rate_name(x) if x in checks.X else str(ds[x].attrs.get("long_name", x)))
    ax.set_ylabel(str(ds[y].attrs.get("long_name", y)))
    seeds = phases.shape[2]
    ax.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0,
        frameon=False, title=f"shares of {seeds} seeds" if seeds > 1 else None,
        alignment="left",
    )  # fmt: skip
    return ax


def _chosen(ds: xr.Dataset, x: str | None, y: str | None) -> tuple[str, str]:
    """What lies along x and y."""
    axes = axes_of(ds)
    for name, given, allowed in (("x", x, (*checks.X, *axes)), ("y", y, axes)):
        if given is not None and given not in allowed:
            refuse(name, f"one of {', '.join(allowed)}", given, nearest(given, allowed))
    x = checks.along(next(cell for _, cell in cells_of(ds)), None) if x is None else x
    if x in checks.X:
        checks.along(ds, x)
    left = [axis for axis in axes if axis != x]
    if y is None:
        several = [axis for axis in left if ds.sizes[axis] > 1] or left
        if len(several) != 1:
            msg = f"y: expected one of {', '.join(left)}, got none; say which lies along y"
            raise InputError(msg)
        (y,) = several
    if x == y:
        msg = f"y: expected another axis than x, got {y!r} twice"
        raise InputError(msg)
    wanted = {y, "seed", "lr" if x in checks.X else x}
    for dim in (*axes, "lr"):
        if dim not in wanted and ds.sizes[dim] > 1:
            msg = (
                f"ds: expected one value of {dim!r}, which is neither x nor y, got "
                f"{ds.sizes[dim]}; select one with ds.sel({{{dim!r}: [...]}})"
            )
            raise InputError(msg)
    return x, y


def _sorted(ds: xr.Dataset, dim: str) -> xr.Dataset:
    """In increasing order, where there is one."""
    if dim not in ds.coords:
        return ds.assign_coords({dim: np.arange(ds.sizes[dim])})
    return ds.sortby(dim) if ds[dim].dtype.kind in "iuf" else ds


def _positions(ds: xr.Dataset, x: str, y: str) -> FloatArray:
    """Where each cell lies along x, shape ``(y, x)``; NaN where that is not known."""
    if x not in checks.X:
        return np.tile(scale_of(ds[x].values).values, (ds.sizes[y], 1))
    if x == ds.attrs.get("swept"):
        return np.tile(ds["lr"].values.astype(np.float64), (ds.sizes[y], 1))
    held = ds[checks.X[x]]
    other = [dim for dim in held.dims if dim not in (y, "lr")]
    found: FloatArray = held.median(other).broadcast_like(ds[y]).transpose(y, "lr").values
    return np.where(found > 0, found, np.nan)


def _fill(ax: Axes, phases: NDArray[np.str_], at: FloatArray, x: Scale, y: Scale) -> None:
    """A rectangle for each phase of each cell, as high as its share of the seeds."""
    heights = y.borders(y.values)
    if y.log:
        heights = np.log(heights)
    names = (*PHASE_ORDER, DROPPED)
    counts = np.stack([(phases == name).sum(axis=2) for name in names], axis=-1)
    shares = counts / np.maximum(counts.sum(axis=-1, keepdims=True), 1)
    done = np.concatenate([np.zeros((*shares.shape[:2], 1)), np.cumsum(shares, axis=-1)], axis=-1)
    corners, colours = [], []
    for i, row in enumerate(at):
        there = np.flatnonzero(np.isfinite(row))
        sides = x.borders(row[there]) if there.size else row
        for n, k in np.argwhere(shares[i, there] > 0):
            j = there[n]
            low, height = heights[i], heights[i + 1] - heights[i]
            ends = low + height * done[i, j, k : k + 2]
            bottom, top = np.exp(ends) if y.log else ends
            left, right = sides[n : n + 2]
            corners.append([(left, bottom), (right, bottom), (right, top), (left, top)])
            colours.append(_colour(names[k]))
    areas = PolyCollection(corners, facecolors=colours, linewidths=0, antialiaseds=False, zorder=1)
    areas.set_rasterized(len(corners) > MANY_CELLS)
    ax.add_collection(areas)


PHASE_ORDER = tuple(
    str(phase)
    for phase in (
        Phase.LAZY, Phase.CATAPULT, Phase.PERIODIC, Phase.CHAOTIC, Phase.UNSETTLED,
        Phase.COLLAPSED, Phase.DIVERGENT,
    )
)  # fmt: skip
"""From the bottom of a cell to its top."""


def _colour(phase: str) -> tuple[float, float, float]:
    red, green, blue = to_rgb("#CCCCCC" if phase == DROPPED else PHASE_COLOURS[phase])
    pale = 1 - FILLED
    return FILLED * red + pale, FILLED * green + pale, FILLED * blue + pale


def _handles(phases: NDArray[np.str_], *, missing: bool) -> list[Any]:
    present = set(phases.ravel().tolist())
    found = [Patch(facecolor=_colour(p), label=p) for p in PHASE_ORDER if p in present]
    if DROPPED in present:
        found.append(Patch(facecolor=_colour(DROPPED), label="dropped early"))
    if missing and "" in present:
        found.append(Patch(facecolor="white", edgecolor="#AAAAAA", label="not run"))
    return found


def _lines(
    ax: Axes, ds: xr.Dataset, phases: NDArray[np.str_], at: FloatArray, x: str, y: str,
    columns: Scale, rows: Scale,
) -> list[Line2D]:  # fmt: skip
    """The edges, and their handles."""
    failed = [p for p in (str(Phase.DIVERGENT), str(Phase.COLLAPSED)) if (phases == p).any()]
    lazy = boundaries(phases == str(Phase.LAZY), _ran(phases), at)
    failing = boundaries(~np.isin(phases, failed), _ran(phases), at)
    drawn = [
        (critical(ds, x, y), "ηλ₀ = 2", INK, (0, (4, 2))),
        (lazy, "measured end of lazy", _dark(BLUE), "-"),
        (failing, "measured start of\n" + " or ".join(failed), DARK_RED, "-"),
    ]
    ends = rows.borders(rows.values)
    handles = []
    for level, (values, name, colour, dashes) in zip((4, 3, 3), drawn, strict=True):
        if not np.isfinite(values).any():
            continue
        halo = [withStroke(linewidth=3.2, foreground="white", alpha=0.8)]
        style: dict[str, Any] = {"color": colour, "linewidth": 1.5, "linestyle": dashes}
        ax.plot(
            np.repeat(values, 2), np.repeat(ends, 2)[1:-1], zorder=level, path_effects=halo,
            solid_joinstyle="miter", solid_capstyle="butt", **style,
        )  # fmt: skip
        handles.append(Line2D([], [], label=name, **style))
    return handles


def _ran(phases: NDArray[np.str_]) -> NDArray[np.bool_]:
    return np.asarray((phases != "") & (phases != DROPPED))


def _dark(colour: str) -> tuple[float, ...]:
    return tuple(0.55 * c for c in to_rgb(colour))


__all__ = ["phase_diagram"]
