"""The experiments beyond the paper: closed forms, plain autograd, and only public names."""

import ast
import importlib
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, strategies as st
from torch import Tensor, nn

import trebuchet as tb
from trebuchet.errors import InputError
from trebuchet.paper import beyond
from trebuchet.paper.beyond import (
    EXPERIMENTS,
    cycles_and_chaos,
    divergence_edge,
    norm_ceiling,
    relu_problem,
    second_catapults,
    sparsity_over_widths,
    tanh_problem,
    taylor_models,
)
from trebuchet.paper.beyond.ceiling import _observe
from trebuchet.paper.beyond.edge import bracket
from trebuchet.paper.beyond.sparsity import statistics


def test_only_public_names_are_used() -> None:
    """Every import is of a public name, reachable from the root, or of beyond itself."""
    imported = []
    for path in Path(beyond.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("trebuchet"):
                imported += [(node.module, alias.name) for alias in node.names]
    foreign = [(m, name) for m, name in imported if not str(m).startswith(beyond.__name__)]
    assert len(foreign) > 10
    rooms = ("data", "models", "observables", "plots", "results", "theory")
    submodules = [importlib.import_module(f"trebuchet.{name}") for name in rooms]
    public = [getattr(tb, name) for name in tb.__all__]
    public += [getattr(module, name) for module in submodules for name in module.__all__]
    for module, name in foreign:
        if module in ("trebuchet.errors", "trebuchet.problem.problem") and name != "Problem":
            continue  # exceptions, and the type of a function of a seed
        if str(module) in ("trebuchet.paper.experiment", "trebuchet.plots.style"):
            continue  # the frame of the table, and the look of its pictures
        if {str(module).rpartition(".")[2], name} & {
            "_checks",
            "_torch_checks",
            "_doors",
            "_progress",
            "parts",
        }:
            continue  # arguments are checked as at every door, and long work is kept in parts
        found = getattr(importlib.import_module(str(module)), name)
        assert any(found is item for item in public), f"{module}.{name}"


# Parts


def test_parts_that_ended_are_kept_and_those_of_other_settings_refused(tmp_path: Path) -> None:
    asked: dict[str, Any] = {
        "widths": (16, 32),
        "lr_ratio": (1.0, 3.0),
        "seeds": 1,
        "steps": 20,
        "n_train": 8,
    }
    parts = tmp_path / "parts"

    def stop(done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    row = EXPERIMENTS["sparsity"]
    with pytest.raises(KeyboardInterrupt):
        row.run(checkpoint=parts, progress=stop, **asked)
    assert [p.name for p in parts.glob("*.zarr")] == ["width-16.zarr"]
    when = (parts / "width-16.zarr").stat().st_mtime_ns
    found = row.run(checkpoint=parts, **asked)
    assert (parts / "width-16.zarr").stat().st_mtime_ns == when
    xr.testing.assert_identical(found, row.run(**asked))
    with pytest.raises(InputError, match="other settings"):
        row.run(checkpoint=parts, **{**asked, "steps": 21})
    with pytest.raises(InputError, match="no such setting"):
        row.run(depths=[2])


# Sparsity


def test_statistics_of_known_curves() -> None:
    rates = [1.0, 2.0, 3.0, 4.0]
    correlation, share, fall, *ends = statistics(rates, [0.5, 0.6, 0.7, 0.9])
    assert (correlation, share, fall) == pytest.approx((1.0, 1.0, 0.0))
    assert np.isnan(ends).all()
    assert statistics(rates, [0.9, 0.8, 0.6, 0.5]) == pytest.approx((-1.0, 0.0, 0.4, 1.0, 4.0))
    # Spearman by hand: ranks 1 3 2 4 against 1 2 3 4 is 1 − 6·2/(4·15) = 0.8
    assert statistics(rates, [0.5, 0.8, 0.7, 0.9])[0] == pytest.approx(0.8)
    # a missing rate is left out, not taken for 0
    gap = statistics(rates, [0.5, np.nan, 0.7, 0.9])
    assert gap[:3] == pytest.approx((1.0, 1.0, 0.0))
    assert np.isnan(statistics(rates, [0.5, np.nan, np.nan, np.nan])).all()
    assert np.isnan(statistics(rates, [0.5] * 4)[0])


@given(st.lists(st.floats(0, 1), min_size=2, max_size=12))
def test_largest_fall_is_over_all_pairs(values: list[float]) -> None:
    rates = np.arange(1.0, len(values) + 1)
    fall, start, end = statistics(rates, values)[2:]
    pairs = itertools.combinations(values, 2)
    assert fall == max(0.0, *(a - b for a, b in pairs))
    if fall > 0:
        position = dict(zip(rates.tolist(), values, strict=True))
        assert start < end
        assert position[start] - position[end] == fall


def test_sparsity_is_that_of_plain_autograd() -> None:
    ratio, steps, width, seed = 2.5, 25, 24, 3
    ds = sparsity_over_widths(
        widths=[8, width],
        lr_ratio=[1.0, ratio],
        seeds=[1, seed],
        steps=steps,
        n_train=16,
        workers=1,
    )
    problem = relu_problem(width, n_train=16)
    model = problem.initial(seed)
    lr = ratio / float(ds.top_eigenvalue_init.sel(width=width, seed=seed))
    for _ in range(steps):
        loss = 0.5 * (model(problem.x) - problem.y).square().mean()
        grads = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for p, g in zip(model.parameters(), grads, strict=True):
                p.sub_(lr * g)
    first = next(model.parameters()).detach()
    expected = float((problem.x @ first.T < 0).double().mean())
    found = float(ds.sparsity.sel(width=width, lr=ratio, seed=seed))
    assert 0 < expected < 1
    assert found == pytest.approx(expected, abs=2 / (16 * width))  # two signs within rounding


def test_runs_that_did_not_train_are_left_out_of_the_statistics() -> None:
    rates = [1.0, 2.2, 500.0]
    ds = sparsity_over_widths(
        widths=[32], lr_ratio=rates, seeds=2, steps=200, n_train=16, workers=1
    )
    assert set(ds.phase.isel(lr=2).values.ravel()) <= {"divergent", "collapsed"}
    assert set(ds.phase.isel(lr=[0, 1]).values.ravel()) <= {"lazy", "catapult"}
    for seed in range(2):
        expected = statistics(rates[:2], ds.sparsity.values[0, :2, seed])
        found = [float(ds[name][0, seed]) for name in ("rank_correlation", "rising_share")]
        assert found == pytest.approx(expected[:2])


# The weight-norm ceiling


@pytest.fixture(scope="module")
def measured() -> xr.Dataset:
    """A small measurement for k = 2, 3, 4."""
    return norm_ceiling(width=48, seeds=2, steps=25, rate_step=0.25, samples=8, workers=1)


@pytest.mark.parametrize("degree", [2, 3, 4])
def test_one_sample_encloses_twice_the_number_of_layers(measured: xr.Dataset, degree: int) -> None:
    one = measured.sel(case="one sample, y = 0", degree=degree)
    assert one.ceiling == 2 * degree
    assert one.fell_highest < 2 * degree + 1e-9  # at 2k itself the change is rounding
    assert one.rose_lowest > 2 * degree - 1e-9
    assert one.rose_lowest - one.fell_highest < 2 * 0.25  # neighbours on the grid of rates
    assert min(int(one.rises), int(one.falls)) > 10


@pytest.mark.parametrize("degree", [2, 3, 4])
def test_no_step_breaks_the_law(measured: xr.Dataset, degree: int) -> None:
    many = measured.sel(degree=degree)
    assert (many.violations == 0).all()
    assert many.steps_below.sel(case="many samples, y = 0") > 100
    assert many.steps_below.sel(case="many samples, y = ±0.1") > 10
    assert many.rose_lowest.sel(case="many samples, y = 0") > 2 * degree
    # With labels it rises far below 2k, once the loss is small: the statement needs y = 0.
    assert many.rose_lowest.sel(case="many samples, y = ±1") < 2 * degree
    assert many.rises.sel(case="many samples, y = ±1") > 10


def test_a_violation_would_be_counted() -> None:
    problem = tb.Problem(tb.MLP.draw(1, 16, generator=0), "half_mse", ([[1.0]], [0.0]))
    runs = tb.sweep(problem, lr_ratio=[1.0, 3.0], steps=5, workers=1)
    good = _observe(runs, 4.0, 0.0)
    assert good["violations"] == 0 < good["steps_below"]
    runs["weight_norm"] = runs.weight_norm.max() + runs.weight_norm.max() - runs.weight_norm
    bad = _observe(runs, 4.0, 0.0)
    assert bad["violations"] == bad["steps_below"] == good["steps_below"]
    assert bad["rises"] == good["falls"]


# The measured edge


def linear_problem() -> tb.Problem:
    """z = wx on one sample: trains below ηλ₀ = 2, and at no rate above."""

    def model(seed: int) -> nn.Module:
        linear = nn.Linear(1, 1, bias=False, dtype=torch.float64, device="meta")
        linear = linear.to_empty(device="cpu")
        nn.init.constant_(linear.weight, 0.5 + seed)
        return linear

    return tb.Problem(model, "half_mse", ([[1.5]], [3.0]))


def test_bracket_encloses_the_edge_of_linear_regression() -> None:
    rates = 0.7 * 1.25 ** np.arange(8)  # to 3.3
    for found in bracket(linear_problem(), rates, seeds=[0, 3], steps=50, workers=1):
        assert found.trains < 2 < found.fails
        assert found.fails <= 1.02 * found.trains
        assert found.fails_as == "unsettled"  # 1 % past the edge the loss has risen by a few
        assert found.last == found.trains
    (far,) = bracket(
        linear_problem(), np.array([1.0, 30.0]), seeds=[0], steps=50, precision=40, workers=1
    )
    assert (far.trains, far.fails, far.fails_as) == (1.0, 30.0, "divergent")


def test_bracket_says_nan_where_there_is_no_edge() -> None:
    (found,) = bracket(linear_problem(), np.array([0.5, 1.5]), seeds=[0], steps=50, workers=1)
    assert (found.trains, found.last, found.fails_as) == (1.5, 1.5, "")
    assert np.isnan(found.fails)
    (found,) = bracket(linear_problem(), np.array([2.5, 3.0]), seeds=[0], steps=50, workers=1)
    assert np.isnan(found.trains)
    assert np.isnan(found.last)
    assert found.fails == 2.5


def test_both_sides_of_a_measured_edge() -> None:
    """0.9× trains and 1.1× does not, for tanh, whose edge is sharp."""
    size: dict[str, Any] = {"n_train": 16, "steps": 100, "seeds": [2], "workers": 1}
    ds = divergence_edge(activations=["tanh"], hidden=[1], widths=[32], **size)
    edge = float(ds.edge.squeeze())
    assert 2 < edge < 8
    problem = tanh_problem(32, n_train=16)
    runs = tb.label(tb.sweep(problem, lr_ratio=[0.9 * edge, 1.1 * edge], seeds=[2], steps=100))
    below, above = runs.phase.values[:, 0]
    assert below == "catapult"
    assert above == ds.fails_as.values.item() == "divergent"


def test_arguments_are_checked() -> None:
    with pytest.raises(InputError, match="activations: expected any of"):
        divergence_edge(activations=["gelu"])
    with pytest.raises(InputError, match="growth=1"):
        divergence_edge(growth=1.0)
    with pytest.raises(InputError, match="width: expected a positive number, got 0"):
        tanh_problem(0)


# The nets


def test_tanh_net_is_drawn_at_one_over_fan_in_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    problem = tanh_problem(400, hidden=2, n_train=8, dtype=torch.float64)
    net = problem.initial(7)
    assert torch.equal(torch.rand(3), expected)
    first, middle, last = (p.detach() for p in net.parameters())
    assert [tuple(w.shape) for w in (first, middle, last)] == [(400, 64), (400, 400), (1, 400)]
    # the standard deviation of N normal draws is known to 1/√(2N)
    for w, fan_in in ((first, 64), (middle, 400)):
        tolerance = 5 / np.sqrt(2 * w.numel())
        assert float(w.std()) * np.sqrt(fan_in) == pytest.approx(1, rel=tolerance)
    again = list(problem.initial(7).parameters())
    other = list(problem.initial(8).parameters())
    assert torch.equal(again[0], first)
    assert not torch.equal(other[0], first)


def test_models_on_one_sample_settle_on_the_cycles_of_the_map() -> None:
    rates = [0.9, 1.1, 1.25]
    found = cycles_and_chaos(rates, width=4, seeds=2, steps=800, exponent_steps=16)
    orbits = {}
    for a in rates:
        x, seen = -0.3, []
        for _ in range(5000):
            x = (x + a) * (1 - x) ** 2 - a
            seen.append(x * x / 2)
        orbits[a] = np.sort(seen[-4:])
    for model in found.model.values:
        runs = found.sel(model=model)
        for seed in (0,) if model == "map" else (0, 1):
            assert runs.phase.values[:, seed].tolist() == ["lazy", "periodic", "periodic"]
            np.testing.assert_array_equal(runs.period.values[:, seed], [np.nan, 2, 4])
            for a in rates[1:]:
                last = np.sort(runs.loss.sel(lr=a).isel(seed=seed).values[-4:])
                np.testing.assert_allclose(last, orbits[a], rtol=1e-6, atol=1e-9)
    row = EXPERIMENTS["bifurcation"]
    assert len(row.draw(found).axes) == 8
    told = row.tell(found)
    assert len(told) == 4
    assert "4 of 4 cycles" in told[1]


# Taylor models


def test_taylor_models_are_those_of_a_plain_loop() -> None:
    ratio, steps, width, seed = 2.6, 20, 24, 1
    ds = taylor_models(
        width=width, lr_ratio=[1.0, ratio], seeds=[0, seed], steps=steps, n_train=16, workers=1
    )
    problem, samples = relu_problem(width, n_train=16), tb.data.load_digits01(16)
    x, y = problem.x, problem.y
    net = problem.initial(seed)
    u0, v0 = (p.detach() for p in net.parameters())
    top = tb.top_eigen(net, "half_mse", (x, y), "ntk", rtol=1e-6).value
    c, on = (width * 64) ** -0.5, x @ u0.T > 0

    def outputs(at: Tensor, active: Tensor, u: Tensor, v: Tensor, degree: int) -> Tensor:
        """On the start's pattern f is bilinear: its Taylor models leave out δu δv, or nothing."""
        z: Tensor = c * (active * (at @ u.T)) @ v.T
        if degree == 1:
            z = z - c * (active * (at @ (u - u0).T)) @ (v - v0).T
        return z.squeeze(-1)

    test, wanted = torch.as_tensor(samples.x_test).to(x), torch.as_tensor(samples.y_test).to(y)
    for degree, name in ((1, "linear"), (2, "quadratic")):
        u, v = (t.clone().requires_grad_() for t in (u0, v0))
        for _ in range(steps):
            loss = (outputs(x, on, u, v, degree) - y).square().mean() / 2
            by_u, by_v = torch.autograd.grad(loss, (u, v))
            with torch.no_grad():
                u -= ratio / top * by_u
                v -= ratio / top * by_v
        z = outputs(test, test @ u0.T > 0, u.detach(), v.detach(), degree)
        expected = float((z - wanted).square().mean() / 2)
        found = float(ds.test_loss.sel(model=name, lr=ratio, seed=seed))
        assert found == pytest.approx(expected, rel=1e-2)  # float32, past the edge


# Second catapults


def test_each_direction_catapults_at_its_own_rate() -> None:
    ds = second_catapults(width=400, samples=48, seeds=[1], steps=40, workers=1).isel(seed=0)
    assert (ds.phase.values == [["catapult"] * 3 + ["divergent"]] * 2).all()
    peak = ds.loss_directions.max("step") / ds.loss_directions.isel(step=0)
    left = ds.top_eigenvalues_final / ds.top_eigenvalues.isel(step=0)
    for name in ("critical", "loss_directions"):
        assert ds[name].attrs["long_name"]
    between, past = ({"model": "quadratic", "lr": lr} for lr in (1.0, 2.0))
    assert peak.sel(between)[1] == pytest.approx(1.0, abs=0.05)
    assert left.sel(between)[1] > 0.95 > left.sel(between)[0]
    assert (peak.sel(past) > 5).all()
    assert (left.sel(past) < 0.8).all()
