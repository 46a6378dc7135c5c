"""Where results go: the console, and files and folders that are written whole or not at all."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console

from trebuchet._whole import write_whole
from trebuchet.errors import InputError


def console(*, stderr: bool = False) -> Console:
    """A console that does not guess at colours in numbers."""
    return Console(stderr=stderr, highlight=False)


def check_folder(folder: Path) -> None:
    """See that a folder can be made or written to, and change nothing yet.

    A computation that fails then leaves no empty folder behind.

    Args:
        folder: The folder; it need not exist.

    Raises:
        InputError: If it could not be made or written to.
    """
    nearest = folder.absolute()
    while not _there("--out", nearest) and nearest != nearest.parent:
        nearest = nearest.parent
    if not nearest.is_dir():
        what = "a link to nothing" if not nearest.exists() else "a file"
        msg = f"--out: cannot make the folder {folder} ({nearest} is {what}); name another"
        raise InputError(msg)
    if not os.access(nearest, os.W_OK | os.X_OK):
        msg = f"--out: the folder {nearest} cannot be written to; name another"
        raise InputError(msg)


def check_file(file: Path, inputs: dict[str, Path | None], *, overwrite: bool) -> None:
    """See that a file can be written, and change nothing yet.

    Args:
        file: The file to make.
        inputs: Files that are read, by their option: none of them is ever written over.
        overwrite: Whether the user asked to replace what is there.

    Raises:
        InputError: If it exists and `overwrite` is false, is no file, is one of the inputs, or is
            in a folder that is missing or cannot be written to.
    """
    for option, other in inputs.items():
        if other is not None and _same(file, other):
            msg = f"--out: {file} is what {option} is read from; name another file"
            raise InputError(msg)
    if _there("--out", file):
        if not file.is_file():
            what = "a link to nothing" if file.is_symlink() and not file.exists() else "no file"
            what = "a folder" if file.is_dir() else what
            msg = f"--out: {file} is {what}; name a file, top.json say"
            raise InputError(msg)
        refuse_existing([file], overwrite=overwrite)
    folder = file.absolute().parent
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        msg = f"--out: cannot write {file}: {folder} {what}; make the folder, or name another"
        raise InputError(msg)
    if not os.access(folder, os.W_OK | os.X_OK):
        msg = f"--out: the folder {folder} cannot be written to; name another"
        raise InputError(msg)


def prepare_folder(folder: Path) -> None:
    """Make sure a folder can be written to before an hour is spent computing for it.

    Args:
        folder: The folder; made, with its parents, where missing.

    Raises:
        InputError: If it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        msg = f"--out: cannot make the folder {folder} ({why}); name another"
        raise InputError(msg) from error
    if not os.access(folder, os.W_OK):
        msg = f"--out: the folder {folder} cannot be written to; name another"
        raise InputError(msg)


def refuse_existing(paths: list[Path], *, overwrite: bool) -> None:
    """Keep earlier results unless told otherwise.

    Args:
        paths: What is about to be written.
        overwrite: Whether the user asked to replace them.

    Raises:
        InputError: If one exists and `overwrite` is false.
    """
    existing = [path for path in paths if _there("--out", path)]
    if existing and not overwrite:
        msg = (
            f"--out: {existing[0]} exists already; add --overwrite to replace it, or name another "
            f"{'folder' if len(paths) > 1 else 'file'}"
        )
        raise InputError(msg)


def write_text(file: Path, text: str) -> None:
    """Write a file whole, or leave what was there.

    Args:
        file: The file; if it is a link, what it points to.
        text: What it shall hold.

    Raises:
        InputError: If it cannot be written, for a full disk say.
    """
    try:
        write_whole(file.resolve(), text.encode())
    except OSError as error:
        raise InputError(_cannot_write(file, error)) from error


@contextmanager
def together(folder: Path, names: Sequence[str]) -> Iterator[Path]:
    """Write several results of one command: all of them appear, or none, and no empty folder.

    Args:
        folder: Where they go; made, with its parents, where missing.
        names: Of the files and folders that the block makes.

    Yields:
        A folder inside, hidden, to write them to.

    Raises:
        InputError: If they cannot be written, for a full disk say.
    """
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    stage = folder / f".trebuchet-{os.getpid()}.part"
    try:
        prepare_folder(folder)
        shutil.rmtree(stage, ignore_errors=True)
        stage.mkdir()
        yield stage
        for name in names:
            _move(stage / name, folder / name, stage)
    except OSError as error:
        raise InputError(_cannot_write(folder, error)) from error
    except InputError as error:  # of a store that names the place it was to write to
        raise InputError(str(error).replace(str(stage), str(folder))) from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        for place in made:
            with suppress(OSError):  # not empty: all went well
                place.rmdir()


def _move(source: Path, target: Path, stage: Path) -> None:
    """Put a result in its place; a folder cannot replace another, which steps aside first."""
    if target.is_dir() and not target.is_symlink():
        target.rename(stage / f"old-{target.name}")
    source.replace(target)


def _there(option: str, path: Path) -> bool:
    """Whether there is anything at a path, a link to nothing included."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        msg = f"{option}: {str(path)[:80]!r} is no path ({why}); name another"
        raise InputError(msg) from error
    return True


def _same(a: Path, b: Path) -> bool:
    try:
        return a.samefile(b)
    except (OSError, ValueError):
        return False


def _cannot_write(place: Path, error: OSError) -> str:
    return f"--out: cannot write {place} ({error.strerror or error}); nothing was left there"
