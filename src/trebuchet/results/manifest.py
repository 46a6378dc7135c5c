"""What a saved result is made of, file by file, so that a damaged one is known for damaged.

A Zarr folder says nothing about chunks that are gone: they read as missing values, zeros or empty
text, which are numbers like any other. Beside the data lies ``manifest.json``, written last, with
the size and the SHA-256 of every file, and the SHA-256 of that list itself.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

from trebuchet._places import files_in, is_there
from trebuchet.errors import InputError

NAME = "manifest.json"
FORMAT = "trebuchet result"
AGAIN = "take it from a copy, or compute it again"

# What desktops and network file systems leave in every folder they look into, and what says who
# writes to it, and of what sweep it is.
_DROPPINGS = {".DS_Store", "Thumbs.db", "desktop.ini", ".lock", ".owner.json"}
_DROPPED = ("._", ".nfs", ".sweep/")


def write(folder: Path, *, schema_version: int, kind: str) -> None:
    """List what is in a folder, in the folder.

    Args:
        folder: A result that is complete but for this.
        schema_version: Of what its variables mean.
        kind: "runs", "scan", …: who reads it.
    """
    listed = {
        "format": FORMAT,
        "schema_version": schema_version,
        "kind": kind,
        "written_by": f"trebuchet {version('trebuchet')}",
        "files": {name: _fingerprint(folder / name) for name in _files(folder)},
    }
    listed["sha256"] = _own(listed)
    (folder / NAME).write_text(json.dumps(listed, indent=1) + "\n", encoding="utf-8")


def verify(folder: Path, *, newest: int, contents: bool = True) -> str | None:
    """Compare a folder with its manifest.

    Args:
        folder: The result.
        newest: The schema version this code knows.
        contents: Whether every file is read, for its checksum; or names and sizes are enough.

    Returns:
        The kind of result; None where there is no manifest, as before schema version 2.

    Raises:
        InputError: If a file is missing, is not listed, has another size or other contents, if the
            manifest itself is damaged, or if a later trebuchet wrote it.
    """
    if not is_there(folder / NAME):
        return None
    listed = _read(folder)
    given = listed.get("schema_version")
    if not isinstance(given, int) or isinstance(given, bool) or given < 1:
        damaged(folder, f"{NAME} has no schema version")
    if given > newest:
        msg = (
            f"path: {folder} was saved by a later trebuchet (schema version {given}, this one "
            f"reads up to {newest}); update trebuchet to read it"
        )
        raise InputError(msg)
    files, kind = listed.get("files"), listed.get("kind")
    whole = isinstance(files, dict) and isinstance(kind, str)
    if not whole or listed.get("sha256") != _own(listed):
        damaged(folder, f"{NAME} was changed since it was written")
    assert isinstance(files, dict)
    found = set(_files(folder))
    for name in sorted(files.keys() - found):
        damaged(folder, f"{name} is missing")
    for name in sorted(found - files.keys()):
        damaged(folder, f"{name} does not belong to it")
    for name, wanted in files.items():
        _compare(folder, name, wanted, contents=contents)
    return str(kind)


def recognised(folder: Path) -> bool:
    """Whether there is a manifest of trebuchet's, right or wrong in what it lists."""
    try:
        return _read(folder).get("format") == FORMAT
    except InputError:
        return False


def damaged(folder: Path, what: str) -> NoReturn:
    """Say what is wrong with a result.

    Args:
        folder: The result.
        what: A sentence's end.

    Raises:
        InputError: Always.
    """
    msg = f"path: {folder} is damaged: {what}; {AGAIN}"
    raise InputError(msg)


def _compare(folder: Path, name: str, wanted: Mapping[str, Any], *, contents: bool) -> None:
    try:
        size = (folder / name).stat().st_size
        if size != wanted["bytes"]:
            damaged(folder, f"{name} has {size} bytes, expected {wanted['bytes']}")
        if contents and _fingerprint(folder / name) != wanted:
            damaged(folder, f"the contents of {name} were changed")
    except OSError as error:
        damaged(folder, f"{name} cannot be read ({error.strerror or error})")


def _read(folder: Path) -> dict[str, Any]:
    try:
        listed = json.loads((folder / NAME).read_text(encoding="utf-8"))
    except OSError as error:
        damaged(folder, f"{NAME} cannot be read ({error.strerror or error})")
    except (ValueError, RecursionError):
        damaged(folder, f"{NAME} is not what trebuchet wrote")
    if not isinstance(listed, dict) or listed.get("format") != FORMAT:
        damaged(folder, f"{NAME} is not what trebuchet wrote")
    return listed


def _files(folder: Path) -> list[str]:
    """Every file but the manifest, by its path from the folder."""
    try:
        found = list(files_in(folder))
    except OSError as error:
        damaged(folder, f"{error.filename} cannot be read ({error.strerror or error})")
    names = []
    for path in found:
        name = path.rpartition("/")[2]
        kept = path != NAME and name not in _DROPPINGS
        if kept and not name.startswith(_DROPPED) and not path.startswith(_DROPPED):
            names.append(path)
    return sorted(names)


def _fingerprint(path: Path) -> dict[str, object]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return {"bytes": file.seek(0, os.SEEK_END), "sha256": digest.hexdigest()}


def _own(listed: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in listed.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
