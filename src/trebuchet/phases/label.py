"""Which phase each run was in, with the numbers behind the verdict."""

from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr

from trebuchet._checks import factor, from_zero
from trebuchet._doors import door, maybe
from trebuchet._types import Status
from trebuchet.errors import InputError
from trebuchet.phases.verdict import Evidence, peak_ratios, phases, recovery_steps
from trebuchet.results.levels import DELTA
from trebuchet.results.schema import described, results
from trebuchet.results.summary import summarise


@door(ds=results, blowup=maybe(factor), delta=maybe(from_zero))
def label(ds: Any, *, blowup: float | None = None, delta: float | None = None) -> xr.Dataset:
    """Label every run with its phase.

    The phases, and the numbers that decide them, are in :func:`trebuchet.phases.verdict.phases`:
    divergent, collapsed, catapult, lazy, unsettled. A scan's runs are judged by the same function.

    Args:
        ds: A results dataset, or what holds one as its ``runs``, such as a ``Scan``; numbers it
            lacks are computed from its traces.
        blowup: The factor past which a loss has diverged; the dataset's own, or 1e8, unless given.
        delta: δ; the dataset's own, or 1e-3, unless given.

    Returns:
        The dataset with ``phase`` (empty where nothing was run), ``peak_ratio``, ``final_ratio``,
        ``recovery_step`` (the first step after the loss was last above L₀; NaN where it never was,
        or never came back),
        ``kernel_drift`` |λ_T−λ₀|/λ₀ and ``lr_ratio_max`` (the largest recorded ηλ_t). The last two
        need top eigenvalues and are NaN without.

    Raises:
        InputError: If a threshold is out of range, or the dataset holds no losses.

    Example:
        >>> from trebuchet.results.schema import make_dataset
        >>> losses = [[[1.0, 0.5, 0.1]], [[1.0, 40.0, 0.1]], [[1.0, 1e3, np.inf]]]
        >>> ds = make_dataset({"learning_rate": [[0.1], [0.3], [0.5]], "loss": losses},
        ...                   lr=[0.1, 0.3, 0.5], seed=[0], step=[0, 40, 80])
        >>> label(ds).phase.values[:, 0].tolist()
        ['lazy', 'catapult', 'divergent']
    """
    blowup = factor("blowup", ds.attrs.get("blowup", 1e8) if blowup is None else blowup)
    ds = summarise(results("ds", ds), delta=delta)
    delta = float(ds.attrs.get("delta", DELTA))
    needed = ("loss_first", "loss_max", "loss_final", "last_above", "steps", "status")
    missing = [name for name in needed if name not in ds]
    if missing:
        msg = f"ds: expected a trace 'loss', or the numbers of each run; {missing[0]!r} is missing"
        raise InputError(msg)
    evidence = _evidence(ds)
    found = phases(evidence, delta=delta, blowup=blowup)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # infinite losses
        found = np.where(evidence.of(Status.NOT_RUN), "", found)
        verdicts = {"phase": _like(ds, found), **_numbers(ds, evidence, found)}
    result: xr.Dataset = ds.assign({n: described(n, values) for n, values in verdicts.items()})
    result.attrs |= {"label_blowup": blowup, "label_delta": delta}
    return result


def _evidence(ds: xr.Dataset) -> Evidence:
    first = ds["loss_first"]

    def values(name: str) -> np.ndarray:
        return np.asarray(ds[name].transpose(*first.dims).values)

    return Evidence(
        values("loss_first"), values("loss_max"), values("loss_final"), values("last_above"),
        values("steps"), values("status"),
        output_spread=values("output_spread") if "output_spread" in ds else np.nan,
        lowest=values("loss_min") if "loss_min" in ds else None,
        final_start=_closing_first(ds, values),
    )  # fmt: skip


def _closing_first(ds: xr.Dataset, values: Callable[[str], np.ndarray]) -> np.ndarray | None:
    """L₀ on the samples of the final loss, where those are others than the trace's."""
    if "loss_closing_first" not in ds:
        return None
    start = values("loss_closing_first")
    return np.where(np.isnan(start), values("loss_first"), start)


def _like(ds: xr.Dataset, values: np.ndarray) -> xr.DataArray:
    first = ds["loss_first"]
    return xr.DataArray(values, coords=first.coords, dims=first.dims)


def _numbers(ds: xr.Dataset, evidence: Evidence, phase: np.ndarray) -> dict[str, xr.DataArray]:
    first = ds["loss_first"]
    scale = first.where(first != 0)
    nan = xr.full_like(first, np.nan, dtype=np.float64)
    numbers = {
        "peak_ratio": _like(ds, peak_ratios(evidence)),
        "final_ratio": ds["loss_final"] / scale,
        "recovery_step": _like(ds, recovery_steps(evidence, phase)),
        "kernel_drift": nan,
        "lr_ratio_max": nan,
    }
    if {"top_eigenvalue_first", "top_eigenvalue_final"} <= set(ds):
        start = ds["top_eigenvalue_first"].where(ds["top_eigenvalue_first"] > 0)
        numbers["kernel_drift"] = abs(ds["top_eigenvalue_final"] - start) / start
    if "top_eigenvalue_max" in ds:
        numbers["lr_ratio_max"] = ds["learning_rate"] * ds["top_eigenvalue_max"]
    return {name: values.transpose(*first.dims) for name, values in numbers.items()}
