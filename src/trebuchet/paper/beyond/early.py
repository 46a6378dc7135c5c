"""Diagrams of early training: c_loss, c_sharp, c_barrier and c_max over width and depth."""

import itertools
from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from matplotlib.figure import Figure as Picture
from torch import nn

from trebuchet import _torch_checks as checks
from trebuchet._checks import (
    anything,
    choice,
    flag,
    path as a_path,
    progress as a_bar,
    real,
    seeds as a_list,
    several,
    steps as step_count,
    whole,
)
from trebuchet._doors import door, maybe, rule
from trebuchet._progress import Progress
from trebuchet.paper.beyond.problems import DATA, DIGITS, load
from trebuchet.paper.parts import Parts, laid_out
from trebuchet.phases.early import EarlyConstants, early_constants
from trebuchet.plots.style import GREY, SERIES_COLOURS, seed_band, style

CONSTANTS = ("c_loss", "c_sharp", "c_barrier", "c_max")


@door(
    widths=rule(several, checks.size), depths=rule(several, checks.depth), seeds=a_list,
    zero_last=flag, steps=step_count, train_steps=step_count,
    rtol=rule(real, "a number from 1e-4 to 1", lambda x: 1e-4 <= x <= 1),
    batch_size=maybe(whole, "a positive number of samples"),
    data=rule(choice, DATA), data_root=maybe(a_path), n_train=anything,
    checkpoint=maybe(a_path), progress=a_bar,
)  # fmt: skip
def early_diagram(
    *,
    widths: Sequence[int] = (64, 128, 256, 512),
    depths: Sequence[int] = (2, 4, 8),
    seeds: int | Sequence[int] = 3,
    zero_last: bool = False,
    steps: int = 10,
    train_steps: int = 100,
    rtol: float = 0.05,
    batch_size: int | None = None,
    data: str = DIGITS,
    data_root: str | Path | None = None,
    n_train: int = 128,
    checkpoint: str | Path | None = None,
    progress: bool | Progress | None = None,
) -> xr.Dataset:
    """Measure the constants of early training over width and depth.

    The nets are the publication's: ReLU, no biases, weights N(0, 2/fan-in), the last layer's
    N(0, 1/fan-in), ½ mean squared error. The images are other, fewer, and of two classes.

    Args:
        widths: Units in each hidden layer.
        depths: Layers, the last one among them; 2 or more.
        seeds: How many initialisations, or which.
        zero_last: Start from a last layer of zeros; then c_loss = 2 at any width and depth.
        steps: What counts as early.
        train_steps: Steps after which a loss below L₀ has trained.
        rtol: Relative width to which each edge is bisected.
        batch_size: Of SGD; full batch unless given.
        data: ``"digits"``, or a name that :func:`trebuchet.data.load_images` knows.
        data_root: Folder of image files.
        n_train: Training samples, standardised; labels are −1 and +1.
        checkpoint: Folder to keep finished nets in; the same call takes them up from there.
        progress: A bar on a terminal or in a notebook; True: lines in a log too, False: nothing;
            or a function of (done, total).

    Returns:
        A dataset with dims ``depth, width, seed``: the four constants, and ``sharpness`` at the
        initialisation.

    Raises:
        InputError: If an argument is not what was expected, or the data cannot be had.

    Example:
        >>> ds = early_diagram(widths=[8], depths=[2], seeds=1, n_train=8, rtol=0.5, steps=3,
        ...                    train_steps=20)
        >>> ds.c_loss.dims, bool(ds.c_loss[0, 0, 0] > 1)
        (('depth', 'width', 'seed'), True)

    References:
        Kalra & Barkeshli, arXiv 2302.12250.
    """
    samples = load(data, data_root, n_train)
    x = torch.as_tensor(samples.x_train).float()
    x = (x - x.mean()) / x.std()
    y = torch.as_tensor(samples.y_train).float().reshape(-1, 1)
    attrs = {
        "data": data, "n_train": n_train, "steps": steps, "train_steps": train_steps,
        "rtol": rtol, "zero_last": int(zero_last), "batch_size": batch_size or len(x),
    }  # fmt: skip
    cells = list(product(depths, widths))
    asked = {**attrs, "depths": list(depths), "widths": list(widths), "seeds": seeds}
    parts = Parts("early", len(cells), asked, checkpoint=checkpoint, progress=progress)

    def measure(depth: int, width: int) -> xr.Dataset:
        sizes = [x.shape[1], *[width] * (depth - 1), 1]
        found = early_constants(
            partial(_net, sizes, zero_last), "half_mse", (x, y), steps=steps,
            train_steps=train_steps, rtol=rtol, seeds=seeds, batch_size=batch_size,
            progress=parts.inside,
        )  # fmt: skip
        return _dataset(found.by_seed or (found,))

    found = [parts.part(f"{cell[0]}-{cell[1]}", partial(measure, *cell)) for cell in cells]
    axes = {"depth": depths, "width": widths}
    return laid_out(found, axes, attrs, {"width": "hidden units", "depth": "layers"})


def _net(sizes: Sequence[int], zero_last: bool, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    last = len(sizes) - 2
    for i, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
        empty = nn.Linear(fan_in, fan_out, bias=False, dtype=torch.float32, device="meta")
        linear = empty.to_empty(device="cpu")
        variance = (0.0 if zero_last else 1.0) if i == last else 2.0
        nn.init.normal_(linear.weight, std=(variance / fan_in) ** 0.5, generator=generator)
        layers += [linear] if i == last else [linear, nn.ReLU()]
    return nn.Sequential(*layers)


def _dataset(found: Sequence[EarlyConstants]) -> xr.Dataset:
    names = {
        "c_loss": "smallest c whose loss rises above its start",
        "c_sharp": "smallest c whose sharpness rises above its start",
        "c_barrier": "smallest c with a barrier between the start and the end",
        "c_max": "largest c that trains",
        "sharpness": "top Hessian eigenvalue at the start",
    }
    return xr.Dataset(
        {
            name: ("seed", [getattr(one, name) for one in found], {"units": "1", "long_name": said})
            for name, said in names.items()
        },
        attrs={"part": "early"},
    )


def draw_early(found: xr.Dataset) -> Picture:
    """The constants against width, a panel a depth.

    Args:
        found: As `early_diagram` returned it.

    Returns:
        The picture.
    """
    widths = found.width.values
    with style():
        count = found.sizes["depth"]
        picture = Picture(figsize=(1.2 + 3.2 * count, 3.8), layout="constrained")
        axes = picture.subplots(1, count, sharex=True, sharey=True, squeeze=False)[0]
        for ax, depth in zip(axes, found.depth.values.tolist(), strict=True):
            for name, colour in zip(CONSTANTS, SERIES_COLOURS, strict=False):
                y = found[name].sel(depth=depth).values
                label = f"$c_\\mathrm{{{name[2:]}}}$"
                ax.plot(np.repeat(widths, y.shape[1]), y.ravel(), ".", color=colour, alpha=0.4)
                if np.isfinite(y).any():
                    seed_band(ax, widths, y, colour=colour, label=label, marker="o", markersize=3)
            ax.axhline(2, color=GREY, linestyle="--", linewidth=1, label="c = 2")
            ax.set(xscale="log", yscale="log", xlabel="width")
            ax.set_xticks(widths, [str(w) for w in widths])
            ticks = [1, 2, 3, 4, 6, 8, 12, 16, 32]
            ax.set_yticks(ticks, [str(t) for t in ticks])
            ax.minorticks_off()
            start = ", last layer zero" if found.attrs["zero_last"] else ""
            ax.set_title(f"depth {depth}{start}")
        axes[0].set_ylabel("c = η × sharpness at the start")
        handles = {line.get_label(): line for ax in axes for line in ax.get_lines()}
        shown = {str(k): line for k, line in handles.items() if not str(k).startswith("_")}
        picture.legend(list(shown.values()), list(shown), loc="outside right upper")
    return picture


def tell_early(found: xr.Dataset) -> list[str]:
    """The medians at the narrowest and the widest net of each depth."""
    told = []
    middle = found.fillna(np.inf).median("seed")
    for depth in found.depth.values.tolist():
        parts = []
        for name in CONSTANTS:
            row = middle[name].sel(depth=depth)
            ends = dict.fromkeys((float(row[0]), float(row[-1])))
            text = " → ".join("none" if np.isinf(v) else f"{v:.2f}" for v in ends)
            parts.append(f"{name} {text}")
        widths = f"width {int(found.width[0])} → {int(found.width[-1])}"
        told.append(f"Depth {depth}, {widths}, medians: {', '.join(parts)}.")
    return told
