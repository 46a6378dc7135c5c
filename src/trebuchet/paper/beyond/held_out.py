"""Test loss of two-layer ReLU nets against the learning rate, at equal training loss."""

from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from matplotlib.figure import Figure as Picture
from numpy.typing import ArrayLike, NDArray
from scipy.stats import spearmanr

from trebuchet import _torch_checks as checks
from trebuchet._checks import (
    anything,
    as_real,
    path as a_path,
    positive,
    progress as a_bar,
    rate_array,
    seeds as a_list,
    several,
    steps as step_count,
    words,
    workers as at_once,
)
from trebuchet._doors import door, maybe, rule
from trebuchet._progress import Progress
from trebuchet.engine.recording import Recording
from trebuchet.errors import InputError
from trebuchet.paper.beyond.problems import DATA, DIGITS, relu_problem
from trebuchet.paper.beyond.sparsity import TRAINED
from trebuchet.paper.parts import Parts, finished, laid_out
from trebuchet.phases.label import label
from trebuchet.plots.style import GREY, PHASE_COLOURS, rate_colours, seed_band, style
from trebuchet.sweeps.sweep import sweep

RATES = (0.5, 1, 1.5, 2.5, 3, 4, 5, 6, 8, 10, 12)
AMONG = ("trained", "catapult")
EARLIEST = 30
"""Losses are recorded from this step on, twelve steps a decade: before, catapults are under way."""


def _targets(name: str, value: object) -> tuple[float, ...]:
    """One number or several."""
    return several(name, [value] if as_real(value) is not None else value, positive)


@door(
    data=rule(words, DATA), widths=rule(several, checks.size), lr_ratio=rate_array, seeds=a_list,
    steps=step_count, target=_targets, data_root=maybe(a_path), n_train=anything,
    dtype=checks.dtype, workers=at_once,
    checkpoint=maybe(a_path), progress=a_bar,
)  # fmt: skip
def held_out_over_rates(
    *,
    data: str | Sequence[str] = DIGITS,
    widths: Sequence[int] = (128, 256, 512),
    lr_ratio: ArrayLike = RATES,
    seeds: int | Sequence[int] = 10,
    steps: int = 1500,
    target: float | Sequence[float] = 0.005,
    data_root: str | Path | None = None,
    n_train: int = 128,
    dtype: torch.dtype = torch.float32,
    workers: int | None = None,
    checkpoint: str | Path | None = None,
    progress: bool | Progress | None = None,
) -> xr.Dataset:
    """Test loss and sparsity over rates, where the training loss is the same, and at the end.

    A larger rate has trained further after as many steps, so that test losses are compared where
    each run's training loss first reaches a target. Between recorded steps the test loss is
    interpolated in the logarithm of the training loss. Runs that trained (lazy or catapult) but
    do not reach the target, or do so within the first 30 steps, where losses of catapults still
    swing, are left out of that comparison, and counted.

    Args:
        data: A data set, or several, as for :func:`trebuchet.paper.beyond.relu_problem`.
        widths: Hidden units.
        lr_ratio: Rates as ηλ₀, increasing.
        seeds: How many seeds, or which.
        steps: Updates a run.
        target: The training loss, ½ mean squared error, at which test losses are compared; one for
            all data sets, or one for each.
        data_root: Folder of image files.
        n_train: Training samples; all test samples of the two classes are used.
        dtype: Of data and weights.
        workers: As for :func:`trebuchet.sweep`.
        checkpoint: Folder to keep nets in as they end; the same call takes them up from there.
        progress: A bar on a terminal or in a notebook; True: lines in a log too, False: nothing;
            or a function of (done, total).

    Returns:
        A dataset with dims ``data, width, lr, seed``: ``phase``, ``sparsity`` (share of
        pre-activations < 0, at the end) and ``loss_final``; ``target`` and ``never_reached`` (how
        many runs were left out) of each data set; and, over ``at`` (``"target"``,
        ``"end"``), ``test_loss``, the least of a seed's lazy and of its catapult runs
        (``best_lazy``, ``best_catapult``), the medians of the two (``median_lazy``,
        ``median_catapult``), and ``rank_correlation`` (Spearman's) of sparsity with test loss
        ``among`` all runs that trained, and among catapults alone.

    Raises:
        InputError: If an argument is not what was expected, or the data cannot be had.

    Example:
        >>> ds = held_out_over_rates(widths=[32], lr_ratio=[1, 4], seeds=2, n_train=32, steps=100,
        ...                          target=0.1)
        >>> ds.test_loss.dims, bool((ds.best_lazy.sel(at="end") > 0).all())
        (('at', 'data', 'width', 'lr', 'seed'), True)

    References:
        Meltzer & Liu, arXiv 2301.07737, which lists sparsity among the reasons why the test loss
        falls; Lewkowycz et al., arXiv 2003.02218.
    """
    names = words("data", data, DATA)  # a default passes no check
    targets = _one_each(_targets("target", target), names)
    attrs = {"n_train": n_train, "steps": steps}
    grid = {"widths": list(widths), "lr_ratio": list(np.atleast_1d(lr_ratio)), "seeds": seeds}
    asked = {**attrs, **grid, "data": names, "dtype": str(dtype)}
    cells = list(product(names, widths))
    parts = Parts("test loss", len(cells), asked, checkpoint=checkpoint, progress=progress)

    def train(name: str, width: int) -> xr.Dataset:
        runs = sweep(
            relu_problem(width, data=name, data_root=data_root, n_train=n_train, dtype=dtype),
            lr_ratio=lr_ratio,
            seeds=seeds,
            steps=steps,
            record=Recording(every=EARLIEST, dense=EARLIEST, per_decade=12),
            observables=("test_loss", "sparsity"),
            workers=workers,
            progress=parts.inside,
        )
        runs = label(finished(runs))
        kept = runs[["phase", "loss", "test_loss", "loss_final", "test_loss_final"]]
        return kept.assign(sparsity=runs.sparsity_final.isel(layer=0, drop=True))

    trained = [parts.part(f"{n}-{w}", partial(train, n, w)) for n, w in cells]
    said = {"data": "images", "width": "hidden units"}
    runs = laid_out(trained, {"data": names, "width": widths}, attrs, said)
    runs["target"] = ("data", targets)
    return _compared(runs)


def _one_each(targets: Sequence[float], names: Sequence[str]) -> list[float]:
    """A target for every data set."""
    if len(targets) not in (1, len(names)):
        msg = f"target: expected one number, or {len(names)}, one a data set, got {len(targets)}"
        raise InputError(msg)
    return [*targets] if len(targets) > 1 else [*targets] * len(names)


def _compared(runs: xr.Dataset) -> xr.Dataset:
    """Test losses at the target and at the end, and what they say of each seed."""
    trained = runs.phase.isin(TRAINED)
    early = (runs.loss.where(runs.step <= EARLIEST) <= runs.target).any("step")
    matched = xr.apply_ufunc(
        at_loss, runs.loss, runs.test_loss, runs.target,
        input_core_dims=[["step"], ["step"], []], vectorize=True,
    ).where(trained & ~early)  # fmt: skip
    at = xr.Variable("at", ["target", "end"])
    test = xr.concat([matched, runs.test_loss_final.where(trained)], at)
    result = runs[["phase", "sparsity", "loss_final", "target"]].assign(test_loss=test)
    result["never_reached"] = (trained & matched.isnull()).sum(("width", "lr", "seed"))
    for phase in TRAINED:
        mine = test.where(runs.phase == phase)
        result[f"best_{phase}"] = mine.min("lr")
        result[f"median_{phase}"] = mine.median("lr")
    sparsity = runs.sparsity.where(trained)
    kinds = [test, test.where(runs.phase == "catapult")]
    result["rank_correlation"] = xr.apply_ufunc(
        _rank_correlation, sparsity, xr.concat(kinds, xr.Variable("among", list(AMONG))),
        input_core_dims=[["lr"], ["lr"]], vectorize=True,
    ).transpose("at", "among", ...)  # fmt: skip
    told = {
        "test_loss": "test loss",
        "target": "training loss at which test losses are compared",
        "never_reached": "runs that trained and do not reach the target",
        "best_lazy": "least test loss of a seed's lazy runs",
        "best_catapult": "least test loss of a seed's catapults",
        "median_lazy": "median test loss of a seed's lazy runs",
        "median_catapult": "median test loss of a seed's catapults",
        "rank_correlation": "Spearman correlation of sparsity with test loss",
    }
    for name, said in told.items():
        units = "1" if name in ("never_reached", "rank_correlation") else "loss"
        result[name].attrs = {"units": units, "long_name": said}
    return result


def at_loss(loss: ArrayLike, values: ArrayLike, target: float) -> float:
    """The value where a loss first reaches a target, interpolated in the loss's logarithm.

    Args:
        loss: At recorded steps, ``(T,)``; NaN after the end.
        values: At the same steps.
        target: The loss to be reached, positive.

    Returns:
        The value; NaN if the target is never reached.

    Example:
        >>> round(at_loss([1.0, 0.1, 0.001], [5.0, 4.0, 2.0], 0.01), 6)
        3.0
    """
    losses = np.asarray(loss, dtype=np.float64)
    given: NDArray[np.float64] = np.asarray(values, dtype=np.float64)
    below = np.flatnonzero(losses <= target)
    if below.size == 0:
        return float("nan")
    k = int(below[0])
    if k == 0:
        return float(given[0])
    before, after = np.log(np.maximum(losses[k - 1 : k + 1], np.finfo(np.float64).tiny))
    part = (before - np.log(target)) / (before - after)
    return float(given[k - 1] + part * (given[k] - given[k - 1]))


def _rank_correlation(sparsity: NDArray[np.float64], loss: NDArray[np.float64]) -> float:
    """Spearman's, of the pairs that are there; NaN of fewer than three, or of equal ones."""
    known = np.isfinite(sparsity) & np.isfinite(loss)
    a, b = sparsity[known], loss[known]
    if a.size < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(spearmanr(a, b).statistic)


def draw_test_loss(found: xr.Dataset) -> Picture:
    """Test loss at the target against ηλ₀ and against sparsity, a row a data set.

    Args:
        found: As `held_out_over_rates` returned it.

    Returns:
        The picture.
    """
    count = found.sizes["data"]
    with style():
        picture = Picture(figsize=(8, 0.8 + 2.5 * count), layout="constrained")
        axes = picture.subplots(count, 2, squeeze=False, sharey="row", sharex="col")
        for (left, right), name in zip(axes, found.data.values.tolist(), strict=True):
            one = found.sel(data=name)
            matched = one.test_loss.sel(at="target").transpose("width", "lr", "seed")
            for row, colour in zip(matched, rate_colours(one.sizes["width"]), strict=True):
                if row.notnull().any():
                    label = f"width {int(row.width)}"
                    seed_band(left, one.lr.values, row.values, colour=colour, label=label)
            left.axvline(2, color=GREY, linestyle=":", linewidth=1)
            left.set_ylabel("test loss")
            left.set_title(f"{name} 0/1, at training loss {float(one.target):.2g}")
            for phase, marker in zip(TRAINED, "o^", strict=True):
                shown = matched.where(one.phase == phase)
                x = one.sparsity.transpose(*shown.dims)
                look = {
                    "color": PHASE_COLOURS[phase],
                    "alpha": 0.6,
                    "markeredgewidth": 0,
                    "markersize": 4,
                }
                right.plot(x.values.ravel(), shown.values.ravel(), marker, label=phase, **look)
        axes[-1, 0].set_xlabel("ηλ₀")
        axes[-1, 1].set_xlabel("final sparsity (share < 0)")
        for ax in axes[0]:
            ax.legend()
    return picture


def tell_test_loss(found: xr.Dataset) -> list[str]:
    """Whether catapults test better, and whether sparsity goes with it, on each data set."""
    told = []
    for name in found.data.values.tolist():
        one = found.sel(data=name)
        nets = one.sizes["width"] * one.sizes["seed"]
        parts = []
        for at, where in (("target", f"training loss {float(one.target):.2g}"), ("end", "the end")):
            row = one.sel(at=at)
            wins = [
                int((row[f"{k}_catapult"] < row[f"{k}_lazy"]).sum()) for k in ("best", "median")
            ]
            parts.append(
                f"at {where}: {float(row.best_catapult.median()):.3g} and "
                f"{float(row.best_lazy.median()):.3g}, the best catapult lower for {wins[0]} of "
                f"{nets} nets and the median one for {wins[1]}"
            )
        told.append(f"{name}, test loss of best catapult and best lazy run: {'; '.join(parts)}.")
        catapults = one.test_loss.sel(at="target").where(one.phase == "catapult")
        within = xr.apply_ufunc(
            _rank_correlation, one.sparsity, catapults,
            input_core_dims=[["seed"], ["seed"]], vectorize=True,
        )  # fmt: skip
        across = one.rank_correlation.sel(at="target", among="trained")
        told.append(
            "Rank correlation of sparsity with test loss at that training loss, median: "
            f"{float(across.median()):.2f} among a net's runs, {float(within.median()):.2f} among "
            "the catapults of one rate, over seeds."
        )
        told.append(
            f"{int(one.phase.isin(TRAINED).sum())} of {one.phase.size} runs trained; "
            f"{int(one.never_reached)} of these do not reach it after step {EARLIEST}, and are "
            "left out there."
        )
    return told
