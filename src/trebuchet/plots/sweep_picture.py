"""The picture of ``trebuchet sweep``: what happened, and at which rates."""

import xarray as xr
from matplotlib.figure import Figure

from trebuchet._checks import text
from trebuchet._doors import door, maybe
from trebuchet.plots import checks
from trebuchet.plots.against_rate import against_rate, diverged_handles
from trebuchet.plots.edge_lines import Edges, an_edges, edge_handles
from trebuchet.plots.layout import Page, no_data
from trebuchet.plots.phase_bar import phase_bar, phase_handles
from trebuchet.plots.style import rate_colours, style
from trebuchet.plots.traces import choose_rates, trace_handles, traces


@door(ds=checks.labelled, edges=an_edges, title=text, caption=maybe(text))
def sweep_overview(
    ds: xr.Dataset,
    edges: Edges | None,
    title: str,
    *,
    caption: str | None = None,
) -> Figure:
    """Loss and ηλ over steps at a few rates; final ηλ and sparsity against ηλ₀, phases shaded.

    Without ReLU layers, the final weight norm takes the place of the sparsity. Under the lower
    panels a bar shows the phase of every seed, where there are several.

    Args:
        ds: A labelled results dataset.
        edges: Drawn as vertical lines against ηλ₀.
        title: Of the picture.
        caption: Written below; says conventions and seeds unless given.

    Returns:
        A figure that belongs to no window; ``figure.savefig(path)`` writes it.

    Raises:
        InputError: If an argument is not what was expected.
    """
    n_seeds = ds.sizes["seed"]
    strip = 0.13 * min(n_seeds, 8) if n_seeds > 1 else 0.0
    with style():
        page = Page((2, 2), title, _caption(ds) if caption is None else caption, strip=strip)
        rates = choose_rates(ds)
        colours = rate_colours(len(rates))
        loss, ratio = page.panel(0, 0, "Loss"), page.panel(0, 1, "ηλ over training")
        if "loss" in ds:
            traces(ds, "loss", ax=loss, rates=rates, colours=colours)
        else:
            no_data(loss, "not recorded")
        if "top_eigenvalue" in ds:
            traces(ds, "lr_ratio", ax=ratio, rates=rates, colours=colours)
        else:
            no_data(ratio, "not recorded")
        page.legend(0, trace_handles(ds, rates, colours))

        second = "sparsity_final" if "sparsity_final" in ds else "weight_norm_final"
        headings = {
            "lr_ratio_final": "Where ηλ ends",
            "sparsity_final": "Sparsity: share of pre-activations < 0 at the end",
            "weight_norm_final": "Where the weight norm ends",
        }
        for column, name in enumerate(("lr_ratio_final", second)):
            ax = page.panel(1, column, headings[name])
            if {"lr_ratio_final": "top_eigenvalue_final"}.get(name, name) not in ds:
                no_data(ax, "not recorded")
                continue
            against_rate(ds, name, ax=ax, edges=edges, edge_labels=column == 0)
            if strip:
                bar = phase_bar(ds, ax=page.strip_axes(1, column))
                bar.set_xlabel(ax.get_xlabel())
                ax.set_xlabel("")
                ax.tick_params(axis="x", labelbottom=False)
        page.legend(1, [*phase_handles(ds), *diverged_handles(ds), *edge_handles(edges)])
        return page.figure


def _caption(ds: xr.Dataset) -> str:
    """Conventions and seeds, as far as the dataset knows them."""
    attrs = ds.attrs
    seeds = [str(seed) for seed in ds["seed"].values]
    shown = ", ".join(seeds) if len(seeds) <= 8 else f"{seeds[0]} to {seeds[-1]} ({len(seeds)})"
    loss = {"half_mse": "L = (1/2D) Σ (z − y)²"}.get(str(attrs.get("loss", "half_mse")))
    parts = [
        f"Full-batch gradient descent on {loss or attrs['loss']}",
        f"λ is the top eigenvalue of the {_operator(ds)}",
        "lines are medians over seeds, bands their range" if len(seeds) > 1 else "",
        str(attrs.get("dtype", "")).removeprefix("torch."),
        f"{'seeds' if len(seeds) > 1 else 'seed'} {shown}",
        f"at most {int(attrs['max_steps']):,} steps" if "max_steps" in attrs else "",
    ]
    return "; ".join(part for part in parts if part) + "."


def _operator(ds: xr.Dataset) -> str:
    operator = str(ds.attrs.get("operator", "ntk"))
    return {"ntk": "NTK/D", "ggn": "Gauss–Newton matrix", "hessian": "Hessian"}.get(
        operator.lower(), operator
    )
