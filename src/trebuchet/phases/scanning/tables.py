"""The tables of a scan: its looks, its runs, and its rates, which are the runs over all seeds."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from trebuchet._types import Phase
from trebuchet.phases.scanning.field import Rates
from trebuchet.phases.scanning.runs import Run

RUN_COLUMNS: dict[str, tuple[str, str]] = {
    "rate": ("learning rate η", "1"),
    "seed": ("order of the batches", "1"),
    "phase": ("phase", "1"),
    "steps": ("updates made", "steps"),
    "status": ("why the run stopped; 'dropped' if the race left it behind", "1"),
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

DROPPED = "dropped"
"""Status of a run that the race left behind before the horizon, and that had not diverged."""

WORST_FIRST = (
    Phase.DIVERGENT, Phase.COLLAPSED, Phase.UNSETTLED, Phase.CATAPULT, Phase.LAZY,
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
        "status": (f"why the worst run stopped; '{DROPPED}' if the race left all behind", "1"),
        **{
            name: (f"{long_name}, mean over the seeds where it is known", unit)
            for name, (long_name, unit) in RUN_COLUMNS.items()
            if name in MEANS
        },
    }


def frames(rates: Rates, top_eigenvalue: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Write down what was tried.

    Args:
        rates: The runs.
        top_eigenvalue: λ₀; NaN if not measured.

    Returns:
        One row a run, by rate and seed, see `RUN_COLUMNS`; and one row a look: rate, seed, step,
        loss.
    """
    rows, looks = [], []
    for run in rates.all_runs():
        rows.append(_row(rates, run, top_eigenvalue))
        looks += [
            {"rate": run.rate, "seed": run.seed, "step": t, "loss": value}
            for t, value in zip(run.at, run.losses, strict=True)
        ]
    return pd.DataFrame(rows, columns=list(RUN_COLUMNS)), pd.DataFrame(looks)


def _row(rates: Rates, run: Run, start: float) -> dict[str, Any]:
    return {
        "rate": run.rate,
        "seed": run.seed,
        "phase": str(rates.phase(run)),
        "steps": run.steps,
        "status": str(run.status) if run.status is not None else DROPPED,
        "loss": run.losses[-1],
        "loss_horizon": run.loss_final if run.whole else math.nan,
        "peak_ratio": rates.peak_ratio(run),
        "recovery_step": rates.recovery_step(run),
        "lr_ratio_final": run.rate * run.top_eigenvalue_final,
        "kernel_drift": abs(run.top_eigenvalue_final - start) / start if start else math.nan,
        "sparsity": run.sparsity,
        "grad_norm_first": run.grad_norms[0],
        "grad_norm": run.grad_norms[1],
        "weight_norm_first": run.weight_norms[0],
        "weight_norm": run.weight_norms[1],
    }


def by_rate(runs: pd.DataFrame) -> pd.DataFrame:
    """Combine the runs of every rate over their seeds.

    Seeds that disagree give a rate the worst of their phases, in the order of `WORST_FIRST`: a rate
    is only as good as what one can rely on. A run that was dropped counts as unsettled. Where one
    seed was run twice at one rate, as in frames put together by hand, the run that went further
    counts.

    Args:
        runs: One row a run, see `RUN_COLUMNS`.

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
    seeds = sorted({int(seed) for seed in runs["seed"]})
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
