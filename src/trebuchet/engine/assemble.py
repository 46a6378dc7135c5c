"""From a history to one labelled dataset."""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from trebuchet._types import Status
from trebuchet.curvature.warm_top import PROOFS, TOP_PROOFS
from trebuchet.engine.history import PER_RUN, History
from trebuchet.engine.kernels.base import LAW
from trebuchet.engine.runner import Plan
from trebuchet.observables.base import Observable
from trebuchet.results.schema import OF_STEP, RUN, TRACE, VARIABLES, make_dataset

Pair = tuple[int, int]
"""(position of the rate, position of the seed)."""

SELDOM = ("output_spread", "gradient_norm_first", "gradient_norm_final", "loss_closing_first")
"""Numbers of a run that are left out where no run has them."""


def assemble(
    history: History,
    places: Sequence[Pair],
    plan: Plan,
    *,
    swept: str,
    rates: NDArray[np.float64],
    seeds: Sequence[int],
    learning_rate: NDArray[np.float64],
    top_eigenvalue_init: NDArray[np.float64],
    attrs: dict[str, Any],
    settings: dict[str, Any],
    wanted: Collection[str] = (),
    rows: Sequence[int] | None = None,
    extra: Collection[str] = (),
    whole: bool = False,
) -> xr.Dataset:
    """Lay runs out over rate × seed; cells without a run are ``not_run``.

    Args:
        history: What is remembered of them.
        places: Where each belongs.
        plan: What the runs had in common.
        swept: ``"lr_ratio"`` or ``"lr"``.
        rates: What was swept, shape ``(lr,)``.
        seeds: The seeds.
        learning_rate: η, shape ``(lr, seed)``.
        top_eigenvalue_init: λ₀, shape ``(seed,)``.
        attrs: Facts to keep with the data.
        settings: Everything that decides the runs, for the config hash.
        wanted: Observables that stay, as NaN with the reason, where no run could give them.
        rows: Of the history, one a place; all of them unless given.
        extra: Numbers of runs that somebody else kept in the history.
        whole: Keep variables that no run has, too: some run may have them later.

    Returns:
        The dataset.
    """
    shape = (rates.size, len(seeds))
    at = tuple(np.array(list(places), dtype=np.int64).reshape(-1, 2).T)
    chosen = np.arange(history.steps.size) if rows is None else np.array(rows, dtype=np.int64)

    def grid(values: NDArray[Any], missing: Any = np.nan) -> NDArray[Any]:
        wide = (*shape, *values.shape[1:])
        if not places:
            return np.broadcast_to(np.array(missing, dtype=values.dtype), wide)
        full = np.full(wide, missing, dtype=values.dtype)
        full[at] = values[chosen]
        return full

    variables: dict[str, Any] = {
        "learning_rate": learning_rate,
        "status": grid(history.status, str(Status.NOT_RUN)),
        "steps": grid(history.steps, 0),
        "loss": grid(history.traces["loss"]),
    }
    if not np.isnan(top_eigenvalue_init).all():
        variables["lr_ratio"] = learning_rate * top_eigenvalue_init
        variables["top_eigenvalue_init"] = top_eigenvalue_init
    for name in PER_RUN:
        values = grid(history.per_run[name], -1.0 if name == "last_above" else np.nan)
        if whole or name not in SELDOM or not np.isnan(values).all() or name == "output_spread":
            variables[name] = values
    variables["last_above"] = variables["last_above"].astype(np.int64)
    if not whole and _same(variables["loss_horizon"], variables["loss_final"]):
        del variables["loss_horizon"]
    if LAW in history.traces and (whole or not np.isnan(history.traces[LAW]).all()):
        variables[LAW] = grid(history.traces[LAW])
    if whole:
        numbers = {n: v for n, v in history.columns().items() if n.endswith(OF_STEP)}
        about = {"units": "", "long_name": "of the last step"}
        variables |= {n: xr.Variable(RUN, grid(v), about) for n, v in numbers.items()}
    for observable in (*plan.observables, *plan.only_at_the_end):
        keep = observable.name in wanted
        variables |= _of(observable, history, plan, grid, keep=keep, whole=whole)
    if TOP_PROOFS in history.extra:
        variables[TOP_PROOFS] = grid(history.extra[TOP_PROOFS])
    elif whole and "top_eigenvalue" in plan.watched:
        variables[TOP_PROOFS] = grid(np.zeros((0, len(PROOFS))))
    variables |= {n: grid(history.extra[n]) for n in extra if n in history.extra}
    return make_dataset(
        variables,
        lr=rates,
        seed=seeds,
        step=plan.schedule,
        swept=swept,
        settings=settings,
        attrs={
            **attrs,
            **_law(history),
            **_proofs(variables.get(TOP_PROOFS)),
            "blowup": plan.stop.blowup,
            "delta": plan.delta,
            "max_steps": plan.stop.max_steps,
            "tolerance": float("nan") if plan.stop.tolerance is None else plan.stop.tolerance,
        },
    )


def _same(horizon: NDArray[np.float64], final: NDArray[np.float64]) -> bool:
    """Whether the loss in the worse of both modes says nothing beside the final one."""
    filled: Any = np.nan_to_num(horizon, nan=final)  # type: ignore[call-overload]  # stubs know one number only
    return bool(np.isnan(horizon).all()) or np.array_equal(filled, final)


def _law(history: History) -> dict[str, str]:
    """Why the weight-norm law was not checked at some steps."""
    reason = history.reasons.get(LAW)
    return {} if reason is None else {"weight_norm_law": f"not checked at every step: {reason}"}


def _proofs(of_runs: NDArray[np.float64] | None) -> dict[str, str]:
    """By what so many top eigenvalues were proven to be the top ones."""
    if of_runs is None:
        return {}
    counts = np.nansum(of_runs, axis=(0, 1)).astype(int)
    return {TOP_PROOFS: ", ".join(f"{kind} {n}" for kind, n in zip(PROOFS, counts, strict=True))}


def _of(
    observable: Observable, history: History, plan: Plan, grid: Any, *, keep: bool, whole: bool
) -> dict[str, xr.Variable]:
    """The variables of one observable: its trace, and its numbers at the start and the end."""
    name = observable.name
    found: dict[str, NDArray[Any]] = {}
    if name in plan.watched:
        found[name] = grid(history.traces[name])
    if observable.final:
        found[f"{name}_final"] = grid(history.finals[name])
    for suffix, kept in (("first", observable.first), ("max", observable.largest)):
        if f"{name}_{suffix}" in history.extra:
            found[f"{name}_{suffix}"] = grid(history.extra[f"{name}_{suffix}"])
        elif whole and kept:
            found[f"{name}_{suffix}"] = grid(history.finals[name])
    reason = history.reasons.get(name, "")
    described: dict[str, xr.Variable] = {}
    for key, values in found.items():
        empty = values.size == 0 or (not whole and bool(np.isnan(values).all()))
        if empty and not whole and not (keep and key == name):
            continue
        if values.size == 0:  # of no layer: one, that is unknown
            values = np.full((*values.shape[:-1], 1), np.nan)
        attrs: dict[str, Any] = {
            "units": observable.units,
            "long_name": observable.long_name or name,
        }
        dims: tuple[str, ...] = TRACE if key == name else RUN
        if observable.dim is not None:
            dims = (*dims, observable.dim)
        own = key == name and "long_name" in vars(observable)  # one of ours, with a setting
        if key in VARIABLES and not own:
            attrs = {"units": VARIABLES[key].units, "long_name": VARIABLES[key].long_name}
        elif key != name:
            ends = {"final": "at the end", "first": "at the start", "max": "largest recorded"}
            attrs["long_name"] += f", {ends[key.removeprefix(f'{name}_')]}"
        if empty and reason:
            attrs["missing"] = reason
        described[key] = xr.Variable(dims, values, attrs)
    return described
