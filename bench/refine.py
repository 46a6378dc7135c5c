"""How sharp edges are at equal numbers of runs: ``refine`` against regular grids of rates.

    python bench/refine.py [--out FILE]

Two edges of each cell and seed, as ``plots.phase_diagram`` measures them: where runs are lazy no
more, and where they diverge or collapse. The truth is a grid of 1025 rates over five octaves; those
of 17 to 257 rates are parts of it. ``refine`` starts from 9 rates of the same, and may make as many
runs as a grid of 17, 33 or 65 rates has. Errors are in ln η; the truth's own are up to 0.002 where
runs fail from one rate on. An edge that the truth has and a sample has not is missed. A few minutes
on one core.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import nn

import trebuchet as tb
from trebuchet.plots.phase_boundaries import boundaries

OUT = Path(__file__).parent / "results" / "refine.json"
DENSE, START, LIKE = 1025, 9, (17, 33, 65)
EDGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "lazy": lambda phases: phases == "lazy",
    "failed": lambda phases: ~np.isin(phases, ["divergent", "collapsed"]),
}
"""Of each edge, the runs below it."""


def problems() -> dict[str, tuple[tb.Problem, dict[str, Any]]]:
    """What is swept, and how."""
    digits = tb.data.load_digits01()
    x, y = (torch.from_numpy(a[:64]) for a in (digits.x_train, digits.y_train))

    def relu(seed: int, width: int) -> nn.Module:
        return tb.MLP.draw(64, width, generator=seed)

    def quadratic(seed: int, width: int) -> nn.Module:
        return tb.PureQuadratic.draw(width, generator=seed)

    def tanh(seed: int, width: int = 16) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(64, width), nn.Tanh(), nn.Linear(width, 1)).double()

    ratios = {"swept": "lr_ratio", "first": 0.5, "seeds": 3}
    return {
        "quadratic nets": (
            tb.Problem(quadratic, "half_mse", ([[1.0]], [0.0])),
            {**ratios, "steps": 200, "axes": {"width": [32, 128, 512]}},
        ),
        "two-layer ReLU nets, digits": (
            tb.Problem(relu, "half_mse", (x, y)),
            {**ratios, "steps": 100, "axes": {"width": [32, 128]}},
        ),
        "tanh nets, digits, batches with momentum": (
            tb.Problem(
                tanh, "mse", (x, y[:, None]),
                lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.5),
            ),
            {"swept": "lr", "first": 0.05, "seeds": 1, "steps": 60,
             "axes": {"batch_size": [8, 32]}},
        ),
    }  # fmt: skip


def edges(ds: xr.Dataset) -> dict[str, np.ndarray]:
    """ln η of each edge, one a cell and seed; NaN where there is none."""
    ds = ds.sortby("lr")
    (axis,) = (dim for dim in ds.phase.dims if dim not in ("lr", "seed"))
    phases = ds.phase.transpose(axis, "lr", "seed").values
    at = np.tile(ds.lr.values, (ds.sizes[axis], 1))
    found = {}
    for name, below in EDGES.items():
        each = np.split(below(phases), phases.shape[2], axis=2)
        known = np.split(phases != "", phases.shape[2], axis=2)
        pairs = zip(each, known, strict=True)
        found[name] = np.log(np.concatenate([boundaries(b, k, at) for b, k in pairs]))
    return found


def errors(ds: xr.Dataset, truth: dict[str, np.ndarray]) -> dict[str, Any]:
    """How far the edges of a sample are from the true ones."""
    found, told = edges(ds), {}
    for name, true in truth.items():
        there = np.isfinite(true)
        off = np.abs(found[name] - true)[there]
        seen = off[np.isfinite(off)]
        told[name] = {
            "edges": int(there.sum()), "missed": int(there.sum() - seen.size),
            "mean": float(seen.mean()) if seen.size else None,
            "largest": float(seen.max()) if seen.size else None,
        }  # fmt: skip
    return {"runs": int((ds.status != "not_run").sum()), **told}


def measure(problem: tb.Problem, how: dict[str, Any]) -> dict[str, Any]:
    """One problem: the truth, the grids in it, and what refine makes of the coarsest."""
    how = dict(how)
    swept, first = how.pop("swept"), how.pop("first")
    rates = np.geomspace(first, 32 * first, DENSE)
    common: dict[str, Any] = {**how, "observables": [], "progress": False}
    every: dict[str, Any] = {swept: rates}
    dense = tb.label(tb.sweep(problem, **every, **common))
    truth = edges(dense)
    grids, refined = {}, {}
    for number in (*LIKE, 129, 257):
        grids[number] = errors(dense.isel(lr=slice(None, None, (DENSE - 1) // (number - 1))), truth)
    few: dict[str, Any] = {swept: rates[:: (DENSE - 1) // (START - 1)]}
    start = tb.sweep(problem, **few, **common)
    cells = start.status.size // START
    for number in LIKE:
        more = tb.refine(
            start, problem, runs=(number - START) * cells, observables=[], progress=False
        )
        refined[number] = errors(more, truth)
    return {"truth": {k: np.exp(v).tolist() for k, v in truth.items()}, "grids": grids,
            "refined": refined}  # fmt: skip


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = {}
    for name, (problem, how) in problems().items():
        began = time.perf_counter()
        rows[name] = measure(problem, how)
        print(f"{name}: {time.perf_counter() - began:.0f} s")
        for kind in ("grids", "refined"):
            for number, row in rows[name][kind].items():
                told = "  ".join(
                    f"{edge} {row[edge]['mean'] or np.nan:.4f} (largest "
                    f"{row[edge]['largest'] or np.nan:.4f}, missed {row[edge]['missed']} of "
                    f"{row[edge]['edges']})"
                    for edge in EDGES
                )
                print(f"  {kind:8s} like {number:3d} rates, {row['runs']:4d} runs  {told}",
                      flush=True)  # fmt: skip
    result = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "problems": rows,
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
