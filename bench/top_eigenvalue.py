"""What a step costs without λ, with it, and with all that is recorded by default; before and after.

    python bench/top_eigenvalue.py [--against CHECKOUT] [--data-root DIR] [--rounds N] [FIGURE ...]

Runs of the paper's figures, one at a time on one core. Two checkouts take turns, each in a process
of its own, and so do the ways of recording within it. What counts is the CPU time of the thread
from one step to the next: a tenth of the steps took less in each round, and the least of the rounds
is kept, so that other jobs of the machine hurt little.

Without a folder of image files the pictures are scikit-learn's digits 0 and 1, enlarged.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import trebuchet as tb
from trebuchet.engine.optimizers import GradientDescent
from trebuchet.models import MLP
from trebuchet.paper.problems import paper_problem
from trebuchet.paper.settings import FIGURES, Net
from trebuchet.problem.problem import Problem

STEPS = {3: 200, 14: 40}
RATES = {"lazy": 1.0, "catapult": 3.5, "large": 8.0}
WAYS: dict[str, tuple[list[str] | None, bool]] = {
    "without": ([], False), "recorded": ([], True), "λ": (["top_eigenvalue"], True),
    "default": (None, True),
}  # fmt: skip
"""Observables, and whether every step is recorded: the loss, |θ|² and the law always are."""

STAMPS: list[float] = []


@dataclasses.dataclass(frozen=True, slots=True)
class Timed(GradientDescent):
    """Gradient descent that notes when each step is made."""

    def step_(self, kernel: Any, dz: Tensor, lr: Tensor, velocity: Any) -> None:
        """One step."""
        STAMPS.append(time.thread_time())
        GradientDescent.step_(self, kernel, dz, lr, velocity)


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


def one_round(number: int, data_root: Path | None) -> dict[str, Any]:
    """Microseconds a step by rate and way, in this process."""
    torch.set_num_threads(1)
    root, steps = data_root, STEPS[number]
    problem = paper_problem(FIGURES[number], data_root=root) if root else digits(number)
    found: dict[str, Any] = {}
    for name, ratio in RATES.items():
        times: dict[str, list[float]] = {way: [] for way in WAYS}
        proofs = ""
        for _ in range(2):
            for way, (observables, every) in WAYS.items():
                STAMPS.clear()
                runs = tb.sweep(
                    problem, lr_ratio=[ratio], steps=steps, observables=observables, workers=1,
                    chunk=1, record=tb.Recording(every=1 if every else steps), progress=False,
                    optimizer=Timed(),
                )  # fmt: skip
                times[way] += np.diff(STAMPS)[3:].tolist()
                proofs = runs.attrs.get("top_eigenvalue_proofs", proofs)
        cost = {way: 1e6 * float(np.quantile(each, 0.1)) for way, each in times.items()}
        found[name] = {"microseconds": cost, "proofs": proofs}
    return found


def elsewhere(checkout: Path, number: int, data_root: Path | None) -> dict[str, Any]:
    """A round of this script with the sources of a checkout."""
    paths = {"PYTHONPATH": str(checkout.resolve() / "src"), "OMP_NUM_THREADS": "1"}
    root = ["--data-root", str(data_root)] if data_root else []
    words = [sys.executable, __file__, "--one-round", str(number), *root]
    done = subprocess.run(
        words, env={**os.environ, **paths}, capture_output=True, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(number: int, trees: dict[str, Path], root: Path | None, rounds: int) -> list[Any]:
    """The rows of a figure: every rate and checkout."""
    made: dict[str, list[Any]] = {tree: [] for tree in trees}
    for _ in range(rounds):
        for tree, path in trees.items():
            made[tree].append(elsewhere(path, number, root))
    rows = []
    for rate in RATES:
        for tree, each in made.items():
            cost = {w: min(one[rate]["microseconds"][w] for one in each) for w in WAYS}
            ratios = {w: round(cost[w] / cost["without"], 3) for w in WAYS if w != "without"}
            rows.append({
                "figure": number, "rate": rate, "checkout": tree, "over_without": ratios,
                "microseconds_a_step": {w: round(c) for w, c in cost.items()},
                "proofs": each[-1][rate]["proofs"],
            })  # fmt: skip
            print(json.dumps(rows[-1], ensure_ascii=False), flush=True)
    return rows


def main() -> None:
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("figures", nargs="*", type=int, default=list(STEPS))
    parser.add_argument("--against", type=Path)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one-round", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path("bench/results/top_eigenvalue.json"))
    given = parser.parse_args()
    if given.one_round:
        print(json.dumps(one_round(given.one_round, given.data_root), ensure_ascii=False))
        return
    trees = {"before": given.against} if given.against else {}
    trees["after"] = Path(__file__).parent.parent
    rows = [
        row
        for number in given.figures
        for row in measure(number, trees, given.data_root, given.rounds)
    ]
    facts = {
        "torch": torch.__version__, "cpu": torch.backends.cpu.get_cpu_capability(),
        "pictures": "files" if given.data_root else "digits", "rounds": given.rounds,
    }  # fmt: skip
    text = json.dumps({"environment": facts, "rows": rows}, indent=1, ensure_ascii=False)
    given.out.write_text(text + "\n")
    print(f"wrote {given.out}")


if __name__ == "__main__":
    main()
