"""Edge of stability: does the sharpness of a tanh net rise to 2/η, and what does it do there?"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
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
    whole,
)
from trebuchet._doors import door, maybe, rule
from trebuchet._progress import Progress
from trebuchet.engine.recording import Recording
from trebuchet.errors import InputError
from trebuchet.paper.beyond.problems import DATA, DIGITS, tanh_problem
from trebuchet.paper.parts import Parts, finished
from trebuchet.plots.style import INK, RED, rate_colours, style
from trebuchet.problem.problem import Problem
from trebuchet.sweeps.sweep import sweep


@door(
    lr_ratio=rate_array, seeds=a_list, steps=step_count, every=rule(whole, "a positive number"),
    width=checks.size, hidden=checks.depth, data=rule(choice, DATA), data_root=maybe(a_path),
    n_train=anything, checkpoint=maybe(a_path), progress=a_bar,
)  # fmt: skip
def edge_of_stability(
    *,
    lr_ratio: ArrayLike = (0.25, 0.5, 1.0),
    seeds: int | Sequence[int] = 3,
    steps: int = 8000,
    every: int = 80,
    width: int = 100,
    hidden: int = 2,
    data: str = DIGITS,
    data_root: str | Path | None = None,
    n_train: int = 128,
    checkpoint: str | Path | None = None,
    progress: bool | Progress | None = None,
) -> xr.Dataset:
    """Follow loss, sharpness and the top of the NTK of tanh nets under gradient descent.

    The nets are those of :func:`trebuchet.paper.beyond.tanh_problem`. Without biases the first
    layer moves within the span of the images only, so that they are given as coordinates in that
    span: every number is that of the whole images, and a step costs less.

    Args:
        lr_ratio: Rates as ηλ₀; 2/η is 2/(ηλ₀) times the λ₀ of the start.
        seeds: How many initialisations, or which.
        steps: Updates a run.
        every: Sharpness is measured every so many steps.
        width: Units in each hidden layer.
        hidden: Hidden layers.
        data: As for :func:`trebuchet.paper.beyond.tanh_problem`.
        data_root: Folder of image files.
        n_train: Training samples.
        checkpoint: Folder to keep finished rates in; the same call takes them up from there.
        progress: A bar on a terminal or in a notebook; True: lines in a log too, False: nothing;
            or a function of (done, total).

    Returns:
        A dataset with dims ``lr, seed, step``: ``loss``; ``sharpness``, the top eigenvalue of the
        Hessian; ``top_eigenvalues``, the two largest of NTK / D, over ``direction``. Per rate and
        seed: ``learning_rate`` (η), ``reached`` (the first of these steps with sharpness ≥ 2/η; NaN
        for never), ``level`` and ``spread`` (mean and standard deviation of sharpness · η/2 in the
        last third), ``rising_share`` (of single steps in the last third, those in which the loss
        rose) and ``sharpening`` (the largest sharpness over the first).

    Raises:
        InputError: If an argument is not what was expected, or the data cannot be had.

    Example:
        >>> ds = edge_of_stability(lr_ratio=[0.5], seeds=1, steps=60, every=20, width=8, n_train=8)
        >>> ds.sharpness.dims, ds.reached.isnull().item(), ds.rising_share.item()
        (('lr', 'seed', 'step'), True, 0.0)

    References:
        Cohen et al., Gradient Descent on Neural Networks Typically Occurs at the Edge of Stability,
        arXiv 2103.00065.
    """
    if every * 3 > steps:
        msg = f"every: expected at most a third of the {steps} steps, got {every}"
        raise InputError(msg)
    whole_images = tanh_problem(
        width, hidden=hidden, data=data, data_root=data_root, n_train=n_train
    )
    problem = _in_span(whole_images)
    rates = np.atleast_1d(lr_ratio).tolist()
    attrs = {
        "data": data, "n_train": n_train, "steps": steps, "every": every, "width": width,
        "hidden": hidden,
    }  # fmt: skip
    asked = {**attrs, "lr_ratio": rates, "seeds": seeds}
    parts = Parts("edge of stability", len(rates), asked, checkpoint=checkpoint, progress=progress)

    def train(rate: float) -> xr.Dataset:
        follow = partial(sweep, problem, lr_ratio=[rate], seeds=seeds, steps=steps)
        runs = finished(
            follow(
                record=Recording(every=every),
                observables=("sharpness", "top_eigenvalues"),
                progress=parts.inside,
            )
        )
        # Again without them: they are dear, and whether the loss rises is a matter of single steps.
        each = finished(follow(observables=(), progress=False)).loss
        kept = runs[["loss", "sharpness", "top_eigenvalues", "learning_rate", "status"]]
        return _measured(kept.isel(direction=slice(2)), each)

    result = xr.concat(
        [parts.part(f"rate-{i}", partial(train, rate)) for i, rate in enumerate(rates)],
        "lr",
        combine_attrs="drop",
    )
    result.attrs = attrs
    return result


def _in_span(problem: Problem) -> Problem:
    """The same problem with images as coordinates in their span, where they are fewer than pixels.

    With X = CQᵀ, training on C from UQ is training on X from U: of the first layer's rows only the
    parts within the span act or move.

    Returns:
        The problem.
    """
    samples, pixels = problem.x.shape
    if samples >= pixels:
        return problem
    basis = torch.linalg.svd(problem.x.double(), full_matrices=False).Vh.T  # (d, D)

    def model(seed: int) -> nn.Module:
        net = problem.initial(seed)
        first = net.get_parameter("0.weight")
        inside = nn.Linear(samples, len(first), bias=False, device="meta", dtype=first.dtype)
        net.add_module("0", inside.to_empty(device="cpu"))
        with torch.no_grad():
            inside.weight.copy_(first.double() @ basis)
        return net

    x = (problem.x.double() @ basis).to(problem.x.dtype)
    return Problem(model, "half_mse", (x, problem.y), name=problem.name)


def _measured(runs: xr.Dataset, each: xr.DataArray) -> xr.Dataset:
    """What the trajectories say in numbers; `each` is the loss at every single step."""
    whole = runs.status == "max_steps"  # what blew up has no last third
    relative = runs.sharpness * runs.learning_rate / 2
    late = relative.where(runs.step >= 2 / 3 * int(runs.step[-1]), drop=True)
    rose = (each > each.shift(step=1)).isel(step=slice(2 * each.sizes["step"] // 3 + 1, None))
    start = runs.sharpness.isel(step=0)
    named = {
        "reached": (runs.step.where(relative >= 1).min("step"), "first step at 2/η or above"),
        "level": (late.mean("step").where(whole), "mean of sharpness · η/2, last third"),
        "spread": (late.std("step").where(whole), "its standard deviation, last third"),
        "rising_share": (rose.mean("step").where(whole), "steps whose loss rose, last third"),
        "sharpening": (runs.sharpness.max("step") / start, "largest sharpness over the first"),
    }
    for name, (values, said) in named.items():
        runs[name] = values.assign_attrs(units="1", long_name=said)
    return runs.drop_vars("status")


def draw_edge_of_stability(found: xr.Dataset) -> Picture:
    """Loss above, sharpness and 2/η below, a column a rate, of the first seed.

    Args:
        found: As `edge_of_stability` returned it.

    Returns:
        The picture.
    """
    count = found.sizes["lr"]
    with style():
        picture = Picture(figsize=(1 + 3 * count, 4.6), layout="constrained")
        axes = picture.subplots(2, count, sharex=True, sharey="row", squeeze=False)
        for (above, below), rate, colour in zip(
            axes.T, found.lr.values.tolist(), rate_colours(count), strict=True
        ):
            one = found.sel(lr=rate).isel(seed=0)
            above.plot(one.step, one.loss, color=colour)
            above.set(yscale="log")
            above.set_title(f"ηλ₀ = {rate:g}")
            below.axhline(2 / float(one.learning_rate), color=RED, linewidth=1, label="2/η")
            below.plot(one.step, one.sharpness, color=colour, label="sharpness")
            for i, (line, rank) in enumerate({"--": "largest", ":": "second"}.items()):
                values, label = one.top_eigenvalues.isel(direction=i), f"{rank} of NTK / D"
                below.plot(one.step, values, line, color=INK, linewidth=1, label=label)
            below.set(xlabel="step")
        axes[0, 0].set_ylabel("training loss")
        axes[1, 0].set_ylabel("eigenvalue")
        axes[1, -1].legend()
    return picture


def tell_edge_of_stability(found: xr.Dataset) -> list[str]:
    """For each rate, whether the sharpness got to 2/η, and what it did then."""
    told = []
    last = int(found.step[-1])
    for rate in found.lr.values.tolist():
        one = found.sel(lr=rate)
        middle = one[["level", "spread", "rising_share", "sharpening"]].median("seed")
        there = one.reached.dropna("seed")
        count = f"{there.size} of {one.sizes['seed']} runs"
        when = f", first at step {int(there.median())} (median)" if there.size else ""
        told.append(
            f"ηλ₀ = {rate:g}: the sharpness grows {float(middle.sharpening):.2f}-fold and gets "
            f"to 2/η within {last} steps in {count}{when}; in the last third it is "
            f"{float(middle.level):.3f} ± {float(middle.spread):.3f} times 2/η, and the loss rises "
            f"in {float(middle.rising_share):.0%} of the steps."
        )
    return told
