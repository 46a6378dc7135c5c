"""`trebuchet paper`: the figures of the paper."""

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from trebuchet._lock import sole_writer
from trebuchet._progress import Progress, close, progress_bar
from trebuchet.cli.options import (
    LARGEST_GRID,
    DataRoot,
    InterruptedCommandError,
    Overwrite,
    command,
    did_you_mean,
    one_of,
    quoted,
    whole,
)
from trebuchet.cli.output import check_folder, console, prepare_folder, refuse_existing
from trebuchet.errors import InputError
from trebuchet.paper.export import figure_paths, save_figure
from trebuchet.paper.figures import figure
from trebuchet.paper.settings import FIGURES, Images
from trebuchet.paper.summary import headline

_NUMBER = re.compile(r"[0-9]{1,9}")  # of ASCII digits only


@command
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
        int,
        typer.Option(
            parser=whole("--seeds", most=LARGEST_GRID),
            metavar="N",
            help="Seeds, counted up from the paper's; medians and bands are drawn.",
        ),
    ] = 1,
    quick: Annotated[
        bool, typer.Option("--quick", help="Every fourth rate, for a first look.")
    ] = False,
    data_root: DataRoot = None,
    dtype: Annotated[
        str,
        typer.Option(
            parser=one_of("--dtype", "float32", "float64"),
            metavar="NAME",
            help="float32, as in the paper, or float64.",
        ),
    ] = "float32",
    overwrite: Overwrite = False,
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
    check_folder(out)
    if resume:
        # The JSON is written last: where it is, the figure is whole.
        numbers = [n for n in numbers if not figure_paths(out, n)[-1].exists()]
        overwrite = True
    for number in numbers:
        refuse_existing(figure_paths(out, number), overwrite=overwrite)
    if data_root is not None:
        _check_images(numbers, data_root)
    prepare_folder(out)
    screen = console()
    for number in numbers:
        title = f"[bold]Figure {number}[/]  {FIGURES[number].title}"
        shown = progress_bar(f"figure {number}")
        bar = _after(partial(screen.print, title), shown)
        unfinished = out / f".fig{number}-unfinished"
        with sole_writer(unfinished, "--out"), _said_how_to_go_on():
            try:
                result = figure(
                    number,
                    seeds=seeds,
                    quick=quick,
                    dtype=getattr(torch, dtype),
                    data_root=data_root,
                    checkpoint=unfinished if FIGURES[number].long else None,
                    progress=bar,
                )
            finally:
                close(shown)
            bar(1, 1)
            for line in headline(result):
                screen.print("  ", line, sep="", soft_wrap=True)
            if result.runs.attrs["interrupted"]:
                raise KeyboardInterrupt
            for path in save_figure(result, out, overwrite=overwrite):
                screen.print(f"  wrote {path}", soft_wrap=True)
            shutil.rmtree(unfinished, ignore_errors=True)


@contextmanager
def _said_how_to_go_on() -> Iterator[None]:
    """End with a line on --resume, wherever Ctrl-C comes."""
    try:
        yield
    except KeyboardInterrupt:
        said = "interrupted: this figure was not written; the same command with --resume goes on"
        raise InterruptedCommandError(said) from None


def _check_images(numbers: list[int], data_root: Path) -> None:
    """Read the images that the figures need: before an hour is spent on those that need none."""
    settings = (FIGURES[number].data for number in numbers)
    names = {data.name for data in settings if isinstance(data, Images)}
    if not data_root.is_dir():
        msg = (
            f"--data-root: expected a folder, found {'a file' if data_root.exists() else 'nothing'}"
        )
        raise InputError(f"{msg} at {data_root}")
    if names:
        from trebuchet.data.images import load_images  # scikit-learn takes a second to import

        for name in sorted(names):
            load_images(name, data_root=data_root)


def _after(title: Callable[[], object], bar: Progress) -> Progress:
    """A progress bar below a title that is printed once there is progress: not above an error."""
    printed = False

    def update(done: int, total: int) -> None:
        nonlocal printed
        if not printed:
            printed = True
            title()
        bar(done, total)

    return update


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
    last = max(FIGURES)
    for word in words:
        low, dash, high = word.partition("-")
        if word == "all":
            numbers += list(FIGURES)
        elif _NUMBER.fullmatch(low) and (not dash or _NUMBER.fullmatch(high)):
            first, end = int(low), int(high or low)
            if not 1 <= first <= end <= last:
                msg = f"figures: the paper has figures 1 to {last}, got {quoted(word)}"
                raise InputError(msg)
            numbers += range(first, end + 1)
        else:
            msg = (
                "figures: expected a number, a range such as 12-16, or 'all', got "
                f"{quoted(word)}{did_you_mean(word, ['all'])}"
            )
            raise InputError(msg)
    return list(dict.fromkeys(numbers))
