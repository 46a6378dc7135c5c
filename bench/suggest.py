"""How good is the rate that ``trebuchet.scan`` suggests, and what do the finders say?

    python bench/suggest.py [--zoo held-out] [--only WORD] [--jobs 2] [--out FILE]

For every task × optimizer pair: scan at seed 0; then train from three *fresh* seeds, new
initialisations and new batch orders that no tool saw, at the rate each tool suggests and at 25
rates, one octave apart in halves. With L the mean final loss on all data in evaluation mode, L* the
best over the 25, and L₀ the loss at the initialisation,

    regret = (L + 0.02 L₀) / (L* + 0.02 L₀).

Other tools, in the same run: torch-lr-finder (100 steps from 1e-6 to 10; the steepest point, and
the minimum divided by 10) and Lightning's ``lr_find`` (100 steps from 1e-8 to 10). A tool that is
not installed, or suggests nothing, is NaN. For scale, a grid search on the scan's own start: all 25
rates to the horizon, in two batch orders, 10,000 gradients, and the best of them.

``--zoo reported`` is the list that nothing in the search was chosen on; ``held-out`` one that was
written when the search was finished, of other models and pairings; ``development`` the list that
the search's constants were chosen on.
"""

import argparse
import contextlib
import importlib
import importlib.util
import io
import json
import logging
import math
import platform
import time
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch
from torch import nn

from suggest_development import TASKS as DEVELOPMENT
from suggest_heldout import TASKS as HELD_OUT
from suggest_tasks import TASKS as REPORTED, Task
from trebuchet.phases.forward_rate import forward_critical_rate
from trebuchet.problem.optimizer_rows import NAMED
from trebuchet.scans.door import scan

HORIZON, FRESH, GRID, SOFT = 200, (101, 102, 103), 25, 0.02
TOOLS = ("trebuchet", "lr-finder steepest", "lr-finder minimum/10", "lightning", "grid search")
ORDERS = (201, 202)
ZOOS = {"reported": REPORTED, "held-out": HELD_OUT, "development": DEVELOPMENT}
OUT = Path(__file__).parent / "results" / "suggest.json"


def model_of(task: Task, seed: int) -> nn.Module:
    """The task's model from a seed."""
    torch.manual_seed(seed)
    return task.make()


def final_loss(
    task: Task, optimizer: str, rate: float, seed: int, order_seed: int | None = None
) -> float:
    """Train plainly, with none of trebuchet's code, and return the loss on all data."""
    x, y = task.data()
    model = model_of(task, seed)
    steps = NAMED[optimizer](model.parameters(), lr=rate)
    generator = torch.Generator().manual_seed(seed if order_seed is None else order_seed)
    size, order = task.batch_size or len(x), torch.arange(0)
    for _ in range(HORIZON):
        if len(order) < size:
            order = torch.randperm(len(x), generator=generator)
        rows, order = order[:size], order[size:]
        steps.zero_grad()
        value = task.loss(model(x[rows]), y[rows])
        if not math.isfinite(value.item()):
            return math.inf
        value.backward()  # type: ignore[no-untyped-call]
        steps.step()
    model.eval()
    with torch.no_grad():
        final = float(task.loss(model(x), y))
    return final if math.isfinite(final) else math.inf


def with_lr_finder(task: Task, optimizer: str) -> dict[str, float]:
    """The two customary readings of torch-lr-finder's ramp."""
    if importlib.util.find_spec("torch_lr_finder") is None:
        return {}
    from torch_lr_finder import LRFinder

    model = model_of(task, 0)
    finder = LRFinder(model, NAMED[optimizer](model.parameters(), lr=1e-6), task.loss, device="cpu")
    finder.range_test(_loader(task), end_lr=10, num_iter=100)
    rates, losses = (np.array(finder.history[k], float) for k in ("lr", "loss"))
    steepest = int(np.gradient(losses[10:-5]).argmin()) + 10  # as its plot() suggests
    return {
        "lr-finder steepest": float(rates[steepest]),
        "lr-finder minimum/10": float(rates[np.nanargmin(losses)] / 10),
    }


def with_lightning(task: Task, optimizer: str) -> dict[str, float]:
    """Lightning's suggestion."""
    if importlib.util.find_spec("lightning") is None:
        return {}
    import lightning
    from lightning.pytorch.tuner.tuning import Tuner

    for name in ("lightning.pytorch", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)

    class Module(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model, self.lr = model_of(task, 0), 1e-3

        def training_step(self, batch: Any, index: int) -> Any:
            return task.loss(self.model(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return NAMED[optimizer](self.parameters(), lr=self.lr)

    trainer = lightning.Trainer(
        max_epochs=10_000, logger=False, enable_checkpointing=False, accelerator="cpu",
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    found = Tuner(trainer).lr_find(
        Module(), train_dataloaders=_loader(task), max_lr=10, update_attr=False
    )
    rate = found.suggestion()
    return {} if rate is None else {"lightning": float(rate)}


def _loader(task: Task) -> torch.utils.data.DataLoader[Any]:
    x, y = task.data()
    return torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(x, y), batch_size=task.batch_size or len(x), shuffle=True,
        drop_last=True, generator=torch.Generator().manual_seed(0),
    )  # fmt: skip


def measure(name: str, task: Task, optimizer: str) -> dict[str, Any]:
    """One pair: every tool's rate and its regret."""
    torch.set_num_threads(1)
    x, y = task.data()
    found: dict[str, float] = {}
    seconds: dict[str, float] = {}
    started = time.perf_counter()
    result = scan(
        model_of(task, 0), task.loss, (x, y), optimizer, horizon=HORIZON,
        batch_size=task.batch_size,
    )  # fmt: skip
    seconds["trebuchet"] = time.perf_counter() - started
    found["trebuchet"] = result.suggestion.rate
    others: dict[str, Callable[[Task, str], dict[str, float]]] = {
        "lr-finder": with_lr_finder,
        "lightning": with_lightning,
    }
    for tool, use in others.items():
        started = time.perf_counter()
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            found |= use(task, optimizer)
        seconds[tool] = time.perf_counter() - started
    scale = forward_critical_rate(model_of(task, 0), task.loss, (x, y), optimizer).value
    grid = scale * 2.0 ** (np.arange(GRID) / 2 - 9.5)
    own = [np.mean([final_loss(task, optimizer, r, 0, o) for o in ORDERS]) for r in grid]
    found["grid search"] = float(grid[int(np.argmin(own))])
    with torch.no_grad():
        starts = [float(task.loss(model_of(task, s).eval()(x), y)) for s in FRESH]
    first = float(np.mean(starts))
    losses = [float(np.mean([final_loss(task, optimizer, r, s) for s in FRESH])) for r in grid]
    best = int(np.argmin(losses))
    row: dict[str, Any] = {
        "task": name,
        "optimizer": optimizer,
        "loss_first": first,
        "loss_best": losses[best],
        "rate_best": float(grid[best]),
        "best_is_inside": 0 < best < GRID - 1,
        "catapult": result.has_catapult,
        "phase": str(result.suggestion.phase),
        "gradients": result.cost["gradients"],
        "forwards": result.cost["forwards"],
        "products": result.cost["products"],
        "seconds": seconds,
        "grid": {f"{r:.6g}": v for r, v in zip(grid, losses, strict=True)},
        "tools": {},
    }
    for tool in TOOLS:
        rate = found.get(tool, math.nan)
        each = [final_loss(task, optimizer, rate, s) if rate > 0 else math.nan for s in FRESH]
        loss = float(np.mean(each))
        regret = (loss + SOFT * first) / (losses[best] + SOFT * first)
        row["tools"][tool] = {"rate": rate, "loss": loss, "losses": each, "regret": regret}
    return row


def summary(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Geometric mean and worst regret of every tool; a diverged run is infinite and counted."""
    table = {}
    for tool in TOOLS:
        regrets = np.array([row["tools"][tool]["regret"] for row in rows], float)
        known = regrets[~np.isnan(regrets)]
        finite = known[np.isfinite(known)]
        table[tool] = {
            "pairs": float(len(known)),
            "diverged": float(np.isinf(known).sum()),
            "geometric_mean": float(np.exp(np.log(finite).mean())) if finite.size else math.nan,
            "worst": float(known.max()) if known.size else math.nan,
            "above_1.25": float((known > 1.25).sum()),
        }
    return table


def _plain(item: Any) -> Any:
    """JSON has neither NaN nor infinity: null and "inf"."""
    if isinstance(item, dict):
        return {key: _plain(value) for key, value in item.items()}
    if isinstance(item, list):
        return [_plain(value) for value in item]
    if isinstance(item, float) and not math.isfinite(item):
        return None if math.isnan(item) else "inf"
    return float(f"{item:.6g}") if isinstance(item, float) else item


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--zoo", choices=tuple(ZOOS), default="reported")
    parser.add_argument("--only", default="")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    tasks = ZOOS[options.zoo]
    pairs = [
        (name, task, optimizer)
        for name, task in tasks.items()
        for optimizer in task.optimizers
        if options.only in f"{name} {optimizer}"
    ]
    rows = []
    # Workers import this file by name: what is pickled from __main__ lacks its imports.
    by_name = importlib.import_module("suggest").measure_by_name
    calls = (joblib.delayed(by_name)(options.zoo, n, o) for n, _, o in pairs)
    for row in joblib.Parallel(options.jobs, return_as="generator")(calls):
        rows.append(row)
        shown = "  ".join(
            f"{tool} {row['tools'][tool]['rate']:.3g} ({row['tools'][tool]['regret']:.2f})"
            for tool in TOOLS
        )
        print(f"{row['task']}, {row['optimizer']}: best {row['rate_best']:.3g}; {shown}; "
              f"{row['gradients']:.0f} gradients", flush=True)  # fmt: skip
    table = summary(rows)
    for tool, numbers in table.items():
        print(f"{tool:22s} " + "  ".join(f"{k} {v:.3f}" for k, v in numbers.items()))
    result = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "zoo": options.zoo,
        "horizon": HORIZON,
        "summary": table,
        "pairs": rows,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(_plain(result), indent=1) + "\n")


def measure_by_name(zoo: str, name: str, optimizer: str) -> dict[str, Any]:
    """Tasks hold lambdas, which do not travel between processes; names do."""
    return measure(name, ZOOS[zoo][name], optimizer)


if __name__ == "__main__":
    main()
