"""A long experiment in parts: each is computed once, kept on disk, and counted."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from trebuchet._progress import Progress, close, progress_bar
from trebuchet._whole import write_whole
from trebuchet.errors import InputError
from trebuchet.results.store import load, save

SETTINGS = "settings.json"


class Parts:
    """Parts of one experiment, in order.

    Args:
        title: Of the progress bar.
        count: How many there will be.
        settings: What the numbers depend on: parts of other settings are not taken up.
        checkpoint: Folder to keep parts in as they end, and to take them from; None for nowhere.
        progress: A bar on a terminal or in a notebook; True: lines in a log too, False: nothing;
            or a function of (done, total).

    Raises:
        InputError: If the folder holds parts of other settings.
    """

    def __init__(
        self,
        title: str,
        count: int,
        settings: Mapping[str, Any],
        *,
        checkpoint: str | Path | None = None,
        progress: bool | Progress | None = None,
    ) -> None:
        self._count, self._done = count, 0
        self._folder = folder = None if checkpoint is None else Path(checkpoint)
        self._bar = progress_bar(title, shown=progress)
        if folder is not None:
            try:
                _check_same(folder, settings)
            except OSError as error:
                reason = error.strerror or error
                msg = f"checkpoint: cannot use the folder {folder} ({reason}); name another"
                raise InputError(msg) from error

    def part(self, name: str, compute: Callable[[], xr.Dataset]) -> xr.Dataset:
        """The part of that name: from the folder, or computed and kept.

        Args:
            name: Of a file; each part's own.
            compute: Makes the part. Ctrl-C inside leaves the parts before it whole.

        Returns:
            The part.
        """
        place = None if self._folder is None else self._folder / f"{name}.zarr"
        if place is not None and place.exists():
            found = load(place)
        else:
            try:
                found = compute()
            except BaseException:
                close(self._bar)
                raise
            if place is not None:
                save(found.assign_attrs(experiment=name), place)
        self._done += 1
        self.inside(0, 1)
        return found

    def inside(self, done: int, total: int) -> None:
        """Progress within the part that is being computed: what ``tb.sweep(progress=…)`` takes."""
        self._bar(round(1000 * (self._done + done / max(total, 1))), 1000 * self._count)


def _check_same(folder: Path, settings: Mapping[str, Any]) -> None:
    """See that what is kept there is of these settings."""
    folder.mkdir(parents=True, exist_ok=True)
    told = json.dumps(settings, sort_keys=True, default=str, indent=1)
    kept = folder / SETTINGS
    if kept.exists() and kept.read_text(encoding="utf-8") != told:
        msg = (
            f"checkpoint: {folder} holds parts of an experiment with other settings; name "
            "another folder, or remove it"
        )
        raise InputError(msg)
    write_whole(kept, told.encode())


def laid_out(
    found: Sequence[xr.Dataset],
    axes: Mapping[str, Sequence[Any]],
    attrs: Mapping[str, Any],
    said: Mapping[str, str],
) -> xr.Dataset:
    """Parts, one a cell of a grid, as one dataset.

    Args:
        found: The parts, in the order of ``itertools.product`` over the axes.
        axes: Values by the names of the dimensions that parts lack.
        attrs: Of the whole.
        said: What each coordinate is, for labels.

    Returns:
        The dataset: every variable has the axes first, and then its own dimensions.

    Example:
        >>> cells = [xr.Dataset({"a": ("seed", [10 * w, 10 * w + 1])}) for w in (1, 2)]
        >>> laid_out(cells, {"width": [1, 2]}, {}, {}).a.values.tolist()
        [[10, 11], [20, 21]]
    """
    first, shape = found[0], [len(values) for values in axes.values()]
    variables = {
        name: (
            (*axes, *v.dims),
            np.stack([part[name].values for part in found]).reshape(*shape, *v.shape),
            v.attrs,
        )
        for name, v in first.data_vars.items()
    }
    coords = {name: list(values) for name, values in axes.items()}
    result = xr.Dataset(variables, {**coords, **first.coords}, dict(attrs))
    for name, long_name in said.items():
        result[name].attrs = {"units": "1", "long_name": long_name}
    return result


def finished(runs: xr.Dataset) -> xr.Dataset:
    """The runs of a sweep that was not stopped by Ctrl-C.

    Args:
        runs: As ``tb.sweep`` returned them.

    Returns:
        The same.

    Raises:
        KeyboardInterrupt: If they were stopped: half of a part is none.
    """
    if runs.attrs.get("interrupted"):
        raise KeyboardInterrupt
    return runs
