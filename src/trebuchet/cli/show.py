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

    from trebuchet.engine.checkpoint import Begun


@command
def show(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH",
            help="A saved result (runs.zarr, scan.zarr …), the checkpoint of a sweep, or a folder "
            "that holds such.",
            show_default=False,
        ),
    ],
) -> None:
    """Say what is in a folder: a result with its table, or how far a sweep has come.

    Nothing is changed, and a sweep that is being made is not disturbed.

    Try it:  trebuchet sweep digits
             trebuchet show trebuchet-sweep-digits
    """  # noqa: DOC501 - this text is what --help shows
    if not path.exists():
        msg = f"path: there is nothing at {path}"
        raise InputError(msg)
    screen, found = console(), 0
    for place in _results(path):
        found += 1
        screen.print(f"[bold]{place}[/]", soft_wrap=True)
        _result(screen, place)
    for title, cells in _sweeps(path):
        found += 1
        screen.print(f"[bold]{title}[/]", soft_wrap=True)
        for line in _progress(cells):
            screen.print(line, soft_wrap=True, markup=False)
    if not found:
        msg = f"path: {path} holds no result of trebuchet, and no sweep under way"
        raise InputError(msg)


def _results(path: Path) -> Iterator[Path]:
    """Saved results at a path, or right inside."""
    from trebuchet.results.manifest import NAME

    for place in [path, *_folders(path)]:
        if (place / NAME).is_file() or (place / ".zmetadata").is_file():
            yield place


def _sweeps(path: Path) -> Iterator[tuple[Path, dict[str, "Begun"]]]:
    """Sweeps under way: of one problem, or of the cells of axes, by their names."""
    from trebuchet.engine.checkpoint import look

    for place in [path, *_folders(path)]:
        if place != path and _is_cell(place):
            continue
        alone = look(place)
        cells = {p.name: look(p) for p in _folders(place) if _is_cell(p)}
        known = {name: b for name, b in ({"": alone} | cells).items() if b is not None}
        if known:
            yield place, known


def _is_cell(place: Path) -> bool:
    return "=" in place.name and (place / "sweep.json").is_file()


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


def _progress(cells: dict[str, "Begun"]) -> Iterator[str]:
    first = next(iter(cells.values()))
    said = first.settings
    yield f"sweep of {said.get('problem')}, {said.get('loss')}, {said.get('optimizer')}"
    rates, seeds = len(said["rates"]), len(said["seeds"])
    yield f"         {rates} rates × {seeds} seeds, at most {said.get('steps')} steps a run"
    for name, begun in cells.items():
        way = f", {begun.begun} on their way" if begun.begun else ""
        yield f"{name + ': ' if name else ''}{begun.ended} of {begun.runs} runs have ended{way}"
    yield "the same call, or the same command with --resume, goes on from here"
