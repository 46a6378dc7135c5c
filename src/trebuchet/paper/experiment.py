"""What an experiment beyond the paper is: a question, the settings that answer it, a picture."""

import inspect
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure as Picture

from trebuchet._progress import Progress
from trebuchet._whole import whole, write_whole
from trebuchet.errors import InputError
from trebuchet.results.store import save


@dataclass(frozen=True, slots=True)
class Experiment:
    """One row of the table of experiments.

    Attributes:
        name: On the command line, and of its files.
        title: Of the picture.
        question: One sentence.
        source: Where the question comes from.
        function: From settings to a dataset. It may take ``checkpoint`` (a folder) and
            ``progress``.
        draw: From the dataset to a picture.
        tell: From the dataset to sentences: what it shows, and what it does not bear out.
        settings: Of the full experiment; other arguments keep their defaults.
        quick: What the quick grid changes: seconds, for a first look and for the docs.
        minutes: What the full one takes on two cores, about.
    """

    name: str
    title: str
    question: str
    source: str
    function: Callable[..., xr.Dataset]
    draw: Callable[[xr.Dataset], Picture]
    tell: Callable[[xr.Dataset], Sequence[str]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    quick: Mapping[str, Any] = field(default_factory=dict)
    minutes: float = 1.0

    def takes(self, name: str) -> bool:
        """Whether the function has an argument of that name."""
        return name in inspect.signature(self.function).parameters

    def run(
        self,
        *,
        quick: bool = False,
        checkpoint: Path | None = None,
        progress: bool | Progress | None = None,
        **given: Any,
    ) -> xr.Dataset:
        """The dataset.

        Args:
            quick: The quick grid.
            checkpoint: Folder to keep what is done in, and to take it from.
            progress: A bar on a terminal or in a notebook; True: lines in a log too, False:
                nothing; or a function of (done, total).
            **given: Settings in place of the table's.

        Returns:
            The dataset, with the experiment's name, and whether it is quick, among its attributes.

        Raises:
            InputError: If the experiment has no such setting, or refuses its value.
        """
        for name in given:
            if not self.takes(name):
                msg = f"{name}: the experiment {self.name!r} has no such setting"
                raise InputError(msg)
        settings = {**self.settings, **(self.quick if quick else {}), **given}
        extra = {"checkpoint": checkpoint, "progress": progress}
        found = self.function(**settings, **{k: v for k, v in extra.items() if self.takes(k)})
        return found.assign_attrs(experiment=self.name, quick=int(quick))

    def files(self, folder: Path) -> list[Path]:
        """Data, picture and numbers."""
        return [folder / f"{self.name}{suffix}" for suffix in (".zarr", ".png", ".json")]

    def save(self, found: xr.Dataset, folder: Path, *, overwrite: bool = False) -> list[Path]:
        """Write data, picture and numbers; each appears whole or not at all, the numbers last.

        Args:
            found: What ``run`` returned.
            folder: Where to.
            overwrite: Replace what is there.

        Returns:
            The three paths.

        Raises:
            InputError: If one of them cannot be written.
        """
        text = json.dumps(to_json(found), ensure_ascii=False)
        picture = self.draw(found)
        return written(self.files(folder), found, picture, text, self.name, overwrite=overwrite)


def written(
    files: list[Path],
    data: xr.Dataset,
    picture: Picture,
    numbers: str,
    what: str,
    *,
    overwrite: bool,
) -> list[Path]:
    """Write data, a picture and numbers; each appears whole or not at all, the numbers last.

    Args:
        files: Their three paths, in this order.
        data: A results dataset.
        picture: A figure of matplotlib.
        numbers: JSON.
        what: They are, for errors.
        overwrite: Replace what is there.

    Returns:
        The paths.

    Raises:
        InputError: If one of them cannot be written.
    """
    save(data, files[0], overwrite=overwrite)
    try:
        with whole(files[1]) as part:
            picture.savefig(part, dpi=160)
        write_whole(files[2], (numbers + "\n").encode())
    except OSError as error:
        msg = f"folder: cannot write {what} to {files[0].parent} ({error.strerror or error})"
        raise InputError(msg) from error
    return files


def to_json(ds: xr.Dataset) -> dict[str, Any]:
    """A dataset as plain JSON: dims, coordinates, and every variable with its meaning.

    Args:
        ds: Any dataset of numbers and words.

    Returns:
        Numbers to six digits; what is missing or not finite as null.

    Example:
        >>> to_json(xr.Dataset({"a": ("x", [1.0, float("nan")])}))["variables"]["a"]["values"]
        [1.0, None]
    """
    return {
        "attrs": {str(key): value for key, value in ds.attrs.items()},
        "dims": [str(dim) for dim in ds.sizes],
        "coords": {str(name): _variable(ds[name]) for name in ds.coords},
        "variables": {str(name): _variable(ds[name]) for name in ds.data_vars},
    }


def _variable(variable: xr.DataArray) -> dict[str, Any]:
    attrs = {str(key): value for key, value in variable.attrs.items()}
    return {"dims": list(variable.dims), "attrs": attrs, "values": _plain(variable.values)}


def from_json(told: Mapping[str, Any]) -> xr.Dataset:
    """The dataset that `to_json` told of, to its six digits.

    Args:
        told: As `to_json` returned it.

    Returns:
        The dataset; null is NaN among numbers.
    """
    parts = [
        {k: (v["dims"], _array(v["values"]), v["attrs"]) for k, v in told[kind].items()}
        for kind in ("variables", "coords")
    ]
    return xr.Dataset(parts[0], parts[1], told["attrs"])


def _plain(values: np.ndarray) -> Any:
    if values.ndim:
        return [_plain(part) for part in values]
    value = values.item()
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def _array(values: Any) -> np.ndarray:
    found = np.array(values)
    return found.astype(float) if found.dtype == object else found
