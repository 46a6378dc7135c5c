"""The tables of a scan: its looks, its runs, and its rates, which are the runs over all seeds."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from trebuchet._types import Phase, Status

RUN_COLUMNS: dict[str, tuple[str, str]] = {
    "rate": ("learning rate η", "1"),
    "seed": ("order of the batches", "1"),
    "phase": ("phase", "1"),
    "steps": ("updates made", "steps"),
    "status": ("why the run stopped; 'dropped' if the search left it behind", "1"),
    "loss": ("loss at the last look", "loss"),
    "loss_horizon": ("loss at the horizon, on the closing set", "loss"),
    "peak_ratio": ("largest loss over the loss at the start", "1"),
    "recovery_step": (
        "first step after the last look above the start; NaN: never rose, or did not come back",
        "steps",
    ),
    "lr_ratio_final": ("ηλ at the end", "1"),
    "kernel_drift": ("|λ_T − λ₀| / λ₀", "1"),
    "sparsity": ("fraction of ReLU pre-activations < 0 at the end", "1"),
    "grad_norm_first": ("|∇L| of the first step", "1"),
    "grad_norm": ("|∇L| of the last step", "1"),
    "weight_norm_first": ("|θ|² at the start", "1"),
    "weight_norm": ("|θ|² at the horizon", "1"),
}
"""Columns of the frame of runs: long name and unit."""

DROPPED = str(Status.DROPPED)
"""Status of a run that the search left behind before the horizon, and that had not diverged."""

WORST_FIRST = (
    Phase.DIVERGENT, Phase.COLLAPSED, Phase.UNSETTLED, Phase.CHAOTIC, Phase.PERIODIC,
    Phase.CATAPULT, Phase.LAZY,
)  # fmt: skip
"""Seeds that disagree about a rate give it the first of these phases."""

MEANS = (
    "lr_ratio_final", "kernel_drift", "sparsity", "grad_norm_first", "grad_norm",
    "weight_norm_first", "weight_norm",
)  # fmt: skip
"""Columns that are a mean over the seeds where they are known."""

SAME_RATE = 1e-9
"""Rates closer than this, relatively, are one rate: two bisections may meet."""


def rate_columns(seeds: Sequence[int]) -> dict[str, tuple[str, str]]:
    """Columns of the table of rates: long name and unit.

    Args:
        seeds: The seeds that were run.

    Returns:
        In the table's order.

    Example:
        >>> list(rate_columns([0, 1]))[:5]
        ['rate', 'phase', 'phase_seed0', 'phase_seed1', 'n_seeds']
    """
    of_seed = f"phase of seed {{}}; '{DROPPED}' before the horizon; empty: not run at this rate"
    return {
        "rate": ("learning rate η", "1"),
        "phase": ("phase; the worst one where seeds disagree", "1"),
        **{f"phase_seed{seed}": (of_seed.format(seed), "1") for seed in seeds},
        "n_seeds": ("seeds that were run", "1"),
        "loss": ("loss at the last look, mean over seeds; infinite if one diverged to NaN", "loss"),
        "loss_horizon": (
            "loss at the horizon, mean over the seeds that were not dropped; infinite if one of "
            "them diverged",
            "loss",
        ),
        "peak_ratio": ("largest loss over the loss at the start, of any seed", "1"),
        "recovery_step": (
            "first step after the last look above the start, latest of the seeds that came back; "
            "NaN: none did",
            "steps",
        ),
        "steps": ("updates made, most of any seed", "steps"),
        "status": (f"why the worst run stopped; '{DROPPED}' if the search left all behind", "1"),
        **{
            name: (f"{long_name}, mean over the seeds where it is known", unit)
            for name, (long_name, unit) in RUN_COLUMNS.items()
            if name in MEANS
        },
    }


def run_table(ds: xr.Dataset) -> pd.DataFrame:
    """One row a run, by rate and seed.

    Args:
        ds: Labelled runs.

    Returns:
        Columns as in `RUN_COLUMNS`, where the dataset has them; cells that were not run are no
        rows.
    """
    ds = ds.transpose("lr", "seed", ...)
    ran = (ds["status"] != str(Status.NOT_RUN)).values
    nan = np.full(ran.shape, np.nan)

    def of(name: str) -> NDArray[Any]:
        values = ds[name].values if name in ds else nan
        return np.asarray(values[ran])

    status = of("status")
    rate, final = of("learning_rate"), of("loss_final")
    whole = ~np.isin(status, [str(s) for s in (Status.DROPPED, Status.INTERRUPTED)])
    horizon = of("loss_horizon")
    sparsity = of("sparsity_final")
    seeds = np.broadcast_to(ds["seed"].values, ran.shape)[ran]
    return pd.DataFrame({
        "rate": rate,
        "seed": seeds,
        "phase": of("phase").astype(str).tolist(),
        "steps": of("steps"),
        "status": status.astype(str).tolist(),
        "loss": last_look(ds)[ran],
        "loss_horizon": np.where(whole, np.where(np.isnan(horizon), final, horizon), np.nan),
        "peak_ratio": of("peak_ratio"),
        "recovery_step": of("recovery_step"),
        "lr_ratio_final": rate * of("top_eigenvalue_final"),
        "kernel_drift": of("kernel_drift"),
        "sparsity": sparsity.mean(axis=-1) if sparsity.ndim > 1 else sparsity,
        "grad_norm_first": of("gradient_norm_first"),
        "grad_norm": of("gradient_norm_final"),
        "weight_norm_first": of("weight_norm_first"),
        "weight_norm": of("weight_norm_final"),
    })  # fmt: skip


def last_look(ds: xr.Dataset) -> NDArray[Any]:
    """The loss where each run was judged last, on the set that runs are compared on."""
    final: NDArray[Any] = ds["loss_final"].values
    if "loss_closing_first" not in ds or "loss" not in ds:
        return final
    trace = ds["loss"].values
    known = ~np.isnan(trace)
    last = trace.shape[-1] - 1 - np.argmax(known[..., ::-1], axis=-1)
    look = np.take_along_axis(trace, last[..., None], axis=-1)[..., 0]
    return np.where(ds["status"].values == str(Status.NON_FINITE), final, look)


def looks_table(ds: xr.Dataset) -> pd.DataFrame:
    """One row a look: rate, seed, step, loss.

    Args:
        ds: Runs.

    Returns:
        By rate, seed and step; steps at which a run was not looked at are no rows.
    """
    loss = ds["loss"].transpose("lr", "seed", "step").values
    at = np.argwhere(~np.isnan(loss))
    rate = ds["learning_rate"].transpose("lr", "seed").values
    return pd.DataFrame({
        "rate": rate[at[:, 0], at[:, 1]],
        "seed": ds["seed"].values[at[:, 1]],
        "step": ds["step"].values[at[:, 2]],
        "loss": loss[tuple(at.T)],
    })  # fmt: skip


def by_rate(runs: pd.DataFrame, seeds: Iterable[int] = ()) -> pd.DataFrame:
    """Combine the runs of every rate over their seeds.

    Seeds that disagree give a rate the worst of their phases, in the order of `WORST_FIRST`: a rate
    is only as good as what one can rely on. A run that was dropped counts as unsettled. Where one
    seed was run twice at one rate, as in frames put together by hand, the run that went further
    counts.

    Args:
        runs: One row a run, see `RUN_COLUMNS`.
        seeds: Seeds that have a column, whether they were run or not.

    Returns:
        One row a rate, ascending, see `rate_columns`. Missing numbers are NaN.

    Example:
        >>> runs = pd.DataFrame({name: [np.nan, np.nan] for name in RUN_COLUMNS})
        >>> runs = runs.assign(rate=0.1, seed=[0, 1], steps=200, status="max_steps")
        >>> runs = runs.assign(recovery_step=[-1, 12], phase=["lazy", "catapult"])
        >>> by_rate(runs)[["phase", "phase_seed0", "phase_seed1", "recovery_step"]]
              phase phase_seed0 phase_seed1  recovery_step
        0  catapult        lazy    catapult             12
    """
    seeds = sorted({int(seed) for seed in [*seeds, *runs["seed"]]})
    groups: list[dict[int, dict[str, Any]]] = []  # per rate: seed -> its run
    rate = math.nan
    for run in sorted(runs.to_dict("records"), key=lambda r: float(r["rate"])):
        if not abs(run["rate"] - rate) <= SAME_RATE * rate:
            rate = float(run["rate"])
            groups.append({})
        seed = int(run["seed"])
        if seed not in groups[-1] or _furthest(run) > _furthest(groups[-1][seed]):
            groups[-1][seed] = {str(name): value for name, value in run.items()}
    return pd.DataFrame([_combined(g, seeds) for g in groups], columns=list(rate_columns(seeds)))


def _furthest(run: dict[Any, Any]) -> tuple[bool, int]:
    return run["status"] != DROPPED, int(run["steps"])


def _combined(runs: dict[int, dict[str, Any]], seeds: Sequence[int]) -> dict[str, Any]:
    """One row of the table of rates, of the runs of one rate by seed."""

    def of(name: str) -> list[Any]:
        return [run[name] for run in runs.values()]

    phases = {Phase(p) for p in of("phase")}
    whole = [run for run in runs.values() if run["status"] != DROPPED]
    worst = min(whole, key=lambda run: WORST_FIRST.index(Phase(run["phase"])), default=None)
    per_seed = {seed: str(run["phase"]) for seed, run in runs.items()}
    per_seed |= {seed: DROPPED for seed, run in runs.items() if run["status"] == DROPPED}
    # A loss that is NaN has diverged: it is not missing, it is beyond every number.
    losses = [np.inf if math.isnan(loss) else float(loss) for loss in of("loss")]
    return {
        "rate": float(min(of("rate"))),
        "phase": str(next(p for p in WORST_FIRST if p in phases)),
        **{f"phase_seed{seed}": per_seed.get(seed, "") for seed in seeds},
        "n_seeds": len(runs),
        "loss": _mean(losses),
        "loss_horizon": _mean([run["loss_horizon"] for run in whole]),
        "peak_ratio": float(max(of("peak_ratio"))),
        "recovery_step": max(
            (s for s in of("recovery_step") if not math.isnan(s)), default=math.nan
        ),
        "steps": int(max(of("steps"))),
        "status": DROPPED if worst is None else str(worst["status"]),
        **{name: _mean(of(name)) for name in MEANS},
    }


def _mean(values: Sequence[float]) -> float:
    """Mean of what is known; NaN if nothing is."""
    known = [float(v) for v in values if not math.isnan(v)]
    # Divided first: the sum of two norms of runs that blew up may overflow.
    return sum(v / len(known) for v in known) if known else math.nan
