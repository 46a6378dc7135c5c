"""How good is the rate that ``trebuchet.scan`` suggests, and what do others say?

    python bench/suggest.py [--zoo held-out] [--only WORD] [--budget fast] [--peers] [--jobs 2]

For every pair of a task and an optimizer, two scans from two initialisations, 200 steps long. Each
suggested rate is then trained at from nine seeds that no tool saw, new weights and new orders of
the batches, with none of trebuchet's code. What a rate is worth is the median over those nine of

    y = log(min(L / L₀, 1) + 0.02),

L the loss on all data in evaluation mode, L₀ the same at the start: below 2 % of the start losses
count as equal, and a training that was lost, by ending above its start or nowhere, leaves one with
the start. The best rate is the one with the least mean of y over four other seeds, among rates half
an octave apart (``suggest_grids.py``). The regret of a rate is exp(y(rate) − y(best)); it can fall
below 1, since the best was chosen on other seeds.

Said are the regret's geometric mean, the share of suggestions above 1.25, the worst, the share of
trainings lost, and the gradients of training batches that were spent. With ``--peers`` also what
other finders suggest, and what optimizers that need no rate make of the task, by
``suggest_peers.py``. Those are compared twice: after 200 steps each, and with the same number of
gradients for searching and training together, `TOTAL`.

``development`` and ``seen`` are the lists that the search's constants were chosen on; ``reported``
was kept apart from that; ``held-out`` was written when the search was finished, and run once.
"""

import argparse
import importlib
import json
import math
import platform
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch
from numpy.typing import NDArray

from suggest_grids import CHOOSING, HORIZON, JUDGING, LISTS, Pair, grid, pairs, softened, train
from trebuchet.scans.budget import Budget
from trebuchet.scans.door import scan

SCANNED = (0, 1)
"""Seeds of the models that are scanned."""
TOTAL = 1000
"""Gradients for searching and training together."""
AT_EQUAL_COST = JUDGING[:3]


def judged(
    pair: Pair, rate: float, *, steps: int = HORIZON, seeds: Sequence[int] = JUDGING
) -> dict[str, Any]:
    """Train at a rate from seeds that no tool saw.

    Returns:
        The worth y, the share of trainings lost, and the losses.
    """
    if not rate > 0:
        return {"rate": math.nan, "worth": math.nan, "lost": math.nan, "losses": []}
    starts = _starts(pair)[: len(seeds)]
    losses = np.array([train(pair, rate, s, steps=steps)[0] for s in seeds])
    return {
        "rate": rate,
        "worth": float(np.median(softened(losses, starts))),
        "lost": float(1 - (losses < starts).mean()),
        "losses": losses.tolist(),
    }


def _starts(pair: Pair) -> NDArray[np.float64]:
    return grid(pair).starts[len(CHOOSING) :]


def best(pair: Pair) -> dict[str, Any]:
    """The best rate of the grid, chosen on some seeds and judged on the others."""
    known, n = grid(pair), len(CHOOSING)
    y = softened(known.losses, known.starts)
    k = int(y[:, :n].mean(1).argmin())
    return {
        "rate": float(known.rates[k]),
        "worth": float(np.median(y[k, n:])),
        "lost": float(1 - (known.losses[k, n:] < known.starts[n:]).mean()),
        "inside": 0 < k < len(known.rates) - 1,
    }


def scanned(pair: Pair, seed: int, budget: Budget | int | None) -> dict[str, Any]:
    """Scan, and judge what is suggested."""
    started = time.perf_counter()
    result = scan(
        pair.model(seed), pair.task.loss, pair.data, pair.optimizer, horizon=HORIZON,
        batch_size=pair.task.batch_size, budget=budget,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    said = result.suggestion
    row = judged(pair, said.rate)
    return row | {
        "low": said.low, "high": said.high, "phase": str(said.phase), "reliable": said.reliable,
        "reason": said.reason, "expected": said.expected_loss, "seconds": seconds,
        **{k: result.cost[k] for k in ("gradients", "forwards", "products")},
    }  # fmt: skip


def measure(pair: Pair, budget: Budget | int | None, peers: bool) -> dict[str, Any]:
    """One pair: what everybody says, and what it is worth."""
    torch.set_num_threads(1)
    found: dict[str, Any] = {
        "task": pair.name,
        "optimizer": pair.optimizer,
        "best": best(pair),
        "trebuchet": [scanned(pair, seed, budget) for seed in SCANNED],
    }
    if peers:
        found["peers"] = _peers(pair)
        found["equal"] = _at_equal_cost(pair, found)
    return found


def _peers(pair: Pair) -> dict[str, list[dict[str, Any]]]:
    from suggest_peers import FINDERS, TRAINERS

    rows: dict[str, list[dict[str, Any]]] = {}
    for name, find in FINDERS.items():
        said = [find(pair, seed) for seed in SCANNED]
        rows[name] = [judged(pair, s.rate) | {"gradients": s.gradients} for s in said]
    for name, run in TRAINERS.items():
        rows[name] = [_trained(pair, run, HORIZON, JUDGING)]
    return rows


def _trained(pair: Pair, run: Any, steps: int, seeds: Sequence[int]) -> dict[str, Any]:
    losses = np.array([run(pair, seed, steps=steps) for seed in seeds], float)
    starts = _starts(pair)[: len(seeds)]
    if np.isnan(losses).all():
        return {"worth": math.nan, "lost": math.nan, "gradients": 0.0}
    return {
        "worth": float(np.median(softened(losses, starts))),
        "lost": float(1 - (losses < starts).mean()),
        "gradients": 0.0,
        "losses": losses.tolist(),
    }


def _at_equal_cost(pair: Pair, found: Mapping[str, Any]) -> dict[str, float]:
    """Worth after as many gradients in all; of the first of two suggestions."""
    from suggest_peers import FINDERS, TRAINERS

    worths = {}
    for name in ("trebuchet", *FINDERS):
        row = found["trebuchet"][0] if name == "trebuchet" else found["peers"][name][0]
        steps = TOTAL - round(row["gradients"])
        worths[name] = judged(pair, row["rate"], steps=steps, seeds=AT_EQUAL_COST)["worth"]
    for name, run in TRAINERS.items():
        worths[name] = _trained(pair, run, TOTAL, AT_EQUAL_COST)["worth"]
    return worths


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """One line a tool: regrets against the best rate of the same pair."""
    tools: dict[str, list[tuple[float, Mapping[str, Any]]]] = {}
    for row in rows:
        for name, said in {"trebuchet": row["trebuchet"], **row.get("peers", {})}.items():
            tools.setdefault(name, []).extend((s["worth"] - row["best"]["worth"], s) for s in said)
    table = {}
    for name, found in tools.items():
        known = [(x, s) for x, s in found if math.isfinite(x)]
        if not known:
            continue
        x = np.exp([x for x, _ in known])
        table[name] = {
            "suggestions": float(len(x)),
            "geometric_mean": float(np.exp(np.log(x).mean())),
            "above_1.25": float((x > 1.25).mean()),
            "worst": float(x.max()),
            "lost": float(np.mean([s["lost"] for _, s in known])),
            "gradients": float(np.mean([s["gradients"] for _, s in known])),
        }
        equal = [
            row["equal"][name] - row["equal"]["trebuchet"] for row in rows
            if math.isfinite(row.get("equal", {}).get(name, math.nan))
        ]  # fmt: skip
        if equal:
            table[name]["at_equal_cost"] = float(np.exp(np.mean(equal)))
    table["best rate of the grid"] = {"lost": float(np.mean([r["best"]["lost"] for r in rows]))}
    return table


def _plain(item: Any) -> Any:
    """JSON has neither NaN nor infinity: null and "inf"."""
    if isinstance(item, dict):
        return {key: _plain(value) for key, value in item.items()}
    if isinstance(item, list):
        return [_plain(value) for value in item]
    if isinstance(item, float) and not math.isfinite(item):
        return None if math.isnan(item) else "inf"
    return float(f"{item:.5g}") if isinstance(item, float) else item


def _said(row: Mapping[str, Any]) -> str:
    ours = ", ".join(
        f"{s['rate']:.3g} ({math.exp(s['worth'] - row['best']['worth']):.3f}, {s['phase']}, "
        f"{100 * s['lost']:.0f} % lost, {s['gradients']:.0f})"
        for s in row["trebuchet"]
    )
    return f"{row['task']}, {row['optimizer']}: best {row['best']['rate']:.3g}; {ours}"


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--zoo", choices=tuple(LISTS), default="reported")
    parser.add_argument("--only", default="")
    parser.add_argument("--budget", help="as for scan: a word or a number of gradients")
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    budget = (
        options.budget and int(options.budget) if str(options.budget).isdigit() else options.budget
    )
    # Workers import this file by name: what is pickled from __main__ lacks its imports.
    by_name = importlib.import_module("suggest").measure
    every = pairs(options.zoo, options.only)
    calls = (joblib.delayed(by_name)(pair, budget, options.peers) for pair in every)
    rows = []
    for row in joblib.Parallel(options.jobs, return_as="generator")(calls):
        rows.append(row)
        print(_said(row), flush=True)
    table = summary(rows)
    for tool, numbers in table.items():
        print(f"{tool:26s} " + "  ".join(f"{k} {v:.3f}" for k, v in numbers.items()))
    if options.out is None:
        return
    result = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "zoo": options.zoo,
        "budget": options.budget,
        "horizon": HORIZON,
        "summary": table,
        "pairs": rows,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(_plain(result), indent=1) + "\n")


if __name__ == "__main__":
    main()
