"""Second catapults: which eigendirection of the kernel catapults at which rate."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from matplotlib.figure import Figure as Picture
from torch import Tensor

from trebuchet import _torch_checks as checks
from trebuchet._checks import (
    checked_seeds,
    path as a_path,
    progress as a_bar,
    seeds as a_list,
    steps as step_count,
    workers as at_once,
)
from trebuchet._doors import door, maybe
from trebuchet._progress import Progress
from trebuchet.curvature import top_eigen
from trebuchet.engine.recording import Recording
from trebuchet.models import MLP, taylor_expand
from trebuchet.observables import LossDirections, TopEigenvalues
from trebuchet.paper.parts import Parts, finished
from trebuchet.phases.label import label
from trebuchet.plots import loss_directions
from trebuchet.plots.style import style
from trebuchet.problem.problem import Problem
from trebuchet.sweeps.sweep import sweep
from trebuchet.theory import second_catapult

RATES = ("between 2/λ₁ and 2/λ₂", "1.25 · 2/λ₂", "1.9 · 2/λ₁", "2.1 · 2/λ₁")
MODELS = ("quadratic", "net")
DENSE = 40
"""Steps that are all recorded: catapults are over by then."""

SHOWN = 100
"""Steps in the picture."""


@door(
    width=checks.size, samples=checks.size, seeds=a_list, steps=step_count, workers=at_once,
    checkpoint=maybe(a_path), progress=a_bar,
)  # fmt: skip
def second_catapults(
    *,
    width: int = 5000,
    samples: int = 128,
    seeds: int | Sequence[int] = 3,
    steps: int = 150,
    workers: int | None = None,
    checkpoint: str | Path | None = None,
    progress: bool | Progress | None = None,
) -> xr.Dataset:
    """A two-layer ReLU net on two clouds of points, and its quadratic model, past 2/λ₁ and 2/λ₂.

    Half of the points are drawn from N(2, 1) and labelled 1, half from N(−2, 1) and labelled −1;
    u_i from N(0, 1), v_i = ±1. Directions are the eigenvectors of the kernel at the start, of which
    the theorem speaks, at every step: by the eigenvectors of the step the two would change places
    when λ₁ falls below λ₂.

    Args:
        width: Hidden units.
        samples: Points.
        seeds: How many seeds, or which; each draws points and weights. They need λ₂ > λ₁/2.
        steps: Updates a run.
        workers: As for :func:`trebuchet.sweep`.
        checkpoint: Folder to keep seeds in as they end; the same call takes them up from there.
        progress: A bar on a terminal or in a notebook; True: lines in a log too, False: nothing;
            or a function of (done, total).

    Returns:
        A dataset with dims ``model, lr, seed, step, direction``, ``lr`` counting `RATES` from 1:
        ``loss_directions``, ``top_eigenvalues`` (of the NTK, not divided by D, along the start's
        eigenvectors), ``top_eigenvalues_final``, ``phase``, ``learning_rate`` (of the mean squared
        error without the half, as the published numbers); and per seed ``critical``, the rates 2/λ₁
        and 2/λ₂.

    Raises:
        InputError: If an argument is not what was expected.
        NotApplicableError: If a seed has no second catapult.

    Example:
        >>> ds = second_catapults(width=60, samples=16, seeds=[1], steps=20)
        >>> dict(ds.sizes)["direction"], ds.phase.dims
        (2, ('model', 'lr', 'seed'))

    References:
        Zhu, Liu, Radhakrishnan & Belkin, arXiv 2205.11787, theorem 3 and figure 3.
    """
    attrs = {"width": width, "samples": samples, "steps": steps}
    chosen = list(checked_seeds(seeds))
    parts = Parts(
        "second_catapult", len(chosen) * len(MODELS), {**attrs, "seeds": chosen},
        checkpoint=checkpoint, progress=progress,
    )  # fmt: skip

    def train(seed: int, model: str) -> xr.Dataset:
        net, x, y = _drawn(seed, width, samples)
        top = top_eigen(net, "half_mse", (x, y), "ntk", k=2, rtol=1e-8)
        first, second, _ = second_catapult(top.values)
        runs = sweep(
            Problem(net if model == "net" else taylor_expand(net, 2), "half_mse", (x, y)),
            lr=[float(np.sqrt(first * second)), 1.25 * second, 1.9 * first, 2.1 * first],
            seeds=[seed],
            steps=steps,
            record=Recording(dense=DENSE),
            observables=(LossDirections(2, of_start=True), TopEigenvalues(2, of_start=True)),
            workers=workers,
            progress=parts.inside,
        )
        runs = label(finished(runs)).assign_coords(lr=np.arange(1.0, 1 + len(RATES)))
        critical = xr.DataArray([[first / 2, second / 2]], dims=("seed", "direction"))
        curvatures = ["top_eigenvalues", "top_eigenvalues_final"]
        kept = runs[["loss_directions", *curvatures, "phase", "learning_rate"]]
        kept = kept.assign({name: samples * kept[name] for name in curvatures})
        return kept.assign(learning_rate=kept.learning_rate / 2, critical=critical)

    found = xr.concat(
        [
            xr.concat(
                [parts.part(f"{model}-{seed}", partial(train, seed, model)) for seed in chosen],
                "seed",
                combine_attrs="drop",
                join="outer",
            )
            for model in MODELS
        ],
        xr.Variable(("model",), list(MODELS)),
        combine_attrs="drop",
        join="outer",
    )
    found["critical"] = found.critical.isel(model=0, drop=True)
    return _named(found).assign_attrs(attrs)


def _drawn(seed: int, width: int, samples: int) -> tuple[MLP, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.ones(samples, dtype=torch.float64)
    y[samples // 2 :] = -1
    x = 2 * y + torch.randn(samples, generator=generator, dtype=torch.float64)
    u = torch.randn(width, 1, generator=generator, dtype=torch.float64)
    v = torch.randint(0, 2, (1, width), generator=generator) * 2.0 - 1
    return MLP([u, v.double()]), x[:, None], y


def _named(found: xr.Dataset) -> xr.Dataset:
    names = {
        "loss_directions": ("loss", "loss in the eigendirections of the NTK at the start"),
        "top_eigenvalues": ("1", "NTK (not divided by D) along its eigenvectors at the start"),
        "top_eigenvalues_final": ("1", "the same at the end"),
        "learning_rate": ("1", "learning rate η of the mean squared error without the half"),
        "critical": ("1", "2/λᵢ of the mean squared error without the half"),
        "lr": ("1", "which rate, from 1: " + "; ".join(RATES)),
    }
    for name, (units, long_name) in names.items():
        found[name].attrs = {"units": units, "long_name": long_name}
    return found


def draw(found: xr.Dataset) -> Picture:
    """Loss in the two directions over steps, of the first seed, a column a rate, a row a model.

    Args:
        found: As `second_catapults` returned it.

    Returns:
        The picture.
    """
    with style():
        picture = Picture(figsize=(11, 5), layout="constrained")
        axes = picture.subplots(len(MODELS), len(RATES), sharex=True, sharey=True)
        for row, model in zip(axes, MODELS, strict=True):
            for rate, ax in enumerate(row):
                loss_directions(found.sel(model=model).isel(seed=[0]), rate=rate, ax=ax)
                ax.set_title(f"{model}: η {'' if rate == 0 else '= '}{RATES[rate]}", fontsize=8)
                ax.label_outer()
                if rate or ax is not axes[0, 0]:
                    ax.get_legend().remove()
                ax.set(xlim=(0, SHOWN), ylim=(1e-8, 1e5))
    return picture


def tell(found: xr.Dataset) -> list[str]:
    """Where the second catapult began, what each left of the eigenvalues, and how runs ended."""
    said = [
        "2/λ₁ = "
        + " to ".join(f"{v:.2f}" for v in _range(found.critical.isel(direction=0)))
        + " and 2/λ₂ = "
        + " to ".join(f"{v:.2f}" for v in _range(found.critical.isel(direction=1)))
        + " over seeds, under the mean squared error without the half."
    ]
    ended = found.top_eigenvalues_final / found.top_eigenvalues.isel(step=0)
    ended = ended.transpose("model", "lr", "direction", "seed")
    for model in MODELS:
        one = ended.sel(model=model).median("seed")
        left = "; ".join(
            f"{name} {float(one[rate, 0]):.2f}, {float(one[rate, 1]):.2f}"
            for rate, name in enumerate(RATES[:-1])
        )
        jumped = (found.phase.sel(model=model) == "catapult").sum("seed").values.tolist()
        said.append(
            f"{model}: what is left of λ₁ and λ₂ at the end, median over seeds: {left}. Of "
            f"{found.sizes['seed']} seeds came back from a rise: {', '.join(map(str, jumped))}, "
            "rate by rate."
        )
    return said


def _range(values: xr.DataArray) -> tuple[float, float]:
    return float(values.min()), float(values.max())
