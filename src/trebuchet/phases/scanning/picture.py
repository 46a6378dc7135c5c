"""The picture of a scan: final loss against the rate, phases in colour, edges as lines."""

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from trebuchet._types import Phase
from trebuchet.plots.style import GREEN, GREY, INK, PHASE_COLOURS, style

if TYPE_CHECKING:
    from trebuchet.phases.scan_result import Scan


def draw(scan: "Scan", ax: Axes | None = None) -> Axes:
    """Draw a scan.

    Filled marks reached the horizon, open ones were dropped on the way, crosses at the top
    diverged.

    Args:
        scan: The scan.
        ax: Where to draw; a new figure's axes unless given.

    Returns:
        The axes.
    """
    with style():
        if ax is None:
            _, ax = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
        table = scan.table
        start = float(scan.settings["loss_first"])
        ax.set_xscale("log")
        positive = start > 0 and bool((table["loss"][np.isfinite(table["loss"])] > 0).all())
        if positive:
            ax.set_yscale("log")
        finite = table[(table["phase"] != Phase.DIVERGENT) & np.isfinite(table["loss"])]
        low = min([start, *finite["loss"]])
        top = (
            start * (start / low) ** 0.15 if positive and low > 0 else start + 0.15 * (start - low)
        )
        for phase in Phase:
            rows = table[table["phase"] == phase]
            if rows.empty:
                continue
            colour = PHASE_COLOURS[phase]
            if phase is Phase.DIVERGENT:
                ax.scatter(rows["rate"], [top] * len(rows), marker="x", color=colour, label=phase)
                continue
            dropped = (rows["status"] == "dropped").to_numpy()
            for open_, part in ((False, rows[~dropped]), (True, rows[dropped])):
                if part.empty:
                    continue
                name = "dropped early" if open_ else str(phase)
                ax.scatter(
                    part["rate"], np.minimum(part["loss"], top), s=28, label=name,
                    facecolors="none" if open_ else colour, edgecolors=colour, linewidths=1.2,
                )  # fmt: skip
        ax.axhline(start, color=GREY, linewidth=0.8, linestyle=":")
        s = scan.suggestion
        ax.axvspan(s.low, s.high, color=GREEN, alpha=0.15, linewidth=0)
        ax.axvline(s.rate, color=GREEN, linewidth=1.4, label=f"use {s.rate:.2g}")
        if np.isfinite(scan.lr_crit):
            ax.axvline(scan.lr_crit, color=INK, linewidth=1.0, linestyle="--", label="critical")
        if scan.lr_max.closed:
            ax.axvspan(
                scan.lr_max.low, scan.lr_max.high, color=PHASE_COLOURS[Phase.DIVERGENT], alpha=0.12,
                linewidth=0,
            )  # fmt: skip
        ax.set_xlabel("learning rate")
        ax.set_ylabel("loss at the last look")
        ax.legend(loc="best")
    return ax
