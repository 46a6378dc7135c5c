"""What other tools say, or do, about the learning rate.

*Finders* raise the rate along one short run and read a rate off the losses: torch-lr-finder, 100
steps from 1e-6 to 10, read at the steepest point (as its ``plot`` does) and at a tenth of the
minimum; Lightning's ``lr_find``, 100 steps from 1e-8 to 10; fastai's ``lr_find``, its own 100 steps
from 1e-7 to 10, read by ``valley``. They ramp the pair's own optimizer over the batches that a
training from the same seed sees.

*Trainers* need no rate: their authors' defaults are meant to do, whatever the pair's optimizer.
They train as ``suggest_grids.train`` does, from the same weights and over the same batches. Adam at
two rates is there for scale.

A tool that is not installed says NaN; one that fails says NaN, and why on standard error.
``pip install -c constraints.txt -e '.[bench]'`` installs them all. fastai brings torchvision, which
Lightning imports if it is there: where it was built for another torch than the one installed (a
message about ``torchvision::nms``), uninstall it. No tool here needs it.
"""

import contextlib
import importlib
import importlib.util
import io
import itertools
import logging
import math
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from suggest_grids import HORIZON, Pair, batches
from trebuchet.problem.optimizer_rows import NAMED

RAMP = 100
"""Steps of a finder's run."""
REFRESH = 50
"""Batches for the statistics of averaged weights, as schedulefree's README has it."""

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Said:
    """What a finder said.

    Attributes:
        rate: The learning rate; NaN where it said nothing.
        gradients: How many gradients of a training batch it spent.
    """

    rate: float
    gradients: float


@contextlib.contextmanager
def _quietly(what: str) -> Iterator[None]:
    """Keep a tool's output to itself; if it fails, say so in one line and go on."""
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    except Exception as error:  # other people's tools fail in their own ways
        reason = " ".join(str(error).split())
        print(f"{what}: {type(error).__name__}: {reason}", file=sys.stderr, flush=True)


def _is_there(module: str) -> bool:
    return importlib.util.find_spec(module.partition(".")[0]) is not None


def _loader(pair: Pair, seed: int) -> torch.utils.data.DataLoader[Any]:
    """The batches of a training, as many as a ramp takes."""
    x, y = pair.data
    rows = itertools.islice(batches(len(x), pair.task.batch_size, seed), RAMP)
    return torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(x, y), batch_size=None, sampler=list(rows)
    )


def _lr_finder(pair: Pair, seed: int, loss: Loss) -> Any:
    from torch_lr_finder import LRFinder

    model = pair.model(seed)
    optimizer = NAMED[pair.optimizer](model.parameters(), lr=1e-6)
    finder = LRFinder(model, optimizer, loss, device="cpu")
    finder.range_test(_loader(pair, seed), end_lr=10, num_iter=RAMP)
    return finder


def _steepest(pair: Pair, seed: int, loss: Loss) -> float:
    _, rate = _lr_finder(pair, seed, loss).plot(ax=Figure().subplots())
    return float(rate)


def _minimum(pair: Pair, seed: int, loss: Loss) -> float:
    history = _lr_finder(pair, seed, loss).history
    return float(history["lr"][int(np.nanargmin(history["loss"]))]) / 10


def _lightning(pair: Pair, seed: int, loss: Loss) -> float:
    import lightning
    from lightning.pytorch.tuner.tuning import Tuner

    for name in ("lightning.pytorch", "lightning"):
        logging.getLogger(name).setLevel(logging.CRITICAL)

    class Module(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model, self.lr = pair.model(seed), 1e-3

        def training_step(self, batch: Any, index: int) -> Any:
            return loss(self.model(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return NAMED[pair.optimizer](self.parameters(), lr=self.lr)

    with tempfile.TemporaryDirectory() as folder:
        trainer = lightning.Trainer(
            max_epochs=1, logger=False, enable_checkpointing=False, accelerator="cpu",
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        )  # fmt: skip
        found = Tuner(trainer).lr_find(
            Module(), train_dataloaders=_loader(pair, seed), max_lr=10, num_training=RAMP,
            update_attr=False,
        )  # fmt: skip
    rate = found.suggestion()
    if rate is None:
        raise ValueError("too few finite losses")
    return float(rate)


def _fastai(pair: Pair, seed: int, loss: Loss) -> float:
    from fastai.callback.schedule import valley
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner
    from fastai.optimizer import OptimWrapper

    loader = _loader(pair, seed)
    with tempfile.TemporaryDirectory() as folder:
        learner = Learner(
            DataLoaders(loader, loader, device="cpu"), pair.model(seed), loss_func=loss,
            opt_func=partial(OptimWrapper, opt=NAMED[pair.optimizer]), path=folder,
        )  # fmt: skip
        return float(learner.lr_find(num_it=RAMP, show_plot=False, suggest_funcs=valley).valley)


def _finder(
    name: str, module: str, read: Callable[[Pair, int, Loss], float]
) -> Callable[[Pair, int], Said]:
    def say(pair: Pair, seed: int) -> Said:
        rate, gradients = math.nan, 0

        def counted(z: Tensor, y: Tensor) -> Tensor:
            nonlocal gradients
            gradients += torch.is_grad_enabled()
            return pair.task.loss(z, y)

        if _is_there(module):
            with _quietly(f"{name} on {pair}"):
                rate = read(pair, seed, counted)
        return Said(rate, gradients)

    return say


FINDERS: dict[str, Callable[[Pair, int], Said]] = {
    name: _finder(name, module, read)
    for name, module, read in (
        ("lr-finder steepest", "torch_lr_finder", _steepest),
        ("lr-finder minimum/10", "torch_lr_finder", _minimum),
        ("lightning", "lightning", _lightning),
        ("fastai valley", "fastai", _fastai),
    )
}
"""By name: of a pair, and a seed of its model and its batches, what the tool says."""


def _train(pair: Pair, seed: int, steps: int, make: Callable[..., Any]) -> float:
    model, (x, y) = pair.model(seed), pair.data
    optimizer = make(model.parameters())
    averages = hasattr(optimizer, "eval")  # schedule-free: evaluated at an average of its weights
    drawn = batches(len(x), pair.task.batch_size, seed)
    if averages:
        optimizer.train()
    for rows in itertools.islice(drawn, steps):
        optimizer.zero_grad()
        value = pair.task.loss(model(x[rows]), y[rows])
        if not math.isfinite(value.item()):
            return math.inf
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step(partial(Tensor.detach, value))  # MomoAdam steps by the loss
    if averages:
        optimizer.eval()
        _refresh(model, x, drawn)
    final = pair.loss(model)
    return final if math.isfinite(final) else math.inf


def _refresh(model: nn.Module, x: Tensor, drawn: Iterator[Tensor]) -> None:
    """Measure BatchNorm's statistics at the weights that the model now has."""
    if any(isinstance(module, _BatchNorm) for module in model.modules()):
        with torch.no_grad():
            for rows in itertools.islice(drawn, REFRESH):
                model(x[rows])


def _trainer(name: str, module: str, kind: str, settings: dict[str, float]) -> Callable[..., float]:
    def train(pair: Pair, seed: int, *, steps: int = HORIZON) -> float:
        final = math.nan
        if _is_there(module):
            with _quietly(f"{name} on {pair}"):
                optimizer = getattr(importlib.import_module(module), kind)
                final = _train(pair, seed, steps, partial(optimizer, **settings))
        return final

    return train


TRAINERS: dict[str, Callable[..., float]] = {
    name: _trainer(name, module, kind, settings)
    for name, module, kind, settings in (
        ("ProdigyPlusScheduleFree", "prodigyplus", "ProdigyPlusScheduleFree", {}),
        ("MomoAdam", "momo", "MomoAdam", {}),
        ("schedule-free AdamW", "schedulefree", "AdamWScheduleFree", {}),
        ("Adam at 1e-3", "torch.optim", "Adam", {"lr": 1e-3}),
        ("Adam at 1e-2", "torch.optim", "Adam", {"lr": 1e-2}),
    )
}
"""By name: of a pair, a seed and, by keyword, `steps`, the last loss on all data.

In evaluation mode; infinite where a loss was not finite.
"""
