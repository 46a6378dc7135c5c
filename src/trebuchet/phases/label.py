"""Which phase each run was in, with the numbers behind the verdict."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from trebuchet._checks import factor, from_zero
from trebuchet._doors import door, maybe
from trebuchet._types import Status
from trebuchet.errors import InputError
from trebuchet.phases.tail import FloatArray, consecutive, rounding_of, tail_of, trending
from trebuchet.phases.verdict import Evidence, peak_ratios, phases, recovery_steps
from trebuchet.results.cells import over_cells, varied
from trebuchet.results.levels import DELTA
from trebuchet.results.schema import described, results
from trebuchet.results.summary import summarise


@door(ds=results, blowup=maybe(factor), delta=maybe(from_zero))
def label(ds: Any, *, blowup: float | None = None, delta: float | None = None) -> xr.Dataset:
    """Label every run with its phase.

    The phases, and the numbers that decide them, are in :func:`trebuchet.phases.verdict.phases`:
    divergent, collapsed, catapult, lazy, periodic, chaotic, unsettled. A scan's runs are judged by
    the same function.

    A run is *periodic* if its loss repeats (`trebuchet.phases.tail`): only full-batch runs without
    noise or a schedule, of which every step of the end was recorded, can be. It is *chaotic* only
    with an exponent, which the observable ``"lyapunov"`` measures.

    Args:
        ds: A results dataset, or what holds one as its ``runs``, such as a ``Scan``; numbers it
            lacks are computed from its traces.
        blowup: The factor past which a loss has diverged; the dataset's own, or 1e8, unless given.
        delta: δ; the dataset's own, or 1e-3, unless given.

    Returns:
        The dataset with ``phase`` (empty where nothing was run), ``peak_ratio``, ``final_ratio``,
        ``recovery_step`` (the first step after the loss was last above L₀; NaN where it never was,
        or never came back),
        ``kernel_drift`` |λ_T−λ₀|/λ₀ and ``lr_ratio_max`` (the largest recorded ηλ_t), which need
        top eigenvalues and are NaN without; ``period`` of the loss's cycle, NaN where it has
        settled on none, and ``amplitude``, how far the loss swings at the end;
        ``lyapunov_exponent`` and its standard error ``lyapunov_error``.

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
    if varied(ds):
        return over_cells(ds, partial(label, blowup=blowup, delta=delta))
    blowup = factor("blowup", ds.attrs.get("blowup", 1e8) if blowup is None else blowup)
    ds = summarise(ds, delta=delta)
    delta = float(ds.attrs.get("delta", DELTA))
    needed = ("loss_first", "loss_max", "loss_final", "last_above", "steps", "status")
    missing = [name for name in needed if name not in ds]
    if missing:
        msg = f"ds: expected a trace 'loss', or the numbers of each run; {missing[0]!r} is missing"
        raise InputError(msg)
    evidence, amplitude = _evidence(ds)
    found = phases(evidence, delta=delta, blowup=blowup)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # infinite losses
        found = np.where(evidence.of(Status.NOT_RUN), "", found)
        verdicts = {"phase": _like(ds, found), **_numbers(ds, evidence, found)}
    verdicts["amplitude"] = _like(ds, amplitude)
    result: xr.Dataset = ds.assign({n: described(n, values) for n, values in verdicts.items()})
    result.attrs |= {"label_blowup": blowup, "label_delta": delta}
    return result


def _evidence(ds: xr.Dataset) -> tuple[Evidence, FloatArray]:
    """What verdicts rest on, and how far each loss swings at the end."""
    first = ds["loss_first"]

    def values(name: str) -> np.ndarray:
        return np.asarray(ds[name].transpose(*first.dims).values)

    tails = _tails(ds)
    exponent, error, level = _exponents(ds)
    evidence = Evidence(
        values("loss_first"), values("loss_max"), values("loss_final"), values("last_above"),
        values("steps"), values("status"),
        output_spread=values("output_spread") if "output_spread" in ds else np.nan,
        lowest=values("loss_min") if "loss_min" in ds else None,
        final_start=_closing_first(ds, values),
        period=tails["period"], steady=tails["steady"] & level, exponent=exponent,
        exponent_error=error,
    )  # fmt: skip
    return evidence, tails["amplitude"]


def _tails(ds: xr.Dataset) -> dict[str, NDArray[Any]]:
    """The numbers of `Tail`, of runs that can be judged by theirs; NaN and False of others."""
    first = ds["loss_first"]
    found: dict[str, NDArray[Any]] = {
        "period": np.full(first.shape, np.nan), "amplitude": np.full(first.shape, np.nan),
        "steady": np.zeros(first.shape, np.bool_),
    }  # fmt: skip
    if not (ds.attrs.get("deterministic") == 1 and "loss" in ds):
        return found
    rounding = rounding_of(ds.attrs.get("dtype"))
    step, loss = ds["step"].values, ds["loss"].transpose(*first.dims, "step").values
    steps, status = (ds[name].transpose(*first.dims).values for name in ("steps", "status"))
    for run in np.argwhere(status == str(Status.MAX_STEPS)):
        at = tuple(run)
        tail = tail_of(consecutive(step, loss[at], int(steps[at])), first.values[at], rounding)
        for name, values in found.items():
            values[at] = getattr(tail, name)
    return found


def _exponents(ds: xr.Dataset) -> tuple[FloatArray, FloatArray, NDArray[np.bool_]]:
    """The exponent of every run, its error, and whether its blocks are without a trend."""
    first = ds["loss_first"]
    if "lyapunov_final" not in ds:
        nan = np.full(first.shape, np.nan)
        return nan, nan, np.zeros(first.shape, np.bool_)
    blocks = ds["lyapunov_final"].transpose(*first.dims, "block").values
    error = blocks.std(-1, ddof=1) / np.sqrt(blocks.shape[-1])
    level = np.array([not trending(b) for b in blocks.reshape(-1, blocks.shape[-1])])
    return blocks.mean(-1), error, level.reshape(first.shape)


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
        "period": _like(ds, np.asarray(evidence.period)),
        "lyapunov_exponent": _like(ds, np.asarray(evidence.exponent)),
        "lyapunov_error": _like(ds, np.asarray(evidence.exponent_error)),
    }
    if {"top_eigenvalue_first", "top_eigenvalue_final"} <= set(ds):
        start = ds["top_eigenvalue_first"].where(ds["top_eigenvalue_first"] > 0)
        numbers["kernel_drift"] = abs(ds["top_eigenvalue_final"] - start) / start
    if "top_eigenvalue_max" in ds:
        numbers["lr_ratio_max"] = ds["learning_rate"] * ds["top_eigenvalue_max"]
    return {name: values.transpose(*first.dims) for name, values in numbers.items()}
