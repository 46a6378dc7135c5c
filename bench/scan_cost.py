"""What a scan costs against torch-lr-finder's 100 steps, and where the time goes.

    python bench/scan_cost.py [--repeat 3] [--out FILE]

Both on the same task, one after the other in one process on one thread; the ratio of their times is
the number to look at. The parts are times inside the scan: gradients, looks (forward passes),
optimizer steps, curvature products, and everything else.
"""

import argparse
import contextlib
import io
import json
import platform
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from suggest_grids import HORIZON, Pair
from suggest_peers import FINDERS
from suggest_tasks import TASKS
from trebuchet.problem.risk import Objective
from trebuchet.scans import setup
from trebuchet.scans.door import scan

CASES = (
    ("digits MLP, cross-entropy", "adam"),
    ("wine MLP, cross-entropy, full batch", "sgd"),
    ("text transformer, cross-entropy", "adam"),
    ("MNIST wide ReLU net, half-MSE, full batch", "sgd"),
)
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


def measure(name: str, optimizer: str, repeat: int) -> dict[str, Any]:
    """One task: median seconds of both, their ratio, and the scan's parts."""
    pair = Pair("reported", name, optimizer)
    task, rows = pair.task, []
    for _ in range(repeat + 1):  # the first warms caches up and is not counted
        started = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            ramp = FINDERS["lr-finder steepest"](pair, 0).gradients
        finder = time.perf_counter() - started
        data, model = task.data(), pair.model(0)
        started = time.perf_counter()
        with clocks() as parts:
            found = scan(
                model, task.loss, data, optimizer, horizon=HORIZON, batch_size=task.batch_size
            )
        total = time.perf_counter() - started
        rows.append((finder if ramp else np.nan, total, dict(parts), found.cost))
    finder, total = (float(np.median([row[k] for row in rows[1:]])) for k in (0, 1))
    parts = {k: float(np.median([row[2][k] for row in rows[1:]])) for k in rows[0][2]}
    parts["other"] = total - sum(parts.values())
    return {
        "task": name,
        "optimizer": optimizer,
        "seconds": total,
        "lr_finder_seconds": finder,
        "ratio": total / finder,
        "parts": {k: v / total for k, v in parts.items()},
        "cost": {k: v for k, v in rows[-1][3].items() if k != "seconds"},
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
        print(f"{row['task']}, {row['optimizer']}: {row['seconds']:.2f} s, "
              f"{row['ratio']:.1f} times torch-lr-finder; {parts}")  # fmt: skip
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
