"""More runs where phases part: between neighbouring rates that differ in phase, by halves."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import xarray as xr

from trebuchet._checks import instance, progress as a_bar, whole
from trebuchet._doors import door, maybe, rule
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
from trebuchet.sweeps.sweep import sweep

CLOSEST = 1.001
"""No rate is tried between two that are nearer than by this factor."""


@door(
    ds=results, problem=rule(instance, Problem, "a trebuchet.Problem", "give the sweep's own"),
    runs=rule(whole, "a positive number of runs"), axes=maybe(axes_given),
    observables=maybe(named_observables),
    record=maybe(instance, Recording, "a trebuchet.Recording", "Recording(every=10) is one"),
    execution=maybe(instance, Execution, "a trebuchet.Execution", "Execution(workers=1) is one"),
    progress=a_bar,
)  # fmt: skip
def refine(
    ds: Any,
    problem: Problem,
    *,
    runs: int,
    axes: Mapping[str, Iterable[Any] | Mapping[str, Any]] | None = None,
    observables: Sequence[str | Observable] | None = None,
    record: Recording | None = None,
    execution: Execution | None = None,
    progress: bool | Progress | None = None,
) -> xr.Dataset:
    """Spend more runs on the boundaries between phases.

    Wherever neighbouring rates of a cell differ in phase, at any seed, the rate half way between
    them in logarithms is tried from all seeds: the widest gaps first, again and again.

    Args:
        ds: Runs of a sweep, with or without axes.
        problem: What was swept.
        runs: At most so many are made.
        axes: As the sweep was given them; needed where results hold names, not numbers.
        observables: As the sweep was given them; those that the dataset holds unless given.
        record: As the sweep was given it.
        execution: How runs are computed, without a checkpoint.
        progress: As for ``sweep``, in runs.

    Returns:
        The runs, labelled, over the union of all rates, in increasing order: where a cell has no
        run at one of them, its status is ``not_run``. After Ctrl-C, what there is.

    Raises:
        InputError: If an argument is not what was expected, or does not fit the dataset.

    Example:
        >>> from trebuchet.models import PureQuadratic
        >>> problem = Problem(lambda seed: PureQuadratic.draw(50, generator=seed), "half_mse",
        ...                   ([[1.0]], [0.0]))
        >>> coarse = sweep(problem, lr_ratio=[1.0, 5.0], steps=100)
        >>> [round(rate, 2) for rate in refine(coarse, problem, runs=3).lr.values.tolist()]
        [1.0, 1.5, 2.24, 3.34, 5.0]
    """
    if execution is not None and execution.checkpoint is not None:
        msg = "execution: expected one without a checkpoint, since rates depend on what was found"
        raise InputError(msg)
    over = _axes_of_runs(ds, cast("Sequence[Axis] | None", axes))
    problems = [cell.problem for cell in cells(problem, over, ())]
    settings: dict[str, Any] = {
        "seeds": ds["seed"].values.tolist(), "record": record, "execution": execution,
        "observables": _watched(ds) if observables is None else observables,
        "stop": _stop(ds), "progress": False,
    }  # fmt: skip
    found = [label(_bare(cell)) for _, cell in cells_of(ds)]
    settings["swept"] = str(ds.attrs.get("swept", "lr"))
    seeds, made = ds.sizes["seed"], 0
    bar = progress_bar("refine", shown=progress)
    try:
        while chosen := _gaps(found, (runs - made) // seeds):
            for i, rates in chosen.items():
                found[i] = _with_more(found[i], problems[i], rates, **settings)
                made += len(rates) * seeds
                bar(min(made, runs - 1), runs)  # there may be no gap left before the last
                if found[i].attrs["interrupted"]:
                    break
            if found[i].attrs["interrupted"]:
                break
    except KeyboardInterrupt:  # between runs: what was made is there
        found[0].attrs["interrupted"] = 1
    finally:
        close(bar)
    return combine(found, {axis.dim: axis.coordinate for axis in over}) if over else found[0]


def _with_more(
    cell: xr.Dataset, problem: Problem, rates: list[float], *, swept: str, **settings: Any
) -> xr.Dataset:
    """The runs of a cell, and those at more rates."""
    given: dict[str, Any] = {swept: rates, "delta": cell.attrs.get("delta"), **settings}
    new = sweep(problem, **given)
    for name in ("loss", "optimizer", "n_parameters"):
        was, now = cell.attrs.get(name), new.attrs.get(name)
        if was is not None and was != now:
            msg = f"problem: expected the one that was swept, with {name} {was!r}, got {now!r}"
            raise InputError(msg)
    return combine([cell, label(new)], {})


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


def _bare(cell: xr.Dataset) -> xr.Dataset:
    """A cell, without what says where it is, and without rates that it did not try."""
    cell = cell.drop_vars([name for name, c in cell.coords.items() if c.ndim == 0])
    if "status" not in cell:
        return cell
    tried = (cell["status"] != str(Status.NOT_RUN)).any("seed")
    return cell.isel(lr=np.flatnonzero(tried.values))


def _watched(ds: xr.Dataset) -> list[str]:
    """Observables of our own that runs were recorded with."""
    known = set(OBSERVABLES) - {"weight_norm", "test_loss"}
    return [name for name in OBSERVABLES if name in known and {name, f"{name}_final"} & set(ds)]


def _stop(ds: xr.Dataset) -> StopRule:
    told = ds.attrs
    tolerance = float(told.get("tolerance", np.nan))
    return StopRule(
        int(told["max_steps"]), tolerance=None if np.isnan(tolerance) else tolerance,
        blowup=float(told["blowup"]),
    )  # fmt: skip


def _gaps(found: Sequence[xr.Dataset], rates: int) -> dict[int, list[float]]:
    """Rates to try in each cell: in the middle of the widest gaps, and of those half as wide."""
    gaps: list[tuple[float, int, float]] = []
    for i, cell in enumerate(found):
        cell = cell.sortby("lr")
        logs, phases = np.log(cell["lr"].values), cell["phase"].transpose("lr", "seed").values
        for k in np.flatnonzero((phases[1:] != phases[:-1]).any(axis=1)):
            width = logs[k + 1] - logs[k]
            if width > np.log(CLOSEST):
                gaps.append((float(width), i, float(np.exp(logs[k] + width / 2))))
    gaps.sort(key=lambda gap: -gap[0])
    wide = [gap for gap in gaps if gap[0] > 0.51 * gaps[0][0]][: max(rates, 0)]
    chosen: dict[int, list[float]] = {}
    for _, i, rate in wide:
        chosen.setdefault(i, []).append(rate)
    return chosen
