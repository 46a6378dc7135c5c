"""Where results go: the console, and folders that are written whole or not at all."""

import os
from pathlib import Path

from rich.console import Console

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
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    if not nearest.is_dir():
        msg = f"--out: cannot make the folder {folder} ({nearest} is a file); name another"
        raise InputError(msg)
    if not os.access(nearest, os.W_OK | os.X_OK):
        msg = f"--out: the folder {nearest} cannot be written to; name another"
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
    except OSError as error:
        msg = f"--out: cannot make the folder {folder} ({error.strerror}); name another"
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
    existing = [path for path in paths if path.exists()]
    if existing and not overwrite:
        msg = (
            f"--out: {existing[0]} exists already; add --overwrite to replace it, or name another "
            "folder"
        )
        raise InputError(msg)
