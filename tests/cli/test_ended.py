"""Commands that end before their time, by Ctrl-C or a full disk: whole results or none."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import trebuchet as tb
from trebuchet.cli import main

MODULE = """
import os, signal
import torch
from torch import nn

class Stopping(nn.Module):
    calls, last = 0, 10**9
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(3, 1)
    def forward(self, x):
        Stopping.calls += 1
        if Stopping.calls == Stopping.last:
            os.kill(os.getpid(), signal.SIGINT)
        return self.inner(x)

def now():
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(10**8):
        pass
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "stopping", raising=False)
    (tmp_path / "stopping.py").write_text(MODULE)
    g = np.random.default_rng(0)
    np.savez("d.npz", x=g.normal(size=(20, 3)).astype("f"), y=np.ones(20, "f"))
    return tmp_path


def ended(*arguments: object) -> object:
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return end.value.code


OWN = ("--data", "d.npz", "--loss", "mse")
SCAN = ("scan", "--model", "stopping:Stopping", *OWN, "--horizon", 20, "--out", "deep/out")
CURVATURE = ("curvature", "--model", "stopping:Stopping", *OWN, "--out", "top.json")


def _left(here: Path) -> set[str]:
    return {p.name for p in here.iterdir()} - {"stopping.py", "d.npz", "__pycache__"}


@pytest.mark.parametrize("command", [SCAN, CURVATURE], ids=["scan", "curvature"])
@pytest.mark.parametrize("factory", ["stopping:now", "stopping:Stopping"])
def test_ctrl_c_in_your_own_model(
    command: tuple[object, ...], factory: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import importlib

    module = importlib.import_module("stopping")
    words = [factory if word == "stopping:Stopping" else word for word in command]
    for last in (1, 2) if factory.endswith("Stopping") else (0,):
        module.Stopping.calls, module.Stopping.last = 0, last
        assert ended(*words) == 130
        out, error = capsys.readouterr()
        assert error == "interrupted\n"
        assert out == ""
        assert _left(here) == set()


def test_ctrl_c_in_a_scan_that_has_found_something_keeps_it(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import importlib

    module = importlib.import_module("stopping")
    module.Stopping.calls = 0
    assert ended(*SCAN, "--out", "whole") == 0
    capsys.readouterr()
    module.Stopping.calls, module.Stopping.last = 0, int(0.7 * module.Stopping.calls)
    assert ended(*SCAN) == 130
    out, error = capsys.readouterr()
    assert error.startswith("interrupted: ")
    assert error.count("\n") == 1
    assert "wrote" in out
    folder = here / "deep" / "out"
    assert {p.name for p in folder.iterdir()} == {"scan.zarr", "scan.csv", "runs.csv", "scan.png"}
    assert tb.load(folder / "scan.zarr").settings["interrupted"] is True


def _interrupting(after: int) -> Callable[..., Callable[[int, int], None]]:
    """A progress bar that is Ctrl-C after so many calls."""
    calls = 0

    def bar(*_: object, **__: object) -> Callable[[int, int], None]:
        def update(done: int, total: int) -> None:
            nonlocal calls
            calls += 1
            if calls == after:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.01)

        return update

    return bar


def test_ctrl_c_in_a_sweep_keeps_what_was_finished(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("trebuchet.sweeps.sweep.progress_bar", _interrupting(3))
    assert ended("sweep", "digits", "--seeds", 1, "--rates", "0.5:4:0.5", "--out", "out") == 130
    out, error = capsys.readouterr()
    assert error.startswith("interrupted")
    assert error.count("\n") == 1
    assert "Traceback" not in out
    assert {p.name for p in (here / "out").iterdir()} == {"runs.zarr", "sweep.png"}
    runs = tb.load(here / "out" / "runs.zarr")
    assert runs.attrs["interrupted"] == 1
    assert (runs.status == "interrupted").any()


def test_ctrl_c_in_a_figure(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("trebuchet.cli.paper.progress_bar", _interrupting(1))
    assert ended("paper", 9, "--quick", "--seeds", 40, "--out", "figures") == 130
    error = capsys.readouterr().err
    assert error.startswith("interrupted: this figure was not written")
    assert error.count("\n") == 1
    assert not list((here / "figures").glob("fig*"))


@pytest.mark.parametrize("command", ["scan", "curvature", "paper"])
def test_ctrl_c_at_any_moment_of_a_process(command: str, here: Path) -> None:
    """From the imports on; what Python itself prints before there is any of ours is not ours."""
    words = {"scan": SCAN, "curvature": CURVATURE, "paper": ("paper", 4, "--out", "deep/figures")}
    line = "import sys; print('on', flush=True); from trebuchet.cli import main; main(sys.argv[1:])"
    call = [sys.executable, "-c", line, *map(str, words[command])]
    process = subprocess.Popen(
        call, cwd=here, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.8)  # in the middle of importing torch, or just after
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    if process.returncode == 0:
        return  # it was faster
    assert process.returncode in (130, -signal.SIGINT)
    if process.returncode == 130:
        assert error.splitlines()[-1].startswith("interrupted")
    assert not [p for p in here.rglob("*.part*")]
    assert not (here / "top.json").exists()


def test_an_import_that_makes_something_else_of_ctrl_c(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """matplotlib's, cut in two, ended in a ValueError from its own depths."""

    def load(*_: object) -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
        except KeyboardInterrupt:
            raise ValueError("too many values to unpack") from None

    monkeypatch.setattr("trebuchet.cli.curvature.load_model", load)
    assert ended(*CURVATURE) == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_scheduler_that_ends_a_command(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "stopping.py").write_text(MODULE.replace("SIGINT", "SIGTERM"))
    assert ended(*("stopping:now" if w == "stopping:Stopping" else w for w in SCAN)) == 143
    assert capsys.readouterr().err == "interrupted\n"
    assert _left(here) == set()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """Have the system refuse to write more than so many bytes to a file, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("before", [None, "mine"])
def test_a_disk_that_is_full_when_curvature_writes(
    before: str | None, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more: tuple[str, ...] = ()
    if before is not None:
        (here / "top.json").write_text(before)
        more = ("--overwrite",)
    with no_file_above(100):
        assert ended(*CURVATURE, *more) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --out: cannot write top.json (")
    assert error.count("\n") == 1
    assert _left(here) == (set() if before is None else {"top.json"})
    if before is not None:
        assert (here / "top.json").read_text() == before
    assert ended(*CURVATURE, *more) == 0  # nothing is in the way
    assert json.loads((here / "top.json").read_text())["converged"]
    assert _left(here) == {"top.json"}


@pytest.mark.parametrize("size", [10, 700, 5000])
def test_a_disk_that_is_full_when_a_scan_writes(
    size: int, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the store, in a table, or in the picture, which comes last."""
    with no_file_above(size):
        assert ended(*SCAN) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --out: cannot write")
    assert error.count("\n") == 1
    assert ".part" not in error
    assert _left(here) == set()
    assert ended(*SCAN) == 0
    assert len(list((here / "deep" / "out").iterdir())) == 4


def test_a_scan_that_replaces_another_does_so_whole(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(*SCAN) == 0
    out = here / "deep" / "out"
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    with no_file_above(5000):
        assert ended(*SCAN, "--overwrite") == 2
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    assert ended(*SCAN, "--overwrite", "--optimizer", "momentum") == 0
    assert tb.load(out / "scan.zarr").settings["optimizer"] != "sgd"
    assert {p.name for p in out.iterdir()} == {"scan.zarr", "scan.csv", "runs.csv", "scan.png"}
    capsys.readouterr()


def test_a_disk_that_is_full_when_digits_writes(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with no_file_above(5000):
        assert ended("sweep", "digits", "--rates", 4, "--seeds", 1, "--out", "out") == 2
    assert _left(here) == set()
    out, error = capsys.readouterr()
    assert error.startswith("error: --out: cannot write")
    assert "runs.zarr" not in out  # it is not called written


def test_a_link_stays_one(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "real.json").write_text("{}")
    (here / "top.json").symlink_to("real.json")
    assert ended(*CURVATURE, "--overwrite") == 0
    assert (here / "top.json").is_symlink()
    assert json.loads((here / "real.json").read_text())["converged"]
    capsys.readouterr()
