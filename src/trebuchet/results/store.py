"""Results on disk, as Zarr: either whole, or not there."""

import os
import shutil
from pathlib import Path

import numpy as np
import xarray as xr

from trebuchet.errors import InputError


def save(ds: xr.Dataset, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Write a dataset to a Zarr folder, without loss.

    The data go to a hidden folder beside `path` that takes its name once it is complete, so that
    an interrupted save leaves what was there before.

    Args:
        ds: The dataset.
        path: The folder to make, ``runs.zarr`` say; missing parents are made too.
        overwrite: Replace a result that is there.

    Returns:
        The path.

    Raises:
        InputError: If `path` exists and `overwrite` is off, or cannot be written.
    """
    target = Path(path)
    check_writable(target, overwrite=overwrite)
    hidden = target.parent / f".{target.name}.{os.getpid()}.partial"
    replaced = target.parent / f".{target.name}.{os.getpid()}.replaced"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(hidden, ignore_errors=True)
        # Zarr's version 3 has no settled form for strings of fixed length yet; version 2 has.
        _fixed_strings(ds).drop_encoding().to_zarr(hidden, zarr_format=2, consolidated=True)
        if target.exists():
            target.rename(replaced)
        hidden.rename(target)
    except OSError as error:
        raise InputError(_cannot_write(target, error)) from error
    finally:
        if replaced.exists() and not target.exists():
            replaced.rename(target)
        shutil.rmtree(hidden, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)
    return target


def load(path: str | os.PathLike[str]) -> xr.Dataset:
    """Read a dataset back, into memory.

    Args:
        path: A folder made by `save`.

    Returns:
        The dataset.

    Raises:
        InputError: If there is no result at `path`.
    """
    source = Path(path)
    if not (source / ".zmetadata").is_file():
        what = "something else" if source.exists() else "nothing"
        msg = f"path: expected a result saved by trebuchet at {source}, found {what}"
        raise InputError(msg)
    with xr.open_dataset(source, engine="zarr", consolidated=True) as stored:
        return stored.load().drop_encoding()


def check_writable(path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Refuse a place that `save` could not write to, before any work is spent.

    Args:
        path: The folder to be made.
        overwrite: Whether a result that is there may be replaced.

    Raises:
        InputError: If `path` exists and `overwrite` is off, or cannot be written.
    """
    target = Path(path)
    if os.path.lexists(target):
        if not overwrite:
            msg = f"path: {target} exists; pass overwrite=True (--overwrite) to replace it"
            raise InputError(msg)
        if not (target / ".zmetadata").is_file():
            msg = f"path: {target} exists and is not a result of trebuchet; choose another path"
            raise InputError(msg)
    parent = target.absolute().parent
    while not os.path.lexists(parent):
        parent = parent.parent
    if not parent.is_dir():
        msg = f"path: cannot write {target}: {parent} is not a directory"
        raise InputError(msg)
    if not os.access(parent, os.W_OK | os.X_OK):
        msg = f"path: cannot write {target}: no permission to write in {parent}"
        raise InputError(msg)


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
