"""Folders of checkpoints: one owner, whole files of this sweep, and nothing that executes."""

import contextlib
import json
import os
import pickle
import re
import resource
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import trebuchet
from tests.sweeps.interrupting import STOPPER, Watched, differing
from tests.zoo import F64, inputs, mlp
from trebuchet.errors import InputError
from trebuchet.problem.problem import Problem
from trebuchet.sweeps.sweep import sweep

ARGUMENTS: dict[str, Any] = {
    "lr_ratio": [0.5, 1.5, 2.5], "steps": 20, "chunk": 2, "workers": 1, "optimizer": Watched(),
}  # fmt: skip


def problem(**changes: Any) -> Problem:
    """A small net."""
    given: dict[str, Any] = {"x": inputs(4, 5), "y": inputs(4, 1, seed=3)[:, 0], **changes}
    data = given.pop("x"), given.pop("y")
    model, loss = given.pop("model", lambda s: mlp(seed=s)), given.pop("loss", "half_mse")
    return Problem(model, loss, data, **given)


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A folder with one chunk that has ended and one that has not."""
    return stopped(tmp_path / "begun")


def stopped(folder: Path, **changes: Any) -> Path:
    """A folder of a sweep of two chunks, stopped in the second."""
    sweep(problem(), **{**ARGUMENTS, **changes}, checkpoint=folder, progress=STOPPER.at(30))
    STOPPER.at(-1)
    assert sorted(p.name for p in (folder / ".sweep").iterdir()) == ["chunk-1.arrays", "sweep.json"]
    assert trebuchet.load(folder).status.values.ravel().tolist().count("not_run") == 1
    return folder


def contents(folder: Path) -> dict[Path, bytes]:
    """All files but those that say who writes."""
    owner = {".lock", ".owner.json"}
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name not in owner}


def refusal(folder: Path, **changes: Any) -> str:
    """What the sweep says, in one sentence, with the folder left as it was."""
    before = contents(folder)
    with pytest.raises(InputError) as caught:
        sweep(changes.pop("problem", problem()), **{**ARGUMENTS, **changes}, checkpoint=folder)
    assert contents(folder) == before
    said = str(caught.value)
    assert "\n" not in said
    assert said.startswith("checkpoint: ")
    assert str(folder) in said
    return said


# ---------------------------------------------------------------------------------- one owner


@contextlib.contextmanager
def going_on(folder: Path) -> Iterator[None]:
    """A sweep in another thread that waits at its second step."""
    held = threading.Event()
    calls = 0

    def wait(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 4:
            inside.set()
            held.wait(30)
        return (z - y).square().mean()

    inside = threading.Event()
    other = threading.Thread(
        target=lambda: sweep(problem(loss=wait), lr=[0.1], steps=3, checkpoint=folder)
    )
    other.start()
    assert inside.wait(30)
    try:
        yield
    finally:
        held.set()
        other.join()


def test_another_thread_is_refused_while_one_is_at_work_and_not_afterwards(tmp_path: Path) -> None:
    with going_on(tmp_path / "c"), pytest.raises(InputError) as caught:
        sweep(problem(), **ARGUMENTS, checkpoint=tmp_path / "c")
    assert re.fullmatch(
        r"checkpoint: \S+ is in use by another thread of this process \(\d+\), since .*; "
        "wait for it to end, or name another folder",
        str(caught.value),
    )
    assert not (tmp_path / "c" / ".owner.json").exists()
    with pytest.raises(InputError, match="another sweep"):  # of the loss, and no lock is left
        sweep(problem(), **ARGUMENTS, checkpoint=tmp_path / "c")


HOLD = """
    import sys, time
    from pathlib import Path
    from trebuchet._lock import sole_writer
    with sole_writer(Path(sys.argv[1]), "checkpoint"):
        print("held", flush=True)
        time.sleep(60)
"""


def test_another_process_is_refused_and_a_dead_one_holds_nothing(begun: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(Path(trebuchet.__file__).parents[1])}
    command = [sys.executable, "-c", textwrap.dedent(HOLD), str(begun)]
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == "held\n"
        said = refusal(begun)
        assert f"is in use by process {process.pid} on " in said
        process.kill()
        process.wait()
    assert (begun / ".owner.json").exists()  # a note of the dead, which nobody minds
    assert sweep(problem(), **ARGUMENTS, checkpoint=begun).attrs["interrupted"] == 0


def test_a_folder_that_nothing_came_of_is_gone(tmp_path: Path) -> None:
    def fails(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        raise ZeroDivisionError

    with pytest.raises(InputError, match="ZeroDivisionError"):
        sweep(problem(loss=fails), lr=[0.1], steps=3, checkpoint=tmp_path / "c")
    with pytest.raises(InputError, match="chunk"):
        sweep(problem(), lr=[0.1], steps=3, chunk=0, checkpoint=tmp_path / "c")
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match=r"checkpoint: cannot use the folder .*file"):
        sweep(problem(), **ARGUMENTS, checkpoint=tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


# ------------------------------------------------------------------------------ of this sweep


def changed_model(seed: int) -> nn.Module:
    """The same weights, computing something else."""
    net = mlp(seed=seed)
    return mlp(slopes=(1, 0.01)).__class__([w.detach() for w in net.weights], (1.0, 0.01))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"steps": 21}, "steps"),
        ({"tolerance": 1e-3}, "tolerance"),
        ({"lr_ratio": [0.5, 1.5]}, "rates"),
        ({"optimizer": Watched(0.5)}, "optimizer"),
        ({"problem": problem(x=inputs(4, 5, seed=9))}, "initial"),
        ({"problem": problem(test=(inputs(2, 5), inputs(2, 1)))}, "initial"),
        ({"problem": problem(model=lambda s: mlp(seed=s + 1))}, "initial"),
        ({"problem": problem(model=changed_model)}, "what the model or the loss computes"),
    ],
)
def test_another_sweep_is_refused(begun: Path, changes: dict[str, Any], what: str) -> None:
    assert re.search(rf"holds another sweep \(it differs in .*{what}", refusal(begun, **changes))


def test_another_loss_of_the_same_name_is_refused(tmp_path: Path) -> None:
    """Two lambdas are told apart by what they compute."""
    sweep(
        problem(loss=lambda z, y: (z - y).square().mean()), lr=[0.1], steps=3, checkpoint=tmp_path
    )
    with pytest.raises(InputError, match="what the model or the loss computes"):
        sweep(
            problem(loss=lambda z, y: (z - y).abs().mean()), lr=[0.1], steps=3, checkpoint=tmp_path
        )


def test_a_chunk_of_another_sweep_is_refused(begun: Path, tmp_path: Path) -> None:
    other = stopped(tmp_path / "other", steps=21)
    shutil.copy(other / ".sweep" / "chunk-1.arrays", begun / ".sweep" / "chunk-1.arrays")
    said = refusal(begun)
    assert "chunk-1.arrays holds runs of another sweep; remove it" in said


def test_a_chunk_under_the_name_of_another_is_refused(begun: Path) -> None:
    shutil.copy(begun / ".sweep" / "chunk-1.arrays", begun / ".sweep" / "chunk-0.arrays")
    assert "chunk-0.arrays holds runs of another sweep" in refusal(begun)


def test_a_result_is_not_written_into(tmp_path: Path) -> None:
    trebuchet.save(sweep(problem(), **ARGUMENTS), tmp_path / "runs.zarr")
    assert "holds a result that is no sweep under way" in refusal(tmp_path / "runs.zarr")


# -------------------------------------------------------------------------- whole, or a sentence


def damages(data: bytes) -> dict[str, bytes]:
    """A file's contents, damaged in the ways that disks and people know."""
    rng = np.random.default_rng(len(data))
    ways = {
        "empty": b"", "cut short": data[: len(data) // 2], "one byte short": data[:-1],
        "one byte more": data + b"\0", "zeros": bytes(len(data)), "text": b"hello\n",
        "a list": b"[1]", "a number": b"7", "not text": b"\xff\xfe\x00",
    }  # fmt: skip
    for place in rng.integers(0, len(data), 12).tolist():
        flipped = bytearray(data)
        flipped[place] ^= 1 << int(rng.integers(8))
        ways[f"bit at {place}"] = bytes(flipped)
    return ways


@pytest.mark.parametrize(
    "name", [".sweep/sweep.json", ".sweep/chunk-1.arrays", "loss/0.0.0", "status/0.0"]
)
def test_damage_is_said_in_a_sentence_or_changes_nothing(begun: Path, name: str) -> None:
    path = begun / name
    whole = path.read_bytes()
    said = 0
    for way, data in damages(whole).items():
        path.write_bytes(data)
        try:
            sentence = refusal(begun)
        except pytest.fail.Exception:  # JSON does not mind what stands between its words
            assert name == ".sweep/sweep.json", way
            assert json.loads(data) == json.loads(whole), way
            continue
        said += 1
        assert f"{name.removeprefix('.sweep/')} is " in sentence, way
        assert "damaged" in sentence, way
        assert "remove" in sentence, way
    assert said >= 15


@pytest.mark.parametrize("name", [".sweep/chunk-1.arrays", "loss/0.0.0", "status/0.0", "steps/0.0"])
def test_a_damaged_file_that_is_removed_is_made_anew(begun: Path, name: str) -> None:
    (begun / name).write_bytes(b"")
    refusal(begun)
    (begun / name).unlink()
    resumed = sweep(problem(), **ARGUMENTS, checkpoint=begun)
    whole = sweep(problem(), **ARGUMENTS)
    assert differing(whole, resumed) == []
    assert differing(whole, trebuchet.load(begun)) == []


def test_a_chunk_that_is_gone_does_not_read_as_missing_values(begun: Path) -> None:
    (begun / "loss" / "0.0.0").unlink()
    with pytest.raises(InputError, match=r"is damaged: loss/0\.0\.0 is missing"):
        trebuchet.load(begun)
    sweep(problem(), **ARGUMENTS, checkpoint=begun, progress=STOPPER.at(1))  # stopped at once
    STOPPER.at(-1)
    assert (trebuchet.load(begun).status == "not_run").all()
    assert (
        differing(sweep(problem(), **ARGUMENTS), sweep(problem(), **ARGUMENTS, checkpoint=begun))
        == []
    )


def test_chunks_without_their_sweep_are_refused(begun: Path) -> None:
    (begun / ".sweep" / "sweep.json").unlink()
    assert "it is missing, though its chunks are there" in refusal(begun)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_a_file_that_may_not_be_read(begun: Path) -> None:
    (begun / ".sweep" / "chunk-1.arrays").chmod(0)
    with pytest.raises(InputError, match="cannot read"):
        sweep(problem(), **ARGUMENTS, checkpoint=begun)


class Hostile:
    """Executes code where it is unpickled."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path(os.environ["TREBUCHET_TEST_MARK"]),)


def test_pickles_are_never_read(begun: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = begun.parent / "executed"
    monkeypatch.setenv("TREBUCHET_TEST_MARK", str(mark))
    hostile = pickle.dumps(Hostile())
    for name in (".sweep/chunk-1.arrays", ".sweep/sweep.json", "loss/0.0.0"):
        whole = (begun / name).read_bytes()
        (begun / name).write_bytes(hostile)
        assert "is damaged" in refusal(begun)
        (begun / name).write_bytes(whole)
    torch.save({"step": Hostile()}, begun / "chunk-0.pt")
    assert "older trebuchet, which kept other files; remove it" in refusal(begun)
    assert not mark.exists()


def test_a_zarr_that_asks_for_pickles_is_refused(
    begun: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Zarr itself would load them: its codecs know how."""
    mark = begun.parent / "executed"
    monkeypatch.setenv("TREBUCHET_TEST_MARK", str(mark))
    metadata = json.loads((begun / ".zmetadata").read_text())
    about = metadata["metadata"]["loss/.zarray"]
    about |= {"filters": [{"id": "pickle", "protocol": 5}], "compressor": None, "dtype": "|O"}
    (begun / ".zmetadata").write_text(json.dumps(metadata))
    (begun / "loss" / ".zarray").write_text(json.dumps(about))
    (begun / "loss" / "0.0.0").write_bytes(pickle.dumps(Hostile()))
    said = refusal(begun)
    assert "asks for the codec 'pickle'" in said
    for lazy in (False, True):
        with pytest.raises(InputError, match="asks for the codec 'pickle'"):
            trebuchet.load(begun, lazy=lazy)
    assert not mark.exists()


def test_an_older_sweep_is_named_as_one(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text(json.dumps({"settings": {"steps": 3}, "chunk": 1}))
    assert "older trebuchet" in refusal(tmp_path)


# ---------------------------------------------------------------------------------- full disks


def test_a_disk_that_is_full_keeps_what_was_saved(
    begun: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(begun)
    write = Path.write_bytes

    def full(self: Path, data: bytes) -> int:
        if "chunk" not in self.name:
            return write(self, data)
        write(self, data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", full)
        with pytest.raises(InputError) as caught:
            sweep(problem(), **ARGUMENTS, checkpoint=begun, checkpoint_seconds=0)
    assert re.fullmatch(
        r"checkpoint: cannot write \S+chunk-1.arrays \(No space left on device\); what was saved "
        "before is whole: make room there, and the same call goes on from it",
        str(caught.value),
    )
    assert contents(begun) == before
    assert not list(begun.rglob(".*.part*"))
    resumed = sweep(problem(), **ARGUMENTS, checkpoint=begun)
    assert differing(sweep(problem(), **ARGUMENTS), resumed) == []


def test_files_that_may_grow_no_further(tmp_path: Path) -> None:
    """The system's own limit: nothing is patched."""
    arguments = {**ARGUMENTS, "steps": 2000}
    size = 60_000  # above sweep.json and the empty Zarr, below a chunk
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        with pytest.raises(InputError, match=r"cannot write .*chunk-0.arrays \(File too large\)"):
            sweep(problem(), **arguments, checkpoint=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(p.name for p in (tmp_path / ".sweep").iterdir()) == ["sweep.json"]
    assert (trebuchet.load(tmp_path).status == "not_run").all()
    resumed = sweep(problem(), **arguments, checkpoint=tmp_path)
    assert differing(sweep(problem(), **arguments), resumed) == []


def test_what_a_killed_writer_left_is_cleared_away(begun: Path) -> None:
    (begun / ".sweep" / ".chunk-0.123-abcd.part.arrays").write_bytes(b"half")
    (begun / "loss" / "0.0.1234.partial").write_bytes(b"half")
    sweep(problem(), **ARGUMENTS, checkpoint=begun)
    assert not list(begun.rglob("*.part*"))


def test_every_state_is_written_whole_while_others_read(tmp_path: Path) -> None:
    """A reader never meets half a file, however often it looks."""
    from trebuchet.engine.arrayfile import unpack

    looks, done = 0, threading.Event()

    def work() -> None:
        sweep(problem(), lr=[0.01], steps=100, checkpoint=tmp_path, checkpoint_seconds=0)
        done.set()

    worker = threading.Thread(target=work)
    worker.start()
    while not done.is_set():
        path = tmp_path / ".sweep" / "chunk-0.arrays"
        with contextlib.suppress(FileNotFoundError):
            unpack(path.read_bytes())
            looks += 1
        time.sleep(0.001)
    worker.join()
    assert looks > 10


def test_half_precision_and_odd_strides_round_trip() -> None:
    from trebuchet.engine.arrayfile import pack, unpack

    given: dict[str, Any] = {
        str(dtype): torch.arange(6).reshape(2, 3).to(dtype)
        for dtype in (torch.bfloat16, torch.float16, torch.float32, F64, torch.int64, torch.bool)
    }
    given["turned"] = torch.arange(6.0).reshape(2, 3).T
    given["none"] = torch.empty(0, 4)
    given["scalar"] = torch.tensor(float("nan"))
    given["words"] = np.array(["interrupted", ""], dtype="<U13")
    given["numbers"] = np.array([[1.5, -0.0, np.inf]])
    header, back = unpack(pack({"a": [1, None]}, given))
    assert header == {"a": [1, None]}
    for name, value in given.items():
        assert type(back[name]) is type(value)
        assert back[name].dtype == value.dtype
        assert back[name].shape == value.shape
        if isinstance(value, torch.Tensor):
            other = back[name]
            assert isinstance(other, torch.Tensor)
            assert other.stride() == value.stride()
            assert torch.equal(other.nan_to_num(7), value.nan_to_num(7))
        else:
            np.testing.assert_array_equal(back[name], value)
