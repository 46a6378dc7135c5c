"""Files that are on disk whole, or not at all."""

import contextlib
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from trebuchet._places import here


class DamagedError(ValueError):
    """What is on disk is not what was written; the message says how, in a few words."""


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A hidden path beside `path` to write to; it takes the name when the block ends well.

    Whatever happens inside, an exception, Ctrl-C or a full disk, `path` stays as it was and nothing
    is left beside it; a kill at any moment leaves the old file or the new one. Every writer has a
    name of its own, so that two at a time cannot mix.

    Args:
        path: The file to make or to replace.

    Yields:
        The path to write to, of the same suffix.

    Raises:
        OSError: If it cannot be written.
    """
    if not here(path):  # where a file appears once it is whole
        yield path
        return
    part = path.with_name(f".{path.stem}.{os.getpid()}-{secrets.token_hex(4)}.part{path.suffix}")
    try:
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:  # Ctrl-C too: nothing is left beside the file
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def sync(paths: Iterable[Path]) -> None:
    """Have the contents of files survive a power cut, before others are removed for them.

    Args:
        paths: The files.

    Raises:
        OSError: If one cannot be read.
    """
    for path in paths:
        if here(path):
            with path.open("rb") as file:
                os.fsync(file.fileno())


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that a kill at any moment leaves the old one or the new one.

    Args:
        path: The file.
        data: What it shall hold.

    Raises:
        OSError: If it cannot be written; the old file stands.
    """
    with whole(path) as part:
        part.write_bytes(data)


def remove_parts(folder: Path) -> None:
    """Remove what writers that were killed have left in a folder that nobody writes to now."""
    for part in folder.glob(".*.part*"):
        with contextlib.suppress(OSError):
            part.unlink()


def _sync_folder(folder: Path) -> None:
    """Have the new name survive a power cut too, where the system can promise that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
