"""The critical rate, and the best one, over width: standard and maximal-update parametrisation."""

import math
from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from matplotlib.figure import Figure as Picture
from torch import Tensor, nn

from trebuchet import _torch_checks as checks
from trebuchet._checks import (
    anything,
    checked_seeds,
    choice,
    path as a_path,
    progress as a_bar,
    seeds as a_list,
    several,
    steps as step_count,
    words,
)
from trebuchet._doors import door, maybe, rule
from trebuchet._progress import Progress
from trebuchet.curvature import top_eigen
from trebuchet.errors import InputError
from trebuchet.paper.beyond.problems import DATA, DIGITS, load
from trebuchet.paper.parts import Parts, laid_out
from trebuchet.plots.style import SERIES_COLOURS, seed_band, style
from trebuchet.problem.problem import Problem
from trebuchet.scans.door import scan

PARAMETRISATIONS = ("standard", "mup")
OPTIMIZERS = ("sgd", "adam")


class WidthNet(nn.Module):
    """A tanh net of two hidden layers, in one of two parametrisations.

    Each weight matrix is multiplier × w with w ~ N(0, std²), and all of them are trained at one
    rate. With n the width and d the inputs:

    - standard: multipliers 1, std 1/√fan-in;
    - maximal update for gradient descent: multipliers √n, 1, 1/√n and std 1/√(nd), 1/√n, 1/√n;
    - maximal update for Adam, whose steps do not know the gradient's scale: multipliers 1, 1/n, 1/n
      and std 1/√d, √n, 1.

    Args:
        d: Inputs.
        width: n.
        parametrisation: ``"standard"`` or ``"mup"``.
        adam: Whether the optimizer divides by the gradient's scale.
        seed: Of the weights.

    References:
        Yang & Hu, arXiv 2011.14522; Yang et al., arXiv 2203.03466.
    """

    def __init__(self, d: int, width: int, parametrisation: str, adam: bool, seed: int) -> None:
        super().__init__()
        n = float(width)
        scales = {
            ("standard", False): ((1.0, d**-0.5), (1.0, n**-0.5), (1.0, n**-0.5)),
            ("mup", False): ((n**0.5, (n * d) ** -0.5), (1.0, n**-0.5), (n**-0.5, n**-0.5)),
            ("mup", True): ((1.0, d**-0.5), (1 / n, n**0.5), (1 / n, 1.0)),
        }[parametrisation, adam and parametrisation == "mup"]
        generator = torch.Generator().manual_seed(seed)
        shapes = ((width, d), (width, width), (1, width))
        self.multipliers = [multiplier for multiplier, _ in scales]
        self.weights = nn.ParameterList(
            std * torch.randn(shape, generator=generator, dtype=torch.float32)
            for shape, (_, std) in zip(shapes, scales, strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Outputs, ``(B, 1)``."""
        first, second, last = (m * w for m, w in zip(self.multipliers, self.weights, strict=True))
        outputs: Tensor = torch.tanh(torch.tanh(x @ first.T) @ second.T) @ last.T
        return outputs


@door(
    widths=rule(several, checks.size), optimizers=rule(words, OPTIMIZERS), seeds=a_list,
    horizon=step_count, data=rule(choice, DATA), data_root=maybe(a_path), n_train=anything,
    checkpoint=maybe(a_path), progress=a_bar,
)  # fmt: skip
def critical_over_width(
    *,
    widths: Sequence[int] = (64, 128, 256, 512, 1024),
    optimizers: Sequence[str] = OPTIMIZERS,
    seeds: int | Sequence[int] = 3,
    horizon: int = 50,
    data: str = DIGITS,
    data_root: str | Path | None = None,
    n_train: int = 128,
    checkpoint: str | Path | None = None,
    progress: bool | Progress | None = None,
) -> xr.Dataset:
    """Measure the critical rate at the initialisation, and the best rate, over width.

    The critical rate is ``top_eigen``'s ``lr_crit``, the optimizer's own; the best one is what
    ``scan`` suggests for `horizon` steps on all data. A parametrisation transfers where neither
    moves with width.

    Args:
        widths: Units in both hidden layers.
        optimizers: ``"sgd"``, ``"adam"`` or both.
        seeds: How many initialisations, or which.
        horizon: Steps that the best rate is for, 10 or more.
        data: ``"digits"``, or a name that :func:`trebuchet.data.load_images` knows.
        data_root: Folder of image files.
        n_train: Training samples; labels are −1 and +1.
        checkpoint: Folder to keep finished nets in; the same call takes them up from there.
        progress: A bar on a terminal or in a notebook; True: lines in a log too, False: nothing;
            or a function of (done, total).

    Returns:
        A dataset with dims ``parametrisation, optimizer, width, seed``: ``lr_crit`` and
        ``lr_best``; and without width ``crit_exponent`` and ``best_exponent``, the slopes of their
        logarithms against that of the width.

    Raises:
        InputError: If an argument is not what was expected, or the data cannot be had.

    Example:
        >>> ds = critical_over_width(widths=[8, 32], optimizers=["sgd"], seeds=1, horizon=10,
        ...                          n_train=16)
        >>> standard, mup = ds.crit_exponent.values.ravel()
        >>> bool(standard < -0.3), bool(abs(mup) < abs(standard))
        (True, True)

    References:
        Yang et al., arXiv 2203.03466.
    """
    if len(set(widths)) < len(widths):
        msg = f"widths: expected different ones, got {list(widths)}; name each once"
        raise InputError(msg)
    samples = load(data, data_root, n_train)
    pair = tuple(torch.as_tensor(a).float() for a in (samples.x_train, samples.y_train))
    chosen = list(checked_seeds(seeds))
    axes: dict[str, list[Any]] = {
        "parametrisation": list(PARAMETRISATIONS), "optimizer": list(optimizers),
        "width": list(widths), "seed": chosen,
    }  # fmt: skip
    attrs = {"data": data, "n_train": n_train, "horizon": horizon}
    cells = list(product(*axes.values()))
    parts = Parts("width", len(cells), {**axes, **attrs}, checkpoint=checkpoint, progress=progress)

    def measure(parametrisation: str, optimizer: str, width: int, seed: int) -> xr.Dataset:
        model = WidthNet(pair[0].shape[1], width, parametrisation, optimizer == "adam", seed)
        problem = Problem(model, "half_mse", pair, optimizer)
        critical = top_eigen(problem, rtol=1e-2).lr_crit
        best = scan(problem, horizon=horizon, curvature="none", progress=False).suggestion
        return xr.Dataset(
            {
                "lr_crit": (
                    (),
                    critical,
                    {"units": "1", "long_name": "critical rate at the start"},
                ),
                "lr_best": ((), float(best), {"units": "1", "long_name": "rate a scan suggests"}),
            }
        )

    found = [parts.part("-".join(map(str, cell)), partial(measure, *cell)) for cell in cells]
    result = laid_out(found, axes, attrs, {"width": "hidden units"})
    for name in ("crit", "best"):
        logs = np.log(result[f"lr_{name}"].mean("seed").values)
        told = {"units": "1", "long_name": f"d log lr_{name} / d log width"}
        slopes = [[_slope(widths, line) for line in block] for block in logs]
        result[f"{name}_exponent"] = (("parametrisation", "optimizer"), slopes, told)
    return result


def _slope(widths: Sequence[int], logs: np.ndarray) -> float:
    """Least squares against the logarithm of the width; NaN of one width."""
    if len(widths) < 2 or not np.isfinite(logs).all():
        return math.nan
    return float(np.polyfit(np.log(widths), logs, 1)[0])


def draw_width(found: xr.Dataset) -> Picture:
    """Critical and best rate against width, a panel an optimizer.

    Args:
        found: As `critical_over_width` returned it.

    Returns:
        The picture.
    """
    widths = found.width.values
    with style():
        count = found.sizes["optimizer"]
        picture = Picture(figsize=(1.5 + 4.3 * count, 3.8), layout="constrained")
        axes = picture.subplots(1, count, squeeze=False)[0]
        for ax, optimizer in zip(axes, found.optimizer.values.tolist(), strict=True):
            for row, colour in zip(
                found.parametrisation.values.tolist(), SERIES_COLOURS, strict=False
            ):
                one = found.sel(optimizer=optimizer, parametrisation=row)
                name = {"standard": "standard", "mup": "maximal update"}[row]
                for key, label, line in (
                    ("lr_crit", f"{name}, critical", "-"), ("lr_best", f"{name}, best", "--"),
                ):  # fmt: skip
                    y = one[key].transpose("width", "seed").values
                    seed_band(ax, widths, y, colour=colour, label=label, linestyle=line,
                              marker="o" if line == "-" else "s", markersize=3)  # fmt: skip
            ax.set(xscale="log", yscale="log", xlabel="width")
            ax.set_xticks(widths, [str(w) for w in widths])
            ax.tick_params(which="minor", axis="x", bottom=False, labelbottom=False)
            ax.set_title({"sgd": "Gradient descent", "adam": "Adam"}[optimizer])
        axes[0].set_ylabel("learning rate η")
        handles = axes[0].get_legend_handles_labels()
        picture.legend(*handles, loc="outside right upper")
    return picture


def tell_width(found: xr.Dataset) -> list[str]:
    """How both rates go with width, as powers of it."""
    told = []
    for optimizer in found.optimizer.values.tolist():
        parts = []
        for row in found.parametrisation.values.tolist():
            one = found.sel(optimizer=optimizer, parametrisation=row)
            name = {"standard": "standard", "mup": "maximal update"}[row]
            critical, best = float(one.crit_exponent), float(one.best_exponent)
            parts.append(f"{name}: critical ∝ width^{critical:.2f}, best ∝ width^{best:.2f}")
        told.append(f"{optimizer}, {'; '.join(parts)}.")
    return told
