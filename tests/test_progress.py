"""The progress bar: silent for two seconds; in a log, a line now and then."""

import io
import math
import sys
from itertools import pairwise
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import trebuchet as tb
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


def notebook(monkeypatch: pytest.MonkeyPatch, shell: str = "ZMQInteractiveShell") -> None:
    """Pretend that the code runs in an IPython shell of that kind."""
    module, made = ModuleType("IPython"), type(shell, (), {})()
    vars(module)["get_ipython"] = lambda: made
    monkeypatch.setitem(sys.modules, "IPython", module)


def shown_after(
    seconds: float,
    stream: io.StringIO,
    clock: list[float],
    monkeypatch: pytest.MonkeyPatch,
    shown: bool | None = None,
) -> str:
    """What is there of a bar after so many seconds of work."""
    clock[0] = 0.0
    monkeypatch.setattr("sys.stderr", stream)
    bar = _progress.progress_bar("sweep", shown=shown)
    for share in (0.2, 0.6, 1.0):
        clock[0] = share * seconds
        bar(int(100 * share), 200)
    found = stream.getvalue()
    _progress.close(bar)
    return found


@pytest.mark.parametrize("shown", [None, True])
def test_a_bar_is_shown_on_a_terminal(
    shown: bool | None, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert "sweep" in shown_after(5, Terminal(), clock, monkeypatch, shown)


def test_nothing_is_shown_where_nobody_watches(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert shown_after(500, io.StringIO(), clock, monkeypatch) == ""
    assert "sweep: " in shown_after(500, io.StringIO(), clock, monkeypatch, shown=True)
    assert shown_after(500, Terminal(), clock, monkeypatch, shown=False) == ""
    monkeypatch.setenv("RANK", "1")  # the second of several processes that do the same
    assert shown_after(500, Terminal(), clock, monkeypatch) == ""


def test_a_bar_is_shown_in_a_notebook(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    notebook(monkeypatch)
    assert shown_after(1.9, io.StringIO(), clock, monkeypatch) == ""
    stream = io.StringIO()
    found = shown_after(60, stream, clock, monkeypatch)
    assert "\n" not in found
    assert "\x1b" not in found  # a notebook need not know them
    lines = found.split("\r")[1:]
    assert [line.split()[0] for line in lines] == ["sweep", "sweep", "sweep"]
    assert "50 %" in lines[-1]
    assert "1:00 gone" in lines[-1]
    assert stream.getvalue().removeprefix(found).strip() == ""  # written over at the end


def test_no_bar_in_ipython_when_its_output_goes_to_a_file(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    notebook(monkeypatch, "TerminalInteractiveShell")
    assert shown_after(60, io.StringIO(), clock, monkeypatch) == ""


def test_a_bar_that_cannot_be_drawn_does_not_end_the_work(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(Terminal):
        def write(self, text: str) -> int:
            raise RuntimeError("no such widget")

    monkeypatch.setenv("TERM", "xterm")
    assert shown_after(60, Broken(), clock, monkeypatch) == ""
    notebook(monkeypatch)
    assert shown_after(60, Broken(), clock, monkeypatch) == ""


class Slow:
    """A loss of which every gradient takes so many seconds, and a forward pass a third of them."""

    def __init__(self, clock: list[float], seconds: float = 1.0) -> None:
        self.clock, self.seconds, self.gradients, self.last = clock, seconds, 0, -1

    def __call__(self, z: Tensor, y: Tensor) -> Tensor:
        self.clock[0] += self.seconds if torch.is_grad_enabled() else self.seconds / 3
        self.gradients += torch.is_grad_enabled()
        if self.gradients == self.last:
            raise KeyboardInterrupt
        return nn.functional.mse_loss(z, y)


def scanned(loss: Slow, **settings: Any) -> tb.Scan:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
    x = torch.randn(64, 3)
    given = {"horizon": 40, "curvature": "none", **settings}
    return tb.scan(net, loss, (x, torch.sin(2 * x[:, :1])), **given)


@pytest.mark.parametrize(
    "settings", [{}, {"batch_size": 16}, {"batch_size": 1}, {"batch_size": 16, "edge_rtol": 0.2}]
)
def test_a_scan_says_in_a_log_what_it_will_cost(
    settings: dict[str, Any], clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    result = scanned(Slow(clock, 0.2), progress=True, **settings)
    first, *lines = stream.getvalue().splitlines()
    cost, _, time = first.removeprefix("scan: ").rpartition(", about ")
    size = settings.get("batch_size", 64)
    of = f"of {size} sample{'s' * (size > 1)}"
    words = cost.split()
    if "edge_rtol" in settings:  # bisected as far as it takes
        assert cost.startswith("about ")
        assert 0.4 < int(words[1]) / result.cost["gradients"] < 2.5
    else:
        assert cost == f"at most 160 gradients {of}"
    minutes, seconds = map(int, time.split(":"))
    assert 0.5 < (60 * minutes + seconds) / clock[0] < 2
    assert all("of about" in line and "gradients" not in line for line in lines)


def test_a_slow_scan_says_what_it_will_cost_before_it_knows_the_seconds(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    scanned(Slow(clock, 3.0), progress=True)
    first, second = stream.getvalue().splitlines()[:2]
    assert first.startswith("scan: at most 160 gradients of 64 samples, ")
    assert "of about" in second


def test_a_scan_of_a_few_seconds_says_nothing_in_a_log(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    scanned(Slow(clock, 0.02), progress=True)
    assert stream.getvalue() == ""


def test_a_scan_shows_its_cost_beside_the_bar(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    notebook(monkeypatch)
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    scanned(Slow(clock), batch_size=16)
    lines = [line for line in stream.getvalue().split("\r") if line.strip()]
    assert all(line.startswith("scan, at most 160 gradients of 16 samples ") for line in lines)
    assert "of about" not in lines[0]  # at once; the seconds after the first few gradients
    assert "of about" in lines[-1]
    stream.truncate(0)
    scanned(Slow(clock), batch_size=16, progress=False)
    assert stream.getvalue().strip("\0") == ""


@pytest.mark.parametrize("gradient", [3, 20, 90])
def test_ctrl_c_leaves_a_terminal_as_it_was(
    gradient: int, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    before = sys.stdout
    loss = Slow(clock)
    loss.last = gradient
    assert scanned(loss).settings["interrupted"]
    text = stream.getvalue()
    assert "at most 160 gradients" in text
    assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l") >= 0  # the cursor is back
    assert sys.stdout is before
    assert sys.stderr is stream


def test_an_error_takes_the_bar_of_a_sweep_away(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(_progress, "PATIENCE", -1.0)
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)

    class Broken(Slow):
        def __call__(self, z: Tensor, y: Tensor) -> Tensor:
            if self.gradients > 50:
                raise ZeroDivisionError
            return super().__call__(z, y)

    torch.manual_seed(0)
    net, x = nn.Linear(3, 1), torch.randn(16, 3)
    with pytest.raises(ZeroDivisionError):
        tb.sweep(net, Broken(clock), (x, x[:, :1]), lr=[0.01], steps=200, batch_size=4)
    text = stream.getvalue()
    assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l") >= 0
    assert sys.stderr is stream


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
