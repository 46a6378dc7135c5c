"""A folder for one writer at a time, whoever it is and wherever it runs."""

import contextlib
import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import filelock

from trebuchet._whole import write_whole
from trebuchet.errors import InputError

LOCK, OWNER = ".lock", ".owner.json"


@contextmanager
def sole_writer(folder: Path, name: str) -> Iterator[None]:
    """Hold a folder; refuse if someone else does. A folder that was made and stays empty goes.

    The lock is the operating system's, so that it ends with the process that holds it, however that
    dies; the note of who it is only makes the refusal readable.

    Args:
        folder: The folder; made where it is missing.
        name: The argument that named it, for errors.

    Yields:
        Nothing.

    Raises:
        InputError: If another process, or another thread of this one, holds it, or it cannot be
            made or written to.
    """
    lock = filelock.FileLock(folder / LOCK, timeout=0)
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
        _sign(folder)
    except filelock.Timeout:
        msg = (
            f"{name}: {folder} is in use by {_owner(folder)}; wait for it to end, or name another "
            "folder"
        )
        raise InputError(msg) from None
    except (OSError, NotImplementedError) as error:
        lock.release()
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        msg = f"{name}: cannot use the folder {folder} ({reason}); name another"
        raise InputError(msg) from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            (folder / OWNER).unlink(missing_ok=True)
            if made and [entry.name for entry in folder.iterdir()] == [LOCK]:
                (folder / LOCK).unlink()
                folder.rmdir()  # nothing came of it
        lock.release()


def _sign(folder: Path) -> None:
    since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    note = {"host": platform.node(), "pid": os.getpid(), "since": since}
    write_whole(folder / OWNER, json.dumps(note).encode())


def _owner(folder: Path) -> str:
    """Who holds the folder, in words."""
    try:
        note = json.loads((folder / OWNER).read_bytes())
        host, pid, since = str(note["host"]), int(note["pid"]), str(note["since"])
    except (OSError, ValueError, TypeError, KeyError):
        return "another process"  # it has not signed yet
    if (host, pid) == (platform.node(), os.getpid()):
        return f"another thread of this process ({pid}), since {since}"
    return f"process {pid} on {host}, since {since}"
