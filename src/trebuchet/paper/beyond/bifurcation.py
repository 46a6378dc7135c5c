"""Cycles and chaos past the last stable minimum: the map of quadratic regression, and models."""

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
from trebuchet.engine.recording import Recording
from trebuchet.models import MLP, PureQuadratic
from trebuchet.observables import Lyapunov
from trebuchet.paper.parts import Parts, finished
from trebuchet.phases.label import label
from trebuchet.plots import bifurcation
from trebuchet.plots.style import GREY, style
from trebuchet.problem.problem import Problem
from trebuchet.results import make_dataset
from trebuchet.sweeps.sweep import sweep
from trebuchet.theory import quadratic_map

MODELS = ("map", "quadratic", "linear", "relu")
NAMES = {
    "map": "the map", "quadratic": "quadratic model", "linear": "two-layer linear net",
    "relu": "two-layer ReLU net",
}  # fmt: skip
RATES = tuple(np.linspace(0.8, 2.0, 161).round(6).tolist())
KEPT = 16
"""So many last losses are kept of each run."""


@door(a=rate_array, steps=rule(step_count, least=64))
def map_runs(a: ArrayLike, *, steps: int = 4000) -> xr.Dataset:
    """Runs of the map of quadratic regression as a labelled dataset, as a sweep would make it.

    Args:
        a: ζηy, which stands as the learning rate.
        steps: Of each run; the second half is recorded, and the exponent measured over it.

    Returns:
        ``loss`` x²/2, ``lyapunov_final`` by the tangent map, and the labels.

    Raises:
        InputError: If a rate is not positive, or the number of steps is none.

    Example:
        >>> map_runs([0.9, 1.1, 1.4]).phase.values[:, 0].tolist()
        ['lazy', 'periodic', 'chaotic']
    """
    rates = np.asarray(a, np.float64)
    half = steps // 2
    x = (1 - 2 * rates) / 3 + 1e-3
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        losses, growth = [x * x / 2], []
        for t in range(1, steps + 1):
            if t > half:
                growth.append(np.log(np.abs((1 - x) * (1 - 2 * rates - 3 * x))))
            x = (x + rates) * (1 - x) * (1 - x) - rates
            losses.append(x * x / 2)
    length = len(growth) // 16
    blocks = np.array(growth[-length * 16 :]).reshape(16, length, -1).mean(1).T
    every = np.array(losses)  # (steps + 1, rates)
    bad = ~np.isfinite(every[-1])
    kept = [0, *range(half, steps + 1)]
    status = np.where(bad, "non_finite", "max_steps")
    ds = make_dataset(
        {
            "learning_rate": rates[:, None],
            "status": status[:, None],
            "steps": np.full((rates.size, 1), steps),
            "loss": np.where(bad, np.nan, every)[kept].T[:, None],
            "loss_first": every[0][:, None],
            "loss_max": np.where(bad, np.inf, np.nanmax(every, axis=0))[:, None],
            "loss_final": np.where(bad, np.inf, every[-1])[:, None],
            "loss_min": np.nanmin(every, axis=0)[:, None],
            "last_above": _last_above(every)[:, None],
            "lyapunov_final": np.where(bad[:, None], np.nan, blocks)[:, None],
        },
        lr=rates, seed=[0], step=kept,
        attrs={"deterministic": 1, "dtype": "float64", "problem": "quadratic_map"},
    )  # fmt: skip
    return label(ds)


def _last_above(losses: np.ndarray) -> np.ndarray:
    above = losses > 1.001 * losses[0]
    last = len(losses) - 1 - np.argmax(above[::-1], axis=0)
    found: np.ndarray = np.where(above.any(axis=0), last, -1)
    return found


def _model(kind: str, width: int, seed: int) -> nn.Module:
    """One whose weights are half of what is usual, so that it starts at a small λ."""
    model: nn.Module
    if kind == "quadratic":
        model = PureQuadratic.draw(width, generator=seed)
    else:
        slopes = (1.0, 1.0 if kind == "linear" else 0.0)
        model = MLP.draw(1, width, generator=seed, slopes=slopes, dtype=torch.float64)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.5)
    return model


def _zeta(kind: str, width: int) -> float:
    return float((2 / width) ** 0.5 if kind == "quadratic" else width**-0.5)


def one_sample(kind: str, width: int) -> Problem:
    """A model on one sample x = 1, with the label that makes η the map's a = ζηy.

    Args:
        kind: "quadratic", "linear" or "relu".
        width: Weights of the quadratic model, or hidden units.

    Returns:
        The problem, by seed.
    """
    label_ = torch.tensor([1 / _zeta(kind, width)], dtype=torch.float64)
    data = torch.ones(1, 1, dtype=torch.float64), label_
    return Problem(partial(_model, kind, width), "half_mse", data, name=f"{kind} on one sample")


@door(
    a=rate_array, models=rule(several, rule(choice, MODELS)), width=checks.size, seeds=a_list,
    steps=rule(step_count, least=128), exponent_steps=step_count, workers=at_once,
    checkpoint=maybe(a_path), progress=a_bar,
)  # fmt: skip
def cycles_and_chaos(
    a: ArrayLike = RATES,
    *,
    models: Sequence[str] = MODELS,
    width: int = 8,
    seeds: int | Sequence[int] = 2,
    steps: int = 4000,
    exponent_steps: int = 512,
    workers: int | None = None,
    checkpoint: str | Path | None = None,
    progress: bool | Progress | None = None,
) -> xr.Dataset:
    """Where models of degree two end up on one sample, beside the map of quadratic regression.

    At a = ζηy = 1 the flattest minimum, λ = 2ζy, is at the edge: ηλ = 2. Past it none is stable.

    Args:
        a: ζηy, which is η here, as labels are 1/ζ.
        models: Of "map", "quadratic", "linear" and "relu" (two-layer nets).
        width: Weights of the quadratic model (even), and hidden units of the nets.
        seeds: How many initialisations, or which; the map has none.
        steps: Of each run; its second half is looked at.
        exponent_steps: Over which the Lyapunov exponent is measured, a multiple of 16.
        workers: As for :func:`trebuchet.sweep`.
        checkpoint: Folder to keep models in as they end; the same call takes them up from there.
        progress: A bar on a terminal or in a notebook; True: lines in a log too, False: nothing;
            or a function of (done, total).

    Returns:
        A dataset with dims ``model, lr, seed, step``: labelled runs, with the last losses and
        ``amplitude`` in the map's units (times ζ²η²), ``period`` and ``lyapunov_exponent``.

    Raises:
        InputError: If an argument is not what was expected.

    References:
        Chen, Balasubramanian, Ghosal & Agarwalla, arXiv 2310.01687.
    """
    rates = np.asarray(a, np.float64)
    exponent = Lyapunov(exponent_steps, settle=exponent_steps // 4)
    settings = {
        "a": rates.tolist(), "models": list(models), "width": width, "seeds": seeds,
        "steps": steps, "exponent_steps": exponent_steps,
    }  # fmt: skip
    parts = Parts("cycles", len(models), settings, checkpoint=checkpoint, progress=progress)

    def made(kind: str) -> xr.Dataset:
        if kind == "map":
            runs = map_runs(rates, steps=steps)
        else:
            runs = label(finished(sweep(
                one_sample(kind, width), lr=rates, seeds=seeds, steps=steps,
                record=Recording(every=steps, tail=steps // 2),
                observables=[exponent],
                workers=workers, progress=parts.inside,
            )))  # fmt: skip
        names = ["learning_rate", "status", "loss", "phase", "period", "amplitude", "peak_ratio",
                 "lyapunov_exponent", "lyapunov_error"]  # fmt: skip
        kept = runs[names].isel(step=slice(-KEPT, None))
        scale = 1.0 if kind == "map" else (_zeta(kind, width) * kept.learning_rate) ** 2
        told = {"units": "1", "long_name": "ζ²η² × loss"}
        return kept.assign(
            loss=(kept.loss * scale).transpose(*kept.loss.dims).assign_attrs(told),
            amplitude=(kept.amplitude * scale).assign_attrs(told),
        )

    each = [parts.part(kind, partial(made, kind)) for kind in models]
    result = xr.concat(
        each, xr.Variable(("model",), list(models)), combine_attrs="drop", join="outer"
    )
    for name in ("phase", "status"):  # of seeds that the map has not
        result[name] = result[name].fillna("" if name == "phase" else "not_run").astype(np.str_)
    rate = result.learning_rate
    result["learning_rate"] = rate.fillna(result.lr).transpose(*rate.dims).assign_attrs(rate.attrs)
    result["model"].attrs = {"units": "", "long_name": "what was iterated"}
    result.attrs = {"width": width, "steps": steps}
    return result


def draw_cycles(found: xr.Dataset) -> Picture:
    """A bifurcation diagram a model, with its exponent below.

    Args:
        found: As `cycles_and_chaos` returned it.

    Returns:
        The picture.
    """
    models = found["model"].values.tolist()
    with style():
        picture = Picture(figsize=(3 * len(models) + 0.5, 4.6), layout="constrained")
        axes = picture.subplots(
            2, len(models), squeeze=False, sharex=True, sharey="row", height_ratios=[2, 1]
        )
        for column, model in enumerate(models):
            one = found.sel(model=model)
            top, below = axes[:, column]
            bifurcation(one, ax=top, x="lr")
            if "map" in models:  # whose exponent is drawn in all
                own = found.sel(model="map").lyapunov_exponent.max("seed")
                below.plot(found.lr, own, color=GREY, linewidth=0.5, zorder=0)
            bifurcation(one, "lyapunov_exponent", ax=below, x="lr")
            below.set_ylim(-1.2, 1.2)
            for ax in (top, below):
                for edge in (quadratic_map.STABLE, quadratic_map.DOUBLED):
                    ax.axvline(edge, color=GREY, linestyle=":", linewidth=0.8, zorder=0)
            top.set(title=NAMES[model], xlabel="", ylabel="")
            below.set(xlabel="a = ζηy", ylabel="")
        axes[0, 0].set_ylabel("last losses × ζ²η²")
        axes[1, 0].set_ylabel("Lyapunov exponent")
        handles, labels = [], []
        for ax in axes.flat:
            for handle, name in zip(*ax.get_legend_handles_labels(), strict=True):
                if name not in labels:
                    handles.append(handle)
                    labels.append(name)
        picture.legend(handles, labels, loc="outside upper right", ncols=len(labels), markerscale=5)
    return picture


def tell_cycles(found: xr.Dataset) -> list[str]:
    """Whether models share the map's phases and periods, and where they do not."""
    told = []
    own = [quadratic_map.period(float(rate)) or 0 for rate in found.lr.values]
    for model in found["model"].values.tolist():
        one = found.sel(model=model)
        ran = one.phase.values != ""
        seen = np.where(np.isfinite(one.period.values), one.period.values, 0)
        periodic = ran & (seen > 0)
        same = periodic & (seen == np.array(own)[:, None])
        at = {p: one.lr.values[(seen == p).any(1)] for p in (2, 4, 8)}
        firsts = ", ".join(f"{p} from a = {v.min():.3f}" for p, v in at.items() if v.size)
        chaos = one.lr.values[(one.phase.values == "chaotic").any(1)]
        lost = ran & (one.phase.values == "divergent")
        told.append(
            f"{NAMES[model]}: {int(same.sum())} of {int(periodic.sum())} cycles of the map's own "
            f"length (period {firsts or 'none'}); "
            + (f"chaos from a = {chaos.min():.3f}; " if chaos.size else "no chaos; ")
            + f"of {int(ran.sum())} runs {int(lost.sum())} diverged, "
            f"{int((one.phase.values == 'collapsed').sum())} collapsed."
        )
    return told
