"""How far long work has come: a bar on a terminal, a plain line now and then in a log."""

import sys
import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress as RichProgress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Progress = Callable[[int, int], None]
"""Called with (work done, work in all)."""

PATIENCE = 2.0
"""Seconds of silence before a bar appears: what is over by then needs none."""
FIRST = 10.0
"""Seconds before the first line in a log."""
APART = 30.0
"""Seconds between two lines of this process, at least: at most two a minute."""
FARTHEST = 600.0
"""Seconds between two lines, at most, as long as there is progress to report."""


class Log:
    """Lines on standard error, well apart, of all the work in this process together.

    They thin out as the work goes on, to one every tenth of the time that it has taken.
    """

    last = -float("inf")
    """When the last line was written, by anyone."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._started = time.monotonic()
        self._next = self._started + FIRST

    def say(self, text: Callable[[float], str]) -> None:
        """Write a line, if one is due.

        Args:
            text: Called with the seconds gone, for the line after its title.
        """
        now = time.monotonic()
        if now < self._next or now < Log.last + APART:
            return
        gone = now - self._started
        Log.last, self._next = now, now + min(max(APART, 0.1 * gone), FARTHEST)
        try:
            print(f"{self._title}: {text(gone)}", file=sys.stderr, flush=True)
        except (OSError, ValueError):  # nobody listens any more; the work is worth going on with
            self._next = float("inf")


def on_terminal() -> bool:
    """Whether standard error is somewhere that a bar can be drawn."""
    try:
        return sys.stderr is not None and sys.stderr.isatty()
    except ValueError:  # it is closed
        return False


def progress_bar(title: str, *, shown: bool = True) -> Progress:
    """A function of (done, total) that draws a bar on standard error.

    In a log, which is no terminal, it writes a plain line after ten seconds, and then ever more
    seldom, never more than two a minute.

    Args:
        title: What is being done, in a word or two.
        shown: False: show nothing.

    Returns:
        The function; it closes its bar when done reaches total.
    """
    started = time.monotonic()
    bar: RichProgress | None = None
    log = Log(title)

    def update(done: int, total: int) -> None:
        nonlocal bar
        if not shown:
            return
        if bar is None and not on_terminal():
            if done < total:
                log.say(lambda gone: _line(done, total, gone))
            return
        if bar is None and done < total and time.monotonic() - started > PATIENCE:
            bar = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f} %"),
                TimeElapsedColumn(),
                TextColumn("gone,"),
                TimeRemainingColumn(compact=True),
                TextColumn("to go at most"),
                console=Console(stderr=True),
                transient=True,
            )
            bar.add_task(title, total=total)
            bar.start()
        if bar is not None:
            bar.update(bar.task_ids[0], completed=done, total=total)
            if done >= total:
                bar.stop()
                bar = None

    return update


def _line(done: int, total: int, gone: float) -> str:
    line = f"{100 * done / total:.0f} %, {clock(gone)} gone"
    return line + (f", {clock(gone * (total - done) / done)} to go at most" if done > 0 else "")


def clock(seconds: float) -> str:
    """Seconds as hours, minutes and seconds.

    Args:
        seconds: Not negative.

    Returns:
        The text.

    Example:
        >>> clock(75), clock(3661.4)
        ('1:15', '1:01:01')
    """
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
