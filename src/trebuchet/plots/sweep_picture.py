"""The picture of ``trebuchet sweep``: what happened, and at which rates."""

from typing import Any

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
    ds: Any,
    edges: Edges | None,
    title: str,
    *,
    caption: str | None = None,
) -> Figure:
    """Loss and ηλ over steps at a few rates; final ηλ and sparsity against the rate, phases shaded.

    Without ReLU layers, the final weight norm takes the place of the sparsity; without top
    eigenvalues, as in a scan, losses take the place of ηλ. Under the lower panels a bar shows the
    phase of every seed, where there are several.

    Args:
        ds: A labelled results dataset, or a ``Scan``.
        edges: Drawn as vertical lines.
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
        x = checks.along(ds, None)
        for column, name in enumerate(("loss", _first_of(ds, OVER_STEPS))):
            ax = page.panel(0, column, OVER_STEPS.get(name, "Loss"))
            if _held(name, over_steps=True) in ds:
                traces(ds, name, ax=ax, rates=rates, colours=colours)
            else:
                no_data(ax, "not recorded")
        page.legend(0, trace_handles(ds, rates, colours))

        for column, choice in enumerate((FIRST, SECOND)):
            name = _first_of(ds, choice)
            ax = page.panel(1, column, choice[name])
            if _held(name) not in ds:
                no_data(ax, "not recorded")
                continue
            against_rate(ds, name, ax=ax, x=x, edges=edges, edge_labels=column == 0)
            if strip:
                bar = phase_bar(ds, ax=page.strip_axes(1, column), x=x)
                bar.set_xlabel(ax.get_xlabel())
                ax.set_xlabel("")
                ax.tick_params(axis="x", labelbottom=False)
        page.legend(1, [*phase_handles(ds), *diverged_handles(ds), *edge_handles(edges, x=x)])
        return page.figure


OVER_STEPS = {
    "lr_ratio": "ηλ over training",
    "weight_norm": "Weight norm",
    "test_loss": "Test loss",
}
FIRST = {"lr_ratio_final": "Where ηλ ends", "loss_final": "Where the loss ends"}
SECOND = {
    "sparsity_final": "Sparsity: share of pre-activations < 0 at the end",
    "weight_norm_final": "Where the weight norm ends",
    "loss_max": "The largest loss",
}
"""Headings of what a panel shows: the first that the runs hold."""


def _held(name: str, *, over_steps: bool = False) -> str:
    names = {"lr_ratio": "top_eigenvalue"} if over_steps else {}
    return {**names, "lr_ratio_final": "top_eigenvalue_final"}.get(name, name)


def _first_of(ds: xr.Dataset, choice: dict[str, str]) -> str:
    over_steps = choice is OVER_STEPS
    names = [name for name in choice if _held(name, over_steps=over_steps) in ds]
    return next(iter([*names, *choice]))


def _caption(ds: xr.Dataset) -> str:
    """Conventions and seeds, as far as the dataset knows them."""
    attrs = ds.attrs
    seeds = [str(seed) for seed in ds["seed"].values]
    shown = ", ".join(seeds) if len(seeds) <= 8 else f"{seeds[0]} to {seeds[-1]} ({len(seeds)})"
    loss = {"half_mse": "L = (1/2D) Σ (z − y)²"}.get(str(attrs.get("loss", "half_mse")))
    parts = [
        f"{_trained(ds)} on {loss or attrs['loss']}",
        f"λ is the top eigenvalue of the {_operator(ds)}",
        "lines are medians over seeds, bands their range" if len(seeds) > 1 else "",
        str(attrs.get("dtype", "")).removeprefix("torch."),
        f"{'seeds' if len(seeds) > 1 else 'seed'} {shown}",
        f"at most {int(attrs['max_steps']):,} steps" if "max_steps" in attrs else "",
    ]
    return "; ".join(part for part in parts if part) + "."


def _trained(ds: xr.Dataset) -> str:
    """The optimizer and its batches."""
    attrs = ds.attrs
    name = "gradient descent" if checks.is_descent(ds) else str(attrs["optimizer"])
    size = attrs.get("batch_size")
    if size is not None and size != attrs.get("n_samples"):
        return f"Training by {name} on batches of {int(size)}"
    return f"Full-batch {name}"


def _operator(ds: xr.Dataset) -> str:
    operator = str(ds.attrs.get("operator", "ntk"))
    return {"ntk": "NTK/D", "ggn": "Gauss–Newton matrix", "hessian": "Hessian"}.get(
        operator.lower(), operator
    )
