"""The beyond command: the list, three files an experiment, going on, and what it refuses."""

import json
from pathlib import Path

import pytest

import trebuchet as tb
from tests.cli.test_paper import run
from trebuchet.paper.beyond import EXPERIMENTS


def test_without_a_name_it_lists_the_questions(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("beyond") == 0
    told = capsys.readouterr().out
    assert all(name in told for name in EXPERIMENTS)


def test_three_files_and_what_they_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("beyond", "sparsity", "--quick", "--seeds", 1, "--width", "16,8", "--out", tmp_path)
    assert run(*asked) == 0
    told = capsys.readouterr().out
    assert "Rank correlation" in told
    found = tb.load(tmp_path / "sparsity.zarr")
    assert found.width.values.tolist() == [8, 16]
    numbers = json.loads((tmp_path / "sparsity.json").read_text())
    assert numbers["attrs"]["experiment"] == "sparsity"
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["sparsity.json", "sparsity.png", "sparsity.zarr"]
    assert run(*asked) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert run(*asked, "--resume") == 0  # it is there: nothing is done again


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sparsty"], "did you mean sparsity?"),
        (["ceiling", "--depth", "2"], "--depth: the experiment 'ceiling' has no such setting"),
        (["sparsity", "--width", "64:1"], "--width: expected whole numbers"),
        (["sparsity", "--width", "²"], "--width: expected whole numbers"),
        (["sparsity", "--data", "minst"], "--data: expected"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("beyond", *words, "--out", tmp_path / "new") == 2
    assert said in capsys.readouterr().err
    left = [p for p in tmp_path.rglob("*") if p.is_file() and not p.name.startswith(".")]
    assert not left
