"""A figure on disk: data, picture, numbers."""

import json
import math
from pathlib import Path
from typing import Any

import xarray as xr

from trebuchet._checks import flag, instance, path as a_path
from trebuchet._doors import door, rule
from trebuchet.paper.experiment import written
from trebuchet.paper.figures import Figure, which
from trebuchet.paper.picture import draw

FIRST = 40
"""How many steps of each trace the JSON holds."""


A_FIGURE = rule(instance, Figure, "a Figure", "trebuchet.paper.figure(4) is one")


@door(folder=a_path, number=which)
def figure_paths(folder: Path, number: int) -> list[Path]:
    """Data, picture and numbers of a figure."""
    return [folder / f"fig{number}{suffix}" for suffix in (".zarr", ".png", ".json")]


@door(result=A_FIGURE, folder=a_path, overwrite=flag)
def save_figure(result: Figure, folder: Path, *, overwrite: bool = False) -> list[Path]:
    """Write a figure; each file appears whole or not at all, the JSON last.

    Args:
        result: The figure.
        folder: Where to.
        overwrite: Replace what is there.

    Returns:
        The three paths.

    Raises:
        InputError: If one of them cannot be written.
    """
    text = json.dumps(to_json(result), indent=1, ensure_ascii=False)
    files, what = figure_paths(folder, result.number), f"figure {result.number}"
    return written(files, result.runs, draw(result), text, what, overwrite=overwrite)


@door(result=A_FIGURE)
def to_json(result: Figure) -> dict[str, Any]:
    """The numbers of a figure, for people and programs without xarray.

    Series are at the states θ_0, θ_1, …: loss, ηλ and |θ|²/P of one state stand at one index.
    Weight norms are divided by P, the number of weights, as in the paper. Final numbers are those
    of the last state reached. JSON has no infinities: they are the strings "inf" and "nan".

    Args:
        result: The figure.

    Returns:
        What is written to figN.json.

    Raises:
        InputError: If it is no figure.
    """
    runs = result.runs
    return {
        "figure": result.number,
        "seed": result.seeds[0],
        "seeds": result.seeds,
        "dtype": runs.attrs["dtype"],
        "steps": result.setting.steps,
        "quick": result.quick,
        "data_sha256": runs.attrs.get("data_sha256"),
        "lambda0": _number(runs.top_eigenvalue_init[0]),
        "edges": {name: _number(edge.lr_ratio) for name, edge in result.edges.items()},
        "proven": {name: edge.proven for name, edge in result.edges.items()},
        "conventions": "L = (1/2D) sum (z - y)^2; lambda of the NTK / D; weight norms are "
        "|theta|^2 / P; sparsity is the fraction of pre-activations < 0; series at theta_0, "
        "theta_1, ...",
        "runs": [
            _run(runs.isel(lr=i, seed=j))
            for j in range(runs.sizes["seed"])
            for i in range(runs.sizes["lr"])
        ],
    }


def _run(run: xr.Dataset) -> dict[str, Any]:
    parameters = run.attrs["n_parameters"]
    eta = float(run.learning_rate)
    early = run.isel(step=slice(0, FIRST))
    sparsity = None
    if "sparsity_final" in run:
        sparsity = [_number(value) for value in run.sparsity_final.values]
    result = {
        "ratio": float(run.lr),
        "seed": int(run.seed),
        "phase": str(run.phase.values),
        "status": str(run.status.values),
        "steps": int(run.steps),
        "loss_first": _number(run.loss_first),
        "loss_max": _number(run.loss_max),
        "loss_final": _number(run.loss_final),
        "ratio_final": _number(eta * run.top_eigenvalue_final),
        "weight_norm_first": _number(run.weight_norm_first / parameters),
        "weight_norm_final": _number(run.weight_norm_final / parameters),
        "sparsity": sparsity,
        "loss": [_number(v) for v in early.loss.values],
        "ratio_t": [_number(v) for v in eta * early.top_eigenvalue.values],
        "weight_norm": [_number(v) for v in early.weight_norm.values / parameters],
    }
    if "test_loss_final" in run:
        result["test_loss_final"] = _number(run.test_loss_final)
    return result


def _number(value: Any) -> float | str:
    number = float(value)
    if math.isfinite(number):
        return number
    return "nan" if math.isnan(number) else ("inf" if number > 0 else "-inf")
