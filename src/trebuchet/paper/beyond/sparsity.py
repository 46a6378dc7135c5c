"""Sparsity of two-layer ReLU nets against the learning rate, over seeds and widths."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from scipy.stats import spearmanr

from trebuchet import _torch_checks as checks
from trebuchet._checks import (
    anything,
    choice,
    path as a_path,
    progress as a_bar,
    rate_array,
    seeds as a_list,
    several,
    steps as step_count,
    workers as at_once,
)
from trebuchet._doors import door, maybe, rule
from trebuchet._progress import Progress
from trebuchet._types import Phase
from trebuchet.engine.recording import Recording
from trebuchet.paper.beyond.problems import DATA, DIGITS, relu_problem
from trebuchet.paper.parts import Parts, finished
from trebuchet.phases.label import label
from trebuchet.sweeps.sweep import sweep

WIDTHS = (128, 256, 512, 1024, 2048, 4096)
RATIOS = np.round(np.arange(0.5, 12.01, 0.5), 10)
TRAINED = (str(Phase.LAZY), str(Phase.CATAPULT))


@door(
    widths=rule(several, checks.size), lr_ratio=rate_array, seeds=a_list, steps=step_count,
    data=rule(choice, DATA), data_root=maybe(a_path), n_train=anything, workers=at_once,
    checkpoint=maybe(a_path), progress=a_bar,
)  # fmt: skip
def sparsity_over_widths(
    *,
    widths: Sequence[int] = WIDTHS,
    lr_ratio: ArrayLike = RATIOS,
    seeds: int | Sequence[int] = 4,
    steps: int = 400,
    data: str = DIGITS,
    data_root: str | Path | None = None,
    n_train: int = 128,
    workers: int | None = None,
    checkpoint: str | Path | None = None,
    progress: bool | Progress | None = None,
) -> xr.Dataset:
    """How sparse two-layer ReLU nets end up, and how far "sparser as the rate rises" holds.

    Sparsity is the share of (sample, unit) pre-activations < 0 at the end. Statistics are over the
    rates whose runs trained (lazy or catapult) and at which there are two or more.

    Args:
        widths: Hidden units.
        lr_ratio: Rates as ηλ₀, increasing.
        seeds: How many seeds, or which.
        steps: Updates a run; sparsity is settled by the catapult, in the first hundred or so.
        data: As for :func:`trebuchet.paper.beyond.relu_problem`.
        data_root: Folder of image files.
        n_train: Training samples.
        workers: As for :func:`trebuchet.sweep`.
        checkpoint: Folder to keep widths in as they end; the same call takes them up from there.
        progress: A bar on a terminal or in a notebook; True: lines in a log too, False: nothing;
            or a function of (done, total).

    Returns:
        A dataset with dims ``width, lr, seed``: ``sparsity``, ``phase``, and per width and seed
        ``rank_correlation`` (Spearman's, of sparsity with ηλ₀), ``rising_share`` (of neighbouring
        rates, those between which sparsity rose), ``largest_fall`` (the most by which it lay below
        its value at a smaller rate), ``fall_from`` and ``fall_to`` (the two rates; NaN where it
        never fell).

    Raises:
        InputError: If an argument is not what was expected, or the data cannot be had.

    Example:
        >>> ds = sparsity_over_widths(widths=[64], lr_ratio=[1.0, 3.0], seeds=1, n_train=16)
        >>> dict(ds.sizes), round(float(ds.rank_correlation[0, 0]), 6)
        ({'width': 1, 'lr': 2, 'seed': 1}, 1.0)
    """
    attrs = {"data": data, "n_train": n_train, "steps": steps, "trained": ", ".join(TRAINED)}
    grid = {"widths": list(widths), "lr_ratio": list(np.atleast_1d(lr_ratio)), "seeds": seeds}
    parts = Parts(
        "sparsity", len(widths), {**attrs, **grid}, checkpoint=checkpoint, progress=progress
    )

    def train(width: int) -> xr.Dataset:
        runs = sweep(
            relu_problem(width, data=data, data_root=data_root, n_train=n_train),
            lr_ratio=lr_ratio,
            seeds=seeds,
            steps=steps,
            record=Recording(every=steps),
            observables=("sparsity",),
            chunk=1,
            workers=workers,
            progress=parts.inside,
        )
        runs = label(finished(runs))
        kept = runs[["phase", "peak_ratio", "final_ratio", "top_eigenvalue_init"]]
        return kept.assign(sparsity=runs.sparsity_final.isel(layer=0, drop=True))

    trained = [parts.part(f"width-{width}", partial(train, width)) for width in widths]
    result = xr.concat(trained, xr.Variable(("width",), list(widths)), combine_attrs="drop")
    values = result.sparsity.where(result.phase.isin(TRAINED)).transpose("width", "seed", "lr")
    rates = result.lr.values
    found = np.array([[statistics(rates, row) for row in block] for block in values.values])
    names = {
        "rank_correlation": "Spearman correlation of sparsity with ηλ₀",
        "rising_share": "share of neighbouring rates between which sparsity rose",
        "largest_fall": "largest fall of sparsity as the rate rose",
        "fall_from": "ηλ₀ from which it fell",
        "fall_to": "ηλ₀ to which it fell",
    }
    for position, (name, long_name) in enumerate(names.items()):
        told = {"units": "1", "long_name": long_name}
        result[name] = (("width", "seed"), found[..., position], told)
    result["width"].attrs = {"units": "1", "long_name": "hidden units"}
    result.attrs = attrs
    return result


def statistics(rates: ArrayLike, sparsity: ArrayLike) -> tuple[float, float, float, float, float]:
    """Rank correlation, rising share, largest fall and the rates it lies between.

    Args:
        rates: Increasing, shape ``(N,)``.
        sparsity: At those rates; NaN is left out.

    Returns:
        The five numbers; NaN where fewer than two rates are left.

    Example:
        >>> found = statistics([1, 2, 3, 4], [0.5, 0.9, 0.7, 0.95])
        >>> [round(float(number), 3) for number in found]
        [0.8, 0.667, 0.2, 2.0, 3.0]
    """
    rates, values = np.asarray(rates, dtype=np.float64), np.asarray(sparsity, dtype=np.float64)
    known = ~np.isnan(values)
    rates, values = rates[known], values[known]
    nan = float("nan")
    if values.size < 2:
        return nan, nan, nan, nan, nan
    constant = bool((values == values[0]).all())  # ranks say nothing then
    correlation = nan if constant else float(spearmanr(rates, values).statistic)
    fall, start, end = _largest_fall(values)
    ends = (nan, nan) if fall == 0 else (float(rates[start]), float(rates[end]))
    return correlation, float((np.diff(values) > 0).mean()), fall, *ends


def _largest_fall(values: NDArray[np.float64]) -> tuple[float, int, int]:
    """max over i < j of values[i] − values[j], not below 0, with i and j."""
    peaks = np.maximum.accumulate(values)
    end = int(np.argmax(peaks - values))
    start = int(np.argmax(values[: end + 1]))
    return float(values[start] - values[end]), start, end
