"""The progress bar: silent for two seconds, silent without a terminal."""

import io

import pytest

from trebuchet import _progress


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr("trebuchet._progress.time.monotonic", lambda: now[0])
    return now


def drawn(stream: io.StringIO, clock: list[float], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("sys.stderr", stream)
    bar = _progress.progress_bar("sweep")
    for second in (0.5, 1.9, 2.5, 3.0):
        clock[0] = second
        bar(int(10 * second), 40)
        if second < 2:
            assert stream.getvalue() == ""
    bar(40, 40)
    return stream.getvalue()


def test_a_bar_appears_after_two_seconds(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert "sweep" in drawn(Terminal(), clock, monkeypatch)


def test_no_bar_without_a_terminal(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    assert drawn(io.StringIO(), clock, monkeypatch) == ""


def test_no_bar_when_not_wanted(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    bar = _progress.progress_bar("sweep", shown=False)
    clock[0] = 5
    bar(1, 2)
    assert stream.getvalue() == ""
