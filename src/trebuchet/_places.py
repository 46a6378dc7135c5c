"""Folders and files, on this machine or in a store that fsspec knows: ``s3://…``, ``memory://…``.

A place elsewhere is a `UPath`, which is used as a `Path` is. What the two do differently is here.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any, cast
from urllib.parse import unquote, urlsplit


def place_of(text: str) -> Path:
    """The place that a path or an address names.

    Args:
        text: Such as ``runs.zarr``, ``file:///data/runs.zarr`` or ``s3://bucket/runs.zarr``.

    Returns:
        A path; elsewhere one of its kind.

    Raises:
        ImportError: If what knows such places is not installed.
        ValueError: If nothing does.
    """
    scheme, mark, _ = text.partition("://")
    if not mark or not scheme.isalnum():
        return Path(text)
    if scheme == "file":
        return Path(unquote(urlsplit(text).path))
    from upath import UPath

    found = UPath(text)
    _ = found.fs  # which says what is not installed
    return cast("Path", found)


def here(path: Path) -> bool:
    """Whether a place is on this machine."""
    return isinstance(path, PurePath)


def is_there(path: Path) -> bool:
    """Whether anything is at a place, be it a link to nothing."""
    return os.path.lexists(path) if here(path) else path.exists()


def remove_folder(path: Path) -> None:
    """Remove a folder with all that is in it; it need not be there.

    Args:
        path: The folder.

    Raises:
        OSError: If it cannot be removed.
    """
    if not is_there(path):
        return
    if here(path):
        shutil.rmtree(path)
    else:
        _store(path).rm(_key(path), recursive=True)


def move(old: Path, new: Path) -> None:
    """Give a file or a folder another name in the same store; what has that name goes.

    Args:
        old: What is there.
        new: Its name from now on.

    Raises:
        OSError: If that cannot be done.
    """
    if here(old):
        old.replace(new)
    else:
        remove_folder(new)
        _store(old).mv(_key(old), _key(new), recursive=True)


def files_in(folder: Path) -> Iterator[str]:
    """Every file in a folder, by its path from there.

    Args:
        folder: The folder.

    Yields:
        Names such as ``loss/0.0``.

    Raises:
        OSError: If a folder in it cannot be read.
    """

    def fail(error: OSError) -> None:
        raise error

    if not here(folder):
        root = _key(folder).rstrip("/") + "/"
        yield from (str(name).removeprefix(root) for name in _store(folder).find(_key(folder)))
        return
    for where, _, inside in os.walk(folder, onerror=fail):
        for name in inside:
            yield Path(where, name).relative_to(folder).as_posix()


def _store(path: Path) -> Any:
    return cast("Any", path).fs


def _key(path: Path) -> str:
    return str(cast("Any", path).path)
