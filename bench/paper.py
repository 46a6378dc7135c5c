"""What a step of the paper's figures costs here, how near the machine's peak it comes; all sixteen.

    python bench/paper.py [--data-root DIR] [--against CHECKOUT] [FIGURE ...]
    python bench/paper.py --whole [--data-root DIR] [FIGURE ...]

The first measures steps: with all that is recorded by default at every one of them, λ among it (as
the authors' code measured it), and without; how a step splits; and the matrix-product peak in the
dtype of the figures, in the same process. Two checkouts take turns, each in processes of its own.
The cost of the authors' code is the one recorded for the same class of machine (2 cores); only the
ratio to it mixes two runs. The second runs whole figures, full grids, in one process.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import trebuchet as tb
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
    rates = rates[rates < 2]
    if setting.long:  # a chunk for every core
        rates = np.linspace(1.0, 1.6, max(4, setting.chunk * torch.get_num_threads()))
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
    """Multiply-adds × 2 of the matrix products of one gradient step of a bias-free net, as made."""
    model = problem.initial(0)
    if not isinstance(model, MLP):
        return None
    kernel = make_kernel([model], problem.x)
    # By its dual coordinates the first layer's step takes no product, and the forward pass one.
    products = 1 if type(kernel).__name__ == "DualMLPKernel" else 2
    first, *rest = model.weights
    samples = problem.x.shape[0]
    rank = int(torch.linalg.matrix_rank(problem.x.double()))
    # Signals pass down through every layer but the first; every layer's weights take AᵀG.
    total = products * samples * rank * first.shape[0] + 2 * sum(samples * w.numel() for w in rest)
    return float(2 * (total + sum(samples * w.numel() for w in rest[:-1])))


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
    try:
        problem = paper_problem(setting, data_root=data_root)
    except InputError as error:
        return {"figure": number, "skipped": str(error)}
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


def elsewhere(checkout: Path, number: int, root: Path | None, repeats: int) -> dict[str, Any]:
    """A row, from a process with the sources of a checkout."""
    words = [sys.executable, __file__, "--one", str(number), "--repeats", str(repeats)]
    words += ["--data-root", str(root)] if root else []
    paths = {"PYTHONPATH": str(checkout.resolve() / "src")}
    done = subprocess.run(
        words, env={**os.environ, **paths}, stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def shown(row: dict[str, Any]) -> str:
    """A row of the table that is printed."""
    if "skipped" in row:
        return f"{row['figure']:6d}  {row['checkout']:8s}  skipped: {row['skipped']}"
    with_top, without = row["seconds_a_step_with_top_eigenvalue"], row["seconds_a_step_without"]
    parts = " / ".join(f"{v:.3f}" for v in row["milliseconds_split_one_core"].values())
    return (
        f"{row['figure']:6d}  {row['checkout']:8s}  {1e3 * with_top:14.4f}  {1e3 * without:7.4f}"
        f"  {with_top / without:5.2f}  {row.get('times_faster', float('nan')):9.0f}"
        f"  {row.get('share_of_peak', float('nan')):13.0%}   {parts}"
    )


def whole_figures(numbers: list[int], root: Path | None) -> list[dict[str, Any]]:
    """Seconds of whole figures, one after the other on all cores."""
    rows = []
    for number in numbers:
        wall, own = time.perf_counter(), time.process_time()
        try:
            runs = tb.paper.figure(number, data_root=root).runs
        except InputError as error:
            print(f"{number:6d}  skipped: {error}")
            continue
        wall, own = time.perf_counter() - wall, time.process_time() - own
        rows.append({
            "figure": number, "seconds": wall, "process_seconds": own,
            "steps": int(runs.steps.sum()), "created": runs.attrs.get("created", ""),
        })  # fmt: skip
        print(f"{number:6d}  {wall:7.1f} s, {own:7.1f} s of all cores", flush=True)
    total = sum(row["seconds"] for row in rows)
    print(f"{len(rows)} figures in {total / 60:.1f} minutes")
    return rows


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("figures", nargs="*", type=int, default=list(FIGURES))
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--against", type=Path, help="another checkout, measured in turns")
    parser.add_argument("--whole", action="store_true", help="time whole figures instead")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path("bench/results/paper.json"))
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.one, given.data_root, given.repeats), ensure_ascii=False))
        return
    result = json.loads(given.out.read_text()) if given.out.exists() else {}
    result["environment"] = {
        "python": platform.python_version(), "torch": torch.__version__,
        "machine": platform.machine(), "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }  # fmt: skip
    if given.whole:
        rows = whole_figures(given.figures, given.data_root)
        rows += [r for r in result.get("whole", []) if r["figure"] not in given.figures]
        result["whole"] = sorted(rows, key=lambda row: row["figure"])
    else:
        trees = {"before": given.against} if given.against else {}
        trees["now"] = Path(__file__).parent.parent
        print("figure  checkout  ms/step with λ  without  ratio  × authors  share of peak   "
              "forward / backward / λ, ms")  # fmt: skip
        rows = []
        for number in given.figures:
            for tree, path in trees.items():
                row = elsewhere(path, number, given.data_root, given.repeats)
                rows.append({"checkout": tree, "figure": number, **row})
                print(shown(rows[-1]), flush=True)
        rows += [r for r in result.get("rows", []) if r["figure"] not in given.figures]
        result["rows"] = sorted(rows, key=lambda row: row["figure"])
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    print(f"wrote {given.out}")


if __name__ == "__main__":
    main()
