"""The paper command: what it writes, and what it refuses with nothing written."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from trebuchet.cli import main
from trebuchet.cli.paper import parse_figures
from trebuchet.errors import InputError
from trebuchet.results.store import load


def run(*arguments: object) -> int:
    """Exit code of the command."""
    try:
        main([str(a) for a in arguments])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_a_figure_is_three_files_that_tell_the_same_story(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("paper", 10, "--out", tmp_path) == 0
    told_first = capsys.readouterr().out
    assert "λ₀ = 15.4684" in told_first
    assert "phases by ηλ₀: ● lazy 0.1–" in told_first
    assert ", ▲ catapult " in told_first
    assert (tmp_path / "fig10.png").stat().st_size > 20_000
    told = json.loads((tmp_path / "fig10.json").read_text())
    runs = load(tmp_path / "fig10.zarr")
    assert told["figure"] == 10
    assert told["seed"] == 123
    assert told["dtype"] == "float32"
    assert told["steps"] == 100
    assert told["edges"]["critical"] == pytest.approx(2.0, rel=1e-12)
    assert told["lambda0"] == pytest.approx(runs.top_eigenvalue_init.item(), rel=1e-12)
    assert [r["ratio"] for r in told["runs"]] == pytest.approx(np.arange(1, 46) / 10)
    one = next(r for r in told["runs"] if r["ratio"] == 3.0)
    data = runs.sel(lr=3.0).isel(seed=0)
    assert one["phase"] == data.phase.item() == "catapult"
    assert one["steps"] == data.steps.item() <= 100
    assert len(one["loss"]) == len(one["ratio_t"]) == len(one["weight_norm"]) == 40
    assert one["loss"][0] == one["loss_first"] == data.loss_first.item()
    assert one["ratio_t"][0] == pytest.approx(3.0, rel=1e-5)
    assert one["weight_norm_first"] == pytest.approx(
        data.weight_norm_first.item() / runs.attrs["n_parameters"]
    )
    assert one["sparsity"] == [data.sparsity_final.item()]
    assert next(r for r in told["runs"] if r["ratio"] == 4.5)["phase"] == "collapsed"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fig10.json", "fig10.png", "fig10.zarr"]


def test_infinities_are_strings(tmp_path: Path) -> None:
    assert run("paper", 2, "--quick", "--out", tmp_path) == 0
    text = (tmp_path / "fig2.json").read_text()
    told = json.loads(text, parse_constant=lambda name: pytest.fail(f"bare {name} in the JSON"))
    assert told["quick"] is True
    divergent = next(r for r in told["runs"] if r["phase"] == "divergent")
    assert divergent["loss"][-1] == "nan"  # the run had ended
    assert told["runs"][0]["sparsity"] is None


def test_seeds_are_counted_up_from_the_paper_s(tmp_path: Path) -> None:
    assert run("paper", 9, "--quick", "--seeds", 3, "--out", tmp_path) == 0
    runs = load(tmp_path / "fig9.zarr")
    assert runs.seed.values.tolist() == [120, 121, 122]
    assert np.unique(runs.top_eigenvalue_init.values).size == 3
    assert "test_loss_final" in runs


def test_an_existing_result_is_kept_unless_told_otherwise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    existing = tmp_path / "fig6.json"
    existing.write_text("{}")
    assert run("paper", 10, 6, "--out", tmp_path) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["fig6.json"]  # nothing of figure 10 either
    assert existing.read_text() == "{}"
    assert run("paper", 6, "--quick", "--out", tmp_path, "--overwrite") == 0
    assert json.loads(existing.read_text())["figure"] == 6


def test_resume_keeps_what_is_whole_and_does_the_rest(tmp_path: Path) -> None:
    whole = tmp_path / "fig6.json"
    whole.write_text("{}")
    (tmp_path / "fig10.png").write_text("half of a figure")
    assert run("paper", 6, 10, "--quick", "--out", tmp_path, "--resume") == 0
    assert whole.read_text() == "{}"
    assert json.loads((tmp_path / "fig10.json").read_text())["figure"] == 10


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["17"], "figures 1 to 16"),
        (["0"], "figures 1 to 16"),
        (["two"], "a range such as 12-16"),
        (["6", "--dtype", "float16"], "float32 or float64"),
        (["6", "--seeds", "0"], "seeds"),
    ],
)
def test_what_is_not_understood_is_said_in_a_sentence(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run("paper", *words, "--out", out) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert not list(tmp_path.rglob("*.json"))


def test_images_that_are_nowhere_name_both_ways(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("paper", 3, "--data-root", tmp_path, "--out", tmp_path / "o") == 2
    error = capsys.readouterr().err
    assert "mnist01.npz" in error
    assert not list((tmp_path / "o").glob("fig*"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert run("paper", 6, "--out", tmp_path / "o") == 2


def test_a_file_in_place_of_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("mine")
    assert run("paper", 6, "--out", blocked) == 2
    assert "cannot make the folder" in capsys.readouterr().err
    assert blocked.read_text() == "mine"


def test_ranges_and_all() -> None:
    assert parse_figures(["12-14", "3", "13"]) == [12, 13, 14, 3]
    assert parse_figures(["all"]) == list(range(1, 17))
    with pytest.raises(InputError):
        parse_figures(["5-4"])
