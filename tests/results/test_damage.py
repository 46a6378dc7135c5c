"""Saved results that something happened to: each is refused in one sentence, never believed."""

import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from torch import nn

import trebuchet as tb
from trebuchet.errors import InputError
from trebuchet.results.schema import make_dataset


def _runs() -> xr.Dataset:
    """Two rates, three seeds, with arrays of numbers, whole numbers and text; some are all zero."""
    g = np.random.default_rng(0)
    return make_dataset(
        {
            "learning_rate": np.tile([[0.1], [0.2]], 3),
            "loss": g.random((2, 3, 4)),
            "test_loss": np.full((2, 3, 4), np.nan),
            "status": np.full((2, 3), "max_steps"),
            "phase": np.full((2, 3), "lazy"),
            "steps": np.zeros((2, 3)),
            "loss_first": g.random((2, 3)),
            "loss_final": g.random((2, 3)),
        },
        lr=[0.1, 0.2],
        seed=[0, 1, 2],
        step=[0, 1, 2, 3],
        attrs={"model": "a net", "tolerance": math.inf},
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one result of each kind."""
    folder = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    net = nn.Linear(2, 1).double()
    x = torch.randn(12, 2, dtype=torch.float64)
    data = (x, x.sum(1, keepdim=True))
    tb.save(_runs(), folder / "runs.zarr")
    tb.save(tb.scan(net, "mse", data, horizon=10, seeds=1), folder / "scan.zarr")
    tb.save(tb.top_eigen(net, "mse", data, vectors=True), folder / "top.zarr")
    return folder


Damage = Callable[[Path], object]
ARRAY = {"runs.zarr": "steps", "scan.zarr": "learning_rate", "top.zarr": "values"}
OTHER = {"runs.zarr": "status", "scan.zarr": "steps", "top.zarr": "residuals"}


def _chunk(store: Path, names: dict[str, str] = ARRAY) -> Path:
    array = store / names[store.name]
    return next(path for path in sorted(array.iterdir()) if path.name[0].isdigit())


def _flip(path: Path, at: int = -1) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


def _swap(store: Path) -> None:
    a, b = _chunk(store), _chunk(store, OTHER)
    a.rename(store / "aside")
    b.rename(a)
    (store / "aside").rename(b)


def _edit(name: str, **changes: object) -> Damage:
    """A change of one array's metadata, in its own file and in the consolidated one alike."""

    def edit(store: Path) -> None:
        array = ARRAY[store.name]
        own, shared = store / array / name, store / ".zmetadata"
        metadata = json.loads(own.read_text()) | changes
        own.write_text(json.dumps(metadata))
        everything = json.loads(shared.read_text())
        everything["metadata"][f"{array}/{name}"] = metadata
        shared.write_text(json.dumps(everything))

    return edit


def _rename(store: Path) -> None:
    (store / ARRAY[store.name]).rename(store / "renamed")
    shared = store / ".zmetadata"
    shared.write_text(shared.read_text().replace(f'"{ARRAY[store.name]}/', '"renamed/'))


def _attributes(store: Path, **changes: object) -> None:
    everything = json.loads((store / ".zmetadata").read_text())
    everything["metadata"][".zattrs"] |= changes
    (store / ".zmetadata").write_text(json.dumps(everything))
    (store / ".zattrs").write_text(json.dumps(everything["metadata"][".zattrs"]))


def _manifest(store: Path, **changes: object) -> None:
    path = store / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _truncate(path: Path, by: int = 1) -> None:
    path.write_bytes(path.read_bytes()[:-by])


def _misplace(store: Path) -> None:
    """A folder where a chunk was."""
    chunk = _chunk(store)
    chunk.rename(store / "aside")
    chunk.mkdir()


def _link_away(store: Path) -> None:
    chunk = _chunk(store)
    chunk.unlink()
    chunk.symlink_to("gone")


def _copy_chunk(store: Path) -> None:
    shutil.copy(_chunk(store), _chunk(store).with_name("9"))


def _write(name: str, raw: str | bytes) -> Damage:
    def write(store: Path) -> None:
        (store / name).write_bytes(raw.encode() if isinstance(raw, str) else raw)

    return write


def _copy_array(store: Path) -> None:
    shutil.copytree(store / ARRAY[store.name], store / "extra")


def _replace_by(make: Callable[[Path], object]) -> Damage:
    def replace(store: Path) -> None:
        shutil.rmtree(store)
        make(store)

    return replace


def _of_something_else(store: Path) -> None:
    store.mkdir()
    (store / "notes.txt").write_text("mine")


DAMAGE: dict[str, tuple[Damage, str]] = {
    "missing chunk": (lambda s: _chunk(s).unlink(), "is missing"),
    "empty chunk": (lambda s: _chunk(s).write_bytes(b""), "has 0 bytes"),
    "truncated chunk": (lambda s: _truncate(_chunk(s)), "bytes, expected"),
    "longer chunk": (lambda s: _chunk(s).write_bytes(_chunk(s).read_bytes() + b"0"), "bytes, exp"),
    "swapped chunks": (_swap, "bytes, expected|were changed"),
    "flipped bit": (lambda s: _flip(_chunk(s)), "were changed"),
    "chunk of noughts": (
        lambda s: _chunk(s).write_bytes(bytes(_chunk(s).stat().st_size)), "were changed"
    ),
    "chunk under another name": (
        lambda s: _chunk(s).rename(_chunk(s).with_name("7.7")), "is missing"
    ),
    "extra chunk": (_copy_chunk, "does not belong"),
    "folder in place of a chunk": (_misplace, "is missing"),
    "chunk that links to nothing": (_link_away, "cannot be read"),
    "missing .zmetadata": (lambda s: (s / ".zmetadata").unlink(), ".zmetadata is missing"),
    "missing .zattrs": (lambda s: (s / ".zattrs").unlink(), ".zattrs is missing"),
    "missing .zgroup": (lambda s: (s / ".zgroup").unlink(), ".zgroup is missing"),
    "missing .zarray": (lambda s: (s / ARRAY[s.name] / ".zarray").unlink(), ".zarray is missing"),
    "missing array": (lambda s: shutil.rmtree(s / ARRAY[s.name]), "is missing"),
    "edited dtype": (_edit(".zarray", dtype="<f4"), "bytes, expected|were changed"),
    "edited shape": (_edit(".zarray", shape=[1]), "bytes, expected|were changed"),
    "edited fill value": (_edit(".zarray", fill_value=3), "bytes, expected|were changed"),
    "edited codec": (_edit(".zarray", compressor=None), "bytes, expected|were changed"),
    "wrong dims": (_edit(".zattrs", _ARRAY_DIMENSIONS=["seed"]), "bytes, expected|were changed"),
    "renamed variable": (_rename, "is missing"),
    "edited attribute": (lambda s: _attributes(s, model="b net"), "bytes, expected|were changed"),
    "text in place of JSON": (_write(".zmetadata", "text"), "bytes"),
    "one letter of JSON": (lambda s: _flip(s / ".zmetadata", 40), "were changed"),
    "extra variable": (_copy_array, "does not belong"),
    "extra file": (_write("note.txt", "mine"), "does not belong"),
    "missing manifest": (lambda s: (s / "manifest.json").unlink(), "manifest.json is missing"),
    "empty manifest": (_write("manifest.json", ""), "not what"),
    "truncated manifest": (lambda s: _truncate(s / "manifest.json", 2), "not what"),
    "manifest of bytes": (_write("manifest.json", b"\xff\xfe"), "not"),
    "manifest that is a list": (_write("manifest.json", "[]"), "not"),
    "manifest with no file in it": (lambda s: _manifest(s, files={}), "changed since"),
    "manifest with no version": (lambda s: _manifest(s, schema_version=None), "no schema version"),
    "manifest of another kind": (lambda s: _manifest(s, kind="other"), "changed since"),
    "later schema": (lambda s: _manifest(s, schema_version=4), "later trebuchet.*update"),
    "nothing": (_replace_by(lambda s: None), "found nothing"),
    "empty folder": (_replace_by(lambda s: s.mkdir()), "an empty folder"),
    "folder of something else": (_replace_by(_of_something_else), "found something else"),
    "file": (_replace_by(lambda s: s.write_text("text")), "a file"),
    "link to nothing": (_replace_by(lambda s: s.symlink_to("gone")), "a link to nothing"),
    "link to itself": (_replace_by(lambda s: s.symlink_to(s.name)), "expected a result"),
}  # fmt: skip


@pytest.mark.parametrize("store", ARRAY)
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_one_sentence(damage: str, store: str, saved: Path, tmp_path: Path) -> None:
    copy = tmp_path / store
    shutil.copytree(saved / store, copy)
    tb.load(copy)  # whole before
    harm, says = DAMAGE[damage]
    harm(copy)
    with pytest.raises(InputError, match=says) as caught:
        tb.load(copy)
    said = str(caught.value)
    assert said.startswith("path: ")
    assert store in said
    assert "\n" not in said
    if store == "scan.zarr":
        with pytest.raises(InputError):
            tb.Scan.load(copy)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
@pytest.mark.parametrize("name", ["steps/0.0", "steps", ".zmetadata", "manifest.json", "."])
def test_what_may_not_be_read(name: str, saved: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(saved / "runs.zarr", tmp_path / "runs.zarr")
    (copy / name).chmod(0)
    try:
        with pytest.raises(InputError, match=r"cannot be read|damaged|found"):
            tb.load(copy)
    finally:
        (copy / name).chmod(0o700)


def test_what_a_desktop_leaves_behind_does_no_harm(saved: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(saved / "runs.zarr", tmp_path / "runs.zarr")
    for name in (".DS_Store", "steps/._0.0", "loss/.nfs0001"):
        (copy / name).write_bytes(b"x")
    xr.testing.assert_identical(tb.load(copy), _runs().assign_attrs(tb.load(copy).attrs))


def test_a_moved_and_renamed_result_is_the_same(saved: Path, tmp_path: Path) -> None:
    before = tb.load(saved / "runs.zarr")
    moved = shutil.copytree(saved / "runs.zarr", tmp_path / "deep" / "b")
    link = tmp_path / "link"
    link.symlink_to(moved)
    xr.testing.assert_identical(tb.load(moved), before)
    xr.testing.assert_identical(tb.load(link), before)


def test_a_link_stays_one_when_its_result_is_replaced(saved: Path, tmp_path: Path) -> None:
    place = shutil.copytree(saved / "runs.zarr", tmp_path / "runs.zarr")
    link = tmp_path / "link"
    link.symlink_to(place)
    tb.save(_runs().assign_attrs(model="another"), link, overwrite=True)
    assert link.is_symlink()
    assert tb.load(place).attrs["model"] == "another"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "runs.zarr"]


@pytest.mark.parametrize("harm", ["missing .zmetadata", "flipped bit", "empty manifest"])
def test_a_damaged_result_can_be_replaced(harm: str, saved: Path, tmp_path: Path) -> None:
    place = shutil.copytree(saved / "runs.zarr", tmp_path / "runs.zarr")
    DAMAGE[harm][0](place)
    if harm == "empty manifest":  # nothing tells any more whose it is
        with pytest.raises(InputError, match="not a result"):
            tb.save(_runs(), place, overwrite=True)
        return
    tb.save(_runs(), place, overwrite=True)
    assert tb.load(place).attrs["model"] == "a net"


def test_a_zarr_store_of_somebody_else_is_never_replaced(tmp_path: Path) -> None:
    xr.Dataset({"a": ("x", [1.0])}).to_zarr(tmp_path / "a.zarr", zarr_format=2, consolidated=True)
    with pytest.raises(InputError, match="not a result"):
        tb.save(_runs(), tmp_path / "a.zarr", overwrite=True)
    assert xr.open_zarr(tmp_path / "a.zarr").a.values.tolist() == [1.0]


WRONG: dict[str, tuple[Callable[[xr.Dataset], xr.Dataset], str]] = {
    "no rates": (lambda d: d.drop_vars("learning_rate"), "'learning_rate'"),
    "renamed": (lambda d: d.rename(learning_rate="eta"), "'learning_rate'"),
    "no seed": (lambda d: d.isel(seed=0), "seed: expected dims"),
    "no seeds": (lambda d: d.drop_vars("seed"), "'seed'"),
    "turned": (lambda d: d.transpose("seed", "lr", "step"), "expected dims"),
    "status of numbers": (lambda d: d.assign(status=d.loss_first * np.nan), "status: expected"),
    "unknown status": (lambda d: d.assign(status=d.status.where(d.lr > 0.1, "")), "status:.*''"),
    "no phase": (lambda d: d.assign(phase=d.phase.where(d.lr > 0.1, "")), "phase: expected.*''"),
    "unknown phase": (lambda d: d.assign(phase=d.phase.where(d.lr > 0.1, "calm")), "phase.*'calm'"),
    "steps that are fractions": (lambda d: d.assign(steps=d.loss_first), "steps: expected dtype"),
    "negative steps": (lambda d: d.assign(steps=d.steps - 1), "steps: expected.*-1"),
    "a rate twice": (lambda d: d.assign_coords(lr=d.lr * 0 + 1), "distinct values of 'lr'"),
    "a rate of NaN": (lambda d: d.assign_coords(lr=d.lr.where(d.lr > 0.1)), "lr: .*got nan"),
    "whole rates": (lambda d: d.assign_coords(lr=d.lr.copy(data=[1, 2])), "lr: expected dtype"),
    "steps from 1": (lambda d: d.isel(step=[1, 2]), "'step' to increase from 0"),
    "no units": (lambda d: d.assign(loss=d.loss.drop_attrs()), "loss: expected attributes"),
    "later schema": (lambda d: d.assign_attrs(schema_version=9), "schema_version: .*9"),
    "schema in words": (lambda d: d.assign_attrs(schema_version="two"), "schema_version: .*'two'"),
    "nothing": (lambda _: xr.Dataset(), "coordinate 'lr'"),
}  # fmt: skip


def _described(ds: xr.Dataset, like: xr.Dataset) -> xr.Dataset:
    """The dataset with the descriptions that xarray's arithmetic dropped."""
    for name in set(ds.variables) & set(like.variables):
        if ds[name].attrs == {} and name != "loss":
            ds[name].attrs = dict(like[name].attrs)
    return ds


@pytest.mark.parametrize("how", WRONG)
def test_a_wrong_schema_is_neither_saved_nor_loaded(how: str, tmp_path: Path) -> None:
    """Nor where another program wrote it, in which case there is no manifest."""
    change, says = WRONG[how]
    wrong = _described(change(_runs()), _runs())
    with pytest.raises(InputError, match=says):
        tb.save(wrong, tmp_path / "a.zarr")
    assert not list(tmp_path.iterdir())
    old = wrong.assign_attrs({"schema_version": 1, **wrong.attrs} if how == "nothing" else {})
    if "schema" not in how:
        old.attrs["schema_version"] = 1
    old.drop_encoding().to_zarr(tmp_path / "b.zarr", zarr_format=2, consolidated=True)
    with pytest.raises(InputError, match=r"path: .*b\.zarr") as caught:
        tb.load(tmp_path / "b.zarr")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("what", [None, 3, pd.DataFrame({"a": [1]}), {"a": 1}, "text"])
def test_what_is_no_result_is_refused(what: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="result: expected runs"):
        tb.save(what, tmp_path / "a.zarr")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", [3, None, ["a"]])
def test_a_path_that_is_none(path: Any) -> None:
    with pytest.raises(InputError, match="path: expected a path"):
        tb.load(path)
    with pytest.raises(InputError, match="path: expected a path"):
        tb.save(_runs(), path)


# ---- results of before schema version 2, which had no manifest ----


def _old(ds: xr.Dataset, path: Path) -> Path:
    """As the first version saved: no manifest, and nothing written for chunks that are all fill."""
    attrs = {"schema_version": 1} if "schema_version" in ds.attrs else {}
    ds = ds.assign_attrs(attrs).drop_encoding()
    ds.to_zarr(path, zarr_format=2, consolidated=True)
    return path


def test_old_runs_load_and_say_what_is_not_known(tmp_path: Path) -> None:
    read = tb.load(_old(_runs(), tmp_path / "runs.zarr"))
    note = read.attrs.pop("note")
    assert "before results had checksums" in note
    assert "steps, test_loss are absent" in note  # all zero, all missing: so they were saved
    xr.testing.assert_identical(read, _runs().assign_attrs(read.attrs))
    again = tb.load(tb.save(read.assign_attrs(note=note), tmp_path / "new.zarr"))
    assert again.attrs["note"] == note  # what was not known then is not known now
    assert again.attrs["schema_version"] == 3


def test_an_old_scan_loads_and_notes_it(saved: Path, tmp_path: Path) -> None:
    scan = tb.load(saved / "scan.zarr")
    read = tb.load(_old(scan.to_dataset(), tmp_path / "scan.zarr"))
    assert read.suggestion == scan.suggestion
    assert read.notes[:-1] == scan.notes
    assert "before results had checksums" in read.notes[-1]
    pd.testing.assert_frame_equal(read.table, scan.table)


SEEN_WITHOUT_MANIFEST = [
    "missing .zmetadata", "missing .zattrs", "missing .zgroup", "missing .zarray", "missing array",
    "edited dtype", "edited shape", "edited codec", "wrong dims",
    "text in place of JSON", "extra variable", "folder of something else", "file", "nothing",
    "empty chunk", "truncated chunk", "longer chunk", "chunk of noughts",
]  # fmt: skip


@pytest.mark.parametrize("damage", SEEN_WITHOUT_MANIFEST)
def test_old_runs_that_are_damaged(damage: str, tmp_path: Path) -> None:
    whole = _runs().assign(steps=_runs().steps + 2)
    whole["steps"].attrs = _runs().steps.attrs
    place = _old(whole, tmp_path / "runs.zarr")
    tb.load(place)
    DAMAGE[damage][0](place)
    with pytest.raises(InputError, match=r"path: .*runs\.zarr") as caught:
        tb.load(place)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["status", "phase", "seed", "lr", "step"])
def test_an_absent_chunk_of_old_runs_that_cannot_have_been_empty(name: str, tmp_path: Path) -> None:
    place = _old(_runs(), tmp_path / "runs.zarr")
    next(p for p in (place / name).iterdir() if p.name[0].isdigit()).unlink()
    with pytest.raises(InputError):
        tb.load(place)
