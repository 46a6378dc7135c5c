"""What is trained and how, told to a door whole or in parts; settings as objects or as keywords."""

import inspect
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

import trebuchet as tb
from trebuchet.curvature.settings import LanczosKeywords
from trebuchet.errors import InputError
from trebuchet.problem.how import How
from trebuchet.sweeps.execution import ExecutionKeywords

X = torch.randn(24, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = X[:, :1] * X[:, 1:2]


def _net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1)).double()


HOW: dict[str, Any] = {"batch_size": 8, "clip_grad_norm": 0.5, "schedule": lambda t: 1 / (1 + t)}
DOORS: dict[str, tuple[Callable[..., Any], Callable[[Any], Any]]] = {
    "scan": (
        lambda *given, **how: tb.scan(*given, horizon=20, seeds=1, **how),
        lambda found: found.runs.loss.values,
    ),
    "sweep": (
        lambda *given, **how: tb.sweep(*given, lr=[0.05, 0.1], steps=10, **how),
        lambda found: found.loss.values,
    ),
    "top_eigen": (tb.top_eigen, lambda found: found.lr_crit),
    "forward": (tb.forward_critical_rate, float),
}


@pytest.mark.parametrize("door", DOORS)
def test_a_problem_and_its_parts_are_the_same_at_every_door(door: str) -> None:
    call, number = DOORS[door]
    whole = number(call(tb.Problem(_net(), "mse", (X, Y), "momentum", **HOW)))
    parts = number(call(_net(), "mse", (X, Y), optimizer="momentum", **HOW))
    np.testing.assert_array_equal(whole, parts)


@pytest.mark.parametrize("door", DOORS)
def test_keywords_take_the_place_of_a_problem_s_own(door: str) -> None:
    call, number = DOORS[door]
    plain = tb.Problem(_net(), "mse", (X, Y), "adam", batch_size=4)
    instead = number(call(plain, optimizer="momentum", **HOW))
    wanted = number(call(tb.Problem(_net(), "mse", (X, Y), "momentum", **HOW)))
    np.testing.assert_array_equal(instead, wanted)
    assert plain.batch_size == 4


def test_keywords_are_the_fields_of_what_they_stand_for() -> None:
    beside = {"model", "loss", "data", "optimizer"}
    assert set(How.__annotations__) == {f.name for f in fields(tb.Problem)} - beside
    for settings, keywords in (
        (tb.Execution, ExecutionKeywords),
        (tb.Lanczos, LanczosKeywords),
    ):
        assert list(keywords.__annotations__) == [f.name for f in fields(settings)]


@pytest.mark.parametrize("door", [tb.scan, tb.sweep, tb.top_eigen, tb.early_constants, tb.edges])
def test_no_door_has_many_main_arguments(door: Callable[..., Any]) -> None:
    taken = inspect.signature(door).parameters.values()
    main = [p for p in taken if p.kind is not p.VAR_KEYWORD]
    assert len(main) - len(["model", "loss", "data"]) <= 10


def _sweep(**settings: Any) -> xr.Dataset:
    model = tb.MLP.draw(1, 8, generator=0, dtype=torch.float64)
    return tb.sweep(model, "half_mse", ([[1.0]], [0.5]), lr=[0.1, 0.3], **settings)


def test_settings_as_objects_and_as_keywords_are_the_same() -> None:
    stop = tb.StopRule(30, tolerance=1e-3, blowup=10.0)
    one = _sweep(stop=stop, execution=tb.Execution(chunk=1, workers=1))
    other = _sweep(steps=30, tolerance=1e-3, blowup=10.0, chunk=1, workers=1)
    np.testing.assert_array_equal(one.loss, other.loss)
    assert one.attrs["config_hash"] == other.attrs["config_hash"]
    model, data = _net(), (X, Y)
    search = tb.Lanczos(method="lanczos", max_products=30, seed=3)
    top = tb.top_eigen(model, "mse", data, lanczos=search)
    again = tb.top_eigen(model, "mse", data, method="lanczos", max_products=30, seed=3)
    assert (top.value, top.products) == (again.value, again.products)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: _sweep(stop=tb.StopRule(3), steps=4), "max_steps: expected nothing beside stop="),
        (lambda: _sweep(stop=tb.StopRule(3), blowup=4.0), "blowup: expected nothing beside stop="),
        (lambda: _sweep(execution=tb.Execution(), chunk=1), "chunk: expected nothing beside exec"),
        (lambda: _sweep(execution="threads"), "execution: expected a trebuchet.Execution"),
        (lambda: _sweep(stps=3), "sweep: has no argument 'stps'; did you mean 'steps'"),
        (lambda: _sweep(batch_sise=3), "has no argument .batch_sise.; did you mean"),
        (lambda: tb.Execution(workers=0), "workers: expected"),
        (lambda: tb.Lanczos(failure=2), "failure: expected"),
    ],
)  # fmt: skip
def test_what_is_said_twice_or_misspelt_is_refused(call: Callable[[], Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        call()


def test_a_scan_records_what_a_sweep_does() -> None:
    how: dict[str, Any] = {"batch_size": 8, "observables": ["gradient_norm", "sharpness"]}
    found = tb.scan(_net(), "mse", (X, Y), horizon=20, **how)
    plain = tb.scan(_net(), "mse", (X, Y), horizon=20, batch_size=8)
    np.testing.assert_array_equal(found.runs.loss, plain.runs.loss)
    assert found.suggestion == plain.suggestion
    whole = found.runs.where(found.runs.status == "max_steps").dropna("lr", how="all")
    for lr in whole.lr.values[:2]:
        swept = tb.sweep(_net(), "mse", (X, Y), lr=[lr], seeds=2, steps=20, **how)
        for name in ("gradient_norm", "sharpness"):
            ours, theirs = whole[name].sel(lr=lr).values, swept[name].isel(lr=0).values
            both = np.isfinite(ours) & np.isfinite(theirs)
            assert both.sum() > 3
            np.testing.assert_array_equal(ours[both], theirs[both])


@pytest.mark.parametrize("door", DOORS)
def test_a_pair_of_tensors_takes_the_model_s_type_at_every_door(door: str) -> None:
    call, number = DOORS[door]
    net, single = _net().float(), (X.float(), Y.float())
    np.testing.assert_array_equal(
        number(call(net, "mse", (X, Y))), number(call(net, "mse", single))
    )


@pytest.mark.parametrize(
    ("optimizer", "told"),
    [
        ("Momentum", "momentum"),
        (partial(torch.optim.SGD, momentum=0.7), "SGD(momentum=0.7)"),
        (partial(torch.optim.Adam, betas=(0.5, 0.9)), "Adam(betas=(0.5, 0.9))"),
        (torch.optim.AdamW, "AdamW"),
    ],
)
def test_results_tell_an_optimizer_by_its_settings(optimizer: Any, told: str) -> None:
    runs = tb.sweep(_net(), "mse", (X, Y), optimizer, lr=[1e-3], steps=2)
    assert runs.attrs["optimizer"] == told


def test_results_tell_an_optimizer_that_was_made_by_its_settings() -> None:
    net = _net()
    made = torch.optim.SGD(net.parameters(), lr=0.3, momentum=0.25, nesterov=True)
    runs = tb.sweep(net, "mse", (X, Y), made, lr=[1e-3], steps=2)
    assert runs.attrs["optimizer"] == "SGD(momentum=0.25, nesterov=True)"
