"""What a scan costs against 100 iterations of training, and where the time goes.

    python bench/scan_cost.py [--repeat 3] [--out FILE]

A plain loop of 100 iterations, torch-lr-finder's 100 (where it is installed) and a scan of a
horizon of 200, one after the other in one process on one thread; the ratio of their processor times
is the number to look at. The parts are times inside the scan: gradients, looks (forward passes),
optimizer steps, curvature products, and everything else. Memory is what a process of its own has at
its peak beyond one that only loads the data and makes the model, of a scan over that of training.
"""

import argparse
import contextlib
import io
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from suggest_grids import HORIZON, Pair, train
from suggest_tasks import TASKS
from trebuchet.problem.risk import Objective
from trebuchet.scans import setup
from trebuchet.scans.door import scan

CASES = (
    ("digits MLP, cross-entropy", "adam"),
    ("wine MLP, cross-entropy, full batch", "sgd"),
    ("text transformer, cross-entropy", "adam"),
    ("MNIST wide ReLU net, half-MSE, full batch", "sgd"),
    ("Fashion-MNIST CNN with BatchNorm, cross-entropy", "adam"),
)
ITERATIONS, RATE = 100, 1e-3
OUT = Path(__file__).parent / "results" / "scan_cost.json"


@contextlib.contextmanager
def clocks() -> Iterator[dict[str, float]]:
    """Time the parts of whatever runs inside."""
    parts = dict.fromkeys(("gradients", "looks", "optimizer", "curvature"), 0.0)

    def timed(part: str, f: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return f(*args, **kwargs)
            finally:
                parts[part] += time.perf_counter() - started

        return call

    with contextlib.ExitStack() as stack:
        for owner, name, part in (
            (Objective, "gradient", "gradients"),
            (Objective, "value", "looks"),
            (torch.optim.SGD, "step", "optimizer"),
            (torch.optim.Adam, "step", "optimizer"),
            (setup, "critical_rate", "curvature"),
        ):
            patched = timed(part, getattr(owner, name))
            stack.enter_context(mock.patch.object(owner, name, patched))
        yield parts


def ramp(pair: Pair) -> float:
    """Processor seconds of torch-lr-finder's 100 iterations; NaN where it is not installed."""
    try:
        from suggest_peers import FINDERS
    except ImportError:
        return float("nan")
    started = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        made = FINDERS["lr-finder steepest"](pair, 0).gradients
    return time.process_time() - started if made else float("nan")


def scanned(pair: Pair) -> Any:
    """Scan as `suggest.py` does."""
    task = pair.task
    return scan(
        pair.model(0), task.loss, task.data(), pair.optimizer, horizon=HORIZON,
        batch_size=task.batch_size,
    )  # fmt: skip


def peak(name: str, optimizer: str, what: str) -> float:
    """MiB at the peak of a process that only loads, trains, or scans."""
    code = f"import scan_cost; scan_cost.alone({name!r}, {optimizer!r}, {what!r})"
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=here, capture_output=True, text=True, check=True
    )
    return float(done.stdout.split()[-1])


def alone(name: str, optimizer: str, what: str) -> None:
    """In a process of its own: do it, and print the peak in MiB."""
    torch.set_num_threads(1)
    pair = Pair("reported", name, optimizer)
    pair.task.data(), pair.model(0)
    if what == "train":
        train(pair, RATE, 0, steps=ITERATIONS)
    if what == "scan":
        scanned(pair)
    # Not of getrusage: there a process begins with the peak of the one that started it.
    status = Path("/proc/self/status").read_text()
    print(float(status.split("VmHWM:")[1].split()[0]) / 1024)


def measure(name: str, optimizer: str, repeat: int) -> dict[str, Any]:
    """One task: medians of processor seconds, their ratios, the scan's parts, and memory."""
    pair = Pair("reported", name, optimizer)
    rows = []
    for _ in range(repeat + 1):  # the first warms caches up and is not counted
        started = time.process_time()
        train(pair, RATE, 0, steps=ITERATIONS)
        plain = time.process_time() - started
        finder = ramp(pair)
        started, wall = time.process_time(), time.perf_counter()
        with clocks() as parts:
            found = scanned(pair)
        total, elapsed = time.process_time() - started, time.perf_counter() - wall
        parts = {k: v * total / elapsed for k, v in parts.items()}
        rows.append((plain, finder, total, parts, found.cost))
    plain, finder, total = (float(np.median([row[k] for row in rows[1:]])) for k in range(3))
    parts = {k: float(np.median([row[3][k] for row in rows[1:]])) for k in rows[0][3]}
    parts["other"] = total - sum(parts.values())
    base, training, scanning = (peak(name, optimizer, w) for w in ("load", "train", "scan"))
    return {
        "task": name,
        "optimizer": optimizer,
        "seconds": total,
        "training_seconds": plain,
        "ratio": total / plain,
        "ratio_to_lr_finder": total / finder,
        "memory": {"load": base, "train": training - base, "scan": scanning - base},
        "parts": {k: v / total for k, v in parts.items()},
        "cost": {k: v for k, v in rows[-1][4].items() if k != "seconds"},
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [measure(n, o, options.repeat) for n, o in CASES if n in TASKS]
    for row in rows:
        parts = ", ".join(f"{k} {100 * v:.0f} %" for k, v in row["parts"].items())
        memory = row["memory"]
        print(f"{row['task']}, {row['optimizer']}: {row['seconds']:.2f} s, {row['ratio']:.1f} of "
              f"training, {row['ratio_to_lr_finder']:.1f} times torch-lr-finder; {parts}; memory "
              f"{memory['scan']:.0f} MiB, training {memory['train']:.0f}")  # fmt: skip
    result = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "tasks": rows,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
