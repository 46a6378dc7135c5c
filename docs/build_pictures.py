"""The pictures of the pages "The paper" and "Beyond the paper", made when the docs are built.

Figures that need no data files are run on their quick grids (a minute or so on one core); those of
images are run where the environment variable TREBUCHET_DATA_ROOT names a folder that holds
mnist01.npz, fmnist01.npz and cifar01.npz. What lies beyond the paper is drawn from
bench/results/beyond/NAME.json, and where there is none, on the quick grid. A picture that is there
is kept: remove docs/_generated to make all anew. So is docs/_static/phase-diagram.png, of the page
"Sweeps of your own network", which is under version control: it takes five and a half minutes on
one core.

Each picture comes with a fragment of its name that the page includes: the picture, or the sentence
that says how to have it. So the page never holds a broken link.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure as Picture

import trebuchet as tb
from trebuchet.paper.beyond import EXPERIMENTS
from trebuchet.paper.experiment import from_json
from trebuchet.paper.picture import draw
from trebuchet.paper.settings import Images
from trebuchet.paper.summary import headline

DATA_ROOT = "TREBUCHET_DATA_ROOT"
RECORDS = Path(__file__).parent.parent / "bench/results/beyond"
PLACE = "_generated"  # under docs/
DIAGRAM = "_static/phase-diagram.png"


def build(docs: Path, say: Callable[[str], None] = print) -> None:
    """Make what is missing of pictures and fragments.

    Args:
        docs: The docs folder.
        say: Where progress goes.
    """
    folder = docs / PLACE / "paper"
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
        _fragment(folder, name, _picture(f"paper/{name}", alt, caption))
        _save(draw(result), folder / f"{name}.png")  # last: it says that both are there
    _build_beyond(docs / PLACE / "beyond", data_root, say)
    if not (docs / DIAGRAM).exists():
        say("the phase diagram of two-layer nets on digits")
        _save(phase_diagram(), docs / DIAGRAM)


def phase_diagram() -> Picture:
    """Phases of two-layer ReLU nets on digits, over ηλ₀ and the width: 13 × 29 cells, 3 seeds."""
    digits = tb.data.load_digits01(dtype=np.float32)
    problem = tb.Problem(
        lambda seed, width: tb.MLP.draw(64, width, generator=seed, dtype=torch.float32),
        "half_mse", (digits.x_train, digits.y_train),
    )  # fmt: skip
    widths = [round(32 * 2 ** (k / 2)) for k in range(13)]  # 32, 45, 64 … 2048
    runs = tb.sweep(
        problem, lr_ratio=np.geomspace(0.5, 64, 29), seeds=3, steps=400, observables=(),
        axes={"width": widths},
    )  # fmt: skip
    with tb.plots.style():
        picture = Picture(figsize=(7.2, 4.2), layout="constrained")
        tb.plots.phase_diagram(tb.label(runs), ax=picture.add_subplot())
    return picture


def _build_beyond(folder: Path, data_root: str | None, say: Callable[[str], None]) -> None:
    """A picture an experiment, from its record if it has one."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, row in EXPERIMENTS.items():
        record, picture = RECORDS / f"{name}.json", folder / f"{name}.png"
        made = picture.exists() and (folder / f"{name}.md").exists()
        if made and not (record.exists() and picture.stat().st_mtime < record.stat().st_mtime):
            continue
        if record.exists():
            say(f"experiment {name}, from its record")
            found = from_json(json.loads(record.read_text(encoding="utf-8")))
        elif {"data": "digits", **row.settings, **row.quick}["data"] != "digits" and not data_root:
            how = f"`trebuchet beyond {name} --quick`"
            _fragment(folder, name, f"*No picture here: {how} fetches its images, and draws it.*\n")
            continue
        else:
            say(f"experiment {name}, quick grid")
            given = {"data_root": data_root} if data_root and row.takes("data_root") else {}
            found = row.run(quick=True, **given)
        grid = "" if record.exists() else " Quick grid."
        caption = f"{row.title}:{grid} {' '.join(row.tell(found))}"
        _fragment(folder, name, _picture(f"beyond/{name}", caption, caption))
        _save(row.draw(found), picture)  # last: it says that both are there


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


if __name__ == "__main__":
    build(Path(__file__).parent)
