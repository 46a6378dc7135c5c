"""One number a run from its traces, and one row a rate for people to read."""

from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from trebuchet._checks import anything, from_zero
from trebuchet._doors import door, maybe
from trebuchet._types import Phase, Status
from trebuchet.errors import InputError
from trebuchet.results.cells import cells_of, over_cells, varied
from trebuchet.results.levels import DELTA, risen
from trebuchet.results.schema import RUN, described, results

PHASE_LETTERS: dict[str, str] = {
    Phase.LAZY: "L",
    Phase.CATAPULT: "C",
    Phase.DIVERGENT: "D",
    Phase.COLLAPSED: "X",
    Phase.PERIODIC: "P",
    Phase.CHAOTIC: "~",
    Phase.UNSETTLED: "?",
}
LETTERS: dict[str, str] = {**PHASE_LETTERS, Status.DROPPED: "o", "": "·"}
"""The letters of the phase column: one a seed; dropped before it had a phase, or not run."""

NO_END = [str(Status.DROPPED), str(Status.NOT_RUN)]
"""Of runs that a scan did not take to their end: their last numbers are no final ones."""


def shown_phases(ds: xr.Dataset, dims: tuple[str, ...] = ("lr", "seed")) -> NDArray[np.str_]:
    """What tables and pictures show of every run.

    Args:
        ds: Labelled runs.
        dims: Theirs, in the order wanted.

    Returns:
        Over these dims: the phase; "dropped" where a scan left a run that had shown none yet;
        empty where nothing was run.
    """
    found: NDArray[np.str_] = ds["phase"].transpose(*dims).values.astype(np.str_)
    if "status" not in ds:
        return found
    left = ds["status"].transpose(*dims).values == str(Status.DROPPED)
    return np.where(left & (found == str(Phase.UNSETTLED)), str(Status.DROPPED), found)


def ended(ds: xr.Dataset, values: xr.DataArray) -> xr.DataArray:
    """Numbers of runs that went as far as was asked for: of those a scan left, missing.

    Args:
        ds: The runs.
        values: One number a run, or several.

    Returns:
        The values, NaN for the others.
    """
    return values.where(~ds["status"].isin(NO_END)) if "status" in ds else values


HAVE_COLUMNS = {"loss", "test_loss", "top_eigenvalue", "weight_norm", "sparsity"}
"""Observables with a column of their own."""

LOSS_NUMBERS = {
    "loss_first", "loss_max", "loss_max_step", "loss_min", "loss_final", "last_above", "steps",
    "status",
}  # fmt: skip


@door(ds=results, delta=maybe(from_zero))
def summarise(ds: xr.Dataset, *, delta: float | None = None) -> xr.Dataset:
    """Fill in the per-run numbers a dataset lacks, from its traces; those it has are kept.

    Numbers from a trace know the recorded steps only: a peak between two of them is not seen.

    Args:
        ds: A results dataset.
        delta: δ of ``last_above``; the dataset's own, or 1e-3, unless given. Where it differs from
            the dataset's own, ``last_above`` is computed afresh.

    Returns:
        The dataset with more variables. Numbers whose trace is missing stay missing.

    Raises:
        InputError: If it is no dataset of runs, or another δ is asked for and there is no loss
            trace to apply it to.
    """
    if varied(ds):
        return over_cells(ds, partial(summarise, delta=delta))
    found: dict[str, xr.DataArray] = {}
    own = float(ds.attrs.get("delta", DELTA))
    wanted = own if delta is None else float(delta)
    afresh = wanted != own
    # Long traces are read only for numbers that are missing.
    if "loss" in ds and (afresh or not set(ds) >= LOSS_NUMBERS):
        found |= _loss_numbers(ds, wanted)
    elif "loss" not in ds and afresh and "last_above" in ds:
        msg = (
            f"delta: expected {own}, with which the runs were made, since there is no loss trace "
            f"to apply another one to; got {wanted}"
        )
        raise InputError(msg)
    for trace in ("top_eigenvalue", "weight_norm", "test_loss", "sparsity"):
        if trace in ds and f"{trace}_final" not in ds:
            found[f"{trace}_final"] = _last(ds[trace])
        if trace in ds and trace in {"top_eigenvalue", "weight_norm"}:
            found[f"{trace}_first"] = ds[trace].isel(step=0, drop=True)
    if "top_eigenvalue" in ds and "top_eigenvalue_max" not in ds:
        found["top_eigenvalue_max"] = ds["top_eigenvalue"].max("step")
    if "top_eigenvalue_init" in ds and "learning_rate" in ds:
        found["lr_ratio"] = ds["learning_rate"] * ds["top_eigenvalue_init"]
    keep = {
        name: described(name, values)
        for name, values in found.items()
        if name not in ds or (afresh and name == "last_above")
    }
    result = ds.assign(keep)
    if afresh:
        result.attrs["delta"] = wanted
    return result


@door(ds=anything)  # a scan, too, whose class lives above
def table(ds: Any) -> pd.DataFrame:
    """One row a rate; numbers are medians over the seeds, phases one letter a seed.

    Args:
        ds: A results dataset, labelled or not; or a ``Scan``, which has a table of its own.

    Returns:
        A scan's ``Scan.table``; of runs the
        Columns ``lr, lr_ratio, phases, loss_max, loss_final, test_loss_final, ratio_final`` (the
        final ηλ), ``weight_norm_ratio`` (final |θ|²/|θ₀|²) and ``sparsity`` (``sparsity_1`` … for
        several layers); then ``accuracy_final`` and what else was observed of one number a run, at
        its end. A column whose numbers are missing from the dataset is left out. Phase letters:
        L lazy, C catapult, D divergent, X collapsed, P periodic, ~ chaotic, ? unsettled, o dropped
        by a scan, · not run. Dropped runs have no final numbers. Axes beside rates and seeds have a
        column each before these, and a row every cell and rate.

    Raises:
        InputError: If `ds` is neither.
    """
    own = getattr(ds, "table", None)
    if isinstance(own, pd.DataFrame):
        return own.copy()
    ds = summarise(results("ds", ds))
    frames = []
    for where, cell in cells_of(ds):
        frame = _table(cell)
        for i, (axis, value) in enumerate(where.items()):
            frame.insert(i, axis, [value] * len(frame))
        frames.append(frame)
    return frames[0] if len(frames) == 1 else pd.concat(frames, ignore_index=True)


def _table(ds: xr.Dataset) -> pd.DataFrame:
    """The table of runs over rates and seeds."""
    columns: dict[str, Any] = {"lr": _median(ds["learning_rate"])}
    if "lr_ratio" in ds:
        columns["lr_ratio"] = _median(ds["lr_ratio"])
    if "phase" in ds:
        letters = shown_phases(ds)
        columns["phases"] = [" ".join(LETTERS[phase] for phase in row) for row in letters]
    for name in ("loss_max", "loss_final", "test_loss_final"):
        if name in ds:
            columns[name] = _median(ended(ds, ds[name]))
    if "top_eigenvalue_final" in ds:
        final = ended(ds, ds["top_eigenvalue_final"])
        columns["ratio_final"] = _median(ds["learning_rate"] * final)
    if {"weight_norm_final", "weight_norm_first"} <= set(ds):
        start = ds["weight_norm_first"].where(ds["weight_norm_first"] > 0)
        columns["weight_norm_ratio"] = _median(ended(ds, ds["weight_norm_final"]) / start)
    if "sparsity_final" in ds:
        layers = ds.sizes["layer"]
        for layer in range(layers):
            name = "sparsity" if layers == 1 else f"sparsity_{layer + 1}"
            columns[name] = _median(ended(ds, ds["sparsity_final"].isel(layer=layer)))
    for name in map(str, ds.data_vars):  # of observables that were recorded
        if f"{name}_final" in ds and name not in HAVE_COLUMNS:
            final = ds[f"{name}_final"]
            if set(final.dims) == set(RUN):
                columns[f"{name}_final"] = _median(ended(ds, final))
    return pd.DataFrame(columns)


def _loss_numbers(ds: xr.Dataset, delta: float) -> dict[str, xr.DataArray]:
    loss = ds["loss"].transpose(..., "step")
    values = loss.values
    recorded = ~np.isnan(values)
    run = loss.isel(step=0, drop=True)
    schedule = ds["step"].values
    ended = (len(schedule) - 1) - np.argmax(recorded[..., ::-1], axis=-1)
    any_recorded = recorded.any(axis=-1)
    first = values[..., 0]
    above = risen(values, first[..., None], delta)
    last_above = (len(schedule) - 1) - np.argmax(above[..., ::-1], axis=-1)
    peak = np.where(recorded, values, -np.inf)
    finite = np.isfinite(np.where(recorded, values, 0.0)).all(axis=-1)
    numbers: dict[str, np.ndarray[Any, Any]] = {
        "loss_first": first,
        "loss_max": np.where(any_recorded, peak.max(axis=-1), np.nan),
        "loss_max_step": np.where(any_recorded, schedule[np.argmax(peak, axis=-1)], np.nan),
        "loss_min": np.where(any_recorded, np.where(recorded, values, np.inf).min(axis=-1), np.nan),
        "loss_final": np.take_along_axis(values, ended[..., None], axis=-1)[..., 0],
        "last_above": np.where(above.any(axis=-1), schedule[last_above], -1),
    }
    found = {name: run.copy(data=np.asarray(array)) for name, array in numbers.items()}
    found["steps"] = run.copy(data=np.where(any_recorded, schedule[ended], 0))
    status = np.where(finite & any_recorded, str(Status.MAX_STEPS), str(Status.NON_FINITE))
    found["status"] = run.copy(data=status)
    if "status" in ds:
        # the loss that ended such a run is past all bounds, whatever the last recorded one was
        over = ds["status"] == str(Status.NON_FINITE)
        for name in ("loss_max", "loss_final"):
            found[name] = found[name].where(~over, np.inf)
    return found


def _last(trace: xr.DataArray) -> xr.DataArray:
    """The last recorded value of each run."""
    ordered = trace.transpose(..., "step")
    values = ordered.values
    index = values.shape[-1] - 1 - np.argmax(~np.isnan(values)[..., ::-1], axis=-1)
    last = np.take_along_axis(values, index[..., None], axis=-1)[..., 0]
    shape = ordered.isel(step=0, drop=True)
    return shape.copy(data=last).transpose(*(dim for dim in trace.dims if dim != "step"))


def _median(values: xr.DataArray) -> "pd.Series[float]":
    """The median over the seeds that have a number, as a column; NaN where none has."""
    frame = pd.DataFrame(values.transpose("lr", "seed").values)
    return frame.median(axis=1)
