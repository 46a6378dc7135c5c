"""Which phase each run was in, with the numbers behind the verdict."""

import math

import numpy as np
import xarray as xr

from trebuchet._types import Phase, Status
from trebuchet.errors import InputError
from trebuchet.results.schema import check_runs, described
from trebuchet.results.summary import summarise

SWINGING_TAIL = 0.1
"""A run that ended on its budget is still swinging if its loss was above L₀ in this last part."""


def label(ds: xr.Dataset, *, blowup: float | None = None, delta: float | None = None) -> xr.Dataset:
    """Label every run with its phase.

    - divergent: a non-finite loss, or one above `blowup` × L₀.
    - collapsed: the gradient is exactly zero and the output no longer depends on the input, with
      loss left over.
    - catapult: the loss rose above (1+δ)L₀ and came back below L₀ (and, where the run ended on
      its budget, had stayed down for its last tenth).
    - lazy: the loss never rose above (1+δ)L₀ and ended below L₀. A loss of zero throughout counts.
    - unsettled: none of these; also a run that was interrupted.

    Args:
        ds: A results dataset; numbers it lacks are computed from its traces.
        blowup: The factor past which a loss has diverged; the dataset's own, or 1e8, unless given.
        delta: δ; the dataset's own, or 1e-3, unless given.

    Returns:
        The dataset with ``phase``, ``peak_ratio``, ``final_ratio``, ``recovery_step`` (the first
        step after the loss was last above L₀; NaN where it never was, or never came back),
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
    ds = check_runs(ds)
    blowup = float(ds.attrs.get("blowup", 1e8) if blowup is None else blowup)
    if math.isnan(blowup) or blowup <= 1:
        msg = f"blowup: expected a factor above 1, got {blowup}"
        raise InputError(msg)
    if delta is not None and not (math.isfinite(delta) and delta >= 0):
        msg = f"delta: expected a finite number >= 0, got {delta}"
        raise InputError(msg)
    ds = summarise(ds, delta=delta)
    delta = float(ds.attrs.get("delta", 1e-3))
    needed = ("loss_first", "loss_max", "loss_final", "last_above", "steps", "status")
    missing = [name for name in needed if name not in ds]
    if missing:
        msg = f"ds: expected a trace 'loss', or the numbers of each run; {missing[0]!r} is missing"
        raise InputError(msg)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # infinite losses
        phase = _phase(ds, blowup, delta)
        verdicts = {"phase": phase, **_numbers(ds, phase)}
    result = ds.assign({name: described(name, values) for name, values in verdicts.items()})
    result.attrs |= {"label_blowup": blowup, "label_delta": delta}
    return result


def _phase(ds: xr.Dataset, blowup: float, delta: float) -> xr.DataArray:
    first, peak, final = ds["loss_first"], ds["loss_max"], ds["loss_final"]
    # |L₀| rather than L₀, so that a user's loss may be negative
    above = peak > first + delta * abs(first)
    below = final < first
    spread = ds["output_spread"] if "output_spread" in ds else xr.full_like(first, np.nan)

    ended = _is(ds, Status.CONVERGED, Status.GRADIENT_ZERO)
    settled = ended | (ds["last_above"] < (1 - SWINGING_TAIL) * ds["steps"])
    blown = (abs(first) > 0) & (peak > first + (blowup - 1) * abs(first))
    non_finite = _is(ds, Status.NON_FINITE) | np.isinf(peak) | np.isinf(final)
    divergent = non_finite | _is(ds, Status.BLEW_UP) | blown
    collapsed = _is(ds, Status.GRADIENT_ZERO) & (spread == 0) & (final > 0)
    # A run whose start already had no loss has nowhere to fall to
    solved = (first == 0) & (peak == 0) & (final == 0)

    phase = xr.full_like(first, "", dtype="<U9").where(False, str(Phase.UNSETTLED))
    for name, verdict in (
        (Phase.LAZY, ~above & (below | solved)),
        (Phase.CATAPULT, above & below & settled),
        (Phase.COLLAPSED, collapsed),
        (Phase.UNSETTLED, _is(ds, Status.INTERRUPTED)),
        (Phase.DIVERGENT, divergent),
    ):
        phase = phase.where(~verdict, str(name))
    return phase.transpose(*first.dims).astype(np.str_)


def _numbers(ds: xr.Dataset, phase: xr.DataArray) -> dict[str, xr.DataArray]:
    first = ds["loss_first"]
    scale = first.where(first != 0)
    nan = xr.full_like(first, np.nan, dtype=np.float64)
    back = (ds["last_above"] >= 0) & (ds["last_above"] < ds["steps"]) & (phase != Phase.DIVERGENT)
    numbers = {
        "peak_ratio": ds["loss_max"] / scale,
        "final_ratio": ds["loss_final"] / scale,
        "recovery_step": (ds["last_above"] + 1.0).where(back),
        "kernel_drift": nan,
        "lr_ratio_max": nan,
    }
    if {"top_eigenvalue_first", "top_eigenvalue_final"} <= set(ds):
        start = ds["top_eigenvalue_first"].where(ds["top_eigenvalue_first"] > 0)
        numbers["kernel_drift"] = abs(ds["top_eigenvalue_final"] - start) / start
    if "top_eigenvalue_max" in ds:
        numbers["lr_ratio_max"] = ds["learning_rate"] * ds["top_eigenvalue_max"]
    return {name: values.transpose(*first.dims) for name, values in numbers.items()}


def _is(ds: xr.Dataset, *statuses: Status) -> xr.DataArray:
    return ds["status"].isin([str(status) for status in statuses])
