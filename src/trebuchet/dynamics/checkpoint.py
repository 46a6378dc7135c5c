"""Checkpoints on disk: whole or not there."""

import json
import os
from pathlib import Path
from typing import Any

import torch

from trebuchet.errors import InputError


def write(path: Path, state: dict[str, Any]) -> None:
    """Save a state so that a kill at any moment leaves the old one or the new one."""
    temporary = path.with_name(path.name + ".part")
    with temporary.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read(path: Path) -> dict[str, Any] | None:
    """The state saved at `path`; None where there is none."""
    if not path.exists():
        return None
    # The file is this program's own; it holds NumPy arrays, which weights_only refuses.
    state: dict[str, Any] = torch.load(path, weights_only=False)
    return state


def saved_chunk(folder: Path, settings: dict[str, Any]) -> int | None:
    """The chunk size of the sweep that a folder holds; None where it holds none yet.

    Args:
        folder: The folder; made where it is missing.
        settings: Everything that decides the runs.

    Returns:
        The chunk size.

    Raises:
        InputError: If the folder cannot be used, or holds another sweep.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "sweep.json"
        saved = json.loads(path.read_text()) if path.exists() else None
    except OSError as error:
        msg = f"checkpoint: cannot use the folder {folder} ({error.strerror})"
        raise InputError(msg) from error
    if saved is None:
        return None
    if saved["settings"] != settings:
        differ = sorted(k for k in settings if saved["settings"].get(k) != settings[k])
        msg = (
            f"checkpoint: {folder} holds another sweep (it differs in {', '.join(differ)}); "
            "name another folder, or remove this one"
        )
        raise InputError(msg)
    return int(saved["chunk"])


def keep_chunk(folder: Path, settings: dict[str, Any], chunk: int) -> None:
    """Note down what sweep a folder is for."""
    part = folder / "sweep.json.part"
    part.write_text(json.dumps({"settings": settings, "chunk": chunk}, indent=1))
    part.replace(folder / "sweep.json")
