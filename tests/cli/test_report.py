"""The report command: one page of saved results, and what it refuses with nothing written."""

from pathlib import Path

import pytest

import trebuchet as tb
from trebuchet.cli import main

from ..specimens import runs, saved, top


def run(*arguments: object) -> int:
    """Exit code of the command."""
    try:
        main([str(a) for a in arguments])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_saved_results_of_every_kind_go_on_one_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = tb.save(runs(), tmp_path / "<b>runs&.zarr")
    curvature = tb.save(top(), tmp_path / "top.zarr")
    page = tmp_path / "page.html"
    assert run("report", odd, saved("scan"), curvature, "--out", page, "--title", "For <Ada>") == 0
    assert "wrote" in capsys.readouterr().out
    source = page.read_text()
    assert "<title>For &lt;Ada&gt;</title>" in source
    assert "<dd>&lt;b&gt;runs&amp;.zarr</dd>" in source
    assert source.count('<section id="result-') == 3
    assert len(source.encode()) < 5_000_000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing.zarr", "--out", "page.html"], "paths: expected a result saved by trebuchet"),
        (["--out", "page.html"], "paths: is needed"),
        ([".", "--out", "page.html"], "paths: expected a result saved by trebuchet"),
        (["x.zarr", "--out", "missing/page.html"], "--out: cannot write"),
        (["x.zarr", "--out", "."], "--out: . is a folder"),
    ],
    ids=["nothing there", "no path", "another folder", "no folder for it", "a folder"],
)
def test_a_mistake_is_one_sentence_and_nothing_is_written(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("report", *arguments) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_page_that_is_there_stays_unless_it_may_go(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("mine")
    assert run("report", saved("runs"), "--out", page) == 2
    assert page.read_text() == "mine"
    assert run("report", saved("runs"), "--out", page, "--overwrite") == 0
    assert page.read_text().startswith("<!doctype html>")
