"""A folder for one writer at a time, whoever it is and wherever it runs."""

import contextlib
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from threading import Event, Thread

import filelock

from trebuchet._places import here
from trebuchet._whole import write_whole
from trebuchet.errors import InputError

LOCK, OWNER = ".lock", ".owner.json"
HELD = 60.0
"""Seconds for which a note holds a folder elsewhere."""


@contextmanager
def sole_writer(folder: Path, name: str) -> Iterator[None]:
    """Hold a folder; refuse if someone else does. A folder that was made and stays empty goes.

    The lock is the operating system's, so that it ends with the process that holds it, however that
    dies; the note of who it is only makes the refusal readable. A store elsewhere has no locks:
    there the note itself holds, and is written again every few seconds; one that has not been for
    a minute is of a dead process.

    Args:
        folder: The folder; made where it is missing.
        name: The argument that named it, for errors.

    Yields:
        Nothing.

    Raises:
        InputError: If another process, or another thread of this one, holds it, or it cannot be
            made or written to.
    """
    if not here(folder):
        with _sole_elsewhere(folder, name):
            yield
        return
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


@contextmanager
def _sole_elsewhere(folder: Path, name: str) -> Iterator[None]:
    """The same where files cannot be locked."""
    since, ended = _now(), Event()
    try:
        if _signed_lately(folder):
            msg = (
                f"{name}: {folder} is in use by {_owner(folder)}; wait for it to end, or name "
                "another folder"
            )
            raise InputError(msg)
        folder.mkdir(parents=True, exist_ok=True)
        _sign(folder, since)
    except OSError as error:
        msg = f"{name}: cannot use the folder {folder} ({error.strerror or error}); name another"
        raise InputError(msg) from error

    def go_on() -> None:
        while not ended.wait(HELD / 6):
            with contextlib.suppress(OSError):
                _sign(folder, since)

    signing = Thread(target=go_on, daemon=True)
    signing.start()
    try:
        yield
    finally:
        ended.set()
        signing.join()
        with contextlib.suppress(OSError):
            (folder / OWNER).unlink(missing_ok=True)


def _signed_lately(folder: Path) -> bool:
    try:
        note = json.loads((folder / OWNER).read_bytes())
        return time.time() - float(note["seen"]) < HELD
    except (OSError, ValueError, TypeError, KeyError):
        return False


def _sign(folder: Path, since: str | None = None) -> None:
    note = {
        "host": platform.node(), "pid": os.getpid(), "since": since or _now(), "seen": time.time(),
    }  # fmt: skip
    write_whole(folder / OWNER, json.dumps(note).encode())


def _now() -> str:
    return datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")


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
