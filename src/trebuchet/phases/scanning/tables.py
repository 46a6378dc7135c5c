"""The tables of a scan: its looks and its runs."""

import math
from typing import Any

import pandas as pd

from trebuchet.phases.scanning.field import Rates
from trebuchet.phases.scanning.objective import is_finite
from trebuchet.phases.scanning.training import Run

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
        "last look above the start, of a run that came back; −1: never rose",
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
    first = rates.loss_first
    finite = [v for v in run.losses if is_finite(v)]
    whole = run.status is not None
    return {
        "rate": run.rate,
        "seed": run.seed,
        "phase": str(rates.phase(run)),
        "steps": run.steps,
        "status": str(run.status) if run.status is not None else "dropped",
        "loss": run.losses[-1],
        "loss_horizon": run.loss_final if whole else math.nan,
        "peak_ratio": max(finite) / first if len(finite) == len(run.losses) and first else math.inf,
        "recovery_step": rates.recovery_step(run),
        "lr_ratio_final": run.rate * run.top_eigenvalue_final,
        "kernel_drift": abs(run.top_eigenvalue_final - start) / start if start else math.nan,
        "sparsity": run.sparsity,
        "grad_norm_first": run.grad_norms[0],
        "grad_norm": run.grad_norms[1],
        "weight_norm_first": run.weight_norms[0],
        "weight_norm": run.weight_norms[1],
    }
