"""Where training ends: ``lr_max`` of a default scan against a dense grid of whole runs.

    python bench/edges.py [--out FILE]

Full-batch problems, 200 steps, the scan within its default budget of 800 gradients. The grid is 25
rates, 5 % apart, around what the scan says; each is trained to the horizon with none of
trebuchet's code. The grid's edge is the largest rate up to which every one trained (its loss ends
below its start); beside it the largest that trained at all: where they differ there is no simple
edge. A scan whose interval is open ("above …") found no failing rate within its budget.
"""

import argparse
import json
import math
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from suggest_development import TASKS as DEVELOPMENT
from suggest_tasks import BCE, CE, MSE, TASKS, Task, breast_cancer, diabetes, digits, mlp
from suggest_tasks import digits_one_hot as one_hot
from trebuchet.phases.scan import scan
from trebuchet.phases.scanning.optimizers import NAMED

HORIZON, STEP, SIDE = 200, 1.05, 12
OUT = Path(__file__).parent / "results" / "edges.json"

PROBLEMS: dict[str, Task] = {
    name: DEVELOPMENT[name]
    for name in ("teacher, full batch", "wide net, full batch", "deep wide net, full batch")
}
PROBLEMS["wine MLP, cross-entropy"] = TASKS["wine MLP, cross-entropy, full batch"]
PROBLEMS |= {
    "300 digits, ReLU MLP, cross-entropy": Task(
        lambda: mlp(64, 32, 10), CE, lambda: (digits()[0][:300], digits()[1][:300]), None, ()
    ),
    "300 digits, tanh MLP, MSE": Task(
        lambda: mlp(64, 64, 10, act=nn.Tanh), MSE, lambda: (one_hot()[0][:300], one_hot()[1][:300]),
        None, (),
    ),
    "diabetes MLP, MSE": Task(lambda: mlp(10, 32, 32, 1), MSE, diabetes, None, ()),
    "breast cancer MLP, BCE": Task(lambda: mlp(30, 32, 1), BCE, breast_cancer, None, ()),
}  # fmt: skip


def trains(task: Task, optimizer: str, rate: float) -> bool:
    """Whether a run ends below its start."""
    x, y = task.data()
    torch.manual_seed(0)
    model = task.make()
    steps = NAMED[optimizer](model.parameters(), lr=rate)
    first = math.nan
    for t in range(HORIZON + 1):
        value = task.loss(model(x), y)
        last = value.item()
        first = last if t == 0 else first
        if not math.isfinite(last) or last > 1e8 * first:
            return False
        steps.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        steps.step()
    return last < first


def measure(name: str, task: Task, optimizer: str) -> dict[str, Any]:
    """One problem and optimizer."""
    torch.manual_seed(0)
    found = scan(task.make(), task.loss, task.data(), optimizer, horizon=HORIZON)
    value = found.lr_max.value
    grid = value * STEP ** np.arange(-SIDE, SIDE + 1)
    trained = np.array([trains(task, optimizer, float(r)) for r in grid])
    failing = np.flatnonzero(~trained)
    edge = float(grid[failing[0] - 1]) if len(failing) and failing[0] else math.nan
    return {
        "problem": name,
        "optimizer": optimizer,
        "lr_max": [found.lr_max.low, found.lr_max.high if found.lr_max.closed else None],
        "gradients": found.cost["gradients"],
        "edge": None if math.isnan(edge) else edge,
        "largest_that_trains": float(grid[trained].max()) if trained.any() else None,
        "trained": "".join("x" if ok else "." for ok in trained),
        "ratio": None if math.isnan(edge) or not found.lr_max.closed else value / edge,
    }


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name, task in PROBLEMS.items():
        for optimizer in ("sgd", "momentum", "adam"):
            rows.append(measure(name, task, optimizer))
            low, high = rows[-1]["lr_max"]
            ratio = rows[-1]["ratio"]
            print(
                f"{name:38s} {optimizer:9s} lr_max {low:.4g} to {high or math.inf:.4g}  "
                f"over the grid's edge {ratio or math.nan:.3f}  {rows[-1]['trained']}", flush=True,
            )  # fmt: skip
    closed = [r["ratio"] for r in rows if r["ratio"] is not None]
    near = sum(abs(math.log(r)) <= math.log(1.1) for r in closed)
    print(f"{near} of {len(closed)} within 10 %; {len(rows) - len(closed)} open, or no edge seen")
    result = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "within_10_percent": near,
        "compared": len(closed),
        "rows": rows,
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
