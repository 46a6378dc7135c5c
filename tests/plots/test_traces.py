"""Traces: values, ends, marks."""

import numpy as np
import pytest
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tests.plots.synthetic import two_variable_map
from trebuchet.errors import InputError
from trebuchet.plots.traces import choose_rates, trace_handles, traces


def new() -> Axes:
    return Figure().add_subplot()


def markers(ax: Axes, marker: str) -> list[tuple[float, float]]:
    return [
        (float(np.asarray(line.get_xdata())[0]), float(np.asarray(line.get_ydata())[0]))
        for line in ax.lines
        if line.get_marker() == marker
    ]


def y(ax: Axes, k: int) -> np.ndarray:
    return np.asarray(ax.lines[k].get_ydata(), dtype=float)


def test_returns_the_axes_and_draws_the_recorded_loss(catapults: xr.Dataset) -> None:
    ax = new()
    assert traces(catapults, "loss", ax=ax, rates=[3, 20]) is ax
    np.testing.assert_array_equal(y(ax, 0), catapults["loss"].values[3, 0])
    np.testing.assert_array_equal(y(ax, 1), catapults["loss"].values[20, 0])
    assert ax.get_yscale() == "log"
    assert ax.get_ylabel() == "training loss L"


def test_lr_ratio_and_weight_norm_are_in_their_units(catapults: xr.Dataset) -> None:
    ax = traces(catapults, "lr_ratio", ax=new(), rates=[20])
    assert y(ax, 0)[0] == pytest.approx(2.5, rel=1e-12)
    expected = catapults["top_eigenvalue"].values[20, 0] * catapults["learning_rate"].values[20, 0]
    np.testing.assert_allclose(y(ax, 0), expected, rtol=1e-14)
    assert any(t.get_text() == "ηλ = 2" for t in ax.texts)
    ax = traces(catapults, "weight_norm", ax=new(), rates=[20])
    np.testing.assert_allclose(y(ax, 0), catapults["weight_norm"].values[20, 0] / 100)
    assert ax.get_ylabel() == "|θ|²/P"
    del (nameless := catapults.copy()).attrs["n_parameters"]
    assert traces(nameless, "weight_norm", ax=new(), rates=[20]).get_ylabel() == "|θ|²"


def test_divergent_run_ends_in_a_cross_and_others_do_not(catapults: xr.Dataset) -> None:
    last = catapults.sizes["lr"] - 1
    assert catapults.phase.values[last, 0] == "divergent"
    ax = traces(catapults, "loss", ax=new(), rates=[20, last])
    ((step, height),) = markers(ax, "X")
    assert height == 1.0  # on the upper rim: the loss has left the picture
    loss = catapults["loss"].values[last, 0]
    assert loss[int(step)] > ax.get_ylim()[1] >= loss[int(step) - 1]
    assert not markers(traces(catapults, "loss", ax=new(), rates=[20]), "X")


def test_blow_up_does_not_flatten_the_rest(catapults: xr.Dataset) -> None:
    last = catapults.sizes["lr"] - 1
    ax = traces(catapults, "lr_ratio", ax=new(), rates=[20, last])
    assert ax.get_ylim()[1] < 5
    assert markers(ax, "X")


def test_loss_through_the_floor_is_marked(catapults: xr.Dataset) -> None:
    ax = traces(catapults, "loss", ax=new(), rates=[3])
    ((step, height),) = markers(ax, "v")
    bottom = ax.get_ylim()[0]
    assert height == 0.0
    assert y(ax, 0)[int(step)] < bottom <= y(ax, 0)[int(step) - 1]
    assert any("below 10⁻¹⁰ L₀" in t.get_text() for t in ax.texts)
    early = catapults.isel(step=slice(0, 4))
    assert not markers(traces(early, "loss", ax=new(), rates=[3]), "v")


def test_converged_run_keeps_its_last_value(catapults: xr.Dataset) -> None:
    ds = catapults.copy(deep=True)
    ds["loss"][3, 0, 10:] = np.nan
    ds["status"][3, 0] = "converged"
    ax = traces(ds, "loss", ax=new(), rates=[3])
    np.testing.assert_array_equal(y(ax, 0)[10:], ds["loss"].values[3, 0, 9])


def test_exact_zero_loss_is_drawn_without_warning(catapults: xr.Dataset) -> None:
    ds = catapults.copy(deep=True)
    ds["loss"][3, 0, 5:] = 0.0
    ax = traces(ds, "loss", ax=new(), rates=[3])
    assert markers(ax, "v")


def test_long_runs_get_a_logarithmic_step_axis_that_shows_step_0(catapults: xr.Dataset) -> None:
    assert traces(catapults, "loss", ax=new(), rates=[3]).get_xscale() == "linear"
    ax = traces(two_variable_map([1.0, 2.5], steps=400), "loss", ax=new(), rates=[1])
    assert ax.get_xscale() == "symlog"
    assert ax.get_xlim() == (0, 400)


def test_axis_ends_where_the_last_run_did(catapults: xr.Dataset) -> None:
    ds = catapults.copy(deep=True)
    ds["steps"][:] = 20
    ds["steps"][20, 0] = 35
    assert traces(ds, "loss", ax=new(), rates=[3, 20]).get_xlim() == (0, 35)
    assert traces(ds, "loss", ax=new(), rates=[3]).get_xlim() == (0, 20)


def test_small_changes_of_the_norm_are_seen(catapults: xr.Dataset) -> None:
    ax = traces(catapults, "weight_norm", ax=new(), rates=[10])
    values = catapults["weight_norm"].values[10, 0] / 100
    bottom, top = ax.get_ylim()
    assert values.min() > 0.98  # lazy: the norm hardly moves
    assert bottom > 0.95
    assert bottom < values.min() < values.max() < top
    assert traces(catapults, "weight_norm", ax=new(), rates=[10, 25]).get_ylim()[0] == 0


def test_range_over_seeds(seeds_apart: xr.Dataset) -> None:
    ax = traces(seeds_apart, "loss", ax=new(), rates=[0])
    assert len(ax.collections) == 1
    np.testing.assert_array_equal(y(ax, 0), np.median(seeds_apart["loss"].values[0], axis=0))


def test_lost_minority_is_a_hollow_cross(seeds_apart: xr.Dataset) -> None:
    gone = (seeds_apart.phase.values == "divergent").sum(axis=1)
    minority = int(np.flatnonzero(gone == 1)[0])
    ax = traces(seeds_apart, "loss", ax=new(), rates=[minority])
    ((step, height),) = markers(ax, "X")
    (cross,) = [line for line in ax.lines if line.get_marker() == "X"]
    assert cross.get_markerfacecolor() == "white"
    assert height == 1.0
    lost = seeds_apart.phase.values[minority] == "divergent"
    loss = seeds_apart["loss"].values[minority, lost][0]
    assert loss[int(step)] > ax.get_ylim()[1] >= loss[int(step) - 1]
    assert np.isfinite(y(ax, 0)).all()


def test_start_is_always_in_the_picture(catapults: xr.Dataset) -> None:
    ax = traces(catapults, "lr_ratio", ax=new(), rates=[0, catapults.sizes["lr"] - 1])
    assert ax.get_ylim()[1] > float(catapults["lr_ratio"][-1, 0])


def test_chosen_rates_tell_the_story(catapults: xr.Dataset) -> None:
    phases = [str(catapults.phase.values[k, 0]) for k in choose_rates(catapults)]
    assert phases == ["lazy", "catapult", "catapult", "catapult", "divergent"]
    rates = choose_rates(catapults)
    assert str(catapults.phase.values[rates[-1] - 1, 0]) == "catapult"  # first that was lost
    handles = trace_handles(catapults, rates)
    assert handles[-1].get_label() == f"ηλ₀ = {catapults.lr.values[rates[-1]]:.3g}  divergent"


@pytest.mark.parametrize("kept", [slice(0, 1), slice(0, 3), slice(38, 40), slice(20, 22)])
def test_chosen_rates_of_small_sweeps(catapults: xr.Dataset, kept: slice) -> None:
    ds = catapults.isel(lr=kept)
    rates = choose_rates(ds)
    assert rates
    assert set(rates) <= set(range(ds.sizes["lr"]))
    traces(ds, "loss", ax=new())


def test_unknown_and_unrecorded(catapults: xr.Dataset) -> None:
    with pytest.raises(InputError, match="quantity: expected one of loss, test_loss"):
        traces(catapults, "accuracy", ax=new())
    with pytest.raises(InputError, match="the dataset has no 'test_loss'"):
        traces(catapults, "test_loss", ax=new())
