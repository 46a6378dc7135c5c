"""A sweep over axes: one sweep a cell, and one dataset of all."""

import hashlib
import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import xarray as xr

from trebuchet._lock import sole_writer
from trebuchet._progress import Progress
from trebuchet._whole import DamagedError
from trebuchet.engine.chunkfile import writing
from trebuchet.errors import InputError
from trebuchet.problem.problem import Problem
from trebuchet.results.cells import combine
from trebuchet.results.growing import STATE, any_of_it
from trebuchet.results.tree import Cells
from trebuchet.sweeps.axes import Axis, Cell

Sweep = Callable[[Problem, Path | None, Progress], xr.Dataset]
"""Runs of one problem; saved in a folder, or not."""


def over_axes(
    cells: Sequence[Cell],
    axes: Sequence[Axis],
    one: Sweep,
    *,
    attempt: Callable[[Problem], None],
    checkpoint: Path | None,
    progress: Progress,
) -> xr.Dataset:
    """Sweep every cell, one after the other.

    Args:
        cells: The cells, the last axis fastest.
        axes: Their axes.
        one: What sweeps one.
        attempt: What binds one for a moment: all are tried before any run is made.
        checkpoint: A folder for all, with one of its own for each cell; None for none.
        progress: Of all.

    Returns:
        One dataset. After Ctrl-C, runs of cells that were not reached are ``not_run``.

    Raises:
        InputError: If a cell cannot be swept, or its checkpoint is another's.
        KeyboardInterrupt: If Ctrl-C came before any run was made.
    """
    found: list[xr.Dataset | None] = [None] * len(cells)
    for cell in cells:
        with _named(cell):
            attempt(cell.problem)
    alone = nullcontext() if checkpoint is None else sole_writer(checkpoint, "checkpoint")
    with alone:
        grid = Cells(
            [folder_name(cell.name) for cell in cells],
            {axis.dim: axis.coordinate for axis in axes},
        )
        if checkpoint is not None:
            _written(checkpoint, partial(_begin, checkpoint, grid))
        try:
            for i, cell in enumerate(cells):
                folder = None if checkpoint is None else checkpoint / grid.folders[i]
                with _named(cell):
                    runs = one(cell.problem, folder, _part(progress, i, len(cells)))
                found[i] = runs
                if runs.attrs["interrupted"]:
                    break
        except BaseException as error:  # whatever it is, a folder of nothing does not stay
            stopped = isinstance(error, KeyboardInterrupt)  # between runs, as where λ₀ is measured
            if not stopped or found[0] is None:
                if checkpoint is not None:
                    grid.withdraw(checkpoint)
                raise
        if checkpoint is not None:
            _written(checkpoint, partial(grid.gather, checkpoint))
    return combine(found, grid.axes)


class _named:
    """Says in an error which cell it is of."""

    def __init__(self, cell: Cell) -> None:
        self.cell = cell

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, InputError):
            msg = f"{error} (in the cell {self.cell.name})"
            raise InputError(msg) from error


def _part(progress: Progress, cell: int, cells: int) -> Progress:
    """What one cell calls with its own share of the work; all cells have as much."""
    return lambda done, total: progress(cell * total + done, cells * total)


def folder_name(cell: str) -> str:
    """A name for the folder of a cell: the same for the same cell of any grid.

    Args:
        cell: Where it is, such as "width=64, batch_size=16".

    Returns:
        The same without spaces; shortened, with a hash, where it holds anything else that files
        are better not called.

    Example:
        >>> folder_name("width=64, optimizer.momentum=0.9")
        'width=64,optimizer.momentum=0.9'
        >>> folder_name("data=a/b")
        'data=a_b-f8d6182a'
    """
    plain = cell.replace(", ", ",")
    safe = re.sub(r"[^A-Za-z0-9_.,=+-]", "_", plain)[:100]
    digest = hashlib.sha256(plain.encode()).hexdigest()[:8]
    return safe if safe == plain else f"{safe}-{digest}"


def _begin(checkpoint: Path, grid: Cells) -> None:
    """Say in the folder of all what it is of."""
    if any_of_it(checkpoint) or (
        (checkpoint / ".zgroup").exists() and not (checkpoint / STATE).is_dir()
    ):
        what = "a sweep without axes" if any_of_it(checkpoint) else "a result"
        msg = f"checkpoint: {checkpoint} holds {what}; name another folder, or remove this one"
        raise InputError(msg)
    grid.write(checkpoint)


def _written(checkpoint: Path, write: Callable[[], None]) -> None:
    with writing(checkpoint):
        try:
            write()
        except DamagedError as error:
            msg = f"checkpoint: {checkpoint} is damaged ({error}); name another folder"
            raise InputError(msg) from error
