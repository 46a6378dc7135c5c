"""`trebuchet sweep FILE.toml`."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import trebuchet as tb
from tests.cli.test_paper import run
from trebuchet.engine.kernels.module import ModuleKernel

NET = """
import torch
from torch import nn

def make(seed, width=8):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, width), nn.ReLU(), nn.Linear(width, 3))
"""
FILE = """
# what is trained
[problem]
model = "written_net:make"
data = "train.npz"
loss = "cross_entropy"
optimizer = {name = "sgd", momentum = 0.5}
batch_size = 8

[sweep]
lr = {from = 1e-2, to = 1, number = 3}
seeds = [0, 4]
steps = 6
observables = ["accuracy"]
"""
LAST = 'observables = ["accuracy"]'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "train.npz", x=rng.standard_normal((24, 5)), y=rng.integers(3, size=24))
    (tmp_path / "written_net.py").write_text(NET)
    (tmp_path / "mine.toml").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("written_net", None)


def test_a_file_is_the_sweep_that_it_says(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("sweep", "mine.toml") == 0
    out = folder / "trebuchet-mine"
    assert sorted(p.name for p in out.iterdir()) == ["runs.zarr", "sweep.png"]
    assert "written_net:make" in capsys.readouterr().out
    runs = tb.load(out / "runs.zarr")
    np.testing.assert_allclose(runs.lr, [1e-2, 1e-1, 1])
    assert runs.seed.values.tolist() == [0, 4]
    assert {"phase", "accuracy_final"} <= set(runs)
    import torch
    from written_net import make  # type: ignore[import-not-found]  # the fixture's

    with np.load("train.npz") as data:
        pair = torch.from_numpy(data["x"]).float(), torch.from_numpy(data["y"])
    problem = tb.Problem(
        make, "cross_entropy", pair, lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.5),
        batch_size=8,
    )  # fmt: skip
    same = tb.sweep(problem, lr=runs.lr.values, seeds=[0, 4], steps=6, observables=["accuracy"])
    for name in ("loss", "accuracy", "loss_final"):
        np.testing.assert_array_equal(runs[name], same[name])
    assert run("sweep", "mine.toml") == 2  # what is there is kept
    assert run("sweep", "mine.toml", "--resume") == 2
    assert "has ended; add --overwrite" in " ".join(capsys.readouterr().err.split())
    assert run("sweep", "mine.toml", "--overwrite") == 0


def test_axes_of_a_file(folder: Path) -> None:
    (folder / "mine.toml").write_text(
        FILE + '[axes]\nwidth = [4, 8]\n"optimizer.momentum" = [0, 0.5]\n'
    )
    assert run("sweep", "mine.toml") == 0
    runs = tb.load("trebuchet-mine/runs.zarr")
    assert dict(runs.phase.sizes) == {"width": 2, "optimizer.momentum": 2, "lr": 3, "seed": 2}
    (folder / "plain.toml").write_text(FILE)
    assert run("sweep", "plain.toml") == 0
    plain = tb.load("trebuchet-plain/runs.zarr")
    np.testing.assert_array_equal(runs.loss[1, 1], plain.loss)


def test_digits_of_any_width_by_a_file(folder: Path) -> None:
    (folder / "wide.toml").write_text(
        '[problem]\nmodel = "digits"\n[sweep]\nlr_ratio = [1, 3.0]\nsteps = 20\n'
        "[record]\nevery = 10\n[execution]\nchunk = 1\n"
    )
    assert run("sweep", "wide.toml", "--out", "here") == 0
    runs = tb.load("here/runs.zarr")
    assert runs.attrs["swept"] == "lr_ratio"
    assert runs.step.values.tolist() == [0, 10, 20]
    assert runs.attrs["n_parameters"] == 512 * 65


def test_interrupted_shown_and_resumed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("sweep", "mine.toml", "--out", "whole") == 0
    step_, steps = ModuleKernel.step_, []

    def until(self: ModuleKernel, step: int) -> object:
        steps.append(step)
        if len(steps) == 20:
            raise KeyboardInterrupt
        return step_(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(ModuleKernel, "step_", until)
        assert run("sweep", "mine.toml") == 130
    assert not (folder / "trebuchet-mine" / "runs.zarr").exists()
    assert run("sweep", "mine.toml") == 2  # it says --resume
    capsys.readouterr()
    assert run("show", "trebuchet-mine") == 0
    shown = capsys.readouterr().out
    assert "3 rates × 2 seeds" in shown
    assert "3 of 6 runs have ended" in shown
    chunk = folder / "trebuchet-mine" / "unfinished" / "status" / "0.0"
    whole_chunk = chunk.read_bytes()
    chunk.write_bytes(whole_chunk[:-1])
    assert run("show", "trebuchet-mine") == 2
    assert "status/0.0 is not what was written" in " ".join(capsys.readouterr().err.split())
    chunk.write_bytes(whole_chunk)
    made: list[int] = []

    def counted(self: ModuleKernel, step: int) -> object:
        made.append(step)
        return step_(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(ModuleKernel, "step_", counted)
        assert run("sweep", "mine.toml", "--resume") == 0
    assert len(made) == (6 - 3) * 6  # three runs had ended
    resumed, whole = tb.load("trebuchet-mine/runs.zarr"), tb.load("whole/runs.zarr")
    for name in whole.data_vars:
        np.testing.assert_array_equal(resumed[name], whole[name], err_msg=str(name))
    assert not (folder / "trebuchet-mine" / "unfinished").exists()
    assert run("show", "trebuchet-mine") == 0
    assert "dims     lr 3, seed 2" in capsys.readouterr().out
    assert run("show", "no-such-folder") == 2
    assert run("show", "mine.toml") == 2


def test_a_sweep_that_became_another_is_not_resumed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(self: ModuleKernel, step: int) -> object:
        raise KeyboardInterrupt

    (folder / "mine.toml").write_text(FILE + "[axes]\nwidth = [4, 8]\n")
    with monkeypatch.context() as patch:
        patch.setattr(ModuleKernel, "step_", stopped)
        assert run("sweep", "mine.toml") == 130
    (folder / "mine.toml").write_text(
        FILE.replace("steps = 6", "steps = 7") + "[axes]\nwidth = [4, 8]\n"
    )
    capsys.readouterr()
    assert run("sweep", "mine.toml", "--resume") == 2
    err = " ".join(capsys.readouterr().err.split())
    assert "holds another sweep" in err
    assert "line" not in err  # the file is as it should be


@pytest.mark.parametrize(
    ("was", "written", "said"),
    [
        ("steps = 6", "stepps = 6", r"line 13: sweep\.stepps: no such key; did you mean '?steps'?"),
        ("steps = 6", "steps = 6.5", r"line 13: sweep\.steps: expected a valid integer.*6\.5"),
        ("steps = 6", "steps = -1", r"line 13: sweep\.steps: expected greater than 0, got -1"),
        ("batch_size = 8", 'batch_size = "all"', r"line 8: problem\.batch_size: .*got 'all'"),
        ("[sweep]", "[sweeep]", r"line 10: sweeep: no such key; did you mean '?sweep'?"),
        ("seeds = [0, 4]", "seeds = [0, -4]", r"line 12: sweep\.seeds: expected how many seeds"),
        (
            "from = 1e-2",
            "form = 1e-2",
            r"line 11: sweep\.lr\.form: no such key; did you mean '?from",
        ),
        ("from = 1e-2", "from = -1", r"line 11: sweep\.lr\.from: expected positive rates.*got -1"),
        (
            "{from = 1e-2, to = 1, number = 3}",
            "[0.1, -1]",
            r"line 11: sweep\.lr: expected positive",
        ),
        ("lr = {from", "lr_ratio = [1]\nlr = {from", r"sweep: expected either lr .* or lr_ratio"),
        ('model = "written_net:make"', "", r"line 3: problem\.model: is needed"),
        ("steps = 6", "steps = 6\n[execution]\nbackend = 'lokky'", r"line 15: .*mean '?loky'?"),
        (
            '"cross_entropy"',
            '"cross_entropie"',
            r"mine\.toml, line 6: loss: .*did you mean '?cross_entropy'?",
        ),
        ('"train.npz"', '"trian.npz"', r"line 5: problem\.data: .*trian\.npz"),
        (
            '"written_net:make"',
            '"written_net:made"',
            r"line 4: problem\.model: .*did you mean '?make'?",
        ),
        ("[sweep]", "[sweep", "no TOML: .*line 10"),
        ('["accuracy"]', '["acuracy"]', r"line 14: observables: .*did you mean '?accuracy'?"),
        ('name = "sgd"', 'name = "sdg"', r"line 7: .*did you mean '?sgd'?"),
        ("momentum = 0.5", "momentumm = 0.5", r"line 7: problem\.optimizer: .*momentum"),
        (LAST, "[axes]\nwdth = [4]", "line 15: axes: nothing called 'wdth' can vary"),
        (LAST, "[axes]\nbatch_size = [4, 0]", "line 15: batch_size: expected a positive"),
        (LAST, "[axes]\n'optimizer.momentun' = [0]", "line 15: axes: .*mean 'optimizer.momentum'"),
        (LAST, "[axes]\nwidth = [4, 4]", r"line 15: axes\['width'\]: .*4 twice"),
        (LAST, "[axes]\nwidth = [4, -1]", r"line 15: .*\(in the cell width=-1\)"),
        (LAST, "[execution]\ndevice = 'cudda'", "line 15: device: "),
    ],
)
def test_a_mistake_is_told_with_its_line(
    was: str, written: str, said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert was in FILE
    (folder / "mine.toml").write_text(FILE.replace(was, written))
    assert run("sweep", "mine.toml") == 2
    err = " ".join(capsys.readouterr().err.split())
    assert err.count("error:") == 1
    assert re.search(said, err), err
    assert not (folder / "trebuchet-mine").exists()


def test_options_of_digits_are_not_of_a_file(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("sweep", "mine.toml", "--seeds", 2) == 2
    assert "--seeds: is of 'digits'" in capsys.readouterr().err
    assert run("sweep", "digits", "--resume") == 2
    assert run("sweep", "none.toml") == 2
    assert "cannot read none.toml" in capsys.readouterr().err
