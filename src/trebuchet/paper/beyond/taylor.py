"""A net beside its linear and its quadratic Taylor model: test loss against the learning rate."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import xarray as xr
from matplotlib.figure import Figure as Picture
from numpy.typing import ArrayLike
from torch import nn

from trebuchet import _torch_checks as checks
from trebuchet._checks import (
    anything,
    choice,
    path as a_path,
    progress as a_bar,
    rate_array,
    seeds as a_list,
    steps as step_count,
    workers as at_once,
)
from trebuchet._doors import door, maybe, rule
from trebuchet._progress import Progress
from trebuchet._types import Phase
from trebuchet.engine.recording import Recording
from trebuchet.models import taylor_expand
from trebuchet.paper.beyond.problems import DATA, DIGITS, relu_problem
from trebuchet.paper.parts import Parts, finished
from trebuchet.phases.label import label
from trebuchet.plots.style import GREY, SERIES_COLOURS, seed_band, style
from trebuchet.problem.problem import Problem
from trebuchet.sweeps.sweep import sweep

MODELS = {"net": 0, "linear": 1, "quadratic": 2}
"""Degrees of the expansions; 0 is the net itself."""
RATIOS = (0.5, 1.0, 1.5, 1.9, 2.2, 2.6, 3.0, 3.4, 3.8, 4.2, 5.0)
TRAINED = (str(Phase.LAZY), str(Phase.CATAPULT))


@door(
    width=checks.size, lr_ratio=rate_array, seeds=a_list, steps=step_count,
    data=rule(choice, DATA), data_root=maybe(a_path), n_train=anything, workers=at_once,
    checkpoint=maybe(a_path), progress=a_bar,
)  # fmt: skip
def taylor_models(
    *,
    width: int = 1000,
    lr_ratio: ArrayLike = RATIOS,
    seeds: int | Sequence[int] = 3,
    steps: int = 300,
    data: str = DIGITS,
    data_root: str | Path | None = None,
    n_train: int = 128,
    workers: int | None = None,
    checkpoint: str | Path | None = None,
    progress: bool | Progress | None = None,
) -> xr.Dataset:
    """Test loss of a two-layer ReLU net and of its Taylor models, from the same initialisations.

    Args:
        width: Hidden units.
        lr_ratio: Rates as ηλ₀, increasing; λ₀ is the same for all three.
        seeds: How many seeds, or which.
        steps: Updates a run, the same for all, so that a smaller rate has come less far.
        data: As for :func:`trebuchet.paper.beyond.relu_problem`.
        data_root: Folder of image files.
        n_train: Training samples; the rest is for testing.
        workers: As for :func:`trebuchet.sweep`.
        checkpoint: Folder to keep what is done in; the same call takes it up from there.
        progress: A bar on a terminal or in a notebook; True: lines in a log too, False: nothing;
            or a function of (done, total).

    Returns:
        A dataset with dims ``model, lr, seed``: ``test_loss`` and ``loss`` at the end, ``phase``.

    Raises:
        InputError: If an argument is not what was expected, or the data cannot be had.

    Example:
        >>> ds = taylor_models(width=256, lr_ratio=[2.5], seeds=1, steps=60, n_train=16)
        >>> ds.phase.values.ravel().tolist()
        ['catapult', 'divergent', 'catapult']

    References:
        Zhu, Liu, Radhakrishnan & Belkin, arXiv 2205.11787, figures 2b and 4.
    """
    attrs = {"data": data, "n_train": n_train, "steps": steps, "width": width}
    grid = {"lr_ratio": list(np.atleast_1d(lr_ratio)), "seeds": seeds}
    parts = Parts(
        "taylor", len(MODELS), {**attrs, **grid}, checkpoint=checkpoint, progress=progress
    )
    base = relu_problem(width, data=data, data_root=data_root, n_train=n_train)

    def train(degree: int) -> xr.Dataset:
        runs = sweep(
            replace(base, model=_expanded(base, degree)),
            lr_ratio=lr_ratio,
            seeds=seeds,
            steps=steps,
            record=Recording(every=steps),
            observables=("test_loss",),
            workers=workers,
            progress=parts.inside,
        )
        runs = label(finished(runs))
        return xr.Dataset(
            {"phase": runs.phase, "loss": runs.loss_final, "test_loss": runs.test_loss_final}
        )

    trained = [parts.part(name, partial(train, degree)) for name, degree in MODELS.items()]
    found = xr.concat(trained, xr.Variable(("model",), list(MODELS)), combine_attrs="drop")
    found["model"].attrs = {"units": "", "long_name": "the net, or its expansion"}
    return found.assign_attrs(attrs)


def _expanded(base: Problem, degree: int) -> Callable[[int], nn.Module]:
    def make(seed: int) -> nn.Module:
        net = base.initial(seed)
        return taylor_expand(net, degree) if degree else net

    return make


def draw(found: xr.Dataset) -> Picture:
    """Test loss against ηλ₀, a line a model, the seeds' range as a band.

    Args:
        found: As `taylor_models` returned it.

    Returns:
        The picture.
    """
    test = _trained(found).transpose("model", "lr", "seed")
    labels = ("net f", "linear f_lin", "quadratic f_quad")
    with style():
        picture = Picture(figsize=(7, 4), layout="constrained")
        ax = picture.add_subplot()
        for row, text, colour in zip(test, labels, SERIES_COLOURS, strict=False):
            drawn = seed_band(
                ax, found.lr.values, row.values, colour=colour, label=text, marker="."
            )
            middle = np.asarray(drawn.get_ydata())
            known = np.flatnonzero(np.isfinite(middle))
            if len(known) and known[-1] + 1 < len(middle):
                at = known[-1]
                ax.plot(found.lr[at], middle[at], "x", color=colour, markersize=9)
        ax.axvline(2, color=GREY, linestyle=":", linewidth=1)
        ax.set_title(
            f"{found.attrs['data']} 0/1, width {found.attrs['width']}, "
            f"{found.sizes['seed']} seeds, {found.attrs['steps']} steps"
        )
        ax.set(xlabel="ηλ₀", ylabel="test loss (× : no larger rate trained)")
        ax.legend(loc="upper right")
    return picture


def tell(found: xr.Dataset) -> list[str]:
    """Whether the three are alike below 2, and which of them are better past it."""
    test = _trained(found).median("seed")
    below = test.sel(lr=found.lr[found.lr < 2])
    said = []
    if below.sizes["lr"]:
        worst = float((below.sel(model=["linear", "quadratic"]) / below.sel(model="net") - 1).max())
        best = ", ".join(f"{m} {float(below.sel(model=m).min()):.4f}" for m in MODELS)
        said.append(
            f"Below ηλ₀ = 2 the expansions' median test loss is at most {100 * worst:.0f} % above "
            f"the net's at the same rate; at best it is {best}."
        )
    past = test.sel(lr=found.lr[found.lr > 2])
    best = ", ".join(_best(past.sel(model=m)) for m in MODELS)
    said.append(f"Past 2 the best median is {best}.")
    phase = found.phase.where(found.lr > 2, drop=True)
    counts = ", ".join(
        f"{m} {int(phase.sel(model=m).isin(TRAINED).sum())}" for m in found.model.values.tolist()
    )
    each = phase.sizes["lr"] * phase.sizes["seed"]
    said.append(f"Of {each} runs past 2 there trained: {counts}.")
    return said


def _best(test: xr.DataArray) -> str:
    """The smallest of a model's test losses, and where."""
    name, values = str(test.model.values), test.fillna(np.inf).values
    at = int(np.argmin(values))
    if not np.isfinite(values[at]):
        return f"{name} none"
    return f"{name} {values[at]:.4f} (at {float(test.lr[at]):g})"


def _trained(found: xr.Dataset) -> xr.DataArray:
    """Test losses; infinite where the run did not train, as a median should have it."""
    trained = found.phase.isin(TRAINED)
    kept: xr.DataArray = found.test_loss.where(trained, np.inf).where(trained.mean("seed") > 0.5)
    return kept
