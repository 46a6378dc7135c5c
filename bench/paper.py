"""What a step of the paper's figures costs here, and how near the machine's peak it comes.

    python bench/paper.py [--data-root DIR] [--out bench/results/paper.json] [FIGURE ...]

Every number is measured in this one run: the matrix-product peak in the dtype of the figures, the
step with λ at every step (as the authors' code measured it), the step without, and how it splits.
The cost of the authors' code is the one recorded for the same class of machine (2 cores); only the
ratio to it mixes two runs.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trebuchet.curvature.warm_top import WarmTop
from trebuchet.engine.kernels import make_kernel
from trebuchet.engine.recording import Recording
from trebuchet.errors import InputError
from trebuchet.models import MLP
from trebuchet.paper.problems import paper_problem
from trebuchet.paper.settings import FIGURES, Images, Setting
from trebuchet.problem.problem import Problem
from trebuchet.sweeps.sweep import sweep

AUTHORS = {1: 0.10, 2: 0.0016, 4: 40.0, 7: 0.5, **dict.fromkeys((3, 11, 12, 13), 0.7),
           **dict.fromkeys((14, 15, 16), 1.3)}  # fmt: skip
"""Seconds a step of one learning rate, with λ measured, in the authors' code; 7: 0.23–1.2."""


def matrix_product_peak(dtype: torch.dtype, size: int = 2048, repeats: int = 9) -> float:
    """Best of `repeats` products of two size × size matrices on all cores, in GFLOP/s."""
    a, b = torch.randn(size, size, dtype=dtype), torch.randn(size, size, dtype=dtype)
    out = torch.empty_like(a)
    return 2e-9 * size**3 / min(seconds(lambda: torch.mm(a, b, out=out)) for _ in range(repeats))


def seconds(call: Callable[[], Any]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def seconds_a_step(setting: Setting, problem: Problem, *, with_top: bool, repeats: int) -> float:
    """Wall time ÷ (steps × rates) of a short sweep, all cores busy; the median of `repeats`."""
    rates = setting.grid.ratios()
    rates = rates[rates < 2][-4:] if setting.long else rates[rates < 2]
    rates = np.array([1.0, 1.2, 1.4, 1.6]) if rates.size < 2 else rates
    steps = 400 if setting.long else min(setting.steps, 100)

    def run(n: int) -> float:
        record = Recording() if with_top else Recording(every=n)
        return seconds(
            lambda: sweep(problem, lr_ratio=rates, steps=n, record=record, chunk=setting.chunk)
        )

    run(2)
    # Set-up (λ₀, span, kernels, test loss) is taken off: it does not grow with the steps.
    times = [run(steps + 1) - run(1) for _ in range(repeats)]
    return statistics.median(times) / (steps * rates.size)


def flops_a_step(problem: Problem) -> float | None:
    """Multiply-adds × 2 of the matrix products of one gradient step of a bias-free net."""
    model = problem.initial(0)
    if not isinstance(model, MLP):
        return None
    first, *rest = model.weights
    samples = problem.x.shape[0]
    rank = int(torch.linalg.matrix_rank(problem.x.double()))
    forward = samples * rank * first.shape[0] + sum(samples * w.numel() for w in rest)
    # Signals pass down through every layer but the first; every layer's weights take AᵀG.
    return float(2 * (2 * forward + sum(samples * w.numel() for w in rest[:-1])))


def split(problem: Problem, chunk: int, repeats: int = 30) -> dict[str, float]:
    """Milliseconds a step and rate on one core: forward, backward with update, λ."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        kernel = make_kernel([problem.initial(0)] * chunk, problem.x)
        warm = WarmTop(chunk, len(problem.x))
        times: dict[str, list[float]] = {"forward": [], "backward and update": [], "λ": []}
        with torch.no_grad():
            for _ in range(repeats):
                z = kernel.forward()
                times["forward"].append(seconds(kernel.forward))
                backward = partial(kernel.add_vjp_, kernel.params, torch.zeros_like(z))
                times["backward and update"].append(seconds(backward))
                kernel.forward()
                backward()
                times["λ"].append(seconds(lambda: warm.of(kernel.split_gram())))
    finally:
        torch.set_num_threads(before)
    return {k: 1e3 * statistics.median(v) / chunk for k, v in times.items()}


def measure(number: int, data_root: Path | None, repeats: int) -> dict[str, Any]:
    """One row of the table."""
    setting = FIGURES[number]
    problem = paper_problem(setting, data_root=data_root)
    with_top = seconds_a_step(setting, problem, with_top=True, repeats=repeats)
    without = seconds_a_step(setting, problem, with_top=False, repeats=repeats)
    row: dict[str, Any] = {
        "figure": number,
        "title": setting.title,
        "seconds_a_step_with_top_eigenvalue": with_top,
        "seconds_a_step_without": without,
        "milliseconds_split_one_core": split(problem, min(setting.chunk, 20)),
    }
    if number in AUTHORS:
        row["authors_seconds_a_step"] = AUTHORS[number]
        row["times_faster"] = AUTHORS[number] / with_top
    flops = flops_a_step(problem)
    if flops is not None and isinstance(setting.data, Images):
        peak = matrix_product_peak(torch.float32)
        row["gflops"] = 1e-9 * flops / without
        row["peak_gflops"] = peak
        row["share_of_peak"] = row["gflops"] / peak
    return row


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("figures", nargs="*", type=int, default=list(FIGURES))
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("bench/results/paper.json"))
    arguments = parser.parse_args()
    rows = []
    print("figure  ms/step with λ  without  × authors  share of peak   forward / backward / λ, ms")
    for number in arguments.figures:
        try:
            row = measure(number, arguments.data_root, arguments.repeats)
        except InputError as error:
            print(f"{number:6d}  skipped: {error}")
            continue
        rows.append(row)
        parts = " / ".join(f"{v:.3f}" for v in row["milliseconds_split_one_core"].values())
        print(
            f"{number:6d}  {1e3 * row['seconds_a_step_with_top_eigenvalue']:14.4f}"
            f"  {1e3 * row['seconds_a_step_without']:7.4f}"
            f"  {row.get('times_faster', float('nan')):9.0f}"
            f"  {row.get('share_of_peak', float('nan')):13.0%}   {parts}",
            flush=True,
        )
    result = {
        "environment": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "machine": platform.machine(),
            "threads": torch.get_num_threads(),
        },
        "rows": rows,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
