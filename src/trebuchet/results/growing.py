"""Runs on disk that become more: one Zarr, made whole at the start, filled in region by region.

A run is there once its status is, which is written after everything else of it. Chunks carry
checksums, and one that is gone where runs have ended is seen: what is read is what was written.
When no run is left the Zarr gets the attributes of the finished result, and a manifest.
"""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray

from trebuchet._checks import one_line
from trebuchet._places import is_there, move, remove_folder
from trebuchet._types import Status
from trebuchet._whole import DamagedError, sync, write_whole
from trebuchet.results import manifest
from trebuchet.results.codecs import readable
from trebuchet.results.schema import OF_STEP, RUN, SCHEMA_VERSION

Place = tuple[int, int]
"""Positions of a run in rates and seeds."""

STATE = ".sweep"
"""The folder beside the arrays that says what they are of, and keeps what is under way."""

METADATA = ".zmetadata"

CODECS = {"filters": [numcodecs.Blosc(), numcodecs.CRC32()], "compressors": None}
"""The checksum comes last, of all that is on disk: Blosc may not mind what it does not need."""

NUMBERS = 2**17
"""Most numbers in a chunk of the Zarr, where a run alone has fewer: a mebibyte."""


@dataclass(frozen=True)
class Growing:
    """The Zarr of a sweep under way; whoever writes to it holds the folder."""

    folder: Path

    def make(self, blank: xr.Dataset) -> None:
        """Lay out the arrays.

        Args:
            blank: The dataset as it is before the first run has ended.

        Raises:
            OSError: If it cannot be written.
        """
        blank = blank.copy().assign_attrs(schema_version=SCHEMA_VERSION)
        for variable in blank.variables.values():
            variable.encoding = {"chunks": _chunks(variable), **CODECS}
        new = self.folder / STATE / "new"
        remove_folder(new)
        traces = blank[[name for name, v in blank.data_vars.items() if v.ndim > len(RUN)]]
        rest = blank.drop_vars(traces.data_vars)
        rest.to_zarr(str(new), zarr_format=2, consolidated=True, write_empty_chunks=True)
        if traces.data_vars:  # which take room once runs have ended
            traces = traces.drop_vars(traces.coords)
            traces.to_zarr(
                str(new), mode="a", zarr_format=2, consolidated=True, write_empty_chunks=False
            )
        (self.folder / METADATA).unlink(missing_ok=True)
        for entry in list(self.folder.iterdir()):  # of another grid, or of one who was killed here
            if (entry / ".zarray").is_file():
                remove_folder(entry)
        for entry in sorted(new.iterdir(), key=lambda entry: entry.name == METADATA):
            move(entry, self.folder / entry.name)
        remove_folder(new)

    def write(self, places: Sequence[Place], columns: Mapping[str, NDArray[Any]]) -> None:
        """Write runs that have ended.

        Args:
            places: Where they belong.
            columns: Arrays by name, a row a run; those that the Zarr has none of are left out.

        Raises:
            OSError: If it cannot be written; none of them is there then, or some are.
        """
        names = [name for name in self._runs if name in columns and columns[name].size]
        regions = list(_regions(places))
        for last in (False, True):
            touched = set()
            for name in names:
                if (name == "status") is not last:
                    continue
                array = self._arrays[name]
                for rows, rates, seeds in regions:
                    array[rates, seeds] = columns[name][rows]
                    touched |= set(self._files(name, rates, seeds))
            sync(touched)

    def read(self) -> dict[str, NDArray[Any]]:
        """All arrays over rates and seeds, by name, to be gone on with.

        Returns:
            The arrays. Runs that have not ended have the status ``not_run``, and so have, here and
            on disk, those of which a chunk was removed.

        Raises:
            DamagedError: If a chunk is not what was written; the message names it.
            OSError: If a status cannot be written.
        """
        found = {name: self._read(name) for name in self._runs}
        ended = found["status"] != str(Status.NOT_RUN)
        lost = np.zeros_like(ended)
        for _, rates, seeds in self._absent(ended):
            lost[rates, seeds] = True
        lost &= ended
        lost |= found["status"] == ""  # of a chunk of statuses
        if lost.any():
            (self.folder / manifest.NAME).unlink(missing_ok=True)
            found["status"][lost] = str(Status.NOT_RUN)
            self._arrays["status"][...] = found["status"]
        return found

    def ended(self) -> NDArray[np.bool_]:
        """Which runs have ended.

        Returns:
            Shape ``(lr, seed)``.

        Raises:
            DamagedError: If that cannot be read.
        """
        return ~np.isin(self._read("status"), [str(Status.NOT_RUN), ""])

    def dataset(self, *, lazy: bool = False) -> xr.Dataset:
        """The runs that have ended, as a result.

        Args:
            lazy: Leave the arrays on disk, in Dask's.

        Returns:
            A dataset with ``interrupted=1``. Variables that no run has are left out, but not from a
            lazy one.

        Raises:
            DamagedError: If they are not what was written.
        """
        absent = [next(self._files(*at)) for at in self._absent(self.ended())]
        absent += [file for file in self._others() if not file.is_file()]
        if absent:
            msg = f"{absent[0].relative_to(self.folder)} is missing"
            raise DamagedError(msg)
        with readable(self.folder):
            if lazy:
                ds = xr.open_dataset(str(self.folder), engine="zarr", consolidated=True, chunks={})
                return ds.drop_vars([name for name in ds if str(name).endswith(OF_STEP)])
            with xr.open_dataset(str(self.folder), engine="zarr", consolidated=True) as stored:
                ds = stored.load().drop_encoding()
        empty = [
            name
            for name, v in ds.data_vars.items()
            if v.dtype.kind == "f" and name not in {"learning_rate", "loss"} and v.isnull().all()
        ]
        ds = ds.drop_vars([*empty, *(n for n in ds if str(n).endswith(OF_STEP) and n not in empty)])
        return ds.drop_vars([d for d in ds.dims if not any(d in v.dims for v in ds.values())])

    def tidy(self) -> None:
        """Remove what a writer that was killed had not finished."""
        for part in [*self.folder.glob("*.partial"), *self.folder.glob("*/*.partial")]:
            part.unlink(missing_ok=True)

    def finish(self, ds: xr.Dataset) -> None:
        """Make it the finished result.

        Args:
            ds: What all of its arrays together are: their attributes are taken, and arrays that it
                has not are removed.

        Raises:
            OSError: If it cannot be written; the runs are there then, and it can be made again.
        """
        for name, array in self._arrays.items():  # what no run writes, and what all together change
            if name in ds.variables and array.ndim <= len(RUN):
                values = ds[name].values
                if self._read(name).tobytes() != values.tobytes():
                    array[...] = values
        metadata = json.loads((self.folder / METADATA).read_text(encoding="utf-8"))
        listed = metadata["metadata"]
        arrays = {key.removesuffix("/.zarray") for key in listed if key.endswith("/.zarray")}
        empty = sorted(arrays - {str(name) for name in ds.variables})
        for name in empty:
            del listed[f"{name}/.zarray"], listed[f"{name}/.zattrs"]
        for named, variable in ds.variables.items():
            key = f"{named}/.zattrs"
            kept = {k: v for k, v in listed[key].items() if k.startswith("_")}
            listed[key] = {**_plain(variable.attrs), **kept}
        listed[".zattrs"] = {**_plain(ds.attrs), "schema_version": SCHEMA_VERSION}
        for key in [".zattrs", *(f"{name}/.zattrs" for name in ds.variables)]:
            (self.folder / key).write_text(json.dumps(listed[key]), encoding="utf-8")
        write_whole(self.folder / METADATA, json.dumps(metadata).encode())
        for name in empty:  # once nothing speaks of them
            remove_folder(self.folder / name)
        manifest.write(self.folder, schema_version=SCHEMA_VERSION, kind="runs")

    @cached_property
    def _arrays(self) -> dict[str, Any]:
        """All of them."""
        with readable(self.folder):
            group = zarr.open_group(
                str(self.folder), mode="r+", zarr_format=2, use_consolidated=True
            )
            found: dict[str, Any] = {
                name: array.with_config({"write_empty_chunks": True})
                for name, array in group.arrays()
            }
            found["status"]  # whatever else there is
        return found

    @cached_property
    def _runs(self) -> list[str]:
        """Names of those over rates and seeds."""
        dims = {name: array.attrs["_ARRAY_DIMENSIONS"] for name, array in self._arrays.items()}
        return [name for name, of in dims.items() if tuple(of[:2]) == RUN]

    def _others(self) -> Iterator[Path]:
        """The files of the others, of a chunk each."""
        for name in sorted(self._arrays.keys() - set(self._runs)):
            yield self.folder / name / ".".join("0" * max(1, self._arrays[name].ndim))

    def _read(self, name: str) -> NDArray[Any]:
        """An array, whole."""
        array = self._arrays[name]
        try:
            return np.asarray(array[...])
        except Exception as error:  # Zarr and its codecs raise whatever they like
            for rates, seeds in self._blocks(name):
                try:
                    array[rates, seeds]
                except Exception as inner:  # the same, of this chunk
                    file = next(self._files(name, rates, seeds))
                    msg = f"{name}/{file.name} is not what was written: {one_line(inner)}"
                    raise DamagedError(msg) from error
            msg = f"{name} cannot be read ({one_line(error)})"
            raise DamagedError(msg) from error

    def _absent(self, ended: NDArray[np.bool_]) -> Iterator[tuple[str, slice, slice]]:
        """Chunks that are gone where runs have ended: they would read as missing values."""
        for name in self._runs:
            try:
                there = {entry.name for entry in (self.folder / name).iterdir()}
            except FileNotFoundError:
                there = set()
            except OSError as error:
                msg = f"{name} cannot be read ({error.strerror or error})"
                raise DamagedError(msg) from error
            for rates, seeds in self._blocks(name):
                (file,) = self._files(name, rates, seeds)
                if file.name not in there and ended[rates, seeds].any():
                    yield name, rates, seeds

    def _blocks(self, name: str) -> Iterator[tuple[slice, slice]]:
        """Rates and seeds of every chunk of an array."""
        array = self._arrays[name]
        (rates, seeds), (r, s) = array.shape[:2], array.chunks[:2]
        for i, k in itertools.product(range(0, rates, r), range(0, seeds, s)):
            yield slice(i, min(i + r, rates)), slice(k, min(k + s, seeds))

    def _files(self, name: str, rates: slice, seeds: slice) -> Iterator[Path]:
        """Of the chunks that hold a region; every other dim lies in each of them whole."""
        array = self._arrays[name]
        (r, s), rest = array.chunks[:2], [0] * (array.ndim - 2)
        for i in range(rates.start // r, (rates.stop - 1) // r + 1):
            for k in range(seeds.start // s, (seeds.stop - 1) // s + 1):
                yield self.folder / name / ".".join(map(str, [i, k, *rest]))


def under_way(folder: Path) -> bool:
    """Whether a folder is of a sweep that is not finished."""
    return (folder / STATE / "sweep.json").is_file() and not is_there(folder / manifest.NAME)


def any_of_it(folder: Path) -> bool:
    """Whether a folder is of a sweep, finished or not."""
    return (folder / STATE / "sweep.json").is_file()


def _regions(places: Sequence[Place]) -> Iterator[tuple[NDArray[np.int64], slice, slice]]:
    """Rectangles of runs: their rows, shape ``(lr, seed)``, the rates and the seeds."""
    row = {place: i for i, place in enumerate(places)}
    stretches: dict[tuple[int, int], list[int]] = {}  # of neighbouring rates: their seeds
    for seed, group in itertools.groupby(sorted(row, key=lambda p: p[::-1]), key=lambda p: p[1]):
        for first, stop in _neighbours([rate for rate, _ in group]):
            stretches.setdefault((first, stop), []).append(seed)
    for (first, stop), seeds in stretches.items():
        for left, right in _neighbours(seeds):
            rows = [[row[i, s] for s in range(left, right)] for i in range(first, stop)]
            yield np.array(rows), slice(first, stop), slice(left, right)


def _neighbours(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Stretches of ascending whole numbers without a gap, as first and one past the last."""
    for _, group in itertools.groupby(enumerate(numbers), key=lambda at: at[1] - at[0]):
        stretch = [number for _, number in group]
        yield stretch[0], stretch[-1] + 1


def _chunks(variable: xr.Variable) -> tuple[int, ...]:
    """Chunks of a variable: of runs, as many as hold so many numbers, and all of each."""
    if variable.dims[:2] != RUN:
        return tuple(max(1, n) for n in variable.shape)
    rates, seeds, *rest = variable.shape
    runs = max(1, NUMBERS // max(1, int(np.prod(rest))))
    return (max(1, min(rates, runs)), max(1, min(seeds, runs // max(1, rates))), *rest)


def _plain(attrs: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(k): v.item() if isinstance(v, np.generic) else v for k, v in attrs.items()}
