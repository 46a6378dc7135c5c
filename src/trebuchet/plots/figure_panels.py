"""The six panels of the paper's figures."""

from typing import Any

import xarray as xr
from matplotlib.figure import Figure

from trebuchet._checks import flag, text
from trebuchet._doors import door
from trebuchet.plots import checks
from trebuchet.plots.against_rate import against_rate, diverged_handles
from trebuchet.plots.edge_lines import Edges, an_edges, edge_handles
from trebuchet.plots.layout import Page, no_data
from trebuchet.plots.phase_bar import phase_handles
from trebuchet.plots.style import rate_colours, style
from trebuchet.plots.traces import choose_rates, trace_handles, traces


@door(ds=checks.labelled, edges=an_edges, title=text, caption=text, quick=flag)
def paper_panels(
    ds: Any,
    edges: Edges | None,
    *,
    title: str,
    caption: str,
    quick: bool = False,
) -> Figure:
    """Loss, weight norm and ηλ over steps at a few rates; where runs end up, against ηλ₀.

    ReLU nets have a panel more: the sparsity of each hidden layer.

    Args:
        ds: A labelled results dataset, or a ``Scan``.
        edges: Drawn as vertical lines against ηλ₀.
        title: Of the picture.
        caption: Conventions and seeds, written below.
        quick: Stamp the picture as a thin grid's.

    Returns:
        A figure that belongs to no window; ``figure.savefig(path)`` writes it.

    Raises:
        InputError: If an argument is not what was expected.
    """
    with style():
        finals = _final_panels(ds)
        page = Page((3, len(finals)), title, caption)
        rates = choose_rates(ds)
        colours = rate_colours(len(rates))
        for column, (name, heading) in enumerate(
            (("loss", "Loss"), ("weight_norm", "Weight norm"), ("lr_ratio", "ηλ over training"))
        ):
            ax = page.panel(0, column, heading)
            held = "top_eigenvalue" if name == "lr_ratio" else name
            if held in ds:
                traces(ds, name, ax=ax, rates=rates, colours=colours)
            else:
                no_data(ax, "not recorded")
        page.legend(0, trace_handles(ds, rates, colours))

        for column, (heading, names) in enumerate(finals):
            ax = page.panel(1, column, heading)
            if names:
                against_rate(ds, names, ax=ax, edges=edges, edge_labels=column == 0)
            else:
                no_data(ax, "not recorded")
        page.legend(1, [*phase_handles(ds), *diverged_handles(ds), *edge_handles(edges)])
        if quick:
            page.stamp("quick grid")
        return page.figure


def _final_panels(ds: xr.Dataset) -> list[tuple[str, list[str]]]:
    """Headings and what is drawn under them, as far as the dataset holds it."""
    losses = [name for name in ("loss_max", "loss_final", "test_loss_final") if name in ds]
    panels = [
        ("Final ηλ", ["lr_ratio_final"] if "top_eigenvalue_final" in ds else []),
        ("Final weight norm", ["weight_norm_final"] if "weight_norm_final" in ds else []),
        ("Peak and final loss", losses),
    ]
    if "sparsity_final" in ds:
        panels.append(("Sparsity (share < 0)", ["sparsity_final"]))
    return panels
