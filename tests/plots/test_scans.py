"""Scans in every picture and table: runs that were dropped, and cells in which nothing was run."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import nn

import trebuchet as tb
from trebuchet.plots.against_rate import diverged_handles
from trebuchet.plots.phase_bar import phase_handles, rate_axis
from trebuchet.plots.traces import choose_rates, trace_handles
from trebuchet.results.schema import make_dataset
from trebuchet.show.rates import of_sweep

NAN, INF = np.nan, np.inf
STEPS = [0, 2, 4, 10, 20]
CELLS: dict[tuple[int, int], tuple[str, list[float]]] = {
    (0, 0): ("dropped", [1.0, 0.9]),
    (1, 1): ("dropped", [1.0, 0.8, 0.7]),
    (2, 0): ("max_steps", [1.0, NAN, 0.5, NAN, 0.1]),
    (2, 1): ("dropped", [1.0, 0.7]),
    (3, 0): ("max_steps", [1.0, 4.0, 2.0, 0.8, 0.2]),
    (3, 1): ("max_steps", [1.0, 0.9, 0.8, 0.7, 0.3]),
    (4, 1): ("blew_up", [1.0, 50.0, 1e9]),
}
"""Of (rate, seed): why a run stopped, and its losses. The other cells were not run."""
RATES = [1e-3, 1e-2, 1e-1, 0.3, 1.0]


@pytest.fixture(scope="module")
def runs() -> xr.Dataset:
    """Runs as a scan has them, written down by hand."""
    status = np.full((5, 2), "not_run", dtype="<U9")
    loss, last = np.full((5, 2, 5), NAN), np.full((5, 2), NAN)
    for (rate, seed), (why, losses) in CELLS.items():
        status[rate, seed] = why
        loss[rate, seed, : len(losses)] = losses
        last[rate, seed] = losses[-1]
    known = ~np.isnan(loss)
    steps = np.where(known, STEPS, 0).max(-1)
    filled = np.where(known, loss, -INF)
    variables = {
        "learning_rate": np.repeat(np.array(RATES)[:, None], 2, axis=1),
        "loss": loss, "status": status, "steps": steps, "loss_first": loss[..., 0],
        "loss_max": np.where(known.any(-1), filled.max(-1), NAN), "loss_final": last,
        "weight_norm_first": np.where(known.any(-1), 4.0, NAN),
        "weight_norm_final": np.where(status == "not_run", NAN, 5.0 + last),
        "last_above": np.array([[-1, -1], [-1, -1], [-1, -1], [4, -1], [-1, 4]]),
    }  # fmt: skip
    attrs = {"optimizer": "adam", "batch_size": 8, "n_samples": 24, "max_steps": 20, "loss": "mse"}
    return tb.label(make_dataset(variables, lr=RATES, seed=[0, 7], step=STEPS, attrs=attrs))


def new() -> Axes:
    return Figure().add_subplot()


def test_what_was_not_run_has_no_vote_and_a_dropped_run_none(runs: xr.Dataset) -> None:
    phases, share = tb.plots.majority_phase(runs)
    assert phases.tolist() == ["dropped", "dropped", "lazy", "catapult", "divergent"]
    assert share.tolist() == [1, 1, 1, 0.5, 1]
    later = runs.assign(status=runs.status.where(runs.lr != 1e-3, "not_run"))
    later["phase"] = runs.phase.where(runs.lr != 1e-3, "")
    assert tb.plots.majority_phase(later)[0][0] == ""


def test_a_cell_a_run_and_hollow_where_it_was_dropped(runs: xr.Dataset) -> None:
    ax = tb.plots.phase_bar(runs, ax=new())
    bars = [bar for bar in ax.patches if isinstance(bar, Rectangle)]
    cells = [(bar.get_y() + bar.get_height() / 2, bar.get_facecolor()) for bar in bars]
    white = (1.0, 1.0, 1.0, 1.0)
    assert [seed for seed, _ in cells] == [0, 0, 0, 1, 1, 1]  # two neighbours dropped are one bar
    assert [colour == white for _, colour in cells] == [True, False, False, True, False, False]
    assert ax.get_xscale() == "log"
    labels = [handle.get_label() for handle in phase_handles(runs)]
    assert labels == ["lazy", "catapult", "divergent", "dropped early", "seeds disagree"]


def test_rates_at_which_all_were_dropped_stay_white(runs: xr.Dataset) -> None:
    ax = tb.plots.shade_phases(new(), runs)
    shaded = [patch.get_extents().transformed(ax.transData.inverted()) for patch in ax.patches]
    assert min(box.x0 for box in shaded) == pytest.approx(np.sqrt(1e-2 * 1e-1))
    assert len(ax.patches) == 4  # lazy, catapult, divergent, and where seeds disagree
    words = [text.get_text() for text in ax.texts]
    assert "dropped" not in words


def test_a_dropped_runs_line_ends_and_no_line_has_gaps(runs: xr.Dataset) -> None:
    ax = tb.plots.traces(runs, "loss", ax=new(), rates=[0, 1, 2])
    first, second, third = (np.asarray(line.get_ydata(), float) for line in ax.lines[:3])
    np.testing.assert_array_equal(first, [1.0, 0.9, NAN, NAN, NAN])
    np.testing.assert_array_equal(second, [1.0, 0.8, 0.7, NAN, NAN])
    # Seed 0 was not looked at at steps 2 and 10: straight between its neighbours, on this axis.
    at_2, at_10 = 0.5**0.5, 0.5 * (0.1 / 0.5) ** (6 / 16)
    np.testing.assert_allclose(third, [1.0, (at_2 + 0.7) / 2, 0.5, at_10, 0.1])
    assert [line.get_label() for line in ax.lines[:3]] == ["η = 0.001", "η = 0.01", "η = 0.1"]
    ax = tb.plots.traces(runs, "loss", ax=new(), rates=[4])
    assert [line for line in ax.lines if line.get_marker() == "X"]
    assert choose_rates(runs) == [2, 3, 4]
    assert [h.get_label() for h in trace_handles(runs, [0, 3])] == [
        "η = 0.001  dropped", "η = 0.3  catapult",
    ]  # fmt: skip


def test_final_numbers_are_of_runs_that_ended(runs: xr.Dataset) -> None:
    ax = tb.plots.against_rate(runs, "loss_final", ax=new())
    line = ax.lines[0]
    np.testing.assert_array_equal(np.asarray(line.get_xdata(), float), [0.1, 0.3, 1.0])
    np.testing.assert_array_equal(np.asarray(line.get_ydata(), float), [0.1, 0.25, NAN])
    hollow = [line for line in ax.lines if line.get_markerfacecolor() == "white"]
    seen = np.concatenate([np.asarray(line.get_ydata(), float) for line in hollow])
    assert sorted(seen[~np.isnan(seen)].tolist()) == [0.7, 0.7, 0.9]
    # The one seed that was run diverged: all of them.
    assert [handle.get_label() for handle in diverged_handles(runs)] == ["diverged"]


def test_tables_show_what_was_dropped_and_what_was_not_run(runs: xr.Dataset) -> None:
    table = tb.table(runs)
    assert table.phases.tolist() == ["o ·", "· o", "L o", "C L", "· D"]
    np.testing.assert_array_equal(table.loss_final, [NAN, NAN, 0.1, 0.25, 1e9])
    np.testing.assert_array_equal(table.loss_max, [NAN, NAN, 1.0, 2.5, 1e9])
    np.testing.assert_array_equal(table.weight_norm_ratio[:4], [NAN, NAN, 5.1 / 4, 5.25 / 4])
    shown = of_sweep(runs).phases
    assert shown is not None
    assert [list(row) for row in shown[:3]] == [
        ["dropped", ""],
        ["", "dropped"],
        ["lazy", "dropped"],
    ]


def test_the_overview_says_how_it_was_trained(runs: xr.Dataset) -> None:
    figure = tb.plots.sweep_overview(runs, None, "t")
    caption = " ".join(figure.texts[1].get_text().split())
    assert caption.startswith("Training by adam on batches of 8 on mse")
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert any("Where the loss ends" in title for title in titles)


def test_losses_below_zero_are_drawn(runs: xr.Dataset) -> None:
    below = runs.assign({name: runs[name] - 3 for name in ("loss", "loss_first", "loss_final")})
    ax = tb.plots.traces(below, "loss", ax=new(), rates=[2, 3])
    assert ax.get_yscale() == "linear"
    assert ax.get_ylim()[0] < -2.9 < 1.0 < ax.get_ylim()[1]
    ax = tb.plots.against_rate(below, "loss_final", ax=new())
    assert ax.get_yscale() == "linear"
    assert ax.get_ylim()[0] < -2.9


@pytest.mark.parametrize(
    ("rates", "scale"),
    [
        ([0.001, 0.01, 0.1, 1.0], "log"),
        ([0.1, 0.5, 1.0, 1.5, 2.0, 2.5], "linear"),  # in equal steps, over more than a decade
        ([0.1, 0.2, 0.4], "linear"),
        ([0.5], "linear"),
    ],
)
def test_rates_chosen_in_logarithms_have_such_an_axis(rates: list[float], scale: str) -> None:
    eta = np.array(rates)[:, None]
    made = {"learning_rate": eta, "loss": np.stack([eta * 0 + 1, eta * 0 + 0.5], axis=-1)}
    ds = tb.label(make_dataset(made, lr=rates, seed=[0], step=[0, 1]))
    for ax in (
        tb.plots.phase_bar(ds, ax=new()),
        tb.plots.shade_phases(new(), ds),
        tb.plots.against_rate(ds, "loss_final", ax=new(), edges={"here": rates[0]}),
    ):
        assert ax.get_xscale() == scale
        left, right = ax.get_xlim()
        assert left < rates[0] <= rates[-1] < right


@pytest.fixture(scope="module")
def scan() -> tb.Scan:
    """A real one, with dropped runs and rates that not every seed was run at."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1)).double()
    x = torch.randn(24, 3, dtype=torch.float64)
    return tb.scan(net, "mse", (x, x[:, :1] * x[:, 1:2]), "adam", horizon=20, batch_size=8, seeds=2)


DRAW: dict[str, Callable[[Any], Figure | Axes]] = {
    "phase_bar": lambda ds: tb.plots.phase_bar(ds, ax=new()),
    "shade_phases": lambda ds: tb.plots.shade_phases(new(), ds),
    "traces": lambda ds: tb.plots.traces(ds, ax=new()),
    "every trace": lambda ds: tb.plots.traces(ds, ax=new(), rates=range(len(rate_axis(ds)))),
    "against_rate": lambda ds: tb.plots.against_rate(ds, ["loss_max", "loss_final"], ax=new()),
    "against ηλ₀": lambda ds: tb.plots.against_rate(ds, "loss_final", ax=new(), x="lr_ratio"),
    "sparsity": lambda ds: tb.plots.against_rate(ds, "sparsity_final", ax=new()),
    "weight norm": lambda ds: tb.plots.against_rate(ds, "weight_norm_final", ax=new()),
    "sweep_overview": lambda ds: tb.plots.sweep_overview(ds, {"critical": 0.1}, "t"),
    "paper_panels": lambda ds: tb.plots.paper_panels(ds, None, title="t", caption="c"),
}


def _picture(drawn: Figure | Axes) -> bytes:
    file = io.BytesIO()
    figure = drawn if isinstance(drawn, Figure) else drawn.get_figure()
    assert isinstance(figure, Figure)
    figure.savefig(file, format="png", dpi=40)
    return file.getvalue()


@pytest.mark.parametrize("name", DRAW)
def test_a_scan_and_its_runs_are_one_picture(scan: tb.Scan, name: str) -> None:
    assert {"dropped", "not_run"} <= set(scan.runs.status.values.ravel().tolist())
    assert _picture(DRAW[name](scan)) == _picture(DRAW[name](scan.runs))


def test_a_scans_runs_are_labelled_saved_and_tabled_as_a_sweeps(
    scan: tb.Scan, tmp_path: Path
) -> None:
    xr.testing.assert_identical(tb.label(scan), tb.label(scan.runs))
    xr.testing.assert_equal(tb.label(scan).phase, scan.runs.phase)
    assert tb.load(tb.save(scan, tmp_path / "scan.zarr")) == scan
    read = tb.load(tb.save(scan.runs, tmp_path / "runs.zarr"))
    xr.testing.assert_identical(read, scan.runs)
    assert isinstance(read, xr.Dataset)
    rows = tb.table(scan.runs)
    np.testing.assert_array_equal(rows.lr, scan.table.rate)
    seen = [row.replace("·", " ").split() for row in rows.phases]
    letters = {"dropped": "o", "lazy": "L", "catapult": "C", "divergent": "D", "unsettled": "?"}
    per_seed = scan.table[["phase_seed0", "phase_seed1"]].itertuples(index=False)
    assert seen == [[letters[phase] for phase in row if phase] for row in per_seed]
    pd.testing.assert_frame_equal(tb.table(scan), scan.table)
