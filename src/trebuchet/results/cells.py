"""Runs over more than rates and seeds: one dataset of many cells, and its cells one by one.

A cell is what a sweep without axes makes. Attributes that differ between cells are coordinates
along the axes that they differ along, so that ``ds.sel(width=64)`` still knows its own.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from trebuchet._types import Status
from trebuchet.results.schema import COORDINATES, FACT, VARIABLES, config_hash, settled

Values = NDArray[Any]
FILL: dict[str, Any] = {"status": str(Status.NOT_RUN), "last_above": -1}
"""What stands for a run that was not made; else NaN, 0 or no text."""
JUDGED_BY = {"delta", "blowup", "deterministic", "dtype"}
"""Attributes that decide what a run's numbers mean for its phase."""
NOT_FACTS = {"interrupted", "created", "config_hash"}
"""Attributes that are the whole dataset's, whatever they are of its cells."""


def axes_of(ds: xr.Dataset) -> tuple[str, ...]:
    """Dims that runs have beside rates and seeds, such as ``width``; not those of observables.

    Args:
        ds: Runs.

    Returns:
        The names, in the order of the dataset.
    """
    found = {dim for name in VARIABLES if name in ds for dim in ds[name].dims}
    return tuple(str(dim) for dim in ds.sizes if dim in found and dim not in COORDINATES)


def cells_of(ds: xr.Dataset) -> Iterator[tuple[dict[str, Any], xr.Dataset]]:
    """Every cell, as a dataset of rates and seeds alone, with attributes of its own.

    Args:
        ds: Runs.

    Yields:
        Where it is on each axis (the position, on one without a coordinate), and the runs. Without
        axes the only one is the dataset itself.
    """
    axes = axes_of(ds)
    for at in np.ndindex(*(ds.sizes[axis] for axis in axes)):
        place = dict(zip(axes, at, strict=True))
        where = {a: ds[a].values[i].item() if a in ds.coords else i for a, i in place.items()}
        yield where, settled(ds.isel(place)) if axes else ds


def varied(ds: xr.Dataset) -> bool:
    """Whether cells differ in what runs are judged by, so that each must be judged by itself."""
    return any(c.attrs.get(FACT) in JUDGED_BY and c.ndim for c in ds.coords.values())


def over_cells(ds: xr.Dataset, change: Callable[[xr.Dataset], xr.Dataset]) -> xr.Dataset:
    """Change every cell by itself, and put them together again.

    Args:
        ds: Runs over axes.
        change: What to do with one.

    Returns:
        The changed runs.
    """
    axes = {a: ds[a].variable if a in ds.coords else ds.sizes[a] for a in axes_of(ds)}
    cells = [change(cell.drop_vars(list(axes), errors="ignore")) for _, cell in cells_of(ds)]
    return combine(cells, axes)


def combine(
    cells: Sequence[xr.Dataset | None], axes: Mapping[str, xr.Variable | int]
) -> xr.Dataset:
    """Put cells together along axes.

    Dims on which cells differ (rates, ``layer``, recorded steps) are the union. There, numbers of a
    cell that has nothing are missing, and runs that it has not are ``not_run``.

    Args:
        cells: Of the same seeds, the last axis fastest; None for one that was not made. One at
            least is there.
        axes: The coordinate of each, or its length; without any, the cells are parts of one, at
            rates of their own.

    Returns:
        One dataset with dims ``(*axes, lr, seed, …)``.
    """
    made = {i: cell for i, cell in enumerate(cells) if cell is not None}
    lengths = tuple(v if isinstance(v, int) else v.size for v in axes.values())
    places = list(np.ndindex(*lengths)) if axes else [()] * len(cells)
    coords, sizes = _shared(list(made.values()))
    data: dict[str, xr.Variable] = {}
    for name in dict.fromkeys(n for cell in made.values() for n in cell.data_vars):
        parts = {i: cell[name] for i, cell in made.items() if name in cell}
        first = next(iter(parts.values()))
        dtype = np.result_type(*(part.dtype for part in parts.values()))
        fill = FILL.get(str(name), np.nan if dtype.kind == "f" else "" if dtype.kind in "UO" else 0)
        if dtype.kind == "U":
            dtype = np.result_type(dtype, np.asarray(fill).dtype)
        shape = tuple(sizes[dim] for dim in first.dims)
        placed = {
            i: (part.transpose(*first.dims), [_positions(part, d, coords) for d in first.dims])
            for i, part in parts.items()
        }
        values: Any
        if any(part.chunks is not None for part in parts.values()):
            values = _lazily(placed, lengths, shape, fill, dtype)
        else:
            values = np.full((*lengths, *shape), fill, dtype=dtype)
            for i, (part, inside) in placed.items():
                values[places[i]][np.ix_(*inside)] = part.values
        attrs = {
            k: v
            for k, v in first.attrs.items()
            if all(_same(p.attrs.get(k), v) for p in parts.values())
        }
        data[str(name)] = xr.Variable((*axes, *first.dims), values, attrs)
    own = {name: v for name, v in axes.items() if not isinstance(v, int)}
    result = xr.Dataset(data, coords={**own, **coords})
    facts, varying = _facts([None if c is None else c.attrs for c in cells], axes, lengths)
    _tell_rates(result, facts.get("swept"))
    for name, variable in varying.items():
        if name not in axes:
            result.coords[name] = variable
        elif np.array_equal(result[name].values.astype(str), variable.values.astype(str)):
            result[name].attrs |= variable.attrs
    result.attrs = facts | _whole(cells, own)
    return result


def _lazily(
    placed: Mapping[int, tuple[xr.DataArray, list[Values]]],
    lengths: tuple[int, ...],
    shape: tuple[int, ...],
    fill: Any,
    dtype: Any,
) -> Any:
    """One array of Dask's of parts that are still on disk, each cell of it a part."""
    import dask.array

    da: Any = dask.array

    def cell(i: int) -> Any:
        if i not in placed:
            return da.full(shape, fill, dtype=dtype)
        part, inside = placed[i]
        found = part.data
        for axis, (positions, size) in enumerate(zip(inside, shape, strict=True)):
            if not np.array_equal(positions, np.arange(size)):
                # Of each position along the dim its place in the part, or that of a blank one.
                place = np.full(size, found.shape[axis])
                place[positions] = np.arange(positions.size)
                blank = (*found.shape[:axis], 1, *found.shape[axis + 1 :])
                found = da.concatenate([found, da.full(blank, fill, dtype=dtype)], axis=axis)
                found = da.take(found, place, axis=axis)
        return found.astype(dtype)

    def stacked(first: int, lengths: tuple[int, ...]) -> Any:
        if not lengths:
            return cell(first)
        step = int(np.prod(lengths[1:], dtype=int))
        return da.stack([stacked(first + i * step, lengths[1:]) for i in range(lengths[0])])

    return stacked(0, lengths)


def _shared(cells: Sequence[xr.Dataset]) -> tuple[dict[str, xr.Variable], dict[Hashable, int]]:
    """Coordinates of all cells together, and how long each dim is."""
    coords: dict[str, xr.Variable] = {}
    sizes: dict[Hashable, int] = {}
    for cell in cells:
        for dim, size in cell.sizes.items():
            sizes[dim] = max(size, sizes.get(dim, 0))
        for name, coordinate in cell.coords.items():
            if coordinate.dims != (name,):
                continue
            values = coordinate.values
            key = str(name)
            if key in coords and not np.array_equal(coords[key].values, values):
                values = np.union1d(coords[key].values, values)
            coords[key] = xr.Variable((key,), values, coordinate.attrs)
    sizes |= {name: variable.size for name, variable in coords.items()}
    return coords, sizes


def _positions(part: xr.DataArray, dim: Hashable, coords: Mapping[str, xr.Variable]) -> Values:
    """Where a cell's values lie along a dim of all cells."""
    whole = coords.get(str(dim))
    if whole is None or np.array_equal(whole.values, part[dim].values):
        return np.arange(part.sizes[dim])
    return np.searchsorted(whole.values, part[dim].values)


def _tell_rates(ds: xr.Dataset, swept: Any) -> None:
    """Of runs that were not made, what is known all the same: the rates that they would have."""
    if "status" not in ds:
        return
    top = ds.get("top_eigenvalue_init", np.nan)
    ratio, lr = (ds["lr"], ds["lr"] / top) if swept == "lr_ratio" else (ds["lr"] * top, ds["lr"])
    for name, rates in (("learning_rate", lr), ("lr_ratio", ratio)):
        if name in ds:
            hole = ds["status"] == str(Status.NOT_RUN)
            ds[name] = ds[name].where(~hole, rates).transpose(*ds[name].dims)


def _facts(
    attrs: Sequence[Mapping[str, Any] | None],
    axes: Mapping[str, Any],
    lengths: tuple[int, ...],
) -> tuple[dict[str, Any], dict[str, xr.Variable]]:
    """Attributes that agree, and the others as coordinates along the axes where they differ."""
    known = [a for a in attrs if a is not None]
    names = [n for n in dict.fromkeys(n for a in known for n in a) if n not in NOT_FACTS]
    if not axes:  # parts of one cell, which the first stands for
        return {n: known[0][n] for n in names if n in known[0]}, {}
    same: dict[str, Any] = {}
    varying: dict[str, xr.Variable] = {}
    for name in names:
        if all(name in a and _same(a[name], known[0].get(name)) for a in known):
            same[name] = known[0][name]
            continue
        given = [None if a is None else a.get(name) for a in attrs]
        values = _column(given).reshape(lengths)
        dims = list(axes)
        for axis in list(dims):
            k = dims.index(axis)
            first = np.take(values, [0], axis=k)
            if np.array_equal(
                np.broadcast_to(first, values.shape), values, equal_nan=values.dtype.kind == "f"
            ):
                values, dims = first.squeeze(k), [d for d in dims if d != axis]
        about = {"units": "", "long_name": f"{name}, of the cell", FACT: name}
        called = f"{name}_name" if name in {*VARIABLES, *COORDINATES} else name
        varying[called] = xr.Variable(tuple(dims), values, about)
    return same, varying


def _column(given: Sequence[Any]) -> Values:
    """One value a cell; those that are not known NaN, or no text."""
    numbers = all(g is None or isinstance(g, (int, float, np.number)) for g in given)
    if numbers:
        return np.array([np.nan if g is None else g for g in given])
    return np.array(["" if g is None else str(g) for g in given])


def _same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and bool(np.all((a == b) | ((a != a) & (b != b))))


def _whole(cells: Sequence[xr.Dataset | None], axes: Mapping[str, xr.Variable]) -> dict[str, Any]:
    """Attributes of all cells together."""
    made = [cell for cell in cells if cell is not None]
    hashes = [cell.attrs.get("config_hash", "") for cell in made]
    found: dict[str, Any] = {}
    if any(hashes):
        found["created"] = datetime.now(UTC).isoformat(timespec="seconds")
        along = {name: variable.values.tolist() for name, variable in axes.items()}
        found["config_hash"] = config_hash({"cells": hashes, "axes": along})
    if any("interrupted" in cell.attrs for cell in made):
        stopped = len(made) < len(cells) or any(c.attrs.get("interrupted") for c in made)
        found["interrupted"] = int(stopped)
    return found
