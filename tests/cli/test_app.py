"""The command line as a whole."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from trebuchet.cli import digits, main
from trebuchet.data.digits import load_digits01
from trebuchet.errors import InputError
from trebuchet.results.store import load


def test_help_teaches_the_three_words(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    out = capsys.readouterr().out
    for word in ("lazy", "catapult", "divergent", "scan digits"):
        assert word in out


@pytest.mark.parametrize("command", ["scan", "paper", "curvature"])
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert len(capsys.readouterr().out.splitlines()) > 10


def test_scan_digits_writes_its_folder_and_keeps_it(tmp_path: Path) -> None:
    """A short scan in a process of its own: the default folder is in the current directory."""
    here = Path.cwd()
    os.chdir(tmp_path)
    try:
        digits.run_digits(seeds=1, steps=60)
    finally:
        os.chdir(here)
    out = tmp_path / "trebuchet-scan-digits"
    assert sorted(p.name for p in out.iterdir()) == ["runs.zarr", "scan.png"]
    runs = load(out / "runs.zarr")
    assert runs.lr.values.tolist() == [0.5 * i for i in range(1, 29)]
    assert runs.attrs["n_samples"] == 128
    assert runs.attrs["n_parameters"] == 512 * 65
    lazy = runs.lr.values[(runs.phase.isel(seed=0) == "lazy").values]
    assert lazy.min() == 0.5
    assert lazy.max() <= 2.0
    # A second call refuses before it computes.
    command = [sys.executable, "-m", "trebuchet", "scan", "digits"]
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert again.returncode == 2
    assert "--overwrite" in again.stderr
    assert "Traceback" not in again.stderr


@pytest.mark.parametrize("rates", ["-1,2", "0", "nan", "", ",", "1:2", "2:1:0.5", "1:2:0", "fast"])
def test_bad_rates_are_refused_with_nothing_written(rates: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--rates"):
        digits.run_digits(tmp_path / "out", rates=rates)
    assert not (tmp_path / "out").exists()


def test_rates_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["scan", "digits", "--rates", "0.5,-2", "--out", str(tmp_path / "out")])
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


def test_an_unknown_data_set_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["scan", "imagenet"])
    assert end.value.code == 2
    assert "digits" in capsys.readouterr().err
