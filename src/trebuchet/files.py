"""Any result to a folder and back: runs, a scan, top eigenvalues."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xarray as xr

from trebuchet._checks import anything, flag, place as a_place
from trebuchet._doors import door
from trebuchet.errors import InputError
from trebuchet.results import store
from trebuchet.results.store import kind_of

if TYPE_CHECKING:
    from trebuchet.curvature.result import TopEigen
    from trebuchet.scans.result import Scan


@door(result=anything, path=a_place, overwrite=flag)
def save(
    result: "xr.Dataset | Scan | TopEigen",
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
) -> Path:
    """Write a result to a folder, whole or not at all; `load` gives it back as it was.

    The folder is a Zarr store, which xarray reads too, with a list of its files, their sizes and
    checksums.

    Args:
        result: Runs (the dataset that ``sweep`` or ``label`` returned), a ``Scan`` or a
            ``TopEigen``.
        path: The folder to make, ``runs.zarr`` say; missing parents are made too. Or an address
            that fsspec knows, such as ``s3://bucket/runs.zarr`` (``trebuchet[remote]``).
        overwrite: Replace a result that is there.

    Returns:
        The path.

    Raises:
        InputError: If `result` is something else, or `path` exists and `overwrite` is off, or it
            cannot be written.

    Example:
        >>> import tempfile, torch, trebuchet as tb
        >>> x = torch.tensor([[1.0], [3.0]])
        >>> top = tb.top_eigen(torch.nn.Linear(1, 1), "mse", (x, x))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     place = tb.save(top, f"{folder}/top.zarr")
        ...     print(tb.load(place) == top)
        True
    """
    if isinstance(result, xr.Dataset):
        return store.save(result, path, overwrite=overwrite)
    if isinstance(result, tuple(_readers().values())):
        return store.save(result.to_dataset(), path, overwrite=overwrite)
    msg = (
        "result: expected runs (an xarray.Dataset), a Scan or a TopEigen, got a "
        f"{type(result).__name__}; a frame saves itself with to_csv, a figure of the paper as .runs"
    )
    raise InputError(msg)


@door(path=a_place, lazy=flag)
def load(path: str | os.PathLike[str], *, lazy: bool = False) -> Any:
    """Read a result back: what was saved, or an error that says what is wrong with the folder.

    Every file is compared with its checksum first, so that a damaged result is never taken for
    numbers. One saved before there were checksums is checked as far as can be, and says so:
    runs in the attribute ``note``, a scan among its notes.

    Args:
        path: A folder made by `save`, by ``Scan.save`` or by the command line, or the checkpoint
            of a sweep: what has ended of it. Or the address of one, ``s3://bucket/runs.zarr``.
        lazy: Of runs: read arrays when they are asked for, by Dask (``trebuchet[dask]``), so that
            what is larger than the memory opens at once. Sizes of files are compared then, not
            their contents, and the folder has to stay. Other results are small, and read whole.

    Returns:
        A dataset, a ``Scan`` or a ``TopEigen``, as it was saved.

    Raises:
        InputError: If there is no result at `path`, it is damaged, or a later trebuchet wrote it.
    """
    ds = store.load(path, lazy=lazy)
    reader = _readers().get(kind_of(ds)) if kind_of(ds) != store.RUNS else None
    if reader is None:
        return ds
    if lazy:
        ds = store.load(path)
    try:
        return reader.from_dataset(ds)
    except InputError as error:
        msg = f"path: {path} holds no {reader.__name__}, or a damaged one: {error}"
        raise InputError(msg) from error


def _readers() -> dict[str, Any]:
    """The classes of `store.OTHERS`, imported when one is met."""
    from trebuchet.curvature.result import TopEigen
    from trebuchet.scans.result import Scan

    return {"scan": Scan, "top_eigen": TopEigen}
