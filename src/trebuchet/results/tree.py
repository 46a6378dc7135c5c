"""A sweep over axes on disk: a Zarr of their coordinates, and in it one for each cell."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import xarray as xr

from trebuchet._checks import one_line
from trebuchet._places import remove_folder
from trebuchet._whole import DamagedError, write_whole
from trebuchet.results.codecs import readable
from trebuchet.results.growing import METADATA, STATE, Growing, any_of_it

CELLS = "cells.json"


@dataclass(frozen=True)
class Cells:
    """The Zarr of a sweep over axes: its coordinates, and a Zarr in it for each cell.

    Attributes:
        folders: Their names, the last axis fastest.
        axes: The coordinate of each axis.
    """

    folders: Sequence[str]
    axes: Mapping[str, xr.Variable]

    def write(self, folder: Path) -> None:
        """Say in a folder what cells it is of; those that are there stay.

        Args:
            folder: The folder, held by the caller.

        Raises:
            OSError: If it cannot be written.
            DamagedError: If what it says now cannot be read.
        """
        known, axes = cells(folder), xr.Dataset(coords=self.axes)
        same = known is not None and axes.identical(xr.Dataset(coords=known.axes))
        if known is not None and same and list(known.folders) == list(self.folders):
            return
        (folder / STATE).mkdir(exist_ok=True)
        (folder / STATE / CELLS).unlink(missing_ok=True)
        Growing(folder).make(axes)
        said = {"folders": list(self.folders), "axes": list(self.axes)}
        write_whole(folder / STATE / CELLS, json.dumps(said).encode())

    def withdraw(self, folder: Path) -> None:
        """Take back what `write` wrote, where no cell is there, of this grid or another.

        Args:
            folder: The folder, held by the caller.

        Raises:
            OSError: If it cannot be removed.
        """
        if any(any_of_it(inside) for inside in folder.iterdir()):  # of another grid, perhaps
            return
        for name in (STATE, *self.axes):
            remove_folder(folder / name)
        for name in (METADATA, ".zattrs", ".zgroup"):
            (folder / name).unlink(missing_ok=True)

    def gather(self, folder: Path) -> None:
        """List what is in the cells in the metadata of all, so that it opens as one tree.

        Args:
            folder: The folder, held by the caller.

        Raises:
            OSError: If it cannot be written.
        """
        metadata = json.loads((folder / METADATA).read_text(encoding="utf-8"))
        for name in self.folders:
            if (folder / name / METADATA).is_file():
                inside = json.loads((folder / name / METADATA).read_text(encoding="utf-8"))
                metadata["metadata"] |= {f"{name}/{k}": v for k, v in inside["metadata"].items()}
        write_whole(folder / METADATA, json.dumps(metadata).encode())


def cells(folder: Path) -> Cells | None:
    """What cells a folder is of.

    Args:
        folder: The folder.

    Returns:
        None where it is not of a sweep over axes.

    Raises:
        DamagedError: If what it says cannot be read.
    """
    try:
        said = json.loads((folder / STATE / CELLS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        msg = f"{CELLS} cannot be read ({one_line(error)})"
        raise DamagedError(msg) from error
    with readable(folder):
        with xr.open_dataset(str(folder), engine="zarr", consolidated=True) as stored:
            axes = {name: stored.load()[name].variable for name in said["axes"]}
        return Cells(list(said["folders"]), axes)
