"""The experiments on rates: over width, in the first steps, early; against plain loops."""

import numpy as np
import pytest
import torch
import xarray as xr

from trebuchet.data import load_digits01
from trebuchet.paper.beyond import critical_over_width, early_diagram, first_rise
from trebuchet.paper.beyond.width import WidthNet


@pytest.mark.parametrize("adam", [False, True])
@pytest.mark.parametrize("parametrisation", ["standard", "mup"])
def test_weights_have_the_sizes_that_the_parametrisation_asks_for(
    parametrisation: str, adam: bool
) -> None:
    """The matrices that act, multiplier × w: 1/√d, 1/√n, and 1/√n or, maximal update, 1/n."""
    d, n = 50, 400
    net = WidthNet(d, n, parametrisation, adam, seed=0)
    first, second, last = (
        float((m * w).detach().std()) for m, w in zip(net.multipliers, net.weights, strict=True)
    )
    assert first * d**0.5 == pytest.approx(1, rel=0.05)
    assert second * n**0.5 == pytest.approx(1, rel=0.05)
    assert last * (n if parametrisation == "mup" else n**0.5) == pytest.approx(1, rel=0.15)


def test_the_critical_rate_moves_in_one_parametrisation_and_not_in_the_other() -> None:
    ds = critical_over_width(widths=[16, 64, 256], seeds=1, horizon=10, n_train=16)
    assert (ds.crit_exponent.sel(parametrisation="standard") < -0.5).all()
    # Adam's operator is divided by the first gradient, whose small entries scatter: one seed.
    mup = ds.crit_exponent.sel(parametrisation="mup")
    assert abs(float(mup.sel(optimizer="sgd"))) < 0.25
    assert float(mup.sel(optimizer="adam")) > -0.5
    one = ds.sel(parametrisation="mup", optimizer="sgd", width=16, seed=0)
    net = WidthNet(64, 16, "mup", False, 0).double()
    x = torch.as_tensor(load_digits01(16).x_train).double()
    rows = []
    for sample in x:
        grads = torch.autograd.grad(net(sample[None]).sum(), list(net.parameters()))
        rows.append(torch.cat([g.ravel() for g in grads]))
    jacobian = torch.stack(rows)
    top = float(torch.linalg.eigvalsh(jacobian @ jacobian.T / len(x))[-1])
    assert float(one.lr_crit) == pytest.approx(2 / top, rel=2e-2)


@pytest.fixture(scope="module")
def rises() -> xr.Dataset:
    return first_rise(width=4, steps=6, rates=60, seeds=1, n_train=8)


def test_one_step_rises_at_the_closed_form_on_a_quadratic(rises: xr.Dataset) -> None:
    ratio = (rises.lr_rise.sel(t=1) / rises.lr_first).sel(model="linear")
    assert (ratio > 0.999).all()
    assert (ratio < rises.grid_step.sel(model="linear") * 1.01).all()
    assert rises.lr_rise.sel(t=1, model="linear").notnull().all()  # the grid reaches far enough
    forward = (rises.lr_forward / rises.lr_first).sel(model="linear").values
    np.testing.assert_allclose(forward, 1, rtol=1e-3)


def test_nothing_rises_below_the_earliest_rise(rises: xr.Dataset) -> None:
    linear = rises.sel(model="linear")
    ratio = (linear.lr_rise.min("t") / linear.lr_earliest).values
    assert np.isnan(linear.lr_earliest.sel(optimizer="adam")).all()
    assert np.nanmin(ratio) > 0.999
    rates = rises.lr_rise.fillna(1e9).values
    assert (np.diff(rates, axis=-1) <= 0).all()  # what has risen has risen


def test_an_early_diagram_is_early_constants_net_by_net() -> None:
    # Wide enough for no net to be dead, whose edges are looked for up to c = 1e4.
    how = {
        "widths": [16, 32], "depths": [2], "n_train": 16, "rtol": 0.3, "steps": 3,
        "train_steps": 20,
    }  # fmt: skip
    both = early_diagram(seeds=2, **how)  # type: ignore[arg-type]
    one = early_diagram(seeds=[1], **{**how, "widths": [32]})  # type: ignore[arg-type]
    np.testing.assert_array_equal(both.c_loss.values[0, 1, 1], one.c_loss.values[0, 0, 0])
