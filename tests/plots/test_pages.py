"""Whole pages: what is on them, and that nothing covers anything else."""

import io
from itertools import combinations

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from trebuchet.plots.figure_panels import paper_panels
from trebuchet.plots.sweep_picture import sweep_overview

EDGES = {"critical": 2.0, "upper": 2.33}
CAPTION = "Full-batch gradient descent on L = (1/2D) Σ (z − y)²; seeds 0, 1. " * 4


def headings(figure: Figure) -> list[str]:
    return [ax.get_title(loc="left") for ax in figure.axes if ax.get_title(loc="left")]


def words(figure: Figure) -> str:
    legends = [t.get_text() for legend in figure.legends for t in legend.get_texts()]
    return " ".join([t.get_text().replace("\n", " ") for t in figure.texts] + legends)


def assert_nothing_overlaps(figure: Figure) -> None:
    """No panel with its labels, legend or text of the page lies over another, or off the page."""
    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    boxes = [ax.get_tightbbox(renderer) for ax in figure.axes]
    boxes += [legend.get_window_extent(renderer) for legend in figure.legends]
    boxes += [text.get_window_extent(renderer) for text in figure.texts]
    page = figure.bbox
    for box in boxes:
        assert box is not None
        assert box.x0 >= page.x0
        assert box.x1 <= page.x1 + 1
        assert box.y0 >= page.y0
        assert box.y1 <= page.y1 + 1
    for one, other in combinations(boxes, 2):
        assert one is not None
        assert other is not None
        wide = min(one.x1, other.x1) - max(one.x0, other.x0)
        high = min(one.y1, other.y1) - max(one.y0, other.y0)
        assert wide <= 1 or high <= 1, (one, other)


def test_six_panels(catapults: xr.Dataset) -> None:
    figure = paper_panels(catapults, EDGES, title="Figure 1: quadratic", caption=CAPTION)
    assert headings(figure) == [
        "a   Loss",
        "b   Weight norm",
        "c   ηλ over training",
        "d   Final ηλ",
        "e   Final weight norm",
        "f   Peak and final loss",
    ]
    shown = words(figure)
    for word in ("Figure 1: quadratic", "seeds 0, 1", "lazy", "divergent", "critical 2"):
        assert word in shown
    assert "quick grid" not in shown
    assert_nothing_overlaps(figure)


def test_relu_has_sparsity_too(relu: xr.Dataset) -> None:
    figure = paper_panels(relu, {"critical": 2.0}, title="Figure 3", caption=CAPTION, quick=True)
    assert headings(figure)[-1] == "g   Sparsity (share < 0)"
    assert "quick grid" in words(figure)
    assert_nothing_overlaps(figure)


def test_sweep_picture(relu: xr.Dataset, seeds_apart: xr.Dataset) -> None:
    figure = sweep_overview(relu, {"critical": 2.0}, "Digits 0 against 1")
    assert len(figure.axes) == 6  # four panels, and two bars of seeds
    assert headings(figure)[3] == "d   Sparsity: share of pre-activations < 0 at the end"
    assert "seeds 0, 1." in words(figure)
    assert_nothing_overlaps(figure)
    figure = sweep_overview(seeds_apart, EDGES, "A map")
    assert headings(figure)[3] == "d   Where the weight norm ends"
    assert "seeds disagree" in words(figure)
    assert_nothing_overlaps(figure)


def test_one_seed_needs_no_bar(catapults: xr.Dataset) -> None:
    figure = sweep_overview(catapults, None, "A map", caption="mine")
    assert len(figure.axes) == 4
    assert "mine" in words(figure)
    assert_nothing_overlaps(figure)


def test_caption_says_what_the_dataset_knows(relu: xr.Dataset) -> None:
    ds = relu.copy()
    ds.attrs |= {"max_steps": 2000, "dtype": "float64", "operator": "hessian", "loss": "mse"}
    shown = words(sweep_overview(ds, None, "t"))
    for word in ("at most 2,000 steps", "float64", "Hessian", "descent on mse"):
        assert word in shown


@pytest.mark.parametrize("kept", [slice(0, 1), slice(-2, None)])
def test_one_rate_or_only_divergence(catapults: xr.Dataset, kept: slice) -> None:
    ds = catapults.isel(lr=kept)
    for figure in (
        paper_panels(ds, EDGES, title="t", caption="c"),
        sweep_overview(ds, EDGES, "t"),
    ):
        figure.savefig(io.BytesIO(), format="png", dpi=40)


def test_unrecorded_traces_leave_empty_panels(relu: xr.Dataset) -> None:
    gone = ["top_eigenvalue", "top_eigenvalue_final", "weight_norm", "test_loss", "loss_final"]
    bare = relu.drop_vars(gone, errors="ignore")
    for figure in (
        paper_panels(bare, None, title="t", caption="c"),
        sweep_overview(bare, None, "t"),
    ):
        empty = [ax for ax in figure.axes if any(t.get_text() == "not recorded" for t in ax.texts)]
        assert len(empty) >= 2


def test_nothing_leaks_into_pyplot_and_the_picture_repeats(catapults: xr.Dataset) -> None:
    before = plt.get_fignums()
    pictures = []
    for _ in range(2):
        figure = sweep_overview(catapults, EDGES, "A map")
        canvas = FigureCanvasAgg(figure)
        canvas.draw()  # type: ignore[no-untyped-call]
        pictures.append(np.array(canvas.buffer_rgba()))  # type: ignore[no-untyped-call]
    assert plt.get_fignums() == before
    np.testing.assert_array_equal(pictures[0], pictures[1])
