"""The progress bar: silent for two seconds; in a log, a line now and then."""

import io
import math
from itertools import pairwise

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
    monkeypatch.setattr(_progress.Log, "last", -math.inf)
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


def lines_at(
    clock: list[float],
    monkeypatch: pytest.MonkeyPatch,
    length: float,
    bars: int = 1,
    every: float = 0.5,
) -> tuple[list[float], io.StringIO]:
    """Times of the lines in a log of so many seconds, with so many bars one after the other."""
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    times, seen, step = [], 0, 0
    ticks = int(length / every)
    for part in range(bars):
        bar = _progress.progress_bar(f"part {part}")
        for tick in range(1, ticks + 1):
            step += 1
            clock[0] = every * step
            bar(tick, ticks)
            if len(stream.getvalue().splitlines()) > seen:
                seen += 1
                times.append(clock[0])
    return times, stream


@pytest.mark.parametrize("length", [5.0, 9.9, 60.0, 1200.0, 36_000.0])
@pytest.mark.parametrize("every", [0.5, 7.0])
def test_a_log_has_a_line_now_and_then(
    length: float, every: float, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    times, stream = lines_at(clock, monkeypatch, length, every=every)
    if length < 10:
        assert times == []
        return
    assert 10 <= times[0] <= 10 + every
    gaps = [b - a for a, b in pairwise(times)]
    assert all(gap >= 30 for gap in gaps)
    assert all(gap <= 600 + every for gap in gaps)
    assert all(sum(t <= u < t + 60 for u in times) <= 2 for t in times)
    assert len(times) <= 100  # a night is not a book
    text = stream.getvalue()
    assert "\x1b" not in text
    assert text.startswith("part 0: ")
    if length == 1200:
        first, later = text.splitlines()[0], text.splitlines()[-1]
        assert first.startswith("part 0: 1 %, 0:1")
        assert "gone, " in later
        assert "to go at most" in later


def test_many_short_pieces_of_work_share_two_lines_a_minute(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    times, stream = lines_at(clock, monkeypatch, 11.0, bars=40)
    assert all(sum(t <= u < t + 60 for u in times) <= 2 for t in times)
    assert len(times) > 5
    assert "part 0" in stream.getvalue()


def test_a_log_that_is_closed_does_not_end_the_work(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    bar = _progress.progress_bar("sweep")
    stream.close()
    for second in (20, 60, 600):
        clock[0] = second
        bar(1, 3)
    monkeypatch.setattr("sys.stderr", None)  # as in a program without a console
    bar(2, 3)


def test_curvature_says_where_it_is_in_a_log(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    from trebuchet.curvature import progress_line

    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    with progress_line() as on_step:
        for second in range(1, 100):
            clock[0] = float(second)
            on_step(second, 1.5, 0.01, 1e-3)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3  # at 10, 40 and 70 seconds
    assert lines[0].startswith("curvature: 10 products, λ = 1.5")
