"""Every result saves, comes back as it was, compares and prints."""

import copy
import dataclasses
import math
import pickle
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import xarray as xr
from torch import nn

import trebuchet as tb
from trebuchet.errors import InputError


def _problem() -> tuple[nn.Module, tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    x = torch.randn(24, 3, dtype=torch.float64)
    return net, (x, x[:, :1] * x[:, 1:2])


def _scan(**options: Any) -> tb.Scan:
    net, data = _problem()
    return tb.scan(net, "mse", data, **{"horizon": 20, "seeds": 2, "batch_size": 8, **options})


@pytest.fixture(scope="module")
def scan() -> tb.Scan:
    return _scan()


@pytest.fixture(scope="module")
def runs() -> xr.Dataset:
    problem = tb.Problem(
        lambda seed: tb.PureQuadratic.draw(20, generator=seed),
        "half_mse",
        ([[1.0]], [0.0]),
        name="q",
    )
    return tb.label(tb.sweep(problem, lr_ratio=[1.0, 2.5], seeds=2, steps=20))


@pytest.mark.parametrize(
    "options",
    [
        {}, {"optimizer": "adam"}, {"curvature": "none"}, {"curvature": "final", "edge_rtol": 0.3},
        {"seeds": [4], "batch_size": None}, {"rates": [1e4]},
    ],
)  # fmt: skip
def test_a_scan_comes_back(options: dict[str, Any], tmp_path: Path) -> None:
    """With missing numbers, infinite edges, notes, and one seed or several."""
    made = _scan(**options)
    read = tb.load(tb.save(made, tmp_path / "scan.zarr"))
    assert type(read) is tb.Scan
    assert read == made
    assert hash(read) == hash(made)
    assert read == tb.Scan.load(tmp_path / "scan.zarr")
    for field in dataclasses.fields(made):
        assert type(getattr(read, field.name)) is type(getattr(made, field.name)), field.name
    assert str(read) == str(made)
    assert repr(read) == repr(made)
    pd.testing.assert_frame_equal(read.table, made.table)


def test_the_same_scan_twice_is_equal_whatever_time_it_took(scan: tb.Scan) -> None:
    again = _scan()
    assert again == scan
    assert hash(again) == hash(scan)
    assert len({again, scan}) == 1
    slow = dataclasses.replace(scan, cost={**scan.cost, "seconds": 1e9})
    assert slow == scan


def test_a_scan_differs_in_any_of_its_parts(scan: tb.Scan) -> None:
    other = dataclasses.replace
    runs = scan.runs.assign(loss=scan.runs.loss * (1 + 1e-12))
    changes: dict[str, Any] = {
        "suggestion": other(scan.suggestion, rate=scan.suggestion.rate * (1 + 1e-15)),
        "critical": other(scan.critical, convention="another"),
        "lr_forward": other(scan.lr_forward, high=math.inf),
        "lr_loss": other(scan.lr_loss, low=0.0),
        "lr_max": other(scan.lr_max, low=0.0),
        "warmup": other(scan.warmup, reason="another"),
        "runs": runs,
        "notes": (*scan.notes, "one more"),
        "cost": {**scan.cost, "gradients": -1.0},
        "settings": {**scan.settings, "horizon": 21},
    }
    assert set(changes) <= {field.name for field in dataclasses.fields(scan)}
    for name, value in changes.items():
        changed = other(scan, **{name: value})
        assert changed != scan, name
        assert hash(changed) != hash(scan), name
    assert other(scan, runs=scan.runs.isel(lr=slice(0, -1))) != scan
    assert other(scan, runs=scan.runs.rename(loss="Loss")) != scan
    assert scan != "scan"
    assert scan != scan.runs.sizes


def test_missing_numbers_are_equal(scan: tb.Scan) -> None:
    blank = dataclasses.replace(scan.critical, lr=float("nan"), top_eigenvalue=float("nan"))
    a, b = (dataclasses.replace(scan, critical=copy.deepcopy(blank)) for _ in range(2))
    assert a == b
    assert a.critical == b.critical
    assert hash(a) == hash(b)
    assert a != scan


def test_results_are_frozen_and_copy(scan: tb.Scan) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        scan.notes = ()  # type: ignore[misc]
    assert copy.deepcopy(scan) == scan
    assert pickle.loads(pickle.dumps(scan)) == scan


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "options",
    [
        {"vectors": True, "k": 2}, {"operator": "hessian", "optimizer": "momentum"},
        {"operator": "ntk"}, {"rtol": 1e-13, "max_products": 2, "method": "lanczos"},
        {"optimizer": "adam"},
    ],
)  # fmt: skip
def test_top_eigenvalues_come_back(
    options: dict[str, Any], dtype: torch.dtype, tmp_path: Path
) -> None:
    net, (x, y) = _problem()
    try:
        made = tb.top_eigen(net.to(dtype), "mse", (x.to(dtype), y.to(dtype)), **options)
    except (InputError, RuntimeError):
        assert dtype is torch.bfloat16  # an operator may not have it
        return
    read = tb.load(tb.save(made, tmp_path / "top.zarr"))
    assert type(read) is tb.TopEigen
    assert read == made
    assert hash(read) == hash(made)
    for field in dataclasses.fields(made):
        assert type(getattr(read, field.name)) is type(getattr(made, field.name)), field.name
    assert str(read) == str(made)
    assert repr(read) == repr(made)
    assert math.isclose(read.lr_crit, made.lr_crit) or math.isnan(made.lr_crit)
    if made.vectors is not None:
        assert read.vectors is not None
        assert read.vectors.dtype == made.vectors.dtype
        torch.testing.assert_close(read.vector(1), made.vector(1), rtol=0, atol=0)


def test_top_eigenvalues_compare(tmp_path: Path) -> None:
    net, data = _problem()
    a, b = (tb.top_eigen(net, "mse", data, vectors=True) for _ in range(2))
    assert a == b
    assert hash(a) == hash(b)
    assert a.warm == b.warm
    assert dataclasses.replace(a, vectors=None) != a
    assert dataclasses.replace(a, values=a.values + 1) != a
    assert dataclasses.replace(a, settings={"momentum": 0.5}) != a
    nan = torch.full((1,), math.nan, dtype=torch.float64)
    assert dataclasses.replace(a, values=nan) == dataclasses.replace(a, values=nan.clone())
    read = tb.load(tb.save(a, tmp_path / "a.zarr"))
    warm = tb.top_eigen(net, "mse", data, warm=read)  # a stored result is a start like any other
    assert warm.value == pytest.approx(a.value, rel=1e-3)


def test_labelled_runs_come_back(runs: xr.Dataset, tmp_path: Path) -> None:
    read = tb.load(tb.save(runs, tmp_path / "runs.zarr"))
    xr.testing.assert_identical(read, runs)
    xr.testing.assert_identical(tb.label(read), runs)
    pd.testing.assert_frame_equal(tb.table(read), tb.table(runs))


def test_tables_of_both(scan: tb.Scan, tmp_path: Path) -> None:
    place = scan.save(tmp_path / "scan.zarr")
    for which in (scan, tb.load(place)):
        table = tb.table(which)
        pd.testing.assert_frame_equal(table, scan.table)
        table.loc[:, "rate"] = 0.0
        assert (scan.table["rate"] > 0).all()


def test_what_has_no_table_or_phase_says_what_to_use(scan: tb.Scan, tmp_path: Path) -> None:
    net, data = _problem()
    top = tb.top_eigen(net, "mse", data)
    written = scan.to_dataset()
    given: tuple[tuple[Any, str], ...] = (
        (top, "got TopEigen"), (None, "got NoneType"), (scan.table, "got DataFrame"),
        (xr.Dataset(), "with dims"),
    )  # fmt: skip
    for what, says in given:
        with pytest.raises(InputError, match=f"ds: expected runs.*{says}"):
            tb.label(what)
        with pytest.raises(InputError, match=f"ds: expected runs.*{says}"):
            tb.table(what)
    for which in (scan, tb.load(scan.save(tmp_path / "s.zarr")), written):
        assert tb.label(which).phase.equals(scan.runs.phase)
    assert tb.Scan.from_dataset(written) == scan


def test_one_kind_is_not_taken_for_another(runs: xr.Dataset, tmp_path: Path) -> None:
    tb.save(runs, tmp_path / "runs.zarr")
    with pytest.raises(InputError, match="another result, not a scan"):
        tb.Scan.load(tmp_path / "runs.zarr")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"suggestion": {"rate": 1.0}}, "of a Suggestion is missing"),
        ({"critical": 3}, "fields of a Critical, found a int"),
        ({"from_the_future": 1}, "'from_the_future'; a later trebuchet"),
        ({"notes": None}, "part of the scan"),
        ({"lr_max": {"low": 0.1, "high": 1.0, "middle": 0.3}}, "'middle'"),
    ],
)
def test_a_scan_with_parts_that_do_not_fit(
    change: dict[str, Any], says: str, scan: tb.Scan, tmp_path: Path
) -> None:
    """As a later version, or a hand, may have written it: the checksums are right."""
    import json

    ds = scan.to_dataset()
    ds.attrs["scan"] = json.dumps(json.loads(ds.attrs["scan"]) | change)
    place = tb.save(ds, tmp_path / "scan.zarr")
    for read in (tb.load, tb.Scan.load):
        with pytest.raises(InputError, match=f"scan.zarr holds no .can.*{says}"):
            read(place)


def test_figures_compare() -> None:
    """But for when they were made, which their runs hold."""
    a, b, other = (tb.paper.figure(number, quick=True) for number in (6, 6, 2))
    same = dataclasses.replace(b, runs=b.runs.assign_attrs(a.runs.attrs))
    assert a == same
    assert hash(a) == hash(same)
    assert a != other
    changed = a.runs.assign(loss_max=a.runs.loss_max * 2)
    assert dataclasses.replace(a, runs=changed) != a


def test_other_results_compare_too() -> None:
    net, data = _problem()
    problem = tb.Problem(
        tb.PureQuadratic.draw(20, generator=1), "half_mse", ([[1.0]], [0.0]), name="q"
    )
    makers: tuple[Any, ...] = (
        lambda: tb.forward_critical_rate(net, "mse", data),
        lambda: tb.edges(problem)["critical"],
        lambda: tb.paper.figure(6, quick=True).edges["upper"],
        lambda: tb.paper.figure(6, quick=True).setting,
        lambda: tb.early_constants(net, "mse", data, train_steps=20),
    )
    for make in makers:
        assert make() == make()
        assert hash(make()) == hash(make())


def test_lazily_loaded_runs_are_read_when_asked_for(tmp_path: Path) -> None:
    pytest.importorskip("dask")
    runs = tb.label(
        tb.sweep(tb.MLP.draw(1, 8, generator=0), "half_mse", ([[1.0]], [0.0]), lr=[0.1, 0.2])
    )
    path = tb.save(runs, tmp_path / "runs.zarr")
    lazy = tb.load(path, lazy=True)
    assert lazy.loss.chunks is not None
    xr.testing.assert_identical(lazy.load().drop_encoding(), tb.load(path))
    (array,) = (p for p in (path / "loss").iterdir() if p.name[0].isdigit())
    size = array.stat().st_size
    array.write_bytes(array.read_bytes()[:-1])
    with pytest.raises(InputError, match=f"has {size - 1} bytes, expected {size}"):
        tb.load(path, lazy=True)


def test_results_other_than_runs_are_whole_when_loaded_lazily(tmp_path: Path) -> None:
    pytest.importorskip("dask")
    x = torch.tensor([[1.0], [3.0]])
    top = tb.top_eigen(torch.nn.Linear(1, 1), "mse", (x, x))
    assert tb.load(tb.save(top, tmp_path / "top.zarr"), lazy=True) == top
