"""`trebuchet show`: what is in a folder, and how far it got."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trebuchet.cli.options import command
from trebuchet.cli.output import console
from trebuchet.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from trebuchet.engine.begun import Begun


@command
def show(
    path: Annotated[
        str,
        typer.Argument(
            metavar="PATH",
            help="A saved result (runs.zarr, scan.zarr …), the checkpoint of a sweep, or a folder "
            "that holds such; or the address of one (s3://bucket/runs.zarr).",
            show_default=False,
        ),
    ],
) -> None:
    """Say what is in a folder: a result with its table, or how far a sweep has come.

    Nothing is changed, and a sweep that is being made is not disturbed.

    Try it:  trebuchet sweep digits
             trebuchet show trebuchet-sweep-digits
    """  # noqa: DOC501 - this text is what --help shows
    from trebuchet._checks import place as a_place

    asked = a_place("PATH", path)
    if not asked.exists():
        msg = f"PATH: there is nothing at {asked}"
        raise InputError(msg)
    screen, found = console(), 0
    for place in [asked, *_folders(asked)]:
        found += _told(screen, place)
        if found and place == asked:
            break  # what is inside is told with it
    if not found:
        msg = f"PATH: {asked} holds no result of trebuchet, and no sweep under way"
        raise InputError(msg)


def _told(screen: "Console", place: Path) -> bool:
    """Say what is at a place, if anything of ours is."""
    from trebuchet.engine.begun import look
    from trebuchet.results.growing import under_way
    from trebuchet.results.manifest import NAME

    cells = _cells(place)
    if cells:
        begun = {name: found for name, p in cells.items() if (found := look(p)) is not None}
        going = len(begun) < len(cells) or any(under_way(p) for p in cells.values())
    else:
        going = under_way(place)
        found = look(place) if going else None
        begun = {} if found is None else {"": found}
    saved = (place / NAME).is_file() or (place / ".zmetadata").is_file()
    if not (cells or going or saved):
        return False
    screen.print(f"[bold]{place}[/]", soft_wrap=True)
    if not going:
        _result(screen, place)
        return True
    for line in _progress(begun, max(1, len(cells))):
        screen.print(line, soft_wrap=True, markup=False)
    return True


def _cells(place: Path) -> dict[str, Path]:
    """The folders of the cells of a sweep over axes, reached or not."""
    from trebuchet._whole import DamagedError
    from trebuchet.results import manifest, tree

    try:
        grid = tree.cells(place)
    except DamagedError as error:
        manifest.damaged(place, str(error))
    return {} if grid is None else {name: place / name for name in grid.folders}


def _folders(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.is_dir()) if path.is_dir() else []


def _result(screen: "Console", place: Path) -> None:
    from trebuchet.files import load

    result: Any = load(place)
    runs = getattr(result, "runs", result)
    for line in _about(runs.attrs) if hasattr(runs, "attrs") else []:
        screen.print(line, soft_wrap=True, markup=False)
    if result is not runs or not hasattr(runs, "sizes"):
        screen.print(result)
        return
    from trebuchet.phases.label import label
    from trebuchet.show.rates import of_sweep

    sizes = ", ".join(f"{name} {size}" for name, size in runs.sizes.items())
    screen.print(f"dims     {sizes}", soft_wrap=True, markup=False)
    labelled = runs if "phase" in runs else label(runs)
    counted = Counter(str(phase) or "not run" for phase in labelled["phase"].values.ravel())
    screen.print("phases   " + ", ".join(f"{n} {phase}" for phase, n in counted.most_common()))
    screen.print(of_sweep(labelled))


def _about(attrs: dict[str, Any]) -> list[str]:
    named = [str(attrs[key]) for key in ("model", "loss", "optimizer") if attrs.get(key)]
    lines = ["made of  " + ", ".join(named)] if named else []
    if attrs.get("created"):
        by = f" by trebuchet {attrs['trebuchet']}" if attrs.get("trebuchet") else ""
        lines.append(f"made on  {attrs['created']}{by}")
    return lines


def _progress(begun: dict[str, "Begun"], cells: int) -> Iterator[str]:
    if not begun:
        yield "a sweep of which no run has begun"
        return
    first = next(iter(begun.values()))
    said = first.settings
    yield f"sweep of {said.get('problem')}, {said.get('loss')}, {said.get('optimizer')}"
    rates, seeds = len(said["rates"]), len(said["seeds"])
    over = f" × {cells} cells" if cells > 1 else ""
    yield f"         {rates} rates × {seeds} seeds{over}, at most {said.get('steps')} steps a run"
    for name, cell in begun.items():
        way = f", {cell.begun} on their way" if cell.begun else ""
        yield f"{name + ': ' if name else ''}{cell.ended} of {cell.runs} runs have ended{way}"
    if len(begun) < cells:
        yield f"{cells - len(begun)} cells have not begun"
    yield "the same call, or the same command with --resume, goes on from here"
