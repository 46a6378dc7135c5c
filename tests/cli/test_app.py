"""The command line as a whole."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trebuchet.cli import digits, main
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


def test_an_unknown_data_set_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["scan", "imagenet"])
    assert end.value.code == 2
    assert "digits" in capsys.readouterr().err
