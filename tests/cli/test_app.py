"""The command line as a whole."""

import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import trebuchet as tb
from trebuchet.cli import main, sweep_digits
from trebuchet.data.digits import load_digits01
from trebuchet.errors import InputError
from trebuchet.paper import digits
from trebuchet.results.store import load


def test_help_teaches_the_three_words(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    out = capsys.readouterr().out
    for word in ("lazy", "catapult", "divergent", "scan digits"):
        assert word in out


@pytest.mark.parametrize("command", ["scan", "sweep", "paper", "curvature"])
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert len(capsys.readouterr().out.splitlines()) > 10


def run(*words: object) -> object:
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    return end.value.code


def test_sweep_digits_writes_its_folder_and_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A short sweep: the default folder is in the current directory."""
    monkeypatch.chdir(tmp_path)
    assert run("sweep", "digits", "--seeds", 1, "--steps", 60) == 0
    out = tmp_path / "trebuchet-sweep-digits"
    assert sorted(p.name for p in out.iterdir()) == ["runs.zarr", "sweep.png"]
    runs = load(out / "runs.zarr")
    assert runs.lr.values.tolist() == [0.5 * i for i in range(1, 29)]
    assert runs.attrs["n_samples"] == 128
    assert runs.attrs["n_parameters"] == 512 * 65
    lazy = runs.lr.values[(runs.phase.isel(seed=0) == "lazy").values]
    assert lazy.min() == 0.5
    assert lazy.max() <= 2.0
    # A second call refuses before it computes.
    monkeypatch.setattr(digits, "digits_sweep", lambda *_, **__: pytest.fail("it computed"))
    capsys.readouterr()
    assert run("sweep", "digits") == 2
    told = capsys.readouterr().err
    assert "--overwrite" in told
    assert "Traceback" not in told


@pytest.mark.parametrize("rates", ["-1,2", "0", "nan", "", ",", "1:2", "2:1:0.5", "1:2:0", "fast"])
def test_bad_rates_are_refused_with_nothing_written(rates: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--rates"):
        sweep_digits.sweep_digits(tmp_path / "out", rates=rates)
    assert not (tmp_path / "out").exists()


def test_rates_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["sweep", "digits", "--rates", "0.5,-2", "--out", str(tmp_path / "out")])
    assert end.value.code == 2
    assert "--rates" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_model_from_a_file_is_scanned_and_a_missing_one_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "tiny_net.py").write_text(
        "import torch\n\n\ndef make():\n    torch.manual_seed(0)\n"
        "    return torch.nn.Linear(64, 2)\n"
    )
    pixels = load_digits01(dtype=np.float32)
    np.savez(tmp_path / "d.npz", x=pixels.x_train, y=(pixels.y_train > 0).astype(np.int64))
    data = ["--data", str(tmp_path / "d.npz"), "--loss", "cross_entropy", "--horizon", "20"]
    with pytest.raises(SystemExit) as end:
        main(["scan", "--model", "no_such_net:make", *data, "--out", str(tmp_path / "none")])
    assert end.value.code == 2
    assert "no_such_net" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as end:
        main(["scan", "--model", "tiny_net:make", *data, "--out", str(out)])
    assert end.value.code == 0
    assert "use " in capsys.readouterr().out
    assert {p.name for p in out.iterdir()} == {"runs.csv", "scan.csv", "scan.png", "scan.zarr"}
    rates, runs = ((out / name).read_text().splitlines() for name in ("scan.csv", "runs.csv"))
    assert rates[0].startswith("rate,phase,phase_seed0,")
    assert runs[0].startswith("rate,seed,phase,")
    assert 1 < len(rates) <= len(runs)


@pytest.mark.filterwarnings("error")  # torch warns where targets are broadcast against outputs
def test_targets_in_a_row_are_compared_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "row_net.py").write_text(
        "import torch\n\n\ndef make():\n    torch.manual_seed(0)\n"
        "    return torch.nn.Linear(3, 1)\n"
    )
    g = np.random.default_rng(0)
    x, y = g.normal(size=(8, 3)), g.normal(size=8)
    np.savez(tmp_path / "row.npz", x=x, y=y)
    np.savez(tmp_path / "column.npz", x=x, y=y[:, None])
    tables = []
    for name in ("row", "column"):
        data, out = str(tmp_path / f"{name}.npz"), tmp_path / name
        command = ["scan", "--model", "row_net:make", "--data", data, "--loss", "mse"]
        with pytest.raises(SystemExit) as end:
            main([*command, "--horizon", "10", "--out", str(out)])
        assert end.value.code == 0
        tables.append((out / "scan.csv").read_text())
    assert tables[0] == tables[1]


@pytest.mark.parametrize(
    ("loss", "targets", "says"),
    [("mse", {}, "no targets.*array y"), ("hinge", {"y": np.ones((8, 2))}, "expected one of")],
)
def test_a_scan_that_fails_leaves_no_folder(
    loss: str,
    targets: dict[str, Any],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "plain_net.py").write_text("import torch\n\nnet = torch.nn.Linear(3, 2)\n")
    np.savez(tmp_path / "d.npz", x=np.ones((8, 3), dtype=np.float32), **targets)
    out = tmp_path / "above" / "out"
    with pytest.raises(SystemExit) as end:
        main([
            "scan", "--model", "plain_net:net", "--data", str(tmp_path / "d.npz"),
            "--loss", loss, "--out", str(out),
        ])  # fmt: skip
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert re.search(says, error)
    assert "Traceback" not in error
    assert not out.parent.exists()


def test_a_folder_that_cannot_be_made_is_said_before_the_scan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"--out: cannot make .*file is a file"):
        sweep_digits.sweep_digits(tmp_path / "file" / "out")
    monkeypatch.setattr(os, "access", lambda *_: False)  # as for a folder of someone else's
    with pytest.raises(InputError, match=r"--out: .* cannot be written to"):
        sweep_digits.sweep_digits(tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("option", [["--optimizer", "sgd"], ["--horizon", "200"], ["--edges"]])
def test_a_sweep_of_digits_has_no_options_of_a_scan(
    option: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("sweep", "digits", "--rates", "1", "--out", tmp_path / "out", *option) == 2
    assert f"{option[0]}: no such option" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("option", "says"),
    [
        (["--model", "net:make"], "--model: goes with a model of your own"),
        (["--data", "d.npz"], "--data: goes with a model of your own"),
        (["--loss", "mse"], "--loss: goes with a model of your own"),
        (["--rates", "1,2"], "`trebuchet sweep digits --rates ...`"),
    ],
)
def test_a_scan_of_digits_refuses_what_it_brings(
    option: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("scan", "digits", "--out", tmp_path / "out", *option) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_scan_digits_shows_the_phases_and_writes_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first command of the README: all of it, since it is to have a catapult in it."""
    monkeypatch.chdir(tmp_path)
    assert run("scan", "digits") == 0
    told = capsys.readouterr().out
    for words in (
        "suggested learning rate", "● lazy", "▲ catapult", "critical rate", "the loss first rises",
        "training ends at", "warm-up:",
    ):  # fmt: skip
        assert words in told
    out = tmp_path / "trebuchet-scan-digits"
    assert {p.name for p in out.iterdir()} == {"runs.csv", "scan.csv", "scan.png", "scan.zarr"}
    found = tb.load(out / "scan.zarr")
    # what the table says of a rate that lies well to each side of the critical one
    phases = found.table.set_index("rate")["phase"]
    assert "catapult" not in set(phases[phases.index < 0.9 * found.lr_crit])
    assert "catapult" in set(phases[phases.index > 1.1 * found.lr_crit])
    assert "lazy" in set(phases)
    assert (found.runs["phase"] == "catapult").sum() >= 2
    assert found.lr_loss.closed
    assert found.lr_loss.high / found.lr_loss.low <= 1.1 * (1 + 1e-9)
    assert found.settings["batch_size"] == 32
    assert found.settings["n_samples"] == 128
    # λ₀ of the net is the one that the sweep measures by another route: its NTK, over all samples
    assert run("sweep", "digits", "--rates", "1", "--seeds", 1, "--steps", 1) == 0
    runs = load(tmp_path / "trebuchet-sweep-digits" / "runs.zarr")
    assert found.top_eigenvalue == pytest.approx(float(runs.top_eigenvalue_init[0]), rel=0.05)
    # a second call refuses before it computes
    assert run("scan", "digits") == 2
    assert "--overwrite" in capsys.readouterr().err


def test_a_scan_s_budget_may_be_a_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    words = ["scan", "digits", "--horizon", 20, "--no-edges", "--out", out, "--budget"]
    assert run(*words, "default") == 0
    found = tb.load(out / "scan.zarr")
    assert found.settings["budget"] == 160
    assert found.cost["gradients"] <= 160
    assert run(*words, "careful", "--overwrite") == 0
    again = tb.load(out / "scan.zarr")
    assert again.settings["budget"] == 320
    capsys.readouterr()
    assert run(*words, "slow", "--overwrite") == 2
    assert "--budget: expected a whole number from 1" in capsys.readouterr().err


def test_scan_digits_takes_the_options_of_a_scan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["--optimizer", "momentum", "--horizon", 20, "--batch-size", 128, "--seeds", 2]
    assert run("scan", "digits", *words, "--budget", 60, "--no-edges", "--out", out) == 0
    found = tb.load(out / "scan.zarr")
    assert found.settings["horizon"] == 20
    assert found.settings["batch_size"] == 128
    assert found.runs["seed"].values.tolist() == [0]  # a full batch has one order
    assert found.cost["gradients"] <= 60
    assert "momentum" in found.settings["optimizer"].lower()
    assert "ηλ₀" not in capsys.readouterr().out  # of momentum, 2 is not the edge


@pytest.mark.parametrize(
    ("ratios", "says"),
    [
        ([0.05, 0.2], "η = 5, at which every seed's loss fell below a tenth of its start"),
        ([0.05, 0.05], "η = 10 (the largest tried), at which every seed's loss fell"),
        ([0.2, 0.2], "at no rate did every seed's loss fall below a tenth of its start"),
    ],
)
def test_the_verdict_claims_no_more_than_the_share(ratios: list[float], says: str) -> None:
    """A loss may end below its start without ending below a tenth of it."""
    runs = xr.Dataset(
        {
            "top_eigenvalue_init": ("seed", [0.2]),
            "phase": (("lr", "seed"), [["lazy"], ["lazy"]]),
            "final_ratio": (("lr", "seed"), [[r] for r in ratios]),
            "learning_rate": (("lr", "seed"), [[5.0], [10.0]]),
        },
        coords={"lr": [1.0, 2.0], "seed": [0]},
    )
    lines = sweep_digits.verdict(runs)
    assert says in lines[-1]
    assert "trained" not in lines[-1]


def test_an_unknown_data_set_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["scan", "imagenet"])
    assert end.value.code == 2
    assert "digits" in capsys.readouterr().err


def test_a_stream_without_greek_letters_still_gets_the_numbers(tmp_path: Path) -> None:
    (tmp_path / "ascii_net.py").write_text(
        "from torch import nn\n\ndef make():\n    return nn.Linear(3, 1)\n"
    )
    np.savez(tmp_path / "data.npz", x=np.eye(3), y=np.ones(3))
    words = ["curvature", "--model", "ascii_net:make", "--data", "data.npz", "--loss", "half_mse"]
    done = subprocess.run(
        [sys.executable, "-m", "trebuchet", *words], cwd=tmp_path, capture_output=True, check=False,
        env=os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # J = (x, 1): JJᵀ/3 = (I + 11ᵀ)/3, whose top is 4/3.
    assert b"? = 1.33333" in done.stdout
    assert b"critical rate 1.5" in done.stdout


def test_the_version_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"trebuchet {version('trebuchet')}, torch 2")
