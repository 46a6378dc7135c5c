"""The pictures of the first three experiments, and what they say in a few sentences."""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure as Picture

from trebuchet.paper.beyond.edge import EMPIRICAL
from trebuchet.paper.beyond.sparsity import TRAINED
from trebuchet.plots.style import GREY, SERIES_COLOURS, rate_colours, seed_band, style


def draw_sparsity(found: xr.Dataset) -> Picture:
    """Sparsity against ηλ₀, a line a width, the seeds' range as a band.

    Args:
        found: As `sparsity_over_widths` returned it.

    Returns:
        The picture.
    """
    sparsity = found.sparsity.where(found.phase.isin(TRAINED)).transpose("width", "lr", "seed")
    with style():
        picture = Picture(figsize=(7, 4), layout="constrained")
        ax = picture.add_subplot()
        for row, colour in zip(sparsity, rate_colours(found.sizes["width"]), strict=True):
            label = f"width {int(row.width)}"
            seed_band(ax, found.lr.values, row.values, colour=colour, label=label)
        ax.axvline(2, color=GREY, linestyle=":", linewidth=1)
        ax.set_title(f"{found.attrs['data']} 0/1, {found.sizes['seed']} seeds")
        ax.set(xlabel="ηλ₀", ylabel="final sparsity (share < 0)")
        ax.legend(loc="lower right")
    return picture


def tell_sparsity(found: xr.Dataset) -> list[str]:
    """Whether sparsity rises with the rate: as a trend, and from each rate to the next."""
    correlation = found.rank_correlation
    monotone = int((found.largest_fall == 0).sum())
    return [
        f"Rank correlation of sparsity with ηλ₀: {float(correlation.min()):.2f} to "
        f"{float(correlation.max()):.2f} over widths and seeds.",
        f"{monotone} of {correlation.size} nets rise without a fall; the largest fall is "
        f"{float(found.largest_fall.max()):.3f}.",
    ]


def draw_ceiling(found: xr.Dataset) -> Picture:
    """Where |θ|² fell and where it rose, against the law's 2k.

    Args:
        found: As `norm_ceiling` returned it.

    Returns:
        The picture.
    """
    degrees = found.degree.values
    with style():
        picture = Picture(figsize=(10, 3.4), layout="constrained")
        axes = picture.subplots(1, found.sizes["case"], sharey=True)
        for ax, case in zip(axes, found.case.values.tolist(), strict=True):
            one = found.sel(case=case)
            ax.plot(degrees, one.ceiling, color=GREY, linestyle="--", label="2k")
            for name, label, marker, colour, fill in (
                ("fell_highest", "highest ηλ at which |θ|² fell", "v", SERIES_COLOURS[0], "full"),
                ("rose_lowest", "lowest at which it rose", "^", SERIES_COLOURS[1], "full"),
                ("rose_lowest_large_loss", "the same, large loss", "^", SERIES_COLOURS[1], "none"),
            ):
                if name == "rose_lowest_large_loss" and case.endswith("y = 0"):
                    continue  # every loss is large beside labels of zero
                ax.plot(degrees, one[name], marker, color=colour, label=label, fillstyle=fill)
            ax.set_title(case)
            ax.set_xticks(degrees)
            ax.set_xlabel("layers k")
        axes[0].set_ylabel("ηλ of the step")
        axes[0].set_ylim(-0.5, 25)
        axes[-1].legend(loc="upper left")
    return picture


def tell_ceiling(found: xr.Dataset) -> list[str]:
    """Whether the law's ceiling holds, and whether it is sharp."""
    one = found.isel(case=0)
    sharp = ", ".join(
        f"k = {int(k)}: {float(a):.3f} and {float(b):.3f}"
        for k, a, b in zip(one.degree, one.fell_highest, one.rose_lowest, strict=True)
    )
    return [
        f"One sample, y = 0: highest ηλ at which |θ|² fell and lowest at which it rose, {sharp}.",
        f"Of {int(found.steps_below.sum())} steps that the law covers, |θ|² rose in "
        f"{int(found.violations.sum())}.",
    ]


def draw_edge(found: xr.Dataset) -> Picture:
    """The measured edge against width, a line a depth.

    Args:
        found: As `divergence_edge` returned it.

    Returns:
        The picture.
    """
    # Where the smallest rate scanned failed already, it stands for the edge: an upper bound.
    edge = found.edge.fillna(found.fails)
    widths = found.width.values
    with style():
        count = found.sizes["activation"]
        picture = Picture(figsize=(1.5 + 4.3 * count, 3.8), layout="constrained")
        axes = picture.subplots(1, count, sharex=True, sharey=True, squeeze=False)[0]
        for ax, activation in zip(axes, found.activation.values.tolist(), strict=True):
            for depth, colour in zip(found.hidden.values.tolist(), SERIES_COLOURS, strict=False):
                label = f"{depth} hidden layer{'s' if depth > 1 else ''}"
                y = edge.sel(activation=activation, hidden=depth).transpose("width", "seed").values
                ax.plot(np.repeat(widths, y.shape[1]), y.ravel(), ".", color=colour, alpha=0.5)
                seed_band(ax, widths, y, colour=colour, label=label)
            empirical = EMPIRICAL[activation]
            label = f"reported for wide nets, ≈ {empirical:g}"
            ax.axhline(empirical, color=GREY, linestyle="--", linewidth=1, label=label)
            ax.set(xscale="log", yscale="log", xlabel="width")
            ax.set_xticks(widths, [str(width) for width in widths])
            ticks = [2, 4, 8, 12, 16, 32, 64]
            ax.set_yticks(ticks, [str(t) for t in ticks])
            ax.minorticks_off()
            name = "ReLU" if activation == "relu" else activation
            ax.set_title(f"{name} nets, {found.attrs['steps']} steps")
            ax.legend(loc="upper left")
        axes[0].set_ylabel("smallest ηλ₀ that no longer trains")
    return picture


def tell_edge(found: xr.Dataset) -> list[str]:
    """The edge of each kind of net, from the narrowest to the widest."""
    edge = found.edge.fillna(found.fails).median("seed")
    return [
        f"{activation}, {depth} hidden: smallest ηλ₀ that no longer trains, median over seeds, "
        + ", ".join(
            f"{float(value):.3g} at width {int(value.width)}"
            for value in edge.sel(activation=activation, hidden=depth)
        )
        + "."
        for activation in found.activation.values.tolist()
        for depth in found.hidden.values.tolist()
    ]
