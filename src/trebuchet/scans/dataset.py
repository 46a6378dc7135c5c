"""The runs of a scan as a results dataset, like a sweep's."""

import math

import numpy as np
import xarray as xr

from trebuchet._types import Status
from trebuchet.engine.advance import Run
from trebuchet.engine.assemble import assemble
from trebuchet.engine.lawful import facts
from trebuchet.scans.setup import Setup

SAME_RATE = 1e-9
"""Rates closer than this, relatively, are one rate: two bisections may meet."""


def dataset(setup: Setup) -> xr.Dataset:
    """Lay the runs of a scan out over rate × seed.

    Cells that were never begun are ``not_run``; runs that the search left before the horizon are
    ``dropped``, and one that Ctrl-C met ``interrupted``.

    Args:
        setup: The scan, its runs made.

    Returns:
        A results dataset, dims ``lr, seed, step``.
    """
    # Two places of the grid may be one rate to rounding: the run that went further stands there.
    runs = sorted(setup.rates.all_runs(), key=lambda run: (run.whole, run.steps))
    for run in runs:
        if run.status is None:
            run.status = Status.DROPPED
    rates, places = _grid(runs, setup.rates.all_seeds)
    seeds, own = list(setup.rates.all_seeds), len(setup.rates.seeds)
    problem, critical, history = setup.asked.problem, setup.critical, setup.engine.history
    learning_rate = np.repeat(rates[:, None], len(seeds), axis=1)
    finals = history.extra.get("top_eigenvalue_final")
    if finals is not None:
        first = np.where(np.isnan(finals), np.nan, critical.top_eigenvalue)
        history.extra["top_eigenvalue_first"] = first
    settings = {
        "problem": problem.name, "loss": problem.loss_name, "optimizer": problem.optimizer_name,
        "rates": rates.tolist(), "seeds": seeds, "horizon": setup.asked.horizon,
        "delta": setup.rates.delta, "blowup": setup.asked.blowup,
    }  # fmt: skip
    params, host = setup.objective.params, setup.engine.host
    return assemble(
        history,
        places,
        setup.engine.plan,
        swept="lr",
        rates=rates,
        seeds=seeds,
        learning_rate=learning_rate,
        top_eigenvalue_init=np.where(
            np.arange(len(seeds)) < own, critical.top_eigenvalue, np.nan
        ),  # measured at the model's own weights
        attrs={
            **(problem.facts or {}),
            "model": problem.name,
            "loss": problem.loss_name,
            "optimizer": problem.optimizer_name,
            "operator": critical.operator,
            "n_parameters": sum(p.numel() for p in params),
            "n_samples": setup.stream.n_samples,
            "batch_size": setup.stream.samples_per_step,
            "compared_on": setup.stream.described(setup.fixed),
            "dtype": str(params[0].dtype).removeprefix("torch."),
            "device": str(params[0].device),
            "kernel": "ModuleKernel",
            "fresh_seeds": seeds[own:],
            "deterministic": int(host.deterministic),
            **(
                facts(host.scaling, host.law if isinstance(host.law, str) else "")
                if setup.asked.check_law
                else facts("a scan does, with check_law=True")
            ),
        },
        settings=settings,
        wanted=setup.engine.plan.watched,
        rows=[run.row for run in runs],
        extra=("top_eigenvalue_first", "top_eigenvalue_final"),
    )


def _grid(runs: list[Run], seeds: tuple[int, ...]) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """The rates that were run, and where each run belongs."""
    rates: list[float] = []
    places: list[tuple[int, int]] = []
    for run in sorted(runs, key=lambda r: r.rate):
        if not rates or not math.isclose(run.rate, rates[-1], rel_tol=SAME_RATE):
            rates.append(run.rate)
    found = np.array(rates)
    for run in runs:
        nearest = int(np.argmin(np.abs(np.log(found / run.rate))))
        places.append((nearest, seeds.index(run.seed)))
    return found, places
