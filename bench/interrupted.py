"""Interrupt random sweeps at random steps, resume them, and compare with uninterrupted ones.

    python bench/interrupted.py [--cases 300] [--seed 0] [--json FILE]

Each case draws a model, a loss, a dtype, an optimizer, a tolerance, test data, seeds, chunks,
workers and a recording schedule, and is stopped one to four times. What is compared is every bit
of every variable of the dataset.
"""

import argparse
import collections
import dataclasses
import json
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from trebuchet.engine.kernels import OutputKernel
from trebuchet.engine.optimizers import GradientDescent
from trebuchet.engine.recording import Recording
from trebuchet.models import MLP, PureQuadratic, QuadraticWithBias
from trebuchet.problem.problem import Problem
from trebuchet.sweeps.sweep import sweep


class Stopper:
    """Makes a sweep's n-th step wait until Ctrl-C has come."""

    def __init__(self) -> None:
        self.left, self.lock = -1, threading.Lock()
        self.reached, self.raised = threading.Event(), threading.Event()

    def arm(self, steps: int) -> None:
        """Stop at the so-many-th step from now."""
        self.left = steps
        self.reached.clear()
        self.raised.clear()

    def stepped(self) -> None:
        """Note that a chunk has made a step."""
        with self.lock:
            self.left -= 1
            here = self.left == 0
        if here:
            self.reached.set()
            self.raised.wait(5)

    def progress(self, done: int, total: int) -> None:
        """To be given to the sweep."""
        if self.reached.is_set():
            self.raised.set()
            raise KeyboardInterrupt


STOPPER = Stopper()


@dataclasses.dataclass(frozen=True, slots=True)
class Watched(GradientDescent):
    """Gradient descent that tells the stopper of every step."""

    def step_(self, kernel: OutputKernel, dz: Tensor, lr: Tensor, velocity: Any) -> None:
        """As it is."""
        GradientDescent.step_(self, kernel, dz, lr, velocity)
        STOPPER.stepped()


def small_net(
    seed: int, dtype: torch.dtype, *, norm: bool = False, wide: bool = False
) -> nn.Module:
    """A net that only ``torch.func``, or plain autograd, can train."""
    torch.manual_seed(seed)
    middle: list[nn.Module] = [nn.BatchNorm1d(8)] if norm else []
    net = nn.Sequential(nn.Linear(3, 8), *middle, nn.Tanh(), nn.Linear(8, 3 if wide else 1))
    return net.to(dtype)


def draw(rng: np.random.Generator) -> tuple[str, dict[str, Any], Problem]:
    """A random sweep: its name, its arguments, its problem."""
    kind = str(rng.choice(["pure", "biased", "relu", "leaky", "linear", "net", "norm", "classes"]))
    dtype = [torch.float64, torch.float32, torch.bfloat16][int(rng.choice(3, p=[0.45, 0.45, 0.1]))]
    if kind in ("net", "norm", "classes", "biased"):
        dtype = torch.float64 if dtype == torch.bfloat16 else dtype
    samples = int(rng.integers(2, 7))
    x, y = torch.as_tensor(rng.normal(size=(samples, 3))), torch.as_tensor(rng.normal(size=samples))
    test: Any = None
    if rng.random() < 0.5:
        test = torch.as_tensor(rng.normal(size=(4, 3))), torch.as_tensor(rng.normal(size=4))
    models: dict[str, Callable[[int], nn.Module]] = {
        "pure": lambda s: PureQuadratic.draw(12, 3, generator=s).to(dtype),
        "biased": lambda s: QuadraticWithBias.draw(12, 4, 3, generator=s).to(dtype),
        "relu": lambda s: MLP.draw(3, 16, hidden=2, generator=s, dtype=dtype),
        "leaky": lambda s: MLP.draw(3, 16, slopes=(1, 0.5), generator=s, dtype=dtype),
        "linear": lambda s: nn.Linear(3, 1, bias=False).to(dtype),
        "net": lambda s: small_net(s, dtype),
        "norm": lambda s: small_net(s, dtype, norm=True),
        "classes": lambda s: small_net(s, dtype, wide=True),
    }
    loss: Any = "half_mse"
    if kind == "classes":
        y, loss = torch.as_tensor(rng.integers(0, 3, samples)), nn.functional.cross_entropy
        test = None if test is None else (test[0], torch.tensor([0, 1, 2, 0]))
    elif rng.random() < 0.2:
        loss = nn.functional.smooth_l1_loss
    torch.manual_seed(0)
    linear = models["linear"](0)
    problem = Problem(linear if kind == "linear" else models[kind], loss, (x, y), test=test)
    rates = np.sort(rng.choice(np.arange(0.25, 8.1, 0.25), int(rng.integers(1, 7)), replace=False))
    observables = ["top_eigenvalue", "sparsity", "test_loss"]
    arguments = {
        "lr_ratio": rates,
        "seeds": 1 if kind == "linear" else int(rng.integers(1, 4)),
        "steps": int(rng.integers(5, 60)),
        "tolerance": [None, 1e-3, 1e-6][int(rng.integers(3))],
        "optimizer": Watched(
            float(rng.choice([0, 0, 0.8])), float(rng.choice([0, 0, 0.05]))
        ),
        "record": [None, Recording(every=7), Recording(dense=5, per_decade=4)][rng.integers(3)],
        "observables": observables[: int(rng.integers(0, 4))],
        "engine": str(rng.choice(["auto", "auto", "sequential"])),
        "span": bool(rng.random() < 0.7),
        "chunk": [None, 1, 2, 3, 7][int(rng.integers(5))],
        "workers": int(rng.integers(1, 4)),
    }  # fmt: skip
    return f"{kind} {str(dtype).removeprefix('torch.')}", arguments, problem


def differing(a: xr.Dataset, b: xr.Dataset) -> list[str]:
    """Names of the variables and attributes that are not the same to the last bit."""
    names = set(a.variables) ^ set(b.variables)
    for name in set(a.variables) & set(b.variables):
        u, v = a[name].values, b[name].values
        if u.dtype != v.dtype or u.shape != v.shape or u.tobytes() != v.tobytes():
            names.add(name)
    names |= {k for k in a.attrs if k != "created" and repr(a.attrs[k]) != repr(b.attrs[k])}
    return sorted(map(str, names))


def one(rng: np.random.Generator) -> tuple[str, int, list[str]]:
    """A case: its name, how often it was stopped, and what differed."""
    name, arguments, problem = draw(rng)
    stops = int(rng.integers(1, 5))
    with tempfile.TemporaryDirectory() as folder:
        held: dict[str, Any] = {
            "checkpoint": folder,
            "checkpoint_seconds": float(rng.choice([0, 0.01, 5])),
        }
        stopped = 0
        longest = arguments["steps"] * max(1, arguments["seeds"])
        for _ in range(stops):
            STOPPER.arm(int(rng.integers(1, longest + 1)))
            part = sweep(problem, **arguments, **held, progress=STOPPER.progress)
            stopped += int(part.attrs["interrupted"])
        STOPPER.arm(-1)
        resumed = sweep(problem, **arguments, **held)
        arguments["chunk"] = resumed.attrs["chunk"]
        whole = sweep(problem, **arguments)
    return name, stopped, differing(whole, resumed)


def main() -> None:
    """Run the cases and print the count."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    stops, wrong = 0, []
    kinds: collections.Counter[str] = collections.Counter()
    for case in range(arguments.cases):
        name, stopped, differ = one(np.random.default_rng([arguments.seed, case]))
        stops += stopped
        kinds[name] += 1
        if differ:
            wrong.append({"case": case, "name": name, "differ": differ})
            print(f"case {case} ({name}): {differ} differ", flush=True)
    good = arguments.cases - len(wrong)
    print(f"{good} of {arguments.cases} sweeps, stopped {stops} times, are equal bit for bit")
    if arguments.json:
        told = {"seed": arguments.seed, "cases": arguments.cases, "stops": stops, "equal": good}
        arguments.json.write_text(
            json.dumps({**told, "kinds": dict(sorted(kinds.items())), "wrong": wrong}, indent=1)
        )
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
