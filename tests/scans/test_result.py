"""What a scan hands back: its two tables, its renderings, its picture, and the folder it is in."""

import html
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from hypothesis import given, strategies as st
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from torch import nn

from trebuchet._types import Phase
from trebuchet.errors import InputError
from trebuchet.phases.interval import Interval
from trebuchet.scans.door import Scan, scan
from trebuchet.scans.legacy import of_old
from trebuchet.scans.result import Critical, Warmup
from trebuchet.scans.suggest import Suggestion
from trebuchet.scans.tables import MEANS, RUN_COLUMNS, by_rate, rate_columns

START = 2.0
"""Loss at the start of the scans below that are made by hand."""


def _run(rate: float, seed: int, phase: str = "lazy", **others: Any) -> dict[str, Any]:
    """A whole run, unless told otherwise."""
    row: dict[str, Any] = dict.fromkeys(RUN_COLUMNS, math.nan)
    row |= {"rate": rate, "seed": seed, "phase": phase, "steps": 60, "status": "max_steps"}
    row |= {"loss": 0.5, "loss_horizon": 0.6, "peak_ratio": 1.0, "recovery_step": np.nan}
    if phase == "divergent":
        row |= {"status": "non_finite", "loss": math.nan, "loss_horizon": math.inf, "steps": 7}
        row |= {"peak_ratio": math.inf}
    return row | others


def _dropped(rate: float, seed: int, **others: Any) -> dict[str, Any]:
    early: dict[str, Any] = {"status": "dropped", "steps": 5, "loss": 1.5, "loss_horizon": math.nan}
    return _run(rate, seed, "unsettled", **early | others)


def _frame(*rows: dict[str, Any]) -> pd.DataFrame:
    return pd.DataFrame(list(rows), columns=list(RUN_COLUMNS))


SETTINGS = {"loss_first": START, "delta": 1e-3, "blowup": 1e8}


def _grid(frame: pd.DataFrame) -> xr.Dataset:
    """The runs of a frame as a scan has them, through the form in which old files had them."""
    old = xr.Dataset({name: ("run", frame[name].to_numpy()) for name in frame})
    looks = frame[["rate", "seed"]].assign(step=0, loss=START)
    for name in looks:
        old[f"trace_{name}"] = ("look", looks[name].to_numpy())
    return of_old(old, SETTINGS)


def _scan(*rows: dict[str, Any], rate: float = 0.1) -> Scan:
    """A scan made by hand."""
    suggestion = Suggestion(rate, rate / 2, rate * 2, 0.5, 0.25, 4.0, Phase.LAZY, "a <b> & c", True)
    return Scan(
        suggestion, Critical(math.nan, math.nan, "", "not measured"), Interval(0.1, 0.2),
        Interval(0.0, 1.0), Interval(0.3, math.inf), Warmup(False, 0.1, 0.1, "not needed"),
        _grid(_frame(*rows)), (),
        {"gradients": 1.0, "forwards": 1.0, "products": 0.0, "seconds": 0.1},
        {**SETTINGS, "horizon": 60, "optimizer": "sgd", "batch_size": 8, "n_samples": 64},
    )  # fmt: skip


@pytest.fixture(scope="module")
def scanned() -> Scan:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).double()
    y = torch.arange(60) % 3
    x = torch.randn(60, 6, dtype=torch.float64) + 2 * nn.functional.one_hot(y, 6)
    return scan(
        net, "cross_entropy", (x, y), "momentum", batch_size=20, horizon=60, seeds=3,
        edge_rtol=0.3, curvature="final",
    )  # fmt: skip


ORDER = ["divergent", "collapsed", "unsettled", "catapult", "lazy"]


@pytest.mark.parametrize("worse", ORDER)
@pytest.mark.parametrize("better", ORDER)
def test_seeds_that_agree_give_their_phase_and_others_the_worse(worse: str, better: str) -> None:
    if ORDER.index(worse) > ORDER.index(better):
        worse, better = better, worse
    for pair in ((worse, better), (better, worse)):
        table = by_rate(_frame(*(_run(0.1, seed, phase) for seed, phase in enumerate(pair))))
        assert table["phase"].tolist() == [worse]
        assert table[["phase_seed0", "phase_seed1"]].to_numpy().tolist() == [list(pair)]


def test_numbers_are_combined_over_the_seeds_that_were_run() -> None:
    table = by_rate(
        _frame(
            _run(0.1, 0, loss=0.2, loss_horizon=0.3, peak_ratio=1.0, kernel_drift=0.1, steps=60),
            _run(
                0.1, 4, "catapult", loss=0.4, loss_horizon=0.5, peak_ratio=7.0, recovery_step=9,
                grad_norm=3.0,
            ),
            _dropped(0.1, 7, loss=1.5, peak_ratio=2.0, recovery_step=3, grad_norm=5.0),
            _run(0.2, 4),
        )
    )  # fmt: skip
    assert list(table) == list(rate_columns([0, 4, 7]))
    row = table.iloc[0]
    assert row["loss"] == pytest.approx((0.2 + 0.4 + 1.5) / 3)
    assert row["loss_horizon"] == pytest.approx(0.4)  # the dropped seed did not get there
    assert row["peak_ratio"] == 7
    assert row["recovery_step"] == 9
    assert row["steps"] == 60
    assert row["n_seeds"] == 3
    assert row["kernel_drift"] == pytest.approx(0.1)
    assert row["grad_norm"] == pytest.approx(4.0)
    assert math.isnan(row["sparsity"])
    assert [row[f"phase_seed{s}"] for s in (0, 4, 7)] == ["lazy", "catapult", "dropped"]
    assert row["phase"] == "unsettled"  # what the third would have become is not known
    assert row["status"] == "max_steps"
    other = table.iloc[1]
    assert [other[f"phase_seed{s}"] for s in (0, 4, 7)] == ["", "lazy", ""]
    assert other["n_seeds"] == 1
    assert np.isnan(other["recovery_step"])


def test_a_diverged_loss_is_infinite_and_a_dropped_one_is_missing() -> None:
    table = by_rate(
        _frame(
            _run(0.1, 0), _run(0.1, 1, "divergent"), _dropped(0.2, 0), _dropped(0.2, 1),
            _run(0.3, 0, "divergent", loss=1e300, weight_norm=1e308, status="blew_up"),
            _run(0.3, 1, "divergent", loss=1e300, weight_norm=1e308, status="blew_up"),
        )
    )  # fmt: skip
    assert table["loss_horizon"].tolist()[0] == math.inf
    assert table["loss"].tolist() == [math.inf, 1.5, 1e300]
    assert math.isnan(table["loss_horizon"].tolist()[1])
    assert table["status"].tolist() == ["non_finite", "dropped", "blew_up"]
    assert table["phase"].tolist() == ["divergent", "unsettled", "divergent"]
    assert table["weight_norm"].tolist()[2] == pytest.approx(1e308)  # their sum would overflow


@pytest.mark.parametrize(("apart", "rows"), [(0.9e-9, 1), (1.1e-9, 2)])
def test_rates_equal_to_a_billionth_are_one(apart: float, rows: int) -> None:
    table = by_rate(_frame(_run(0.1, 0), _run(0.1 * (1 + apart), 1)))
    assert len(table) == rows


def test_of_one_seed_run_twice_at_a_rate_the_one_that_went_further_counts() -> None:
    twice = [_dropped(0.1, 0, steps=30), _run(0.1, 0, steps=60), _dropped(0.1, 0, steps=5)]
    for rows in (twice, twice[::-1]):
        table = by_rate(_frame(*rows))
        assert table["phase_seed0"].tolist() == ["lazy"]
        assert table["n_seeds"].tolist() == [1]
        assert table["loss"].tolist() == [0.5]


@given(st.permutations(range(6)))
def test_order_of_runs_is_irrelevant(order: list[int]) -> None:
    rows = [
        _run(0.1, 0), _run(0.1, 1, "catapult", loss=0.25), _dropped(0.05, 1), _run(0.2, 0),
        _run(0.2, 1, "divergent"), _dropped(0.1, 1, steps=20),
    ]  # fmt: skip
    expected = by_rate(_frame(*rows))
    pd.testing.assert_frame_equal(by_rate(_frame(*(rows[k] for k in order))), expected)


def test_a_real_scan_has_a_row_a_rate_that_its_runs_account_for(scanned: Scan) -> None:
    table, runs = scanned.table, scanned.run_table
    assert list(table) == list(rate_columns([0, 1, 2]))
    assert len(runs) > len(table) > 5
    assert (np.diff(table["rate"]) > 1e-9 * table["rate"].to_numpy()[1:]).all()
    assert table["n_seeds"].between(1, 3).all()
    assert (table["n_seeds"] == 3).any()
    cells = table[["phase_seed0", "phase_seed1", "phase_seed2"]]
    assert ((cells != "").sum(axis=1) == table["n_seeds"]).all()
    assert set(np.unique(cells)) <= {"", "dropped", *map(str, Phase)}
    unsure = table[(cells == "dropped").any(axis=1)]
    assert set(unsure["phase"]) <= {"divergent", "collapsed", "unsettled"}
    assert len(unsure) > 0
    for row in table.to_dict("records"):
        of_rate = runs[np.isclose(runs["rate"], row["rate"], rtol=1e-9, atol=0)]
        assert row["peak_ratio"] == of_rate["peak_ratio"].max()
        assert row["recovery_step"] == pytest.approx(of_rate["recovery_step"].max(), nan_ok=True)
    whole = table[table["status"] == "max_steps"]
    for name in ("loss_horizon", *MEANS):
        assert whole[name].notna().all(), name
    assert table[table["status"] == "dropped"]["loss_horizon"].isna().all()


def test_table_and_frame_do_not_share_memory(scanned: Scan) -> None:
    frame = scanned.to_dataframe()
    pd.testing.assert_frame_equal(frame, scanned.table)
    frame.loc[:, "rate"] = 0.0
    assert (scanned.table["rate"] > 0).all()
    assert scanned.table is scanned.table


def test_a_catapult_of_one_seed_is_a_catapult() -> None:
    calm = [_run(0.1, 0), _run(0.1, 1)]
    assert not _scan(*calm).has_catapult
    # Dropped later, and the other seed stayed lazy: still one has risen and come back.
    assert _scan(*calm, _dropped(0.2, 1, recovery_step=4)).has_catapult


def test_save_and_load(scanned: Scan, tmp_path: Path) -> None:
    place = scanned.save(tmp_path / "scan.zarr")
    again = Scan.load(place)
    assert again.suggestion == scanned.suggestion
    assert again.summary() == scanned.summary()
    assert again.lr_max == scanned.lr_max
    pd.testing.assert_frame_equal(again.run_table, scanned.run_table)
    pd.testing.assert_frame_equal(again.table, scanned.table)
    np.testing.assert_array_equal(again.traces["loss"], scanned.traces["loss"])
    with pytest.raises(InputError, match="exists"):
        scanned.save(place)
    scanned.save(place, overwrite=True)
    with xr.open_zarr(place) as ds:
        assert set(ds.sizes) >= {"lr", "seed", "step"}
        assert int((ds["status"] != "not_run").sum()) == len(scanned.run_table)
        assert ds["weight_norm_final"].attrs["long_name"] == "|θ|² at the end"
        assert all({"long_name", "units"} <= set(ds[name].attrs) for name in ds)


def _text(result: Scan) -> str:
    with open("/dev/null", "w") as nowhere:
        console = Console(width=120, record=True, file=nowhere)
        console.print(result)
        return console.export_text()


def _line(text: str, rate: str) -> str:
    return next(line for line in text.splitlines() if re.match(rf"▶? *{re.escape(rate)}  ", line))


def test_terminal_shows_a_row_a_rate_with_a_mark_a_seed() -> None:
    result = _scan(
        _dropped(0.01, 0), _dropped(0.01, 1), _run(0.12, 0), _run(0.12, 1, "catapult",
        recovery_step=12, peak_ratio=3.5), _run(0.5, 1, "divergent"),
    )  # fmt: skip
    text = _text(result)
    assert "suggested learning rate  0.1" in text
    first, second, third = (_line(text, rate) for rate in ("0.01", "0.12", "0.5"))
    assert "○ ○" in first
    assert "▶" in second
    assert "● ▲" in second
    assert " 12 " in second
    assert " 3.5 " in second
    assert "  ✕" in third
    assert "∞" in third
    assert "▶" not in first + third
    assert "● lazy  ▲ catapult  ✕ divergent  ○ dropped" in text
    assert "■" not in text  # nothing collapsed, so the key is silent about it


def test_columns_appear_only_where_something_is_known() -> None:
    unknown, known = _scan(_run(0.1, 0)), _scan(_run(0.1, 0, lr_ratio_final=1.75, sparsity=0.375))
    for render in (_text, Scan._repr_html_):
        for heading, value in (("ηλ end", "1.75"), ("sparsity", "0.375")):
            assert heading not in render(unknown)
            assert heading in render(known)
            assert value in render(known)
        assert "● lazy" in render(known)  # there is only one seed, so its phase is said


def test_notebook_shows_the_same_and_escapes() -> None:
    result = _scan(_dropped(0.01, 0), _run(0.12, 0), _run(0.12, 1, "divergent"))
    page = result._repr_html_()
    rows = re.findall(r"<tr.*?</tr>", page)
    assert len(rows) == 1 + 2
    assert "○" in rows[1]
    assert "▶" in rows[2]
    assert "●" in rows[2]
    assert "✕" in rows[2]
    assert "○ dropped" in page
    assert "a &lt;b&gt; &amp; c" in page
    assert "<b> & c" not in page
    assert html.unescape(page).count("∞") == 2  # loss and peak of the rate that diverged


def test_a_suggestion_that_is_not_reliable_is_not_called_one() -> None:
    result = _scan(_run(0.1, 0, "unsettled", loss=3.0))
    result = replace(result, suggestion=replace(result.suggestion, reliable=False))
    for page in (_text(result), result._repr_html_()):
        assert "not reliable" in page
        assert "suggested learning rate" not in page


def test_real_scan_renders(scanned: Scan) -> None:
    assert f"{scanned.suggestion.rate:.3g}" in _text(scanned)
    assert len(re.findall("<tr", scanned._repr_html_())) == 1 + len(scanned.table)
    assert str(scanned).startswith("use ")


def _labels(ax: Axes) -> list[str]:
    legend = ax.get_legend()
    assert legend is not None
    return [text.get_text() for text in legend.get_texts()]


def test_plot_takes_axes_and_returns_them(scanned: Scan) -> None:
    ax = Figure().add_subplot()
    assert scanned.plot(ax) is ax
    assert ax.get_xscale() == "log"
    assert ax.get_xlabel() == "learning rate (momentum, 20 samples a batch)"
    assert "60 steps" in ax.get_ylabel()
    assert _labels(ax)[0] == f"use {scanned.suggestion.rate:.3g}"
    assert f"training ends:\n{scanned.lr_max}" in _labels(ax)
    assert isinstance(scanned.plot(), Axes)


def test_legend_stands_beside_the_axes(scanned: Scan) -> None:
    figure = Figure(figsize=(7.2, 3.8), layout="constrained")
    ax = scanned.plot(figure.add_subplot())
    figure.draw_without_rendering()
    legend = ax.get_legend()
    assert legend is not None
    box, axes, page = legend.get_window_extent(), ax.get_window_extent(), figure.bbox
    assert box.x0 >= axes.x1
    assert box.x1 <= page.x1


def test_every_mark_is_inside_the_axes_also_those_that_diverged() -> None:
    result = _scan(
        _run(0.1, 0), _dropped(0.2, 0, loss=1e6), _run(3.0, 0, "divergent"),
        _run(40.0, 0, "divergent", loss=1e25, status="blew_up"),
    )  # fmt: skip
    figure = Figure(figsize=(7.2, 3.8), layout="constrained")
    ax = result.plot(figure.add_subplot())
    figure.draw_without_rendering()
    box, drawn = ax.get_window_extent(), 0
    for marks in ax.collections:
        for place in marks.get_offset_transform().transform(np.asarray(marks.get_offsets())):
            drawn += 1
            assert box.contains(*place)
    assert drawn == 4
    assert "divergent" in _labels(ax)
    low, high = ax.get_ylim()
    assert high < 10 * START  # what blew up does not flatten the rest
    assert low < 0.5


def test_a_scan_in_which_everything_diverged_is_drawn() -> None:
    result = _scan(_run(0.1, 0, "divergent"), _run(1.0, 0, "divergent"))
    result = replace(result, suggestion=replace(result.suggestion, reliable=False))
    figure = Figure(layout="constrained")
    ax = result.plot(figure.add_subplot())
    figure.draw_without_rendering()
    assert _labels(ax)[:2] == ["least bad: 0.1", "divergent"]
    assert ax.get_ylim()[0] < START < ax.get_ylim()[1]


def test_a_loss_below_zero_has_a_linear_axis() -> None:
    ax = _scan(_run(0.1, 0, loss=-3.0)).plot(Figure().add_subplot())
    assert ax.get_yscale() == "linear"
    assert ax.get_ylim()[0] < -3


def test_an_edge_is_drawn_only_where_both_sides_were_seen() -> None:
    result = _scan(_run(0.1, 0))
    open_, closed = result, replace(result, lr_loss=Interval(0.1, 0.2), lr_max=Interval(0.3, 0.6))
    labels = [" ".join(_labels(s.plot(Figure().add_subplot()))) for s in (open_, closed)]
    assert "training ends" not in labels[0]
    assert "loss first rises" not in labels[0]
    assert "training ends:\n0.3 to 0.6" in labels[1]
    assert "loss first rises:\n0.1 to 0.2" in labels[1]
