"""Where training ends: ``lr_max`` of a default scan against a dense grid of whole runs.

    python bench/edges.py [--out FILE]

Full-batch problems, 200 steps, the scan within its default budget of 800 gradients. The grid is 25
rates, 5 % apart, around what the scan says; each is trained to the horizon with none of
trebuchet's code. The grid's *first* edge is midway between the rates up to which every one trained
(its loss ends below its start) and the next; its *last* midway between the largest that trained and
the next. Where they differ there is no simple edge: rates that train and rates that fail alternate.
A scan whose interval is open ("above …") found no failing rate within its budget.
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
from suggest_tasks import (
    BCE,
    CE,
    MSE,
    TASKS,
    Task,
    breast_cancer,
    diabetes,
    digits,
    digits_one_hot as one_hot,
    mlp,
)
from trebuchet.problem.optimizer_rows import NAMED
from trebuchet.scans.door import scan

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
    first, last = _edges(grid, trained)
    return {
        "problem": name,
        "optimizer": optimizer,
        "lr_max": [found.lr_max.low, found.lr_max.high if found.lr_max.closed else None],
        "gradients": found.cost["gradients"],
        "first_edge": first,
        "last_edge": last,
        "trained": "".join("x" if ok else "." for ok in trained),
        "over_first": None if first is None or not found.lr_max.closed else value / first,
        "over_last": None if last is None or not found.lr_max.closed else value / last,
    }


def _edges(grid: np.ndarray, trained: np.ndarray) -> tuple[float | None, float | None]:
    """The first and the last edge; None where the grid does not see it."""
    half, failing = math.sqrt(STEP), np.flatnonzero(~trained)
    if not len(failing) or not trained.any():
        return None, None
    first = float(grid[failing[0]] / half) if failing[0] else None
    last = np.flatnonzero(trained)[-1]
    return first, float(grid[last] * half) if last < len(grid) - 1 else None


def _near(ratio: float | None) -> bool:
    return ratio is not None and abs(math.log(ratio)) <= math.log(1.1)


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
            first, last = (rows[-1][k] or math.nan for k in ("over_first", "over_last"))
            print(f"{name:38s} {optimizer:9s} lr_max {low:.4g} to {high or math.inf:.4g}  over the "
                  f"grid's first edge {first:.3f}, last {last:.3f}  {rows[-1]['trained']}",
                  flush=True)  # fmt: skip
    closed = [r for r in rows if r["lr_max"][1] is not None]
    near = [_near(r["over_first"]) for r in closed]
    either = [_near(r["over_first"]) or _near(r["over_last"]) for r in closed]
    print(f"within 10 % of the first edge {sum(near)} of {len(closed)}, of the first or the last "
          f"{sum(either)}; {len(rows) - len(closed)} intervals are open")  # fmt: skip
    result = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "closed": len(closed),
        "within_10_percent_of_the_first": sum(near),
        "within_10_percent_of_either": sum(either),
        "rows": rows,
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
