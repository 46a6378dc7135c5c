"""Scans saved before their runs were a grid: one row a run, one row a look."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from trebuchet._environment import FACTS
from trebuchet._types import Status
from trebuchet.results.schema import make_dataset

SAME_RATE = 1e-9
KEPT = {
    **{name: name for name in ("loss", "optimizer", "n_parameters", "n_samples", "batch_size")},
    **{name: name for name in ("compared_on", "dtype", "device", "delta", "blowup")},
    "horizon": "max_steps",
}
"""Settings that are attributes of a scan's runs now, and what they are called there."""


def of_old(
    ds: xr.Dataset,
    settings: Mapping[str, Any],
    *,
    top_eigenvalue: float = math.nan,
    operator: str = "",
) -> xr.Dataset:
    """The runs of such a scan as they are now.

    Where one seed was run twice at one rate, as two bisections may, the run that went further
    stands, as in the table of rates.

    Args:
        ds: As it was saved, with dims ``run`` and ``look``.
        settings: The scan's.
        top_eigenvalue: λ₀; NaN if not measured.
        operator: Whose.

    Returns:
        A results dataset. Steps at which no run was looked at are not among its steps; what such a
        file did not tell is missing.
    """
    further = np.lexsort((ds["steps"].values, ds["status"].values != str(Status.DROPPED)))
    ds = ds.isel(run=further)
    rates: list[float] = []
    for rate in sorted(float(r) for r in ds["rate"].values):
        if not rates or not math.isclose(rate, rates[-1], rel_tol=SAME_RATE):
            rates.append(rate)
    lr = np.array(rates)
    seeds = sorted({int(seed) for seed in ds["seed"].values})
    steps = sorted({0, *(int(t) for t in ds["trace_step"].values)})

    def place(rate: Any, seed: Any) -> tuple[int, int]:
        return int(np.argmin(np.abs(np.log(lr / float(rate))))), seeds.index(int(seed))

    pairs = zip(ds["rate"].values, ds["seed"].values, strict=True)
    at = tuple(np.array([place(rate, seed) for rate, seed in pairs]).T)
    shape = (lr.size, len(seeds))

    def grid(values: Any, missing: Any = np.nan) -> np.ndarray[Any, Any]:
        values = np.asarray(values)
        full = np.full(shape, missing, dtype=values.dtype)
        full[at] = values
        return full

    loss = np.full((*shape, len(steps)), np.nan)
    column = {t: i for i, t in enumerate(steps)}
    stands = dict(zip(zip(*at, strict=True), ds["rate"].values.tolist(), strict=True))
    for rate, seed, t, value in zip(
        *(ds[f"trace_{name}"].values for name in ("rate", "seed", "step", "loss")), strict=True
    ):
        where = place(rate, seed)
        if rate == stands[where]:
            loss[(*where, column[int(t)])] = value
    ran = grid(np.ones(ds.sizes["run"]), 0.0) == 1
    first = float(settings["loss_first"])
    recovery = grid(ds["recovery_step"].values.astype(float))
    peak = grid(ds["peak_ratio"].values.astype(float)) * first
    seen = np.where(np.isnan(loss), -np.inf, loss)
    above = seen > first + float(settings["delta"]) * abs(first)
    last = np.where(
        above.any(-1), np.array(steps)[above.shape[-1] - 1 - above[..., ::-1].argmax(-1)], -1
    )
    last = np.where(recovery >= 0, recovery - 1, last)
    horizon = grid(ds["loss_horizon"].values.astype(float))
    final = grid(ds["loss"].values.astype(float))
    variables = {
        "learning_rate": np.repeat(lr[:, None], len(seeds), axis=1),
        "status": grid(ds["status"].values.astype(str).astype("<U13"), str(Status.NOT_RUN)),
        "steps": grid(ds["steps"].values, 0),
        "loss": loss,
        "loss_first": np.where(ran, first, np.nan),
        "loss_max": peak,
        "loss_min": np.where(ran, np.where(np.isnan(loss), np.inf, loss).min(-1), np.nan),
        "loss_final": final,
        "loss_horizon": horizon,
        "last_above": np.where(ran, last, -1).astype(np.int64),
        "phase": grid(ds["phase"].values.astype(str).astype("<U9"), ""),
        "peak_ratio": peak / first if first else peak,
        "recovery_step": recovery,
        "kernel_drift": grid(ds["kernel_drift"].values.astype(float)),
        "sparsity_final": grid(ds["sparsity"].values.astype(float))[..., None],
        "gradient_norm_first": grid(ds["grad_norm_first"].values.astype(float)),
        "gradient_norm_final": grid(ds["grad_norm"].values.astype(float)),
        "weight_norm_first": grid(ds["weight_norm_first"].values.astype(float)),
        "weight_norm_final": grid(ds["weight_norm"].values.astype(float)),
    }
    final = grid(ds["lr_ratio_final"].values.astype(float)) / variables["learning_rate"]
    if not np.isnan(final).all():
        variables["top_eigenvalue_final"] = final
        variables["top_eigenvalue_first"] = np.where(np.isnan(final), np.nan, top_eigenvalue)
    if math.isfinite(top_eigenvalue):
        variables["top_eigenvalue_init"] = np.full(len(seeds), top_eigenvalue)
        variables["lr_ratio"] = variables["learning_rate"] * top_eigenvalue
    known = {KEPT[name]: value for name, value in settings.items() if name in KEPT}
    made = make_dataset(
        variables, lr=lr, seed=seeds, step=steps,
        attrs={**known, "operator": operator, "old": 1},
    )  # fmt: skip
    # Made then and there, not where it is read.
    del made.attrs["created"]
    for name in FACTS:
        made.attrs.pop(name, None)
        if name in settings:
            made.attrs[name] = settings[name]
    return made
