"""Final numbers against the rate."""

import numpy as np
import pytest
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from trebuchet.errors import InputError
from trebuchet.plots.against_rate import against_rate, diverged_handles


def new() -> Axes:
    return Figure().add_subplot()


def crosses(ax: Axes) -> dict[str, list[float]]:
    return {
        str(line.get_color()): np.asarray(line.get_xdata(), dtype=float).tolist()
        for line in ax.lines
        if line.get_marker() == "X"
    }


def first(ax: Axes) -> np.ndarray:
    return np.asarray(ax.lines[0].get_ydata(), dtype=float)


def test_final_lr_ratio_of_runs_that_came_back(catapults: xr.Dataset) -> None:
    ax = new()
    assert against_rate(catapults, ax=ax) is ax
    gone = catapults.phase.values[:, 0] == "divergent"
    expected = (catapults["learning_rate"] * catapults["top_eigenvalue_final"]).values[:, 0]
    np.testing.assert_allclose(first(ax)[~gone], expected[~gone], rtol=1e-14)
    assert np.isnan(first(ax)[gone]).all()
    assert list(crosses(ax).values()) == [catapults.lr.values[gone].tolist()]
    assert first(ax)[20] == pytest.approx(1.28, abs=0.02)  # the map's fixed end at v₀ = 2.5


def test_some_seeds_lost_is_told_apart_from_all(seeds_apart: xr.Dataset) -> None:
    gone = seeds_apart.phase.values == "divergent"
    some = gone.any(axis=1) & ~gone.all(axis=1)
    assert some.any()
    found = crosses(against_rate(seeds_apart, ax=new()))
    assert found["white"] == np.median(seeds_apart["lr_ratio"], axis=1)[some].tolist()
    assert [h.get_label() for h in diverged_handles(seeds_apart)] == [
        "diverged",
        "some seeds diverged",
    ]


def test_no_run_diverged(relu: xr.Dataset) -> None:
    assert not crosses(against_rate(relu, ax=new()))
    assert diverged_handles(relu) == []


def test_losses_sink_to_a_marked_floor(catapults: xr.Dataset) -> None:
    ax = against_rate(catapults, ["loss_max", "loss_final"], ax=new())
    assert ax.get_yscale() == "log"
    start = float(catapults["loss_first"].median())
    final = np.asarray(
        next(x for x in ax.lines if x.get_label() == "final training loss").get_ydata(), dtype=float
    )
    assert np.nanmin(final) == pytest.approx(1e-10 * start)
    assert any("below 10⁻¹⁰ L₀" in t.get_text() for t in ax.texts)
    legend = ax.get_legend()
    assert legend is not None
    assert [t.get_text() for t in legend.get_texts()] == ["peak loss", "final training loss"]


def test_sparsity_per_layer(relu: xr.Dataset) -> None:
    two = xr.concat(
        [relu, relu.assign(sparsity_final=relu["sparsity_final"] / 2)],
        "layer",
        data_vars=["sparsity_final"],
        coords="minimal",
        compat="override",
    )
    ax = against_rate(two, "sparsity_final", ax=new())
    legend = ax.get_legend()
    assert legend is not None
    assert [t.get_text() for t in legend.get_texts()] == ["hidden layer 1", "hidden layer 2"]
    np.testing.assert_allclose(first(ax), np.median(relu["sparsity_final"].values[..., 0], axis=1))
    assert ax.get_ylim()[1] > 1  # points at 1 are whole


def test_learning_rate_as_the_axis(catapults: xr.Dataset) -> None:
    ax = against_rate(catapults, ax=new(), x="lr", edges={"critical": 2.0})
    assert ax.get_xlabel() == "learning rate η"
    np.testing.assert_array_equal(
        np.asarray(ax.lines[0].get_xdata()), catapults["learning_rate"].values[:, 0]
    )


def test_everything_diverged(catapults: xr.Dataset) -> None:
    ds = catapults.isel(lr=slice(-3, None))
    for name in ("lr_ratio_final", "weight_norm_final", "loss_final"):
        ax = against_rate(ds, name, ax=new())
        assert len(next(iter(crosses(ax).values()))) == 3


def test_great_norms_go_on_a_logarithmic_top(relu: xr.Dataset) -> None:
    assert against_rate(relu.isel(lr=slice(0, 4)), "weight_norm_final", ax=new()).get_yscale() == (
        "linear"
    )
    big = relu.assign(weight_norm_final=relu["weight_norm_final"] * np.logspace(0, 6, 9)[:, None])
    ax = against_rate(big, "weight_norm_final", ax=new())
    assert ax.get_yscale() == "symlog"
    assert any(t.get_text() == "log above" for t in ax.texts)


def test_unknown_and_missing(catapults: xr.Dataset) -> None:
    with pytest.raises(InputError, match="quantities: expected some of lr_ratio_final"):
        against_rate(catapults, "accuracy", ax=new())
    with pytest.raises(InputError, match="quantities: expected some of"):
        against_rate(catapults, [], ax=new())
    with pytest.raises(InputError, match="'test_loss_final' needs 'test_loss_final'"):
        against_rate(catapults, "test_loss_final", ax=new())
