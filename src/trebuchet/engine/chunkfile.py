"""The state of one chunk of runs on disk: whole, and of the sweep that it says."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trebuchet._whole import DamagedError, write_whole
from trebuchet.engine.arrayfile import Array, pack, unpack
from trebuchet.errors import InputError

Pairs = Sequence[tuple[int, int]]
"""Positions in rates and seeds of the runs of a chunk, in the order of the stack."""


@dataclass(frozen=True, slots=True)
class ChunkFile:
    """The state of one chunk on disk, which says what sweep and which runs it is of."""

    path: Path
    sweep: str
    runs: Pairs

    def save(self, header: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        """Write a state; a kill at any moment leaves the old one or the new one.

        Args:
            header: Whatever is not an array, as JSON.
            arrays: The arrays.

        Raises:
            InputError: If it cannot be written; the old one stands.
        """
        whose = {"sweep": self.sweep, "runs": [list(pair) for pair in self.runs]}
        write(self.path, pack({**header, "of": whose}, arrays))

    def load(self) -> tuple[dict[str, Any], dict[str, Array]] | None:
        """The saved state.

        Returns:
            Header and arrays; None where nothing has been saved.

        Raises:
            InputError: If the file is damaged, or of another sweep or other runs.
        """
        data = read(self.path)
        if data is None:
            return None
        try:
            header, arrays = unpack(data)
        except DamagedError as error:
            raise self.damaged(str(error)) from error
        if header.pop("of", None) != {"sweep": self.sweep, "runs": [list(p) for p in self.runs]}:
            msg = (
                f"checkpoint: {self.path} holds runs of another sweep; remove it, and the same "
                "call makes its runs anew"
            )
            raise InputError(msg)
        return header, arrays

    def damaged(self, reason: str) -> InputError:
        """The error to raise where the contents are not a chunk's."""
        return InputError(
            f"checkpoint: {self.path} is damaged ({reason}); remove it, and the same call makes "
            "its runs anew"
        )


def read(path: Path) -> bytes | None:
    """The bytes of a file of a checkpoint.

    Args:
        path: The file.

    Returns:
        None where there is none.

    Raises:
        InputError: If it cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        msg = (
            f"checkpoint: cannot read {path} ({error.strerror or error}); make it readable, or "
            "name another folder"
        )
        raise InputError(msg) from error


def write(path: Path, data: bytes) -> None:
    """Write a file of a checkpoint whole.

    Args:
        path: The file.
        data: What it shall hold.

    Raises:
        InputError: If it cannot be written; the old one stands.
    """
    with writing(path):
        write_whole(path, data)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say in one sentence what happened where there is no room, say.

    Args:
        path: What is written.

    Yields:
        Nothing.

    Raises:
        InputError: If it cannot be written.
    """
    try:
        yield
    except OSError as error:
        msg = (
            f"checkpoint: cannot write {path} ({error.strerror or error}); what was saved before "
            "is whole: make room there, and the same call goes on from it"
        )
        raise InputError(msg) from error
