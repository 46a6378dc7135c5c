"""`trebuchet beyond`: the experiments beyond the paper."""

import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from trebuchet._lock import sole_writer
from trebuchet._progress import close, progress_bar
from trebuchet.cli.options import (
    LARGEST_GRID,
    DataRoot,
    InterruptedCommandError,
    Overwrite,
    command,
    did_you_mean,
    quoted,
    whole,
    whole_numbers,
)
from trebuchet.cli.output import check_folder, console, prepare_folder, refuse_existing
from trebuchet.errors import InputError


@command
def beyond(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME]...",
            help="Which experiments, or 'all'; without a name, they are listed.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for NAME.zarr, NAME.png and NAME.json.")] = Path(
        "trebuchet-beyond"
    ),
    quick: Annotated[
        bool, typer.Option("--quick", help="A small grid, for a first look: seconds.")
    ] = False,
    seeds: Annotated[
        int | None,
        typer.Option(
            parser=whole("--seeds", most=LARGEST_GRID),
            metavar="N",
            help="How many seeds.",
            show_default=False,
        ),
    ] = None,
    width: Annotated[
        str | None,
        typer.Option(
            parser=whole_numbers("--width"),
            metavar="LIST",
            show_default=False,
            help="Widths: a list (64,256), or a range that doubles (64:512).",
        ),
    ] = None,
    depth: Annotated[
        str | None,
        typer.Option(
            parser=whole_numbers("--depth"),
            metavar="LIST",
            show_default=False,
            help="Depths, likewise.",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="'digits', or 'mnist', 'fashion_mnist', 'cifar10'.", show_default=False),
    ] = None,
    data_root: DataRoot = None,
    overwrite: Overwrite = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep experiments that are there; go on with the rest.")
    ] = False,
) -> None:
    """Answer questions that the paper raises; without a name, list them.

    For each NAME this writes NAME.zarr (an xarray Dataset), NAME.png and
    NAME.json (its numbers), and prints what it shows in a few sentences.
    After Ctrl-C or a kill, the same command with --resume goes on.

    Example: trebuchet beyond ceiling edge --quick
    """  # noqa: DOC501 - this text is what --help shows
    from trebuchet.paper.beyond import EXPERIMENTS

    screen = console()
    if not names:
        for row in EXPERIMENTS.values():
            screen.print(f"[bold]{row.name}[/]  {row.question} [dim]≈ {row.minutes:g} min[/]")
        return
    for name in names:
        if name != "all" and name not in EXPERIMENTS:
            near = did_you_mean(name, EXPERIMENTS) or f"; there are {', '.join(EXPERIMENTS)}"
            raise InputError(f"names: no such experiment {quoted(name)}{near}")
    chosen = [EXPERIMENTS[n] for n in (EXPERIMENTS if "all" in names else dict.fromkeys(names))]
    asked = {
        "seeds": seeds, "widths": width, "depths": depth, "data": data, "data_root": data_root,
    }  # fmt: skip
    given: dict[str, Any] = {key: value for key, value in asked.items() if value is not None}
    for row in chosen:
        for key in given:
            if key != "data_root" and not row.takes(key):
                option = {"widths": "--width", "depths": "--depth"}.get(key, f"--{key}")
                raise InputError(f"{option}: the experiment {row.name!r} has no such setting")
    check_folder(out)
    if resume:  # the numbers are written last: where they are, the experiment is whole
        chosen = [row for row in chosen if not row.files(out)[-1].exists()]
        overwrite = True
    for row in chosen:
        refuse_existing(row.files(out), overwrite=overwrite)
    prepare_folder(out)
    for row in chosen:
        screen.print(f"[bold]{row.title}[/]\n  {row.question}", soft_wrap=True)
        unfinished = out / f".{row.name}-unfinished"
        bar = progress_bar(row.name)
        with sole_writer(unfinished, "--out"):
            if not resume:
                _clear(unfinished)
            try:
                found = row.run(
                    quick=quick,
                    checkpoint=unfinished,
                    progress=bar,
                    **{k: v for k, v in given.items() if row.takes(k)},
                )
            except KeyboardInterrupt:
                said = f"interrupted: {row.name} was not written; --resume goes on"
                raise InterruptedCommandError(said) from None
            finally:
                close(bar)
            paths = row.save(found, out, overwrite=overwrite)
            for sentence in row.tell(found):
                screen.print("  ", sentence, sep="", soft_wrap=True)
            for path in paths:
                screen.print(f"  wrote {path}", soft_wrap=True)
        shutil.rmtree(unfinished, ignore_errors=True)


def _clear(folder: Path) -> None:
    """Remove parts that an earlier command left, but not the lock."""
    for left in folder.iterdir():
        if left.is_dir():
            shutil.rmtree(left)
        elif left.suffix == ".json" and not left.name.startswith("."):
            left.unlink()
