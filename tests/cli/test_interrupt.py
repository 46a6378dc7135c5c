"""Figures that are stopped: in order, resumed to the same bits, by one process at a time."""

import dataclasses
import functools
import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import trebuchet
from tests.cli.test_paper import run
from tests.sweeps.interrupting import differing
from trebuchet._lock import sole_writer
from trebuchet._progress import Progress
from trebuchet.cli import paper
from trebuchet.paper.settings import FIGURES, Grid, Net
from trebuchet.results.store import load


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two classes of noise in the place of MNIST."""
    rng = np.random.default_rng(0)
    y = np.resize(np.array([-1, 1], dtype=np.int8), 160)
    x = (rng.integers(0, 60, (160, 28, 28)) + 90 * (y > 0)[:, None, None]).astype(np.uint8)
    folder = tmp_path / "data"
    folder.mkdir()
    np.savez(
        folder / "mnist01.npz", x_train=x[:130], y_train=y[:130], x_test=x[130:], y_test=y[130:]
    )
    return folder


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figure 3 with a narrow net, three rates and a looser end: as many steps, in a second."""
    setting = dataclasses.replace(
        FIGURES[3], model=Net(width=64), grid=Grid(1.0, 3.0, 1.0), tolerance=1e-4
    )
    monkeypatch.setitem(FIGURES, 3, setting)


def stopping(looks: int, title: str) -> Progress:
    """A progress function in whose n-th call Ctrl-C comes."""
    turns = itertools.count(1)

    def progress(done: int, total: int) -> None:
        if next(turns) == looks:
            raise KeyboardInterrupt

    return progress


@pytest.mark.usefixtures("small")
def test_a_figure_stopped_at_any_point_is_resumed_to_the_same_bits(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    words = ["paper", 3, "--data-root", images, "--seeds", 2]
    assert run(*words, "--out", tmp_path / "whole") == 0
    broken = tmp_path / "broken"
    for looks in (3, 2):
        with monkeypatch.context() as patched:
            patched.setattr(paper, "progress_bar", functools.partial(stopping, looks))
            code = run(*words, "--out", broken, "--resume")
        if code == 0:  # there was nothing left to stop
            break
        assert code == 130
        assert "the same command with --resume goes on" in capsys.readouterr().err
        assert [p.name for p in broken.iterdir()] == [".fig3-unfinished"]
    assert run(*words, "--out", broken, "--resume") == 0
    assert differing(load(tmp_path / "whole" / "fig3.zarr"), load(broken / "fig3.zarr")) == []
    assert (broken / "fig3.json").read_text() == (tmp_path / "whole" / "fig3.json").read_text()
    assert sorted(p.name for p in broken.iterdir()) == ["fig3.json", "fig3.png", "fig3.zarr"]


def test_a_figure_that_another_is_making_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with sole_writer(tmp_path / ".fig6-unfinished", "--out"):
        assert run("paper", 6, "--out", tmp_path) == 2
    assert "is in use by" in capsys.readouterr().err
    assert run("paper", 6, "--quick", "--out", tmp_path) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fig6.json", "fig6.png", "fig6.zarr"]


def test_ctrl_c_while_a_picture_is_drawn_leaves_no_half_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure

    def half(self: Figure, path: Path, **settings: object) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Figure, "savefig", half)
        assert run("paper", 6, "--quick", "--out", tmp_path / "a") == 130
        assert run("sweep", "digits", "--rates", "1", "--seeds", 1, "--out", tmp_path / "b") == 130
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["fig6.zarr"]  # without a JSON: undone
    assert not (tmp_path / "b").exists()
    assert run("paper", 6, "--quick", "--out", tmp_path / "a", "--resume") == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_command_in_order(
    number: signal.Signals, code: int, images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    env = {**os.environ, "PYTHONPATH": str(Path(trebuchet.__file__).parents[1])}
    words = ["paper", "3", "--data-root", str(images), "--out", str(out)]
    command = [sys.executable, "-m", "trebuchet", *words]
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 120
    while not list(out.glob(".fig3-unfinished/seed-123/.sweep/sweep.json")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == code
    assert b"--resume goes on" in said
    assert b"Traceback" not in said
    assert [p.name for p in out.iterdir()] == [".fig3-unfinished"]
