"""Results saved before there were manifests: what their files still tell about damage."""

import itertools
import json
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from trebuchet.errors import InputError
from trebuchet.results.manifest import NAME, damaged

SCHEMA_VERSION = 1
"""Their schema version."""

NOTE = "saved before results had checksums, so that some kinds of damage to it could not be seen"


def recognised(folder: Path) -> bool:
    """Whether a folder without a manifest was saved by trebuchet."""
    try:
        attributes = _json(folder, ".zmetadata")["metadata"][".zattrs"]
        return "scan" in attributes or {"schema_version", "config_hash"} <= set(attributes)
    except (InputError, KeyError, TypeError):
        return False


def check(folder: Path) -> list[str]:
    """Compare a folder with its consolidated metadata, as far as that goes.

    Args:
        folder: The result.

    Returns:
        Arrays of which a chunk is absent. A chunk that held nothing but missing values or zeros was
        not written at the time, so that this is no proof of damage.

    Raises:
        InputError: If metadata are missing or disagree.
    """
    listed = _json(folder, ".zmetadata").get("metadata")
    if not isinstance(listed, dict) or ".zgroup" not in listed:
        damaged(folder, ".zmetadata is not what trebuchet wrote")
    for name, wanted in listed.items():
        if json.dumps(_json(folder, name)) != json.dumps(wanted):  # NaN is not equal to NaN
            damaged(folder, f"{name} disagrees with .zmetadata")
    present = {path.parent.name for path in folder.glob("*/.zarray")}
    for name in sorted(present - {key.partition("/")[0] for key in listed}):
        damaged(folder, f"{name} does not belong to it")
    absent = []
    for key, array in sorted(listed.items()):
        name, _, file = key.rpartition("/")
        if file == ".zarray":
            try:
                absent += [name] if _absent(folder, name, array) else []
            except (KeyError, TypeError, ValueError):
                damaged(folder, f"{key} is not what trebuchet wrote")
    return absent


def noted(ds: xr.Dataset, folder: Path, absent: list[str]) -> xr.Dataset:
    """The dataset with a note of what could not be checked, if it is of that age.

    Args:
        ds: What was read.
        folder: From where.
        absent: As `check` returned it.

    Returns:
        The dataset, with an attribute ``note``.

    Raises:
        InputError: If it is too recent to have no manifest.
    """
    given = ds.attrs.get("schema_version")
    if given is not None and given != SCHEMA_VERSION:
        damaged(folder, f"{NAME} is missing")
    if given is None and "scan" not in ds.attrs:
        damaged(folder, "it has neither a manifest nor a schema version")
    note = NOTE
    if absent:
        note += f"; chunks of {', '.join(absent)} are absent and read as missing values or zeros"
    return ds.assign_attrs(note=note)


def _absent(folder: Path, name: str, array: dict[str, Any]) -> bool:
    """Whether a chunk is absent; those that are there have the sizes that their heads name."""
    shape, chunks = array["shape"], array["chunks"]
    counts = [math.ceil(n / c) for n, c in zip(shape, chunks, strict=True)]
    absent = False
    for index in itertools.product(*map(range, counts)):
        chunk = f"{name}/{'.'.join(map(str, index)) or '0'}"
        if not (folder / chunk).is_file():
            absent = True
        elif (array["compressor"] or {}).get("id") == "blosc":
            _check_blosc(folder, chunk, math.prod(chunks) * np.dtype(array["dtype"]).itemsize)
    return absent


def _check_blosc(folder: Path, chunk: str, expected: int) -> None:
    """Blosc's own decoder does not mind a last byte that is gone: it reads what follows it."""
    try:
        with (folder / chunk).open("rb") as file:
            head, size = file.read(16), (folder / chunk).stat().st_size
    except OSError as error:
        damaged(folder, f"{chunk} cannot be read ({error.strerror or error})")
    if len(head) < 16:
        damaged(folder, f"{chunk} has {size} bytes")
    whole, _, compressed = struct.unpack("<III", head[4:16])
    if (whole, compressed) != (expected, size):
        damaged(folder, f"{chunk} has {size} bytes for {whole}, expected {compressed}, {expected}")


def _json(folder: Path, name: str) -> dict[str, Any]:
    try:
        value = json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        damaged(folder, f"{name} is missing")
    except OSError as error:
        damaged(folder, f"{name} cannot be read ({error.strerror or error})")
    except (ValueError, RecursionError):
        damaged(folder, f"{name} is no JSON")
    if not isinstance(value, dict):
        damaged(folder, f"{name} is not what trebuchet wrote")
    return value
