"""A sweep on disk: its Zarr, and beside that what is under way; one owner at a time.

Runs that have ended are in the Zarr (`trebuchet.results.growing`). In its folder ``.sweep`` lies
what they are of, and a file for every chunk whose runs are on their way, or have ended and wait for
their turn to be written: a region is written for many chunks at a time, since that costs more.
"""

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from trebuchet._lock import sole_writer
from trebuchet._types import Status
from trebuchet._whole import DamagedError, remove_parts
from trebuchet.engine.chunkfile import ChunkFile, Pairs, read, write, writing
from trebuchet.engine.history import History, together
from trebuchet.errors import InputError
from trebuchet.problem.interrupts import Interrupts
from trebuchet.results import manifest
from trebuchet.results.growing import STATE, Growing

FORMAT = 3
"""2: runs that have ended are in a Zarr; 1: every chunk was a file of its own."""

SHARE, PAUSE = 0.05, 2.0
"""Of the time, at most, that goes into writing regions while runs are made; and seconds between."""


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
    _zarr: Growing = field(init=False)
    _saved: dict[str, NDArray[Any]] = field(default_factory=dict, init=False)  # when taken up
    _ended: NDArray[np.bool_] = field(init=False)  # what is in the Zarr
    _waiting: dict[Path, tuple[ChunkFile, History]] = field(default_factory=dict, init=False)
    _reasons: dict[str, str] = field(default_factory=dict, init=False)
    _due: float = field(default_factory=lambda: time.monotonic() + PAUSE, init=False)

    def __post_init__(self) -> None:
        self._zarr = Growing(self.folder)
        self._ended = np.zeros((0, 0), dtype=bool)

    @property
    def state(self) -> Path:
        """The folder of what is under way."""
        return self.folder / STATE

    def pinned(self) -> dict[str, Any] | None:
        """What the saved sweep was begun with, to be gone on with; None where none is saved.

        Returns:
            The names and values given to ``pin``.

        Raises:
            InputError: If the folder holds another sweep, or a file of it cannot be read.
        """
        path = self.state / "sweep.json"
        if (self.folder / "sweep.json").exists() or any(self.folder.glob("chunk-*.pt")):
            raise self._old()
        data = read(path)
        if data is None:
            if any(self.state.glob("chunk-*.arrays")):
                raise self.damaged(path, "it is missing, though its chunks are there")
            if not self.state.is_dir() and (self.folder / ".zgroup").exists():
                msg = (
                    f"checkpoint: {self.folder} holds a result that is no sweep under way; name "
                    "another folder, or remove this one"
                )
                raise InputError(msg)
            return None
        try:
            saved = parse(data)
            differ, pinned = self._differences(saved), dict(saved["pinned"])
        except DamagedError as error:
            raise self.damaged(path, str(error)) from error
        except (KeyError, TypeError, AttributeError) as error:
            raise self.damaged(path, "it does not hold what it should") from error
        if differ:
            msg = (
                f"checkpoint: {self.folder} holds another sweep (it differs in "
                f"{', '.join(differ)}); name another folder, or remove this one"
            )
            raise InputError(msg)
        self._sweep = _digest(saved)
        self._take_up()
        return pinned

    def pin(self, pinned: Mapping[str, Any], blank: xr.Dataset) -> None:
        """Begin a sweep: lay out its Zarr, then note down what it is of.

        Args:
            pinned: What a resumed sweep must take over, as JSON.
            blank: What it will hold, before the first run has ended.

        Raises:
            InputError: If it cannot be written.
        """
        content = _plain({
            "format": FORMAT, "settings": self.identity.settings, "device": self.identity.device,
            "start": self.identity.start, "pinned": pinned,
        })  # fmt: skip
        self._sweep = _digest(content)
        with writing(self.folder):
            self.state.mkdir(parents=True, exist_ok=True)
            self._zarr.make(blank)
        text = json.dumps({**content, "sha256": self._sweep}, indent=1)
        write(self.state / "sweep.json", text.encode())
        self._ended = np.zeros((blank.sizes["lr"], blank.sizes["seed"]), dtype=bool)

    def chunk(self, index: int, runs: Pairs) -> ChunkFile:
        """The file of a chunk.

        Args:
            index: Which.
            runs: What it holds.

        Returns:
            The file; it need not exist.
        """
        return ChunkFile(self.state / f"chunk-{index}.arrays", self._sweep, runs)

    def begun(self) -> set[Path]:
        """The files of chunks that are there."""
        return set(self.state.glob("chunk-*.arrays"))

    def has(self, runs: Pairs) -> bool:
        """Whether runs are in the Zarr."""
        return all(self._ended[place] for place in runs)

    def restore(self, runs: Pairs, history: History) -> bool:
        """Take runs over that have ended, from the Zarr.

        Args:
            runs: Which.
            history: A new one; it becomes theirs.

        Returns:
            False where they have not ended.

        Raises:
            InputError: If the Zarr does not hold what it should.
        """
        if not self.has(runs) or not self._saved:
            return False
        at = tuple(np.array(list(runs)).T)
        try:
            history.fill({name: array[at] for name, array in self._saved.items()})
        except (KeyError, ValueError, IndexError) as error:
            reason = f"it does not hold these runs: {error}"
            raise self.damaged(self.folder, reason) from error
        history.reasons |= self._reasons
        return True

    def take(self, file: ChunkFile, history: History) -> None:
        """Take in runs that have ended, and are in their file; they go to the Zarr in time.

        Args:
            file: Of the chunk.
            history: Of its runs.

        Raises:
            InputError: If the Zarr cannot be written.
        """
        if self.has(file.runs):
            return
        self._waiting[file.path] = file, history
        if time.monotonic() >= self._due:
            self.flush()

    def flush(self) -> None:
        """Write all that waits, undisturbed by Ctrl-C, and remove its files.

        Raises:
            InputError: If it cannot be written; the files are there then.
        """
        if not self._waiting:
            return
        began = time.monotonic()
        with Interrupts() as interrupts, writing(self.folder), self._readable():
            interrupts.hold_back()
            files = [file for file, _ in self._waiting.values()]
            places = [place for file in files for place in file.runs]
            history = together([history for _, history in self._waiting.values()])
            self._note(history.reasons)
            self._zarr.write(places, history.columns())
            for file in files:
                file.path.unlink(missing_ok=True)
            self._ended[tuple(np.array(places).T)] = True
            self._waiting.clear()
        now = time.monotonic()
        self._due = now + max(PAUSE, (now - began) / SHARE)

    def finish(self, ds: xr.Dataset) -> None:
        """Where every run has ended: make the folder the finished result.

        Args:
            ds: The result.

        Raises:
            InputError: If it cannot be written.
        """
        if not self._ended.all() or (self.folder / manifest.NAME).exists():
            return
        with Interrupts() as interrupts, writing(self.folder):
            interrupts.hold_back()
            self._zarr.finish(ds)

    def _take_up(self) -> None:
        """Read what has ended, before anything is made."""
        self._zarr.tidy()
        path = self.state / "reasons.json"
        try:
            data = read(path)
            self._reasons = {} if data is None else dict(json.loads(data))
        except (ValueError, TypeError) as error:
            raise self.damaged(path, "it does not hold what it should") from error
        with self._readable(), writing(self.folder):
            self._saved = self._zarr.read()
            self._ended = self._saved["status"] != str(Status.NOT_RUN)
            shape = tuple(len(self.identity.settings[name]) for name in ("rates", "seeds"))
            if self._ended.shape != shape:
                msg = "it is of other rates and seeds"
                raise DamagedError(msg)

    @contextmanager
    def _readable(self) -> Iterator[None]:
        """Say in one sentence that the Zarr is damaged."""
        try:
            yield
        except DamagedError as error:
            msg = (
                f"checkpoint: {self.folder} is damaged ({error}); remove that file, and the same "
                "call makes its runs anew, or put back a copy"
            )
            raise InputError(msg) from error

    def _note(self, reasons: Mapping[str, str]) -> None:
        """Keep why observables are missing."""
        known = {**reasons, **self._reasons}
        if known != self._reasons:
            write(self.state / "reasons.json", json.dumps(known).encode())
            self._reasons = known

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
            f"checkpoint: {self.folder} was written by an older trebuchet, which kept other files; "
            "remove it, or name another folder"
        )

    def damaged(self, path: Path, reason: str) -> InputError:
        """The error to raise where a file is not what was written."""
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
        remove_parts(folder / STATE)
        yield Checkpoint(folder, identity)


def parse(data: bytes) -> dict[str, Any]:
    """What sweep.json says, its checksum checked and taken off.

    Args:
        data: The bytes of the file.

    Returns:
        Its contents.

    Raises:
        DamagedError: If they are not what was written.
    """
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
