"""Results on disk, as Zarr: either whole, or not there."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

import numpy as np
import xarray as xr

from trebuchet._checks import flag, place as a_place
from trebuchet._doors import door
from trebuchet._places import here, is_there, remove_folder
from trebuchet._whole import DamagedError
from trebuchet.errors import InputError
from trebuchet.results import growing, legacy, manifest, tree
from trebuchet.results.cells import combine
from trebuchet.results.codecs import readable
from trebuchet.results.schema import SCHEMA_VERSION, a_dataset, validate

T = TypeVar("T")

RUNS = "runs"
OTHERS = ("scan", "top_eigen", "experiment")
"""Results other than runs: the attribute of that name holds what is not in the arrays."""


@door(ds=a_dataset, path=a_place, overwrite=flag)
def save(ds: xr.Dataset, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Write a dataset to a Zarr folder, without loss, with a list of what it is made of.

    The data go to a hidden folder beside `path` that takes its name once it is complete, so that
    an interrupted save leaves what was there before.

    Args:
        ds: Runs, as ``sweep`` returns them, or another result as a dataset.
        path: The folder to make, ``runs.zarr`` say; missing parents are made too.
        overwrite: Replace a result that is there.

    Returns:
        The path.

    Raises:
        InputError: If `ds` is no result, which `load` would refuse, or if `path` exists and
            `overwrite` is off, or cannot be written.
    """
    target = _place(path)
    kind = kind_of(ds)
    if kind == RUNS:
        _check_runs(ds)
    check_writable(target, overwrite=overwrite)
    stored = _fixed_strings(ds).drop_encoding().assign_attrs(schema_version=SCHEMA_VERSION)
    try:
        with _staged(target) as folder:
            # Zarr's version 3 has no settled form for strings of fixed length yet; version 2 has.
            # Chunks of nothing but missing values are written too: an absent one is a lost one.
            stored.to_zarr(str(folder), zarr_format=2, consolidated=True, write_empty_chunks=True)
            manifest.write(folder, schema_version=SCHEMA_VERSION, kind=kind)
    except OSError as error:
        raise InputError(_cannot_write(target, error)) from error
    return target


@contextmanager
def _staged(target: Path) -> Iterator[Path]:
    """A folder to write to that takes the place of the target in the end.

    In a store elsewhere, where nothing can be renamed at once, it is the target itself, which is no
    result before its manifest is there.

    Yields:
        The folder.
    """
    if not here(target):
        remove_folder(target)
        yield target
        return
    hidden = target.parent / f".{target.name}.{os.getpid()}.partial"
    replaced = target.parent / f".{target.name}.{os.getpid()}.replaced"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(hidden, ignore_errors=True)
        yield hidden
        if target.exists():
            target.rename(replaced)
        hidden.rename(target)
    finally:
        if replaced.exists() and not target.exists():
            replaced.rename(target)
        shutil.rmtree(hidden, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


@door(path=a_place, lazy=flag)
def load(path: str | os.PathLike[str], *, lazy: bool = False) -> xr.Dataset:
    """Read a dataset back, into memory, and make sure that it is what was saved.

    Args:
        path: A folder made by `save`, or the ``checkpoint`` of a sweep: of one that is not finished
            the runs that have ended, with the attribute ``interrupted``.
        lazy: Read arrays when they are asked for, by Dask. Sizes of files are compared then, not
            their contents, and the folder has to stay.

    Returns:
        The dataset. One saved before there were checksums has an attribute ``note`` that says so.

    Raises:
        InputError: If there is no result at `path`, if one of its files is missing, was changed or
            does not belong to it, if it is not what the table of variables says, if a later
            trebuchet wrote it, or if Dask is asked for and not installed.
    """
    source = _place(path)
    _check_there(source)
    if lazy and find_spec("dask") is None:
        msg = "lazy: needs Dask, which is not installed; pip install 'trebuchet[dask]'"
        raise InputError(msg)
    grid = _read(source, tree.cells)
    if grid is not None:
        return _over_axes(source, grid, lazy=lazy)
    if growing.under_way(source):
        kind, ds = RUNS, _read(source, lambda folder: growing.Growing(folder).dataset(lazy=lazy))
    else:
        kind, ds = _finished(source, lazy=lazy)
    if kind == RUNS:
        try:
            validate(ds)
        except InputError as error:
            msg = f"path: {source} holds no result of trebuchet, or a damaged one: {error}"
            raise InputError(msg) from error
    return ds


def _finished(source: Path, *, lazy: bool) -> tuple[str, xr.Dataset]:
    """Which result is saved at a place, and its dataset."""
    kind = manifest.verify(source, newest=SCHEMA_VERSION, contents=not lazy)
    absent = legacy.check(source) if kind is None else []
    ds = _read(source, partial(_opened, lazy=lazy))
    if kind is None:
        ds = legacy.noted(ds, source, absent)
        kind = kind_of(ds)
    return kind, ds


def _over_axes(source: Path, grid: tree.Cells, *, lazy: bool) -> xr.Dataset:
    """The cells of a sweep over axes that have been reached."""
    found = [
        load(source / name, lazy=lazy) if growing.any_of_it(source / name) else None
        for name in grid.folders
    ]
    if not any(cell is not None for cell in found):
        msg = f"path: no run of the sweep at {source} has begun"
        raise InputError(msg)
    return combine(found, grid.axes)


def _read(source: Path, read: Callable[[Path], T]) -> T:
    """What is read there, or the error that says what is damaged."""
    try:
        return read(source)
    except DamagedError as error:
        manifest.damaged(source, str(error))


def _opened(source: Path, *, lazy: bool) -> xr.Dataset:
    with readable(source):
        if lazy:
            return xr.open_dataset(str(source), engine="zarr", consolidated=True, chunks={})
        with xr.open_dataset(str(source), engine="zarr", consolidated=True) as stored:
            return stored.load().drop_encoding()


def kind_of(ds: xr.Dataset) -> str:
    """Which result a dataset is: "runs", or that of the attribute that holds the rest of it."""
    return next((kind for kind in OTHERS if kind in ds.attrs), RUNS)


def _check_runs(ds: xr.Dataset) -> None:
    try:
        validate(ds)
    except InputError as error:
        msg = (
            f"{error}; trebuchet saves whole results (keep dims with isel(seed=[0])), other "
            "datasets save themselves with to_zarr"
        )
        raise InputError(msg) from error


def _check_there(source: Path) -> None:
    """Say what is at the path, if no result is."""
    try:
        if (source / manifest.NAME).is_file() or (source / ".zmetadata").is_file():
            return
        if source.is_dir():
            inside = sorted(entry.name for entry in source.iterdir())
            zarr = any(name in inside for name in (".zgroup", ".zattrs", "zarr.json"))
            what = "a Zarr folder without .zmetadata" if zarr else "a folder"
            what = f"something else ({what if inside else 'an empty folder'})"
        elif source.exists():
            what = "something else (a file)"
        else:
            what = "a link to nothing" if is_there(source) else "nothing"
    except OSError as error:
        what = f"what cannot be read ({error.strerror or error})"
    msg = f"path: expected a result saved by trebuchet at {source}, found {what}"
    raise InputError(msg)


@door(path=a_place, overwrite=flag)
def check_writable(path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Refuse a place that `save` could not write to, before any work is spent.

    Args:
        path: The folder to be made.
        overwrite: Whether a result that is there may be replaced.

    Raises:
        InputError: If `path` exists and `overwrite` is off, or cannot be written.
    """
    target = _place(path)
    if is_there(target):
        if not overwrite:
            msg = f"path: {target} exists; pass overwrite=True (--overwrite) to replace it"
            raise InputError(msg)
        if not _ours(target):
            msg = f"path: {target} exists and is not a result of trebuchet; choose another path"
            raise InputError(msg)
    if not here(target):
        return
    parent = target.absolute().parent
    while not os.path.lexists(parent):
        parent = parent.parent
    if not parent.is_dir():
        msg = f"path: cannot write {target}: {parent} is not a directory"
        raise InputError(msg)
    if not os.access(parent, os.W_OK | os.X_OK):
        msg = f"path: cannot write {target}: no permission to write in {parent}"
        raise InputError(msg)


def _place(path: str | os.PathLike[str]) -> Path:
    """The path; that of what it points to, if it is a link, so that the link stays one."""
    place = a_place("path", path)
    return place.resolve() if here(place) and place.is_symlink() and place.exists() else place


def _ours(folder: Path) -> bool:
    """Whether a folder holds a result, damaged perhaps: nothing else is ever replaced."""
    if (folder / manifest.NAME).is_file():
        return manifest.recognised(folder)
    return legacy.recognised(folder)


def _fixed_strings(ds: xr.Dataset) -> xr.Dataset:
    """The dataset with strings of any kind as fixed-length ones, which read back exactly."""
    strings = [name for name, variable in ds.variables.items() if variable.dtype.kind in "OT"]
    for name in strings:
        if not all(isinstance(item, str) for item in ds[name].values.ravel().tolist()):
            msg = f"{name}: expected strings or numbers, got other objects; convert them first"
            raise InputError(msg)
    return ds.assign({name: ds[name].astype(np.str_) for name in strings}) if strings else ds


def _cannot_write(target: Path, error: OSError) -> str:
    return f"path: cannot write {target}: {error.strerror or error}"
