"""Results and checkpoints in a store that fsspec knows, and locks where files cannot be locked."""

import json
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import xarray as xr

import trebuchet as tb
from tests.sweeps.interrupting import STOPPER, Watched, differing
from trebuchet._lock import HELD
from trebuchet.errors import InputError

pytest.importorskip("upath", reason="universal-pathlib is not installed: trebuchet[remote]")

GIVEN: dict[str, Any] = {"lr_ratio": [0.5, 1.5, 2.5], "steps": 20, "chunk": 1, "workers": 1}


def problem(width: int = 4) -> tb.Problem:
    draw = torch.Generator().manual_seed(1)
    data = torch.randn(4, 5, generator=draw), torch.randn(4, generator=draw)

    def net(seed: int, width: int = width) -> tb.MLP:
        return tb.MLP.draw(5, width, generator=seed)

    return tb.Problem(net, "half_mse", data)


@pytest.fixture(params=["memory", "file"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An address of a folder in each kind of store."""
    if request.param == "file":
        yield f"file://{tmp_path}"
        return
    import fsspec

    name = f"memory://{uuid.uuid4().hex}"
    yield name
    memory = fsspec.filesystem("memory")
    memory.rm(name.removeprefix("memory:/"), recursive=True)


def test_saved_and_loaded(store: str) -> None:
    runs = tb.sweep(problem(), **GIVEN)
    place = f"{store}/runs.zarr"
    tb.save(runs, place)
    xr.testing.assert_identical(tb.load(place), tb.load(tb.save(runs, place, overwrite=True)))
    assert differing(tb.load(place), runs) == []
    assert tb.load(place, lazy=True).loss.chunks is not None
    with pytest.raises(InputError, match="exists; pass overwrite=True"):
        tb.save(runs, place)
    with pytest.raises(InputError, match="found nothing"):
        tb.load(f"{store}/none.zarr")


def test_a_scan_too(store: str) -> None:
    net = torch.nn.Linear(3, 1)
    data = torch.ones(4, 3), torch.zeros(4, 1)
    scan = tb.scan(net, "mse", data, budget=100, horizon=10, seeds=1)
    assert str(tb.load(tb.save(scan, f"{store}/scan.zarr"))) == str(scan)


def test_a_sweep_is_stopped_shown_and_resumed(store: str) -> None:
    held = {**GIVEN, "optimizer": Watched(), "checkpoint": f"{store}/sweep.zarr"}
    whole = tb.sweep(problem(), **{**held, "checkpoint": None})
    part = tb.sweep(problem(), **held, progress=STOPPER.at(30))
    STOPPER.at(-1)
    assert part.attrs["interrupted"] == 1
    there = tb.load(held["checkpoint"])
    assert (there.status != "not_run").values.ravel().tolist() == [True, False, False]
    assert differing(whole, tb.sweep(problem(), **held)) == []
    assert differing(whole, tb.load(held["checkpoint"])) == []


def test_a_sweep_over_axes(store: str) -> None:
    held = {**GIVEN, "axes": {"width": [4, 6]}, "checkpoint": f"{store}/sweep.zarr"}
    runs = tb.sweep(problem(), **held)
    assert differing(runs, tb.load(held["checkpoint"])) == []


def test_a_refinement(store: str) -> None:
    coarse = tb.label(tb.sweep(problem(), lr_ratio=[0.5, 30.0], steps=20))
    held: dict[str, Any] = {"tolerance": 0.5, "checkpoint": f"{store}/rounds"}
    again = [tb.refine(coarse, problem(), **held) for _ in range(2)]
    assert again[0].lr.size > 3
    assert differing(*again) == []
    if store.startswith("memory"):
        assert not list(Path().glob("memory:*"))


def test_a_scan_saves_itself(store: str) -> None:
    data = torch.ones(4, 3), torch.zeros(4, 1)
    scan = tb.scan(torch.nn.Linear(3, 1), "mse", data, budget=100, horizon=10, seeds=1)
    assert str(tb.Scan.load(scan.save(f"{store}/scan.zarr"))) == str(scan)


def test_an_address_where_none_is_taken_makes_no_folder(tmp_path: Path) -> None:
    runs = tb.label(tb.sweep(problem(), **GIVEN))
    with pytest.raises(InputError, match="path: expected a path on this machine, not an address"):
        tb.report(runs, path="memory://report.html")


def test_a_store_that_is_damaged_is_not_believed() -> None:
    from upath import UPath

    place = tb.save(tb.sweep(problem(), **GIVEN), f"memory://{uuid.uuid4().hex}/runs.zarr")
    inside: Any = UPath(str(place)) / "loss" / "0.0.0"
    inside.write_bytes(inside.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"is damaged: loss/0\.0\.0 has"):
        tb.load(place)


def test_a_second_writer_is_refused_and_a_dead_one_forgotten() -> None:
    from upath import UPath

    place: Any = UPath(f"memory://{uuid.uuid4().hex}/sweep.zarr")
    seen: list[str] = []

    def while_it_runs(done: int, total: int) -> None:
        if not seen:
            with pytest.raises(InputError) as caught:
                tb.sweep(problem(), **GIVEN, checkpoint=place)
            seen.append(str(caught.value))

    tb.sweep(problem(), **GIVEN, checkpoint=place, progress=while_it_runs)
    assert "is in use by another thread of this process" in seen[0]
    assert not (place / ".owner.json").exists()
    note = {"host": "elsewhere", "pid": 7, "since": "yesterday", "seen": time.time()}
    (place / ".owner.json").write_bytes(json.dumps(note).encode())
    with pytest.raises(InputError, match="in use by process 7 on elsewhere, since yesterday"):
        tb.sweep(problem(), **GIVEN, checkpoint=place)
    note["seen"] = time.time() - HELD - 1
    (place / ".owner.json").write_bytes(json.dumps(note).encode())
    tb.sweep(problem(), **GIVEN, checkpoint=place)


@pytest.mark.parametrize("address", ["nonsense://bucket/runs.zarr", "://x"])
def test_an_address_that_nothing_knows(address: str) -> None:
    if address.startswith("nonsense"):
        with pytest.raises(InputError, match=r"pip install 'trebuchet\[remote\]'.*nonsense"):
            tb.load(address)
    else:
        with pytest.raises(InputError, match="found nothing"):
            tb.load(address)
