"""A sweep on disk: one folder, one owner at a time, every file whole and of this sweep."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trebuchet._lock import sole_writer
from trebuchet._whole import remove_parts, write_whole
from trebuchet.engine.arrayfile import Array, DamagedError, pack, unpack
from trebuchet.errors import InputError

FORMAT = 1

Pairs = Sequence[tuple[int, int]]
"""Positions in rates and seeds of the runs of a chunk, in the order of the stack."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What must be the same for a sweep to be taken up again.

    Attributes:
        settings: Everything that decides the runs and is known exactly: rates, seeds, hashes of
            weights and data, …
        device: Where they run: another kind rounds differently.
        start: Numbers measured at the start, one row a seed. Code has no hash: these tell another
            forward pass or another loss from the saved one.
        rtol: To how much of themselves those numbers repeat.
    """

    settings: Mapping[str, Any]
    device: str
    start: NDArray[np.float64]
    rtol: float


@dataclass(slots=True)
class Checkpoint:
    """The folder of one sweep, held by this process; made by :func:`hold`."""

    folder: Path
    identity: Identity
    _sweep: str = field(default="", init=False)

    def pinned(self) -> dict[str, Any] | None:
        """What the saved sweep was begun with, to be gone on with; None where none is saved.

        Returns:
            The names and values given to ``pin``.

        Raises:
            InputError: If the folder holds another sweep, or the file cannot be read.
        """
        path = self.folder / "sweep.json"
        data = _read(path)
        if any(self.folder.glob("chunk-*.pt")):
            raise self._old()
        if data is None:
            if any(self.folder.glob("chunk-*.arrays")):
                raise self._damaged(path, "it is missing, though its chunks are there")
            return None
        try:
            saved = _parse(data)
            if "format" not in saved:
                raise self._old()
            differ, pinned = self._differences(saved), dict(saved["pinned"])
        except DamagedError as error:
            raise self._damaged(path, str(error)) from error
        except (KeyError, TypeError, AttributeError) as error:
            raise self._damaged(path, "it does not hold what it should") from error
        if differ:
            msg = (
                f"checkpoint: {self.folder} holds another sweep (it differs in "
                f"{', '.join(differ)}); name another folder, or remove this one"
            )
            raise InputError(msg)
        self._sweep = _digest(saved)
        return pinned

    def pin(self, pinned: Mapping[str, Any]) -> None:
        """Note down what sweep the folder is for, and what it has been begun with.

        Args:
            pinned: What a resumed sweep must take over, as JSON.

        Raises:
            InputError: If it cannot be written.
        """
        content = _plain({
            "format": FORMAT, "settings": self.identity.settings, "device": self.identity.device,
            "start": self.identity.start, "pinned": pinned,
        })  # fmt: skip
        self._sweep = _digest(content)
        text = json.dumps({**content, "sha256": self._sweep}, indent=1)
        _write(self.folder / "sweep.json", text.encode())

    def chunk(self, index: int, runs: Pairs) -> "ChunkFile":
        """The file of a chunk.

        Args:
            index: Which.
            runs: What it holds.

        Returns:
            The file; it need not exist.
        """
        return ChunkFile(self.folder / f"chunk-{index}.arrays", self._sweep, runs)

    def _differences(self, saved: Mapping[str, Any]) -> list[str]:
        """What another sweep is told by, in words."""
        mine, theirs = _plain(self.identity.settings), saved["settings"]
        differ = sorted(k for k in {*mine, *theirs} if theirs.get(k) != mine.get(k))
        if saved["device"] != self.identity.device:
            differ.append("device")
        if differ:
            return differ
        start = np.array(saved["start"], dtype=np.float64)
        same = start.shape == self.identity.start.shape and np.allclose(
            start, self.identity.start, rtol=self.identity.rtol, atol=0, equal_nan=True
        )
        return [] if same else ["what the model or the loss computes at the start"]

    def _old(self) -> InputError:
        return InputError(
            f"checkpoint: {self.folder} was written by an older trebuchet, as pickles, which are "
            "not read any more; remove it, or name another folder"
        )

    def _damaged(self, path: Path, reason: str) -> InputError:
        return InputError(
            f"checkpoint: {path} is damaged ({reason}); put back a copy of it, or remove the "
            f"folder {self.folder} and start again"
        )


@contextmanager
def hold(folder: Path, identity: Identity) -> Iterator[Checkpoint]:
    """Open the folder of a sweep, for this caller alone.

    Args:
        folder: The folder; made where it is missing.
        identity: The sweep.

    Yields:
        The checkpoint.

    Raises:
        InputError: If someone else holds the folder, or it cannot be used.
    """
    with sole_writer(folder, "checkpoint"):
        remove_parts(folder)
        yield Checkpoint(folder, identity)


@dataclass(frozen=True, slots=True)
class Begun:
    """How far a saved sweep has come.

    Attributes:
        settings: What decides its runs.
        ended: Runs that have ended.
        begun: Others that were saved on their way.
    """

    settings: Mapping[str, Any]
    ended: int
    begun: int

    @property
    def runs(self) -> int:
        """All that were asked for."""
        return len(self.settings["rates"]) * len(self.settings["seeds"])


def look(folder: Path) -> Begun | None:
    """Look into the folder of a sweep without taking it: somebody may be writing to it.

    Args:
        folder: The folder.

    Returns:
        How far it has come; None if it holds no sweep.

    Raises:
        InputError: If a file of it is damaged.
    """
    checkpoint = Checkpoint(folder, Identity({}, "", np.zeros(0), 0.0))
    path = folder / "sweep.json"
    data = _read(path)
    if data is None:
        return None
    try:
        settings = _parse(data)["settings"]
        ended = begun = 0
        for path in sorted(folder.glob("chunk-*.arrays")):
            found = _read(path)
            if found is None:
                continue
            header, _ = unpack(found)
            left = len(header["left"])
            ended, begun = ended + len(header["of"]["runs"]) - left, begun + left
        result = Begun(settings, ended, begun)
        result.runs  # noqa: B018  # there are rates and seeds
    except DamagedError as error:
        raise checkpoint._damaged(path, str(error)) from error
    except (KeyError, TypeError, AttributeError) as error:
        raise checkpoint._damaged(path, "it does not hold what it should") from error
    return result


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
        _write(self.path, pack({**header, "of": whose}, arrays))

    def load(self) -> tuple[dict[str, Any], dict[str, Array]] | None:
        """The saved state.

        Returns:
            Header and arrays; None where nothing has been saved.

        Raises:
            InputError: If the file is damaged, or of another sweep or other runs.
        """
        data = _read(self.path)
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


def _read(path: Path) -> bytes | None:
    """The bytes of a file; None where there is none."""
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


def _write(path: Path, data: bytes) -> None:
    try:
        write_whole(path, data)
    except OSError as error:
        msg = (
            f"checkpoint: cannot write {path} ({error.strerror or error}); what was saved before "
            "is whole: make room there, and the same call goes on from it"
        )
        raise InputError(msg) from error


def _parse(data: bytes) -> dict[str, Any]:
    """What sweep.json says, its checksum checked and taken off; an older one has none."""
    if not data:
        msg = "it is empty"
        raise DamagedError(msg)
    try:
        saved = json.loads(data)
    except ValueError as error:
        msg = "it is no JSON"
        raise DamagedError(msg) from error
    if not isinstance(saved, dict):
        msg = "it is no JSON of a sweep"
        raise DamagedError(msg)
    if set(saved) == {"settings", "chunk"}:
        return saved
    if saved.pop("sha256", None) != _digest(saved):
        msg = "its checksum is not that of its contents"
        raise DamagedError(msg)
    if saved.get("format") != FORMAT:
        msg = "it is of another version of trebuchet"
        raise DamagedError(msg)
    return saved


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _plain(content: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON would give it back, NumPy's numbers and arrays included."""
    plain: dict[str, Any] = json.loads(json.dumps(content, default=lambda value: value.tolist()))
    return plain
