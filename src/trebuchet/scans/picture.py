"""The picture of a scan: loss against the rate, phases in colour, edges as bands."""

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import to_rgba
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from trebuchet._types import Phase
from trebuchet.phases.interval import Interval
from trebuchet.plots.style import GREEN, GREY, INK, PHASE_COLOURS, style
from trebuchet.scans.tables import DROPPED

if TYPE_CHECKING:
    from trebuchet.scans.result import Scan

CEILING = 0.95
"""Where crosses of runs that diverged are, as a fraction of the height: their loss has no place."""


def draw(scan: "Scan", ax: Axes | None = None) -> Axes:
    """Draw a scan: one mark a run.

    Filled marks reached the horizon, open ones were dropped on the way, crosses at the top
    diverged. The legend stands to the right of the axes; a figure with ``layout="constrained"``
    makes room for it.

    Args:
        scan: The scan.
        ax: Where to draw; a new figure's axes unless given.

    Returns:
        The axes.
    """
    with style():
        if ax is None:
            _, ax = plt.subplots(figsize=(7.2, 3.8), layout="constrained")
        # Set by hand: crosses are placed by height, and would not count for an automatic limit.
        rates = [*scan.run_table["rate"], scan.suggestion.low, scan.suggestion.high]
        rates += [scan.lr_crit] if np.isfinite(scan.lr_crit) else []
        margin = 1.1 * (max(rates) / min(rates)) ** 0.04
        ax.set_xscale("log")
        ax.set_xlim(min(rates) / margin, max(rates) * margin)
        _plain_numbers(ax.xaxis, *ax.get_xlim())
        s = scan.suggestion
        ax.axvspan(s.low, s.high, color=GREEN, alpha=0.15, linewidth=0)
        advice = "use" if s.reliable else "least bad:"
        ax.axvline(s.rate, color=GREEN, linewidth=1.8, zorder=2.5, label=f"{advice} {s.rate:.3g}")
        _runs(scan, ax)
        # Before a bisection the two overlap: one is hatched, the other shaded.
        _edge(ax, scan.lr_loss, PHASE_COLOURS[Phase.CATAPULT], "loss first rises", hatched=True)
        _edge(ax, scan.lr_max, PHASE_COLOURS[Phase.DIVERGENT], "training ends", hatched=False)
        if np.isfinite(scan.lr_crit):
            bound = "" if scan.critical.converged else "at most "
            ax.axvline(
                scan.lr_crit, color=INK, linewidth=1.0, linestyle="--",
                label=f"critical rate {bound}{scan.lr_crit:.3g}",
            )  # fmt: skip
        settings = scan.settings
        samples = settings["batch_size"]
        batch = "full batch" if samples >= settings["n_samples"] else f"{samples} samples a batch"
        ax.axhline(
            settings["loss_first"], color=GREY, linewidth=0.8, linestyle=":",
            label="loss at the start",
        )  # fmt: skip
        ax.set_xlabel(f"learning rate ({settings['optimizer']}, {batch})")
        ax.set_ylabel(f"loss after {settings['horizon']} steps, or when dropped")
        ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0)
    return ax


def _runs(scan: "Scan", ax: Axes) -> None:
    """The marks, and the limits of the axis that leave room for the crosses."""
    runs = scan.run_table
    loss = runs["loss"].to_numpy(float)
    diverged = (runs["phase"] == Phase.DIVERGENT).to_numpy() | ~np.isfinite(loss)
    dropped = (runs["status"] == DROPPED).to_numpy()
    start = float(scan.settings["loss_first"])
    seen = np.append(loss[~diverged], start)
    logarithmic = bool((seen > 0).all())
    to, back = (np.log, np.exp) if logarithmic else (np.asarray, np.asarray)
    if logarithmic:
        ax.set_yscale("log")
    low, middle = float(to(seen.min())), float(to(start))
    # Losses far above the start are cut off: what matters is below it.
    span = max(middle - low, 0.05 * abs(middle), 1e-3)
    high = min(float(to(seen.max())), middle + 0.5 * span)
    room = max(high - low, span)
    top = high + (0.18 if diverged.any() else 0.06) * room
    ax.set_ylim(float(back(low - 0.06 * room)), float(back(top)))
    if logarithmic:
        _plain_numbers(ax.yaxis, *ax.get_ylim())
    for phase in Phase:
        here = (runs["phase"] == phase).to_numpy() & ~diverged & ~dropped
        _marks(ax, runs["rate"][here], loss[here], float(back(high)), phase, str(phase))
    open_ = dropped & ~diverged
    _marks(ax, runs["rate"][open_], loss[open_], float(back(high)), Phase.UNSETTLED, "")
    if diverged.any():
        rate = runs["rate"][diverged]
        ax.scatter(
            rate, [CEILING] * len(rate), marker="x", s=28, linewidths=1.4,
            color=PHASE_COLOURS[Phase.DIVERGENT], label="divergent",
            transform=ax.get_xaxis_transform(), zorder=3,
        )  # fmt: skip


def _marks(
    ax: Axes, rate: "np.typing.ArrayLike", loss: np.ndarray, high: float, phase: Phase, name: str
) -> None:
    """Filled marks, or open ones where there is no name, since those were dropped early."""
    if not len(loss):
        return
    colour = PHASE_COLOURS[phase]
    ax.scatter(
        rate, np.minimum(loss, high), s=28, label=name or "dropped early", edgecolors=colour,
        facecolors=colour if name else "white", linewidths=1.2, zorder=3,
    )  # fmt: skip


def _edge(ax: Axes, edge: Interval, colour: str, name: str, *, hatched: bool) -> None:
    """A measured edge is somewhere between two rates."""
    if edge.closed:
        ax.axvspan(
            edge.low, edge.high, facecolor=to_rgba(colour, 0.0 if hatched else 0.2),
            edgecolor=to_rgba(colour, 0.6), hatch="////" if hatched else None, linewidth=0.8,
            label=f"{name}:\n{edge}",
        )  # fmt: skip


def _plain_numbers(axis: Axis, low: float, high: float) -> None:
    """Label 0.1, 0.2, 0.5 rather than powers of ten, as everywhere else in a scan."""
    several = high > 50 * low
    axis.set_major_locator(LogLocator(subs=(1.0,) if several else (1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
