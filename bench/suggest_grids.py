"""Plain training, with none of trebuchet's code, and what it gave, kept on disk.

    python bench/suggest_grids.py --zoo development [--only WORD] [--jobs 2] [--curves]

A pair is a task × an optimizer; a training is `HORIZON` steps from one seed, which draws both the
weights and the order of the batches. For every pair there is a *grid*: the losses, on all data in
evaluation mode, of trainings at rates half an octave apart, from `CHOOSING` seeds, which say what
the best rate is, and from `JUDGING` seeds, on which everything is judged. With ``--curves`` there
are also *curves*, the losses along the way of other seeds, for ``suggest_replay.py``. A grid that
is there is read, and made otherwise: so a change of the search is measured in minutes.
"""

import argparse
import hashlib
import importlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import joblib
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from suggest_tasks import Task
from trebuchet.problem.optimizer_rows import NAMED

HORIZON = 200
SOFT = 0.02
CHOOSING = tuple(range(101, 105))
JUDGING = tuple(range(301, 310))
STARTS = (11, 12)
ORDERS = (21, 22)
OCTAVES = np.arange(-18, 7) / 2
"""Rates from the one at which a first step stops helping: those of curves, and of a first look."""
AROUND = 4
"""Half octaves of a grid to both sides of the best rate of the first look."""
FLIGHTS = (10, 25, 60, 100)
"""Steps at which curves of runs above their start hold the curvature along the gradient."""
LOOKS = np.array(
    sorted({0, 1, 2, 3, 5, 7, 10, 15, 20, 25, 30, HORIZON, *range(35, HORIZON, 5)}), np.int64
)
HERE = Path(__file__).parent
GRIDS, CURVES = HERE / "results" / "suggest_grids", HERE / ".curves"
LISTS = {
    "development": "suggest_development",
    "seen": "suggest_seen",
    "reported": "suggest_tasks",
    "held-out": "suggest_heldout",
}


@dataclass(frozen=True)
class Pair:
    """A task and an optimizer, by name."""

    zoo: str
    name: str
    optimizer: str

    @cached_property
    def task(self) -> Task:
        """The task itself."""
        found: Task = importlib.import_module(LISTS[self.zoo]).TASKS[self.name]
        return found

    @cached_property
    def data(self) -> tuple[Tensor, Tensor]:
        """Its inputs and targets."""
        return self.task.data()

    def model(self, seed: int) -> nn.Module:
        """Its model from a seed."""
        torch.manual_seed(seed)
        return self.task.make()

    def start(self, seed: int) -> float:
        """The loss at the initialisation, on all data in evaluation mode."""
        return self.loss(self.model(seed))

    def loss(self, model: nn.Module) -> float:
        """The loss on all data in evaluation mode."""
        x, y = self.data
        model.eval()
        with torch.no_grad():
            return float(self.task.loss(model(x), y))

    def __str__(self) -> str:
        return f"{self.name}, {self.optimizer}"

    @property
    def file(self) -> str:
        """A name for its files."""
        digest = hashlib.sha256(str(self).encode()).hexdigest()[:6]
        words = "".join(c if c.isalnum() else "-" for c in str(self).lower())
        return f"{words.replace('--', '-')[:60]}-{digest}.npz"


def pairs(zoo: str, only: str = "") -> list[Pair]:
    """All pairs of a list whose name has a word in it."""
    tasks: dict[str, Task] = importlib.import_module(LISTS[zoo]).TASKS
    every = [Pair(zoo, name, o) for name, task in tasks.items() for o in task.optimizers]
    return [pair for pair in every if only in str(pair)]


def batches(count: int, size: int | None, seed: int) -> Iterator[Tensor]:
    """Rows of one batch after the other, without end; an epoch's last rows may be left out."""
    generator = torch.Generator().manual_seed(seed)
    size, order = size or count, torch.arange(0)
    while True:
        if len(order) < size:
            order = torch.randperm(count, generator=generator)
        rows, order = order[:size], order[size:]
        yield rows


def train(
    pair: Pair,
    rate: float,
    seed: int,
    order: int | None = None,
    *,
    steps: int = HORIZON,
    at: Sequence[int] = (),
    flights: Sequence[int] = (),
) -> tuple[float, NDArray[np.float64], NDArray[np.float64]]:
    """Train once.

    Args:
        pair: What.
        rate: The learning rate.
        seed: Of the weights.
        order: Of the batches; `seed` unless given.
        steps: How long.
        at: Steps at which to look at the loss of up to 256 samples.
        flights: Steps at which to measure η · (curvature along the gradient), of a run above its
            start.

    Returns:
        The last loss on all data (infinite if one was not finite), the looks (NaN after that), the
        curvatures (NaN where none was measured).
    """
    model, (x, y) = pair.model(seed), pair.data
    optimizer = NAMED[pair.optimizer](model.parameters(), lr=rate)
    drawn = batches(len(x), pair.task.batch_size, seed if order is None else order)
    losses, turns = np.full(len(at), np.nan), np.full(len(flights), np.nan)
    shown = torch.randperm(len(x), generator=torch.Generator().manual_seed(7))[:256]
    x0, y0 = x[shown], y[shown]
    seen, flown = {s: k for k, s in enumerate(at)}, {s: k for k, s in enumerate(flights)}
    for step in range(steps + 1):
        if step in seen:
            losses[seen[step]] = _look(model, pair.task, x0, y0)
            if not math.isfinite(losses[seen[step]]):
                return math.inf, losses, turns
            if step in flown and losses[seen[step]] > losses[0]:
                turns[flown[step]] = rate * _along(model, pair.task, x0, y0)
        if step == steps:
            break
        rows = next(drawn)
        optimizer.zero_grad()
        value = pair.task.loss(model(x[rows]), y[rows])
        if not math.isfinite(value.item()):
            return math.inf, losses, turns
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    final = pair.loss(model)
    return (final if math.isfinite(final) else math.inf), losses, turns


def _look(model: nn.Module, task: Task, x: Tensor, y: Tensor) -> float:
    kept = [b.clone() for b in model.buffers()]
    with torch.no_grad():
        value = float(task.loss(model(x), y))
        for b, old in zip(model.buffers(), kept, strict=True):
            b.copy_(old)
    return value


def _along(model: nn.Module, task: Task, x: Tensor, y: Tensor) -> float:
    """gᵀHg/gᵀg, by a difference of two gradients."""
    kept = [b.clone() for b in model.buffers()]
    params: list[Tensor] = [p for p in model.parameters() if p.requires_grad]

    def gradient() -> list[Tensor]:
        found = torch.autograd.grad(task.loss(model(x), y), params, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(params, found, strict=True)]

    first = gradient()
    norm = math.sqrt(sum(float(g.square().sum()) for g in first))
    if not 0 < norm < math.inf:
        return math.nan
    size = 1e-3 * math.sqrt(sum(float(p.detach().square().sum()) for p in params)) / norm
    with torch.no_grad():
        torch._foreach_add_(params, first, alpha=-size)
    second = gradient()
    with torch.no_grad():
        torch._foreach_add_(params, first, alpha=size)
        for b, old in zip(model.buffers(), kept, strict=True):
            b.copy_(old)
    dot = sum(float((a * (a - b)).sum()) for a, b in zip(first, second, strict=True))
    return dot / (size * norm**2)


def scale(pair: Pair) -> float:
    """The rate, a power of two, beyond which one step of the optimizer no longer helps."""
    x, y = pair.data
    rates = 2.0 ** np.arange(-30, 20)
    losses = np.array([_after(pair, float(rate), x, y) for rate in rates])
    helps = np.flatnonzero(losses < _after(pair, 0.0, x, y))
    return float(rates[helps.max()]) if helps.size else 1.0


def _after(pair: Pair, rate: float, x: Tensor, y: Tensor) -> float:
    model = pair.model(0)
    optimizer = NAMED[pair.optimizer](model.parameters(), lr=rate)
    pair.task.loss(model(x), y).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return _look(model, pair.task, x, y)


@dataclass(frozen=True)
class Grid:
    """Last losses at many rates.

    Attributes:
        rates: Of length R, ascending.
        starts: Losses at the start, by seed: first `CHOOSING`, then `JUDGING`.
        losses: R × seeds.
    """

    rates: NDArray[np.float64]
    starts: NDArray[np.float64]
    losses: NDArray[np.float64]


def softened(losses: NDArray[np.float64], starts: NDArray[np.float64]) -> NDArray[np.float64]:
    """log(L/L₀ + 0.02); a lost training leaves one with the start's loss."""
    with np.errstate(invalid="ignore"):
        ratio = np.where(np.isfinite(losses), losses / starts, 1.0)
    return np.log(np.minimum(ratio, 1.0) + SOFT)


def grid(pair: Pair) -> Grid:
    """Read a pair's grid, or make it."""
    path = GRIDS / pair.file
    if not path.exists():
        torch.set_num_threads(1)
        seeds = (*CHOOSING, *JUDGING)
        rates = scale(pair) * 2.0**OCTAVES
        first = np.array([[train(pair, r, s)[0] for s in CHOOSING[:2]] for r in rates])
        best = _best(first, np.array([pair.start(s) for s in CHOOSING[:2]]))
        rates = rates[best] * 2.0 ** (np.arange(-AROUND, AROUND + 1) / 2)
        losses = np.array([[train(pair, r, s)[0] for s in seeds] for r in rates])
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(
            path, rates=rates, starts=np.array([pair.start(s) for s in seeds], np.float32),
            losses=losses.astype(np.float32),
        )  # fmt: skip
    with np.load(path) as kept:
        return Grid(*(np.asarray(kept[k], float) for k in ("rates", "starts", "losses")))


def _best(losses: NDArray[np.float64], starts: NDArray[np.float64]) -> int:
    return int(softened(losses, starts).mean(1).argmin())


def curves(pair: Pair) -> dict[str, NDArray[np.float64]]:
    """Read a pair's curves, or make them.

    Returns:
        Rates (R), ``at`` (T), ``losses`` (R, starts, orders, T), ``final`` (R, starts, orders),
        ``turns`` (R, starts, orders, flights); a full batch has one order.
    """
    path = CURVES / pair.file
    if not path.exists():
        torch.set_num_threads(1)
        rates = scale(pair) * 2.0**OCTAVES
        orders = ORDERS if pair.task.batch_size else ORDERS[:1]
        found = [
            [
                [train(pair, r, s, o, at=LOOKS.tolist(), flights=FLIGHTS) for o in orders]
                for s in STARTS
            ]
            for r in rates
        ]
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(
            path, rates=rates, at=LOOKS,
            final=np.array([[[run[0] for run in row] for row in each] for each in found]),
            losses=np.array([[[run[1] for run in row] for row in each] for each in found]),
            turns=np.array([[[run[2] for run in row] for row in each] for each in found]),
        )  # fmt: skip
    with np.load(path) as kept:
        return {key: np.asarray(kept[key], float) for key in kept.files}


def make(pair: Pair, with_curves: bool) -> str:
    """Make what is missing of a pair."""
    grid(pair)
    if with_curves:
        curves(pair)
    return str(pair)


def main() -> None:
    """Make what is missing of a list."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--zoo", choices=tuple(LISTS), default="development")
    parser.add_argument("--only", default="")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--curves", action="store_true")
    options = parser.parse_args()
    # Workers import this file by name: what is pickled from __main__ lacks its imports.
    by_name = importlib.import_module("suggest_grids")
    every = by_name.pairs(options.zoo, options.only)
    calls = (joblib.delayed(by_name.make)(pair, options.curves) for pair in every)
    for k, done in enumerate(joblib.Parallel(options.jobs, return_as="generator_unordered")(calls)):
        print(f"{k + 1} of {len(every)}: {done}", flush=True)


if __name__ == "__main__":
    main()
