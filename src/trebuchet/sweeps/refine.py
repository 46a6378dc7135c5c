"""More runs where phases part: between neighbouring rates that differ in phase, by halves."""

import hashlib
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import xarray as xr

from trebuchet._checks import instance, place as a_place, progress as a_bar, real, whole
from trebuchet._doors import door, grouped, maybe, rule
from trebuchet._lock import sole_writer
from trebuchet._progress import Progress, close, progress_bar
from trebuchet._types import Status
from trebuchet.engine.recording import Recording
from trebuchet.engine.stopping import StopRule
from trebuchet.errors import InputError
from trebuchet.observables.base import Observable
from trebuchet.observables.registry import OBSERVABLES, observables as named_observables
from trebuchet.phases.label import label
from trebuchet.problem.problem import Problem
from trebuchet.results.cells import axes_of, cells_of, combine
from trebuchet.results.schema import results
from trebuchet.sweeps.axes import DIMS, Axis, axes_given, cells
from trebuchet.sweeps.execution import Execution
from trebuchet.sweeps.grid import folder_name
from trebuchet.sweeps.sweep import sweep

CLOSEST = 0.001
"""In ln η: unless a tolerance is given, no rate is tried between two that are nearer."""


class Gap(NamedTuple):
    """Neighbouring rates of a cell that differ in phase."""

    width: float  # in ln η
    cell: int
    middle: float


@door(
    ds=results, problem=rule(instance, Problem, "a trebuchet.Problem", "give the sweep's own"),
    runs=maybe(whole, "a positive number of runs"),
    tolerance=maybe(real, "a number from 1e-9 up, in ln η", lambda x: 1e-9 <= x < math.inf),
    axes=maybe(axes_given), observables=maybe(named_observables),
    record=maybe(instance, Recording, "a trebuchet.Recording", "Recording(every=10) is one"),
    execution=maybe(instance, Execution, "a trebuchet.Execution", "Execution(workers=1) is one"),
    checkpoint=maybe(a_place), progress=a_bar,
)  # fmt: skip
def refine(
    ds: Any,
    problem: Problem,
    *,
    runs: int | None = None,
    tolerance: float | None = None,
    axes: Mapping[str, Iterable[Any] | Mapping[str, Any]] | None = None,
    observables: Sequence[str | Observable] | None = None,
    record: Recording | None = None,
    execution: Execution | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool | Progress | None = None,
) -> xr.Dataset:
    """Spend more runs on the boundaries between phases.

    Wherever neighbouring rates of a cell differ in phase, at any seed, the rate half way between
    them in logarithms is tried from all seeds: the widest gaps first, again and again.

    Args:
        ds: Runs of a sweep, with or without axes.
        problem: What was swept.
        runs: At most so many are made; as many as the tolerance needs, unless given.
        tolerance: Stop where every boundary lies between two rates at most so far apart in ln η
            (0.05: by 5 %). One of `runs` and `tolerance` is needed.
        axes: As the sweep was given them; needed where results hold names, not numbers.
        observables: As the sweep was given them; those that the dataset holds unless given.
        record: As the sweep was given it.
        execution: How runs are computed, and where they are saved.
        checkpoint: A folder to save to and to resume from: the same call again, also with more
            runs or another tolerance, makes no round again that was made. The last round of
            ``runs=`` may be cut short; with more runs it is another, and made anew.
        progress: As for ``sweep``, in runs.

    Returns:
        The runs, labelled, over the union of all rates, in increasing order: where a cell has no
        run at one of them, its status is ``not_run``. The attribute ``boundary_width`` is the
        widest gap in ln η that a boundary lies in. After Ctrl-C, what there is; runs that were cut
        off are made again when it is refined further.

    Raises:
        InputError: If an argument is not what was expected, does not fit the dataset, or the
            checkpoint is another's, in use, damaged, or cannot be written.

    Example:
        >>> from trebuchet.models import PureQuadratic
        >>> problem = Problem(lambda seed: PureQuadratic.draw(50, generator=seed), "half_mse",
        ...                   ([[1.0]], [0.0]))
        >>> coarse = sweep(problem, lr_ratio=[1.0, 5.0], steps=100)
        >>> [round(rate, 2) for rate in refine(coarse, problem, runs=3).lr.values.tolist()]
        [1.0, 1.5, 2.24, 3.34, 5.0]
        >>> refine(coarse, problem, tolerance=0.1).attrs["boundary_width"] <= 0.1
        True
    """
    if runs is None and tolerance is None:
        msg = (
            "runs: expected how many may be made, or a tolerance, got neither; give runs=100, or "
            "tolerance=0.05"
        )
        raise InputError(msg)
    saving = {} if checkpoint is None else {"checkpoint": checkpoint}
    how = grouped(Execution, "execution", execution, saving)
    place = cast("Path | None", how.checkpoint)  # as Execution has checked it
    over = _axes_of_runs(ds, cast("Sequence[Axis] | None", axes))
    grid = cells(problem, over, ())
    settings: dict[str, Any] = {
        "seeds": ds["seed"].values.tolist(), "record": record, "progress": False,
        "observables": _watched(ds) if observables is None else observables,
        "stop": _stop(ds),
    }  # fmt: skip
    found = [label(_bare(cell, at)) for at, cell in cells_of(ds)]
    swept = str(ds.attrs.get("swept", "lr"))
    width = CLOSEST if tolerance is None else tolerance
    seeds, made, interrupted = ds.sizes["seed"], 0, False
    bar = progress_bar("refine", shown=progress)
    try:
        with nullcontext() if place is None else sole_writer(place, "checkpoint"):
            for turn in count(1):
                gaps = _gaps(found, width)
                chosen = _widest(gaps, None if runs is None else (runs - made) // seeds)
                if interrupted or not chosen:
                    break
                likely = made + _likely(gaps, width) * seeds
                total = likely if runs is None else min(likely, runs)
                called = _round_name(turn, chosen)
                for i, rates in chosen.items():
                    cell = f"{called},{folder_name(grid[i].name)}" if over else called
                    given: dict[str, Any] = {swept: rates, **settings}
                    given["execution"] = replace(how, checkpoint=place and place / cell)
                    found[i], interrupted = _with_more(found[i], grid[i].problem, given)
                    if interrupted:
                        break
                    made += len(rates) * seeds
                    bar(min(made, total - 1), total)  # there may be a boundary more, or none left
    except KeyboardInterrupt:  # between runs: what was made is there
        interrupted = True
    finally:
        close(bar)
    along = {axis.dim: axis.coordinate for axis in over}
    result = combine(found, along) if over else found[0]
    cut = bool((result["status"] == str(Status.INTERRUPTED)).any())
    open_ = max((gap.width for gap in _gaps(found, 0.0)), default=0.0)
    return result.assign_attrs(interrupted=int(interrupted or cut), boundary_width=open_)


def _round_name(turn: int, chosen: Mapping[int, Sequence[float]]) -> str:
    """What folders of a round are called: the same for the same rates in the same cells."""
    digest = hashlib.sha256(repr(sorted(chosen.items())).encode()).hexdigest()[:8]
    return f"round-{turn:02}-{digest}"


def _with_more(
    cell: xr.Dataset, problem: Problem, given: Mapping[str, Any]
) -> tuple[xr.Dataset, bool]:
    """The runs of a cell, and those at more rates; and whether Ctrl-C came in between."""
    new = sweep(problem, **given, delta=cell.attrs.get("delta"))
    for name in ("loss", "optimizer", "n_parameters"):
        was, now = cell.attrs.get(name), new.attrs.get(name)
        if was is not None and was != now:
            msg = f"problem: expected the one that was swept, with {name} {was!r}, got {now!r}"
            raise InputError(msg)
    return combine([cell, label(new)], {}), bool(new.attrs["interrupted"])


def _axes_of_runs(ds: xr.Dataset, given: Sequence[Axis] | None) -> list[Axis]:
    """The axes of a dataset, with their values."""
    names = {dim: name for name, dim in DIMS.items()}
    found = []
    for dim in axes_of(ds):
        name = names.get(dim, dim)
        labels = ds[dim].values
        axis = next((a for a in given or () if a.name == name), None)
        if axis is None and labels.dtype.kind not in "if":
            msg = (
                f"axes: expected the values of {name!r}, which results hold by name only; give "
                f"axes={{{name!r}: [...]}} as to the sweep"
            )
            raise InputError(msg)
        axis = axis or Axis(name, tuple(labels.tolist()), labels)
        if not np.array_equal(axis.labels, labels):
            msg = (
                f"axes: expected the values of {name!r} that the runs have, {labels.tolist()}, got "
                f"{axis.labels.tolist()}"
            )
            raise InputError(msg)
        found.append(axis)
    return found


def _bare(cell: xr.Dataset, at: Mapping[str, Any]) -> xr.Dataset:
    """A cell, without what says where it is, and without rates that it did not try."""
    cell = cell.drop_vars([name for name, c in cell.coords.items() if c.ndim == 0])
    if "status" not in cell:
        return cell
    tried = (cell["status"] != str(Status.NOT_RUN)).any("seed")
    if not tried.any():
        where = f" at {', '.join(f'{axis}={value}' for axis, value in at.items())}" if at else ""
        msg = f"ds: expected runs in every cell, got none{where}; sweep it to its end first"
        raise InputError(msg)
    return cell.isel(lr=np.flatnonzero(tried.values))


def _watched(ds: xr.Dataset) -> list[str]:
    """Observables of our own that runs were recorded with."""
    known = [name for name in OBSERVABLES if name not in ("weight_norm", "test_loss")]
    # Every run of a module knows its gradient norm at its ends, asked for or not.
    ends = [name for name in known if name != "gradient_norm" and f"{name}_final" in ds]
    return [name for name in known if name in ds or name in ends]


def _stop(ds: xr.Dataset) -> StopRule:
    told = ds.attrs
    tolerance = float(told.get("tolerance", np.nan))
    return StopRule(
        int(told["max_steps"]), tolerance=None if np.isnan(tolerance) else tolerance,
        blowup=float(told["blowup"]),
    )  # fmt: skip


def _gaps(found: Sequence[xr.Dataset], width: float) -> list[Gap]:
    """Where phases of neighbours differ, in every cell, the widest first.

    Args:
        found: Each cell's runs, labelled. Rates with a run that was cut off are passed over.
        width: The widest, in ln η, that are narrow enough.

    Returns:
        The others.
    """
    gaps = []
    for i, cell in enumerate(found):
        cut = (cell["status"] == str(Status.INTERRUPTED)).any("seed").values
        whole_ = cell.isel(lr=np.flatnonzero(~cut)).sortby("lr")
        logs, phases = np.log(whole_["lr"].values), whole_["phase"].transpose("lr", "seed").values
        for k in np.flatnonzero((phases[1:] != phases[:-1]).any(axis=1)):
            wide = float(logs[k + 1] - logs[k])
            if wide > width * (1 + 1e-9):  # halves of halves round
                gaps.append(Gap(wide, i, float(np.exp(logs[k] + wide / 2))))
    return sorted(gaps, key=lambda gap: -gap.width)


def _widest(gaps: Sequence[Gap], most: int | None) -> dict[int, list[float]]:
    """Rates to try in each cell: in the middle of the widest gaps, and of those half as wide."""
    chosen: dict[int, list[float]] = {}
    wide = [gap for gap in gaps if gap.width > 0.51 * gaps[0].width]
    for gap in wide[: None if most is None else max(most, 0)]:
        chosen.setdefault(gap.cell, []).append(gap.middle)
    return chosen


def _likely(gaps: Sequence[Gap], width: float) -> int:
    """How many rates it takes to narrow the gaps, if each holds one boundary."""
    return sum(math.ceil(math.log2(gap.width / width)) for gap in gaps)
