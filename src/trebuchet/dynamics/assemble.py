"""From histories of chunks to one labelled dataset."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from trebuchet.dynamics.history import PER_RUN, TRACES, History
from trebuchet.dynamics.runner import Plan
from trebuchet.results.schema import make_dataset

Pair = tuple[int, int]
"""(position of the rate, position of the seed)."""


def assemble(
    histories: Sequence[History],
    chunks: Sequence[Sequence[Pair]],
    plan: Plan,
    *,
    swept: str,
    rates: NDArray[np.float64],
    seeds: Sequence[int],
    learning_rate: NDArray[np.float64],
    top_eigenvalue_init: NDArray[np.float64],
    attrs: dict[str, Any],
    settings: dict[str, Any],
) -> xr.Dataset:
    """Lay the runs of all chunks out over rate × seed.

    Args:
        histories: One a chunk.
        chunks: Which runs each chunk held, in order.
        plan: What the runs had in common.
        swept: ``"lr_ratio"`` or ``"lr"``.
        rates: What was swept, shape ``(lr,)``.
        seeds: The seeds.
        learning_rate: η, shape ``(lr, seed)``.
        top_eigenvalue_init: λ₀, shape ``(seed,)``.
        attrs: Facts to keep with the data.
        settings: Everything that decides the runs, for the config hash.

    Returns:
        The dataset.
    """
    shape = (rates.size, len(seeds))
    at = tuple(np.array([pair for chunk in chunks for pair in chunk]).T)

    def grid(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
        flat = np.concatenate(parts)
        full = np.empty((*shape, *flat.shape[1:]), dtype=flat.dtype)
        full[at] = flat
        return full

    variables: dict[str, NDArray[Any]] = {
        "learning_rate": learning_rate,
        "lr_ratio": learning_rate * top_eigenvalue_init,
        "top_eigenvalue_init": top_eigenvalue_init,
        "status": grid([h.status for h in histories]),
        "steps": grid([h.steps for h in histories]),
    }
    for name in PER_RUN:
        variables[name] = grid([h.per_run[name] for h in histories])
    variables["last_above"] = variables["last_above"].astype(np.int64)
    for name in TRACES:
        variables[name] = grid([h.traces[name] for h in histories])
    if histories[0].sparsity_final.shape[1] and "sparsity" in plan.observables:
        variables["sparsity"] = grid([h.traces["sparsity"] for h in histories])
        variables["sparsity_final"] = grid([h.sparsity_final for h in histories])
    unobserved = [
        name
        for name in ("test_loss", "test_loss_final", "law_residual", "top_eigenvalue")
        if np.isnan(variables[name]).all()
    ]
    for name in unobserved:
        del variables[name]
    return make_dataset(
        variables,
        lr=rates,
        seed=seeds,
        step=plan.schedule,
        settings=settings,
        attrs={
            **attrs,
            "swept": swept,
            "blowup": plan.stop.blowup,
            "delta": plan.delta,
            "max_steps": plan.stop.max_steps,
            "tolerance": float("nan") if plan.stop.tolerance is None else plan.stop.tolerance,
        },
    )
