"""What λ at every step costs beside the step, by the warm solver and by LAPACK.

    python bench/top_eigenvalue.py [--data-root DIR] [--repeats N] [FIGURE ...]

Runs of the paper's figures on one core, with λ at every step and nothing else recorded but what
every sweep records, with LAPACK's λ of the formed matrix in its place, and without. The three take
turns, and what counts is CPU time: the first fifth of each, so that other jobs of the machine hurt
little. A recorded step checks the weight-norm law and counts dead units too, with λ or without;
without it, the law needs a copy of the weights. Beside them, λ alone, by both ways, in microseconds
of one step of such a run.

Without a folder of image files the pictures are scikit-learn's digits 0 and 1, enlarged.
"""

import argparse
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import trebuchet as tb
from trebuchet.curvature.gram import top_of_gram
from trebuchet.curvature.warm_top import WarmTop
from trebuchet.engine.kernels import make_kernel
from trebuchet.models import MLP
from trebuchet.paper.problems import paper_problem
from trebuchet.paper.settings import FIGURES, Net
from trebuchet.problem.problem import Problem

STEPS = {3: 100, 14: 20}
RATES = {"lazy": 1.0, "catapult": 3.5}


class ByLapack(tb.Observable):
    """As λ was found before: H formed, and all its eigenvalues in float64."""

    name = "by_lapack"

    def of(self, runs: tb.observables.Runs) -> Any:
        """λ of every run."""
        return top_of_gram(runs.gram()).double().cpu().numpy()


def digits(number: int) -> Problem:
    """128 pictures of 24 × 24 pixels, in the place of the figure's."""
    bunch = load_digits()
    rng = np.random.default_rng(0)
    chosen = rng.permutation(np.flatnonzero(bunch.target < 2))[:128]
    pictures = np.kron(bunch.images[chosen] / 16, np.ones((1, 3, 3))).reshape(128, -1)
    x = torch.as_tensor(np.clip(pictures + 0.1 * rng.random(pictures.shape), 0, 1)).float()
    y = torch.as_tensor(2.0 * bunch.target[chosen] - 1).float()
    net = FIGURES[number].model
    assert isinstance(net, Net)

    def draw(seed: int) -> nn.Module:
        return MLP.draw(x.shape[1], net.width, hidden=net.hidden, generator=seed, dtype=x.dtype)

    return Problem(draw, "half_mse", (x, y))


def cpu(problem: Problem, ratio: float, steps: int, observables: list[Any], every: int) -> Any:
    """The sweep and its CPU seconds."""
    began = time.process_time()
    runs = tb.sweep(
        problem, lr_ratio=[ratio], steps=steps, observables=observables, workers=1, chunk=1,
        record=tb.Recording(every=every), progress=False,
    )  # fmt: skip
    return runs, time.process_time() - began


def measure(number: int, problem: Problem, name: str, repeats: int) -> dict[str, Any]:
    """One row: milliseconds a step."""
    steps, ratio = STEPS[number], RATES[name]
    ways: dict[str, tuple[list[Any], int]] = {
        "without": ([], steps), "recorded": ([], 1),
        "warm": (["top_eigenvalue"], 1), "lapack": ([ByLapack()], 1),
    }  # fmt: skip
    times: dict[str, list[float]] = {way: [] for way in ways}
    proofs, furthest = "", 0.0
    for _ in range(repeats):
        for way, (observables, every) in ways.items():
            _, short = cpu(problem, ratio, 1, observables, 1)
            runs, full = cpu(problem, ratio, steps, observables, every)
            times[way].append(1e3 * (full - short) / (steps - 1))
            proofs = runs.attrs.get("top_eigenvalue_proofs", proofs)
    both = tb.sweep(
        problem, lr_ratio=[ratio], steps=steps, observables=["top_eigenvalue", ByLapack()],
        workers=1, progress=False,
    )  # fmt: skip
    furthest = float(np.nanmax(np.abs(both.top_eigenvalue / both.by_lapack - 1)))
    cost = {way: sorted(each)[len(each) // 5] for way, each in times.items()}
    return {
        "figure": number, "rate": name, "milliseconds_a_step": cost, "proofs": proofs,
        "warm_over_without": cost["warm"] / cost["without"],
        "lapack_over_without": cost["lapack"] / cost["without"],
        "furthest_from_lapack": furthest,
        "microseconds_alone": alone(problem, ratio, steps, 2),
    }  # fmt: skip


def alone(problem: Problem, ratio: float, steps: int, repeats: int) -> dict[str, float]:
    """Microseconds of λ, of H in parts and whole, at every step of a run."""
    kernel = make_kernel([problem.initial(0)], problem.x)
    warm = WarmTop(1, len(problem.x))
    times: dict[str, list[float]] = {"parts": [], "warm": [], "whole": [], "lapack": []}

    def timed(name: str, call: Any) -> Any:
        began = time.thread_time()
        found = call()
        times[name].append(1e6 * (time.thread_time() - began))
        return found

    with torch.no_grad():
        kernel.forward()
        rate = ratio / float(top_of_gram(kernel.gram())[0])
        for _ in range(steps * repeats):
            z = kernel.forward()
            kernel.split_gram()  # the signals from above, which the step needs too
            parts = timed("parts", kernel.split_gram)
            timed("warm", partial(warm.of, parts))
            whole = timed("whole", kernel.gram)
            timed("lapack", partial(top_of_gram, whole))
            kernel.add_vjp_(kernel.params, -rate / len(z[0]) * (z - problem.y.reshape(z.shape)))
    return {name: float(np.median(each)) for name, each in times.items()}


def main() -> None:
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("figures", nargs="*", type=int, default=list(STEPS))
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("bench/results/top_eigenvalue.json"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for number in given.figures:
        root = given.data_root
        problem = paper_problem(FIGURES[number], data_root=root) if root else digits(number)
        for name in RATES:
            row = measure(number, problem, name, given.repeats)
            rows.append(row)
            print(json.dumps(row, ensure_ascii=False), flush=True)
    facts = {"torch": torch.__version__, "pictures": "files" if given.data_root else "digits"}
    text = json.dumps({"environment": facts, "rows": rows}, indent=1, ensure_ascii=False)
    given.out.write_text(text + "\n")
    print(f"wrote {given.out}")


if __name__ == "__main__":
    main()
