"""From which rate on the loss rises in the first steps: momentum, and bias-corrected Adam."""

from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import xarray as xr
from matplotlib.figure import Figure as Picture
from torch import Tensor, nn

from trebuchet import _torch_checks as checks
from trebuchet._checks import (
    anything,
    checked_seeds,
    path as a_path,
    progress as a_bar,
    seeds as a_list,
    steps as step_count,
    whole,
)
from trebuchet._doors import door, maybe, rule
from trebuchet._progress import Progress
from trebuchet.curvature import top_eigen
from trebuchet.data import load_digits01
from trebuchet.engine.recording import Recording
from trebuchet.paper.parts import Parts, finished, laid_out
from trebuchet.phases.forward_rate import forward_critical_rate
from trebuchet.plots.style import GREY, SERIES_COLOURS, style
from trebuchet.problem.problem import Problem
from trebuchet.sweeps.sweep import sweep
from trebuchet.theory import stability

OPTIMIZERS = ("sgd", "momentum", "nesterov", "adam", "adamw", "rmsprop")
MODELS = ("linear", "tanh")
SAID = {
    "lr_rise": "smallest rate whose loss has risen by step t",
    "lr_first": "closed form of the first step", "lr_forward": "forward-only critical rate",
    "lr_crit": "critical rate of late training",
    "lr_earliest": "rate below which no quadratic loss rises",
    "grid_step": "neighbouring rates of the grid, one over the other",
}  # fmt: skip
"""What the variables are."""
RISEN = 1e-4
"""A loss above (1 + this) L₀ has risen."""


@door(
    width=checks.size, steps=step_count, rates=rule(whole, "2 rates or more", least=2, most=10_000),
    seeds=a_list, n_train=anything, checkpoint=maybe(a_path), progress=a_bar,
)  # fmt: skip
def first_rise(
    *,
    width: int = 32,
    steps: int = 100,
    rates: int = 120,
    seeds: int | Sequence[int] = 3,
    n_train: int = 64,
    checkpoint: str | Path | None = None,
    progress: bool | Progress | None = None,
) -> xr.Dataset:
    """Measure the smallest rate at which the loss has risen above its start after t steps.

    For one step there is a closed form on a quadratic loss: along the first update −ηu the loss
    rises past η₁ = 2 g·u/(uᵀHu), with u = g for momentum, (1+β)g for Nesterov, and for Adam, whose
    bias correction makes its first step the gradient's sign, u = sign(g): η₁ = 2|g|₁/(sᵀHs). Past
    many steps the edge of late training, ``lr_crit``, takes over; in between momentum overshoots.

    Args:
        width: Hidden units of the tanh net; the other model is linear, its loss a quadratic.
        steps: The largest t.
        rates: Of the grid, from 1/20 of the smaller of critical rate and closed form to three
            times the larger.
        seeds: How many initialisations, or which.
        n_train: Training samples of the digits 0/1; ½ mean squared error, full batch.
        checkpoint: Folder to keep finished trainings in; the same call takes them up from there.
        progress: A bar on a terminal or in a notebook; True: lines in a log too, False: nothing;
            or a function of (done, total).

    Returns:
        A dataset with dims ``model, optimizer, seed, t``: ``lr_rise``, the smallest rate of the
        grid at which the loss has risen by step t (NaN if none); and without t ``lr_first``, the
        closed form η₁, ``lr_forward`` of ``forward_critical_rate``, ``lr_crit`` of ``top_eigen``
        and ``lr_earliest``, below which no quadratic loss rises (NaN where none is known).

    Raises:
        InputError: If an argument is not what was expected.

    Example:
        >>> ds = first_rise(width=4, steps=3, rates=30, seeds=1, n_train=8)
        >>> one = ds.sel(model="linear", optimizer="adam", seed=0)
        >>> bool(abs(float(one.lr_rise.sel(t=1) / one.lr_first) - 1) < 0.3)
        True

    References:
        Lewkowycz et al., arXiv 2003.02218; Cohen et al., arXiv 2207.14484.
    """
    digits = load_digits01(n_train)
    x = torch.as_tensor(digits.x_train).double()
    y = torch.as_tensor(digits.y_train).double().reshape(-1, 1)
    chosen = list(checked_seeds(seeds))
    axes: dict[str, list[Any]] = {
        "model": list(MODELS),
        "optimizer": list(OPTIMIZERS),
        "seed": chosen,
    }
    attrs = {"width": width, "steps": steps, "rates": rates, "n_train": n_train, "data": "digits"}
    cells = list(product(*axes.values()))
    parts = Parts(
        "first rise", len(cells), {**axes, **attrs}, checkpoint=checkpoint, progress=progress
    )

    def measure(kind: str, optimizer: str, seed: int) -> xr.Dataset:
        model = _model(kind, x.shape[1], width, seed)
        problem = Problem(model, "half_mse", (x, y), optimizer)
        critical = top_eigen(problem, rtol=1e-6).lr_crit
        direction = _first_update(problem, optimizer)
        closed = _along(problem, direction)
        both = (critical, closed)
        grid = np.geomspace(0.05 * min(both), 3 * max(both), rates)
        runs = sweep(
            problem, lr=grid, steps=steps, observables=(), record=Recording(), engine="module",
            progress=parts.inside,
        )  # fmt: skip
        loss = finished(runs).loss.isel(seed=0).values  # (lr, step)
        # A run that ended early, diverged or not, stays as high as it was.
        highest = np.fmax.accumulate(np.where(np.isnan(loss), -np.inf, loss), axis=1)
        diverged = np.isin(runs.status.values[:, 0], ("non_finite", "blew_up"))
        highest[diverged & ~(highest[:, -1] > loss[:, 0])] = np.inf
        risen = highest[:, 1:] > (1 + RISEN) * loss[:, :1]
        first = np.where(risen.any(0), grid[risen.argmax(0)], np.nan)
        known = stability.earliest_rise(cast(Any, optimizer))
        top = top_eigen(model, "half_mse", (x, y), rtol=1e-6).value
        return xr.Dataset(
            {
                "lr_rise": ("t", first), "lr_first": closed, "lr_crit": critical,
                "grid_step": grid[1] / grid[0],
                "lr_forward": float(forward_critical_rate(problem, delta=RISEN)),
                "lr_earliest": known / top,
            },
            attrs={"part": "first rise"},
        )  # fmt: skip

    found = [parts.part("-".join(map(str, cell)), partial(measure, *cell)) for cell in cells]
    result = laid_out(found, axes, attrs, {})
    for name, long_name in SAID.items():
        result[name].attrs = {"units": "1", "long_name": long_name}
    return result.assign_coords(t=np.arange(1, steps + 1))


def _model(kind: str, d: int, width: int, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)

    def linear(fan_in: int, fan_out: int) -> nn.Linear:
        made = nn.Linear(fan_in, fan_out, bias=False, dtype=torch.float64, device="meta")
        made = made.to_empty(device="cpu")
        nn.init.normal_(made.weight, std=fan_in**-0.5, generator=generator)
        return made

    if kind == "linear":
        return nn.Sequential(linear(d, 1))
    return nn.Sequential(linear(d, width), nn.Tanh(), linear(width, 1))


def _gradients(problem: Problem) -> tuple[list[nn.Parameter], list[Tensor]]:
    """With a graph, for products with the Hessian."""
    model = problem.initial(0)
    params = list(model.parameters())
    loss = (model(problem.x) - problem.y).square().sum() / (2 * len(problem.x))
    return params, list(torch.autograd.grad(loss, params, create_graph=True))


def _first_update(problem: Problem, optimizer: str) -> list[Tensor]:
    """The first step at rate 1, from rest."""
    grads = [g.detach() for g in _gradients(problem)[1]]
    if optimizer in ("adam", "adamw"):
        return [g.sign() for g in grads]
    if optimizer == "rmsprop":
        return [g.sign() / 0.1 for g in grads]  # √(1 − α) with α = 0.99
    return [(1.9 if optimizer == "nesterov" else 1.0) * g for g in grads]


def _along(problem: Problem, u: Sequence[Tensor]) -> float:
    """2 g·u/(uᵀHu)."""
    params, grads = _gradients(problem)
    slope = sum((g * v).sum() for g, v in zip(grads, u, strict=True))
    assert isinstance(slope, Tensor)
    image = torch.autograd.grad(slope, params)
    bend = sum(float((h * v).sum()) for h, v in zip(image, u, strict=True))
    return 2 * float(slope.detach()) / bend if bend > 0 else float("inf")


def draw_first_rise(found: xr.Dataset) -> Picture:
    """The rate against t, a panel an optimizer, in units of the critical rate.

    Args:
        found: As `first_rise` returned it.

    Returns:
        The picture.
    """
    names = found.optimizer.values.tolist()
    with style():
        picture = Picture(figsize=(10, 5.4), layout="constrained")
        grid = picture.subplots(2, -(-len(names) // 2), sharex=True, sharey=True)
        for ax, name in zip(grid.ravel(), names, strict=False):
            for model, colour in zip(found.model.values.tolist(), SERIES_COLOURS, strict=False):
                one = found.sel(optimizer=name, model=model)
                scaled = one / one.lr_crit
                label = {"linear": "linear model", "tanh": "tanh net"}[model]
                y = scaled.lr_rise.transpose("t", "seed").values
                ax.plot(one.t, y, color=colour, linewidth=1)
                ax.plot([], [], color=colour, label=label)
                ax.plot(
                    np.full(one.sizes["seed"], 0.8),
                    scaled.lr_first,
                    "<",
                    color=colour,
                    markersize=5,
                )
            ax.axhline(1, color=GREY, linestyle="--", linewidth=1)
            known = float(
                (found.lr_earliest / found.lr_crit).sel(model="linear", optimizer=name).mean()
            )
            if np.isfinite(known) and known < 0.999:
                ax.axhline(known, color=GREY, linestyle=":", linewidth=1)
            ax.set(xscale="log", yscale="log", title=name)
        for ax in grid[-1]:
            ax.set_xlabel("risen by step t")
        for ax in grid[:, 0]:
            ax.set_ylabel("η / critical rate")
        ax = grid.ravel()[0]
        ax.plot([], [], "<", color=GREY, label="closed form, first step")
        ax.plot([], [], color=GREY, linestyle="--", label="critical rate")
        ax.plot([], [], color=GREY, linestyle=":", label="earliest rise")
        picture.legend(*ax.get_legend_handles_labels(), loc="outside right upper")
    return picture


def tell_first_rise(found: xr.Dataset) -> list[str]:
    """How near the closed form is, and what many steps make of it."""
    step = float(found.grid_step.sel(model="linear").max())
    ratio = found.lr_rise.sel(t=1) / found.lr_first
    linear, net = (ratio.sel(model=model) for model in found.model.values)
    late = (found.lr_rise.isel(t=-1) / found.lr_crit).median("seed")
    early = found.lr_rise.min("t") / found.lr_earliest
    words = ", ".join(
        f"{name} {float(late.sel(optimizer=name, model='linear')):.2f}"
        for name in found.optimizer.values.tolist()
    )
    return [
        f"After one step the loss rises within {100 * (float(linear.max()) - 1):.1f} % above the "
        f"closed form on a linear model (rates lie up to {100 * (step - 1):.1f} % apart), at "
        f"{float(net.min()):.2f} to {float(net.max()):.2f} of it on the tanh net.",
        f"By step {found.sizes['t']} the smallest rate that rises, over the critical rate, linear "
        f"model: {words}.",
        f"No run rises below the earliest rise of a quadratic on the linear model: smallest ratio "
        f"{float(early.sel(model='linear').min()):.3f}.",
    ]
