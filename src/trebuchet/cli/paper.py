"""`trebuchet paper`: the figures of the paper."""

import shutil
from pathlib import Path
from typing import Annotated

import typer

from trebuchet._lock import sole_writer
from trebuchet._progress import progress_bar
from trebuchet.cli.output import console, prepare_folder, refuse_existing
from trebuchet.errors import InputError
from trebuchet.paper.export import figure_paths, save_figure
from trebuchet.paper.figures import figure
from trebuchet.paper.settings import FIGURES
from trebuchet.paper.summary import headline


def paper(
    figures: Annotated[
        list[str],
        typer.Argument(
            help="Figures: numbers (1 2 6), ranges (12-16), or 'all'.", show_default=False
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for figN.zarr, figN.png and figN.json.")] = Path(
        "trebuchet-paper"
    ),
    seeds: Annotated[
        int, typer.Option(help="Seeds, counted up from the paper's; medians and bands are drawn.")
    ] = 1,
    quick: Annotated[
        bool, typer.Option("--quick", help="Every fourth rate, for a first look.")
    ] = False,
    data_root: Annotated[
        Path | None,
        typer.Option(
            help="Folder with mnist01.npz, fmnist01.npz, cifar01.npz; "
            "without it, images come from OpenML through scikit-learn."
        ),
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32, as in the paper, or float64.")] = "float32",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace results that exist.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep figures that are there; go on with the rest.")
    ] = False,
) -> None:
    """Reproduce figures of Meltzer & Liu, arXiv 2301.07737, at their own settings.

    For each figure N this writes figN.zarr (every run, an xarray Dataset),
    figN.png (the paper's panels) and figN.json (the numbers). Image figures
    save their runs as they go: after Ctrl-C or a kill, the same command with
    --resume goes on where it was, to the same digits.

    Example: trebuchet paper 1 2 6 --out figures
    """  # noqa: DOC501 - this text is what --help shows
    import torch

    numbers = parse_figures(figures)
    if dtype not in ("float32", "float64"):
        msg = f"--dtype: expected float32 or float64, got {dtype!r}"
        raise InputError(msg)
    prepare_folder(out)
    if resume:
        # The JSON is written last: where it is, the figure is whole.
        numbers = [n for n in numbers if not figure_paths(out, n)[-1].exists()]
        overwrite = True
    for number in numbers:
        refuse_existing(figure_paths(out, number), overwrite=overwrite)
    screen = console()
    interrupted = False
    for number in numbers:
        screen.print(f"[bold]Figure {number}[/]  {FIGURES[number].title}")
        unfinished = out / f".fig{number}-unfinished"
        with sole_writer(unfinished, "--out"):
            result = figure(
                number,
                seeds=seeds,
                quick=quick,
                dtype=getattr(torch, dtype),
                data_root=data_root,
                checkpoint=unfinished if FIGURES[number].long else None,
                progress=progress_bar(f"figure {number}"),
            )
            for line in headline(result):
                screen.print(f"  {line}", soft_wrap=True)
            interrupted = bool(result.runs.attrs["interrupted"])
            if interrupted:
                break
            for path in save_figure(result, out, overwrite=overwrite):
                screen.print(f"  wrote {path}", soft_wrap=True)
            shutil.rmtree(unfinished, ignore_errors=True)
    if interrupted:
        screen.print(
            "interrupted: this figure was not written; the same command with --resume goes on"
        )
        raise typer.Exit(130)


def parse_figures(words: list[str]) -> list[int]:
    """Numbers, ranges and 'all' to figure numbers, each once, in the order given.

    Args:
        words: What the user typed.

    Returns:
        The numbers.

    Raises:
        InputError: If a word is none of the three, or names no figure.

    Example:
        >>> parse_figures(["3", "14-16"])
        [3, 14, 15, 16]
    """
    numbers: list[int] = []
    for word in words:
        low, dash, high = word.partition("-")
        if word == "all":
            numbers += list(FIGURES)
        elif low.isdigit() and (not dash or high.isdigit()):
            numbers += range(int(low), int(high or low) + 1)
        else:
            msg = f"figures: expected a number, a range such as 12-16, or 'all', got {word!r}"
            raise InputError(msg)
    unknown = [n for n in numbers if n not in FIGURES]
    if unknown or not numbers:
        msg = f"figures: the paper has figures 1 to {max(FIGURES)}, got {unknown or words}"
        raise InputError(msg)
    return list(dict.fromkeys(numbers))
