"""Run a figure of the paper: its settings, its seeds, its edges, its phases."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import torch
import xarray as xr

from trebuchet._checks import (
    anything,
    checked_seeds,
    flag,
    path as a_path,
    progress as a_bar,
    text,
    whole,
    workers as at_once,
)
from trebuchet._content import ByContent
from trebuchet._doors import door, maybe
from trebuchet._progress import Progress, close, progress_bar
from trebuchet._torch_checks import dtype as a_dtype
from trebuchet.engine.recording import Recording
from trebuchet.paper.problems import paper_problem
from trebuchet.paper.settings import FIGURES, Setting
from trebuchet.phases.edges import edges
from trebuchet.phases.label import label
from trebuchet.sweeps.sweep import sweep
from trebuchet.theory.edges import Edge

QUICK_THIN = 4
"""`quick` keeps every fourth rate, the largest among them."""


@dataclass(frozen=True, slots=True, eq=False)
class Figure(ByContent):
    """A figure that has been run.

    Attributes:
        number: Which, 1–16.
        setting: Its row of the table.
        runs: Labelled dataset, dims ``lr, seed, step``; ``lr`` is ηλ₀.
        edges: Edges of the first seed's problem, by name.
        quick: Whether only a thin grid was run.
    """

    number: int
    setting: Setting
    runs: xr.Dataset
    edges: Mapping[str, Edge]
    quick: bool

    @property
    def seeds(self) -> list[int]:
        """The seeds, the paper's first."""
        return [int(seed) for seed in self.runs.seed.values]

    @door(path=a_path, title=maybe(text), overwrite=flag)
    def report(
        self, path: str | PathLike[str], *, title: str | None = None, overwrite: bool = False
    ) -> Path:
        """Write the figure to one HTML file for somebody else: ``trebuchet.report`` of it alone.

        Args:
            path: The file to make, ``report.html`` say.
            title: Of the page; the figure's own unless given.
            overwrite: Replace a file that is there.

        Returns:
            The path.

        Raises:
            InputError: If there is something, or nothing can be written there.
        """
        import trebuchet  # by its public name: the room of pages lies above this one

        return trebuchet.report(self, path=path, title=title, overwrite=overwrite)


def which(name: str, value: object) -> int:
    """The number of a figure."""
    return whole(name, value, f"a number from 1 to {max(FIGURES)}", most=max(FIGURES))


@door(
    number=which, seeds=anything, quick=flag, dtype=a_dtype, data_root=maybe(a_path),
    checkpoint=maybe(a_path), workers=at_once, progress=a_bar,
)  # fmt: skip
def figure(
    number: int,
    *,
    seeds: int | Sequence[int] = 1,
    quick: bool = False,
    dtype: torch.dtype = torch.float32,
    data_root: str | Path | None = None,
    checkpoint: str | Path | None = None,
    workers: int | None = None,
    progress: bool | Progress | None = None,
) -> Figure:
    """Run one figure at the paper's settings.

    Args:
        number: Which figure, 1–16.
        seeds: How many seeds, counted up from the paper's own; or which. Each seed draws its data
            (where they are random) and its model anew.
        quick: Every fourth rate only, for a first look.
        dtype: The paper's float32 unless given.
        data_root: Folder of image files; scikit-learn's OpenML cache unless given.
        checkpoint: A folder to save unfinished runs to and to resume from.
        workers: Runs in flight together; a core each unless given.
        progress: A bar on a terminal or in a notebook; True: lines in a log too, False: nothing;
            or a function of (done, total).

    Returns:
        The figure.

    Raises:
        InputError: If an argument is not what was expected, there is no such figure, or its data
            cannot be had.

    Example:
        >>> fig = figure(6, quick=True)
        >>> round(fig.edges["upper"].lr_ratio, 2)
        3.29
        >>> fig.runs.phase.sel(lr=[1.6, 2.4, 4.0]).values[:, 0].tolist()
        ['lazy', 'catapult', 'divergent']
    """
    setting = FIGURES[number]
    chosen = checked_seeds(seeds, first=setting.seed)
    bar = progress_bar(f"figure {number}", shown=progress)
    parts, found = [], None
    try:
        for position, seed in enumerate(chosen):
            problem = paper_problem(setting, seed=seed, dtype=dtype, data_root=data_root)
            found = edges(problem) if found is None else found
            part = sweep(
                problem,
                lr_ratio=setting.grid.ratios(thin=QUICK_THIN if quick else 1),
                seeds=[seed],
                steps=setting.steps,
                tolerance=setting.tolerance,
                record=Recording(dense=100, per_decade=60) if setting.long else Recording(),
                chunk=setting.chunk,
                workers=workers,
                checkpoint=None if checkpoint is None else Path(checkpoint) / f"seed-{seed}",
                progress=_share(bar, position, len(chosen)),
            )
            parts.append(part)
            if part.attrs["interrupted"]:
                break
    finally:
        close(bar)
    assert found is not None
    runs = xr.concat(parts, "seed", data_vars="all", combine_attrs="override", join="outer")
    runs.attrs["interrupted"] = max(part.attrs["interrupted"] for part in parts)
    runs.attrs["config_hash"] = "-".join(part.attrs["config_hash"] for part in parts)
    return Figure(number, setting, label(runs), found, quick)


def _share(bar: Progress, position: int, parts: int) -> Progress:
    """The progress of one part as that of the whole."""
    return lambda done, total: bar(position * total + done, parts * total)
