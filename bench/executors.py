"""How much of two separate processes' throughput two workers reach, and what a run costs.

    python bench/executors.py [--backends loky dask] [--out FILE]

Two separate processes each sweep half of the seeds, at the same time; one sweep makes all of them
with two workers. Both are started before the clock is: they have imported torch and made one small
sweep. One thread a process. The overhead of a run is that of a sweep of many runs of one step.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import trebuchet as tb

OUT = Path(__file__).parent / "results" / "executors.json"
SEEDS = 12
RATES = [1e-3, 1e-2, 1e-1]


def cnn(seed: int) -> nn.Module:
    """A small one, for pictures of 16 × 16."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2), nn.ReLU(), nn.Flatten(),
        nn.Linear(576, 10),
    )  # fmt: skip


def pictures() -> tb.Problem:
    """A CNN, in batches."""
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(512, 1, 16, 16, generator=g), torch.randint(10, (512,), generator=g)
    return tb.Problem(cnn, "cross_entropy", (x, y), "sgd", batch_size=64)


def toy() -> tb.Problem:
    """Stacks of a two-layer ReLU net, full batch."""
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(32, 8, generator=g), torch.randn(32, 1, generator=g)
    return tb.Problem(lambda seed: tb.MLP.draw(8, 256, generator=seed), "half_mse", (x, y))


def small() -> tb.Problem:
    """A net whose step costs next to nothing."""
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(8, 3, generator=g), torch.randn(8, 1, generator=g)
    return tb.Problem(lambda seed: _linear(seed), "mse", (x, y), "adam", batch_size=4)


def _linear(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Linear(3, 1)


CASES: dict[str, tuple[Callable[[], tb.Problem], dict[str, Any]]] = {
    "CNN, in batches": (pictures, {"lr": RATES, "steps": 150}),
    "stacked ReLU nets": (toy, {"lr_ratio": [0.5, 1.5, 2.5, 3.5], "steps": 2000, "chunk": 4}),
}


def half(name: str, seeds: list[int]) -> None:
    """In a process of its own: warm up, wait for a line, sweep, and say so."""
    torch.set_num_threads(1)
    make, how = CASES[name]
    tb.sweep(make(), seeds=1, **how | {"steps": 2}, progress=False)
    print("ready", flush=True)
    sys.stdin.readline()
    tb.sweep(make(), seeds=seeds, **how, workers=1, progress=False)
    print("done", flush=True)


def apart(name: str) -> float:
    """Seconds of two separate processes."""
    with ExitStack() as stack:
        both = []
        for seeds in (list(range(0, SEEDS, 2)), list(range(1, SEEDS, 2))):
            code = f"import executors; executors.half({name!r}, {seeds})"
            both.append(
                stack.enter_context(
                    subprocess.Popen(
                        [sys.executable, "-c", code], cwd=Path(__file__).parent, text=True,
                        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                    )
                )
            )  # fmt: skip
        for process in both:
            assert process.stdout is not None
            process.stdout.readline()
        started = time.perf_counter()
        for process in both:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        for process in both:
            assert process.stdout is not None
            process.stdout.readline()
        return time.perf_counter() - started


def together(name: str, backend: Any) -> float:
    """Seconds of one sweep with two workers, which are there already."""
    make, how = CASES[name]
    tb.sweep(make(), seeds=4, **how | {"steps": 2}, backend=backend, workers=2, progress=False)
    started = time.perf_counter()
    tb.sweep(make(), seeds=SEEDS, **how, backend=backend, workers=2, progress=False)
    return time.perf_counter() - started


def overhead(backend: Any, runs: int = 400) -> float:
    """Seconds a run of one step costs, of which the step itself is next to nothing."""
    seconds = []
    for n in (runs // 4, runs):
        started = time.perf_counter()
        tb.sweep(
            small(), lr=np.geomspace(1e-3, 1e-1, n), steps=1, backend=backend, workers=2,
            progress=False,
        )  # fmt: skip
        seconds.append(time.perf_counter() - started)
    return (seconds[1] - seconds[0]) / (runs - runs // 4)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--backends", nargs="+", default=["threads", "loky"])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        if "dask" in options.backends:
            from dask.distributed import Client

            client = Client(n_workers=2, threads_per_worker=1, dashboard_address=None)  # type: ignore[no-untyped-call]
            stack.enter_context(client)
        for backend in options.backends:
            for name in CASES:
                pairs = [(apart(name), together(name, backend)) for _ in range(options.repeat)]
                efficiency = [a / t for a, t in pairs]
                rows.append({"case": name, "backend": backend, "seconds": pairs,
                             "efficiency": float(np.median(efficiency))})  # fmt: skip
                print(f"{name}, {backend}: {100 * np.median(efficiency):.0f} % of two processes "
                      f"({100 * min(efficiency):.0f} to {100 * max(efficiency):.0f})")  # fmt: skip
            cost = overhead(backend)
            rows.append({"case": "one step", "backend": backend, "seconds_a_run": cost})
            print(f"a run of one step, {backend}: {1e3 * cost:.1f} ms")
    result = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"), "torch": torch.__version__,
        "platform": platform.platform(), "rows": rows,
    }  # fmt: skip
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
