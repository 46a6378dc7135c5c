"""The pictures of the page "The paper", made when the docs are built.

Figures that need no data files are run on their quick grids (a minute or so on one core); those of
images are run where the environment variable TREBUCHET_DATA_ROOT names a folder that holds
mnist01.npz, fmnist01.npz and cifar01.npz. What lies beyond the paper is drawn from
bench/results/beyond.json. A picture that is there is kept: remove docs/_generated to make all anew.

Each picture comes with a fragment figN.md that the page includes: the picture, or the sentence that
says how to have it. So the page never holds a broken link.
"""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure as Picture

import trebuchet as tb
from trebuchet.paper.picture import draw
from trebuchet.paper.settings import Images
from trebuchet.paper.summary import headline
from trebuchet.plots.style import GREY, SERIES_COLOURS, rate_colours, seed_band, style

DATA_ROOT = "TREBUCHET_DATA_ROOT"
BEYOND = Path(__file__).parent.parent / "bench/results/beyond.json"
PLACE = "_generated/paper"  # under docs/


def build(docs: Path, say: Callable[[str], None] = print) -> None:
    """Make what is missing of pictures and fragments.

    Args:
        docs: The docs folder.
        say: Where progress goes.
    """
    folder = docs / PLACE
    folder.mkdir(parents=True, exist_ok=True)
    data_root = os.environ.get(DATA_ROOT)
    for number, setting in tb.paper.FIGURES.items():
        name = f"fig{number}"
        if (folder / f"{name}.png").exists() and (folder / f"{name}.md").exists():
            continue
        if isinstance(setting.data, Images) and not data_root:
            _fragment(folder, name, _how_to(number))
            continue
        say(f"figure {number} of the paper, quick grid")
        result = tb.paper.figure(number, quick=True, data_root=data_root)
        told = [line.plain for line in headline(result)]
        alt = f"Figure {number}: {setting.title}. " + "; ".join(told)
        caption = f"Figure {number}, quick grid: {told[1]}."
        _fragment(folder, name, _picture(name, alt, caption))
        _save(draw(result), folder / f"{name}.png")  # last: it says that both are there
    written = json.loads(BEYOND.read_text()) if BEYOND.exists() else {}
    for name, (draw_it, needs, caption) in PICTURES.items():
        missing = [key for key in needs if key not in written]
        if missing:
            run = f"`python bench/beyond.py {' '.join(missing)}`"
            _fragment(folder, name, f"*No picture here: its numbers are made by {run}.*\n")
            continue
        stale = folder / f"{name}.png"
        if not stale.exists() or stale.stat().st_mtime < BEYOND.stat().st_mtime:
            say(f"picture {name}, from {BEYOND.name}")
            _save(draw_it(written), stale)
        _fragment(folder, name, _picture(name, caption, caption))


def _how_to(number: int) -> str:
    return (
        f"*No picture here: this figure needs image files. `trebuchet paper {number} --quick` "
        f"fetches them from OpenML and draws it; with `{DATA_ROOT}=DIR` set, where `DIR` holds "
        "`mnist01.npz`, `fmnist01.npz` and `cifar01.npz`, the docs build draws it on this page.*\n"
    )


def _picture(name: str, alt: str, caption: str) -> str:
    alt = " ".join(alt.split())
    return f"```{{figure}} {PLACE}/{name}.png\n:alt: {alt}\n:width: 100%\n\n{caption}\n```\n"


def _fragment(folder: Path, name: str, text: str) -> None:
    path = folder / f"{name}.md"
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def _save(picture: Picture, path: Path) -> None:
    part = path.with_suffix(".part.png")
    picture.savefig(part, dpi=120)
    os.replace(part, path)


def _values(experiment: Mapping[str, Any], name: str) -> np.ndarray:
    return np.array(experiment["variables"][name]["values"], dtype=float)  # null becomes NaN


def draw_sparsity(written: Mapping[str, Any]) -> Picture:
    """Sparsity against ηλ₀, a line a width, the seeds' range as a band."""
    panels = [key for key in ("sparsity_digits", "sparsity_mnist") if key in written]
    every = sorted({width for key in panels for width in written[key]["coords"]["width"]})
    colours = dict(zip(every, rate_colours(len(every)), strict=True))
    with style():
        picture = Picture(figsize=(10, 3.8), layout="constrained")
        axes = picture.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for ax, key in zip(axes, panels, strict=True):
            experiment = written[key]
            phase = np.array(experiment["variables"]["phase"]["values"])
            sparsity = _values(experiment, "sparsity")  # (width, lr, seed)
            sparsity[~np.isin(phase, ["lazy", "catapult"])] = np.nan
            rates, widths = (np.array(experiment["coords"][k]) for k in ("lr", "width"))
            for row, width in enumerate(widths.tolist()):
                label = f"width {width}"
                seed_band(ax, rates, sparsity[row], colour=colours[width], label=label)
            ax.axvline(2, color=GREY, linestyle=":", linewidth=1)
            seeds = len(experiment["coords"]["seed"])
            title = {"sparsity_digits": "Digits 0/1", "sparsity_mnist": "MNIST 0/1"}[key]
            ax.set_title(f"{title}, {seeds} seeds")
            ax.set_xlabel("ηλ₀")
        axes[0].set_ylabel("final sparsity (share < 0)")
        axes[0].legend(loc="lower right")
    return picture


def draw_ceiling(written: Mapping[str, Any]) -> Picture:
    """Where |θ|² fell and where it rose, against the law's 2k."""
    experiment = written["ceiling"]
    degrees = np.array(experiment["coords"]["degree"])
    cases = experiment["coords"]["case"]
    with style():
        picture = Picture(figsize=(10, 3.4), layout="constrained")
        axes = picture.subplots(1, len(cases), sharey=True)
        for row, (ax, case) in enumerate(zip(axes, cases, strict=True)):
            ax.plot(degrees, 2 * degrees, color=GREY, linestyle="--", label="2k")
            for name, label, marker, colour, fill in (
                ("fell_highest", "highest ηλ at which |θ|² fell", "v", SERIES_COLOURS[0], "full"),
                ("rose_lowest", "lowest at which it rose", "^", SERIES_COLOURS[1], "full"),
                ("rose_lowest_large_loss", "the same, large loss", "^", SERIES_COLOURS[1], "none"),
            ):
                if name == "rose_lowest_large_loss" and case.endswith("y = 0"):
                    continue  # every loss is large beside labels of zero
                values = _values(experiment, name)[row]
                ax.plot(degrees, values, marker, color=colour, label=label, fillstyle=fill)
            ax.set_title(case)
            ax.set_xticks(degrees)
            ax.set_xlabel("layers k")
        axes[0].set_ylabel("ηλ of the step")
        axes[0].set_ylim(-0.5, 25)
        axes[-1].legend(loc="upper left")
    return picture


def draw_edge(written: Mapping[str, Any]) -> Picture:
    """The measured edge against width, a line a depth."""
    experiment = written["edge"]
    activations, hidden, widths = (
        experiment["coords"][key] for key in ("activation", "hidden", "width")
    )
    edge = _values(experiment, "edge")  # (activation, hidden, width, seed)
    # Where the smallest rate scanned failed already, it stands for the edge: an upper bound.
    edge = np.where(np.isnan(edge), _values(experiment, "fails"), edge)
    with style():
        picture = Picture(figsize=(10, 3.8), layout="constrained")
        axes = picture.subplots(1, len(activations), sharex=True, sharey=True)
        for a, (ax, activation) in enumerate(zip(axes, activations, strict=True)):
            for h, depth in enumerate(hidden):
                label = f"{depth} hidden layer{'s' if depth > 1 else ''}"
                x, y = np.array(widths), edge[a, h]
                colour = SERIES_COLOURS[h]
                ax.plot(np.repeat(x, y.shape[1]), y.ravel(), ".", color=colour, alpha=0.5)
                seed_band(ax, x, y, colour=colour, label=label)
                if activation == "relu" and depth == 1 and "edge_wide" in written:
                    wide = written["edge_wide"]
                    x, y = np.array(wide["coords"]["width"]), _values(wide, "edge")[0, 0]
                    label = f"the same, {wide['attrs']['steps']} steps"
                    ax.plot(np.repeat(x, y.shape[1]), y.ravel(), ".", color=SERIES_COLOURS[3])
                    seed_band(ax, x, y, colour=SERIES_COLOURS[3], label=label)
            empirical = {"relu": 12, "tanh": 4}[activation]
            label = f"reported for wide nets, ≈ {empirical}"
            ax.axhline(empirical, color=GREY, linestyle="--", linewidth=1, label=label)
            ax.set(xscale="log", yscale="log", xlabel="width")
            marks = [32, 128, 512, 2048]
            ax.set_xticks(marks, [str(mark) for mark in marks])
            ticks = [2, 4, 8, 12, 16, 32, 64]
            ax.set_yticks(ticks, [str(t) for t in ticks])
            ax.minorticks_off()
            ax.set_title(f"{'ReLU' if activation == 'relu' else activation} nets")
            ax.legend(loc="upper left")
        axes[0].set_ylabel("smallest ηλ₀ that no longer trains")
    return picture


PICTURES: dict[str, tuple[Callable[[Mapping[str, Any]], Picture], tuple[str, ...], str]] = {
    "beyond_sparsity": (
        draw_sparsity,
        ("sparsity_digits",),
        "Final sparsity of two-layer ReLU nets against ηλ₀: median and range over seeds, runs that "
        "trained only. The dotted line is the critical rate.",
    ),
    "beyond_ceiling": (
        draw_ceiling,
        ("ceiling",),
        "Where the weight norm of bias-free ReLU nets of k layers fell in a step, and where it "
        "rose; dashed, the law's ceiling 2k.",
    ),
    "beyond_edge": (
        draw_edge,
        ("edge",),
        "Smallest ηλ₀ at which nets no longer train, against width: a dot a seed, the median as a "
        "line, the range as a band.",
    ),
}


if __name__ == "__main__":
    build(Path(__file__).parent)
