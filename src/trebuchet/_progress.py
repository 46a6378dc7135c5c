"""How far long work has come: a bar where someone watches, a plain line now and then in a log."""

import contextlib
import multiprocessing
import os
import sys
import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress as RichProgress,
    ProgressColumn,
    Task,
    TextColumn,
)
from rich.table import Column
from rich.text import Text

Progress = Callable[[int, int], None]
"""Called with (work done, work in all)."""

PATIENCE = 2.0
"""Seconds of silence before a bar appears: what is over by then needs none."""
REDRAWN = 0.25
"""Seconds between two states of a bar in a notebook: each of them is a message."""
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

    def say(self, text: Callable[[float], str], *, early: bool = False) -> bool:
        """Write a line, if one is due.

        Args:
            text: Called with the seconds gone, for the line after its title.
            early: Not to wait for the first ten seconds.

        Returns:
            Whether it was.
        """
        now = time.monotonic()
        if not (early or now >= self._next) or now < Log.last + APART:
            return False
        gone = now - self._started
        Log.last, self._next = now, now + min(max(APART, 0.1 * gone), FARTHEST)
        try:
            print(f"{self._title}: {text(gone)}", file=sys.stderr, flush=True)
        except (OSError, ValueError):  # nobody listens any more; the work is worth going on with
            self._next = float("inf")
        return True


def in_notebook() -> bool:
    """Whether the code runs in a Jupyter notebook, or what speaks its language."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return any(kind.__name__ == "ZMQInteractiveShell" for kind in type(shell).__mro__)


def on_terminal() -> bool:
    """Whether standard error is somewhere that a bar can be drawn."""
    try:
        return sys.stderr is not None and sys.stderr.isatty()
    except ValueError:  # it is closed
        return False


def watched() -> bool:
    """Whether someone watches: on a terminal or in a notebook.

    Of many processes that do the same only the first is watched: its bar is enough.

    Returns:
        False too in a child process, and in every rank but the first.
    """
    if multiprocessing.parent_process() is not None or os.environ.get("RANK", "0") != "0":
        return False
    return in_notebook() or on_terminal()


def progress_bar(title: str, *, shown: bool | Progress | None = True) -> Progress:
    """What to call with (done, total): this decides what ``progress=`` means at every door.

    Args:
        title: What is being done, in a word or two.
        shown: None: a bar after two seconds where someone watches (`watched`), else nothing.
            True: in a log, which is no terminal, also a plain line after ten seconds, and then
            ever more seldom, never more than two a minute. False: nothing. A function is called
            itself.

    Returns:
        A `Bar`, to be ended by `close`; or the function.
    """
    if callable(shown):
        return shown
    return Bar(title, shown=watched() if shown is None else shown)


def close(progress: Progress) -> None:
    """Take a bar away, whatever ended the work; nothing happens to a function of the user's."""
    if isinstance(progress, Bar):
        progress.close()


class Bar:
    """A function of (done, total) that shows them; it goes when done reaches total.

    Drawing never ends the work: where it fails, nothing more is shown.

    Args:
        title: What is being done.
        shown: False: nothing is.

    Attributes:
        shown: Whether anything is, or will be.
        cost: What the work will cost, in words; empty where nobody knows.
        seconds: What it will take in all, about; None where nobody knows.
    """

    def __init__(self, title: str, *, shown: bool) -> None:
        self._title, self.shown = title, shown
        self._started, self._log = time.monotonic(), Log(title)
        self._first: tuple[float, int] | None = None  # when it was called first, and done then
        self._view: _Terminal | _Notebook | _Lines | None = None
        self.cost = ""
        self.seconds: float | None = None

    def __call__(self, done: int, total: int) -> None:
        """Show how far the work has come.

        Args:
            done: Work done.
            total: Work in all.
        """
        try:
            self._show(done, total)
        except Exception:  # somebody's stream or shell may raise anything
            self.shown = False
            self.close()

    def expect(self, seconds: float) -> None:
        """Say how many seconds are left, about."""
        self.seconds = time.monotonic() - self._started + seconds

    def close(self) -> None:
        """Take it away; it comes again if the work goes on."""
        if self._view is not None:
            with contextlib.suppress(Exception):
                self._view.close()
            self._view = None

    @property
    def head(self) -> str:
        """What is done, and at what cost."""
        return f"{self._title}, {self.cost}" if self.cost else self._title

    def times(self, done: int, total: int) -> str:
        """How long it has taken, and how long it will."""
        now = time.monotonic()
        gone = now - self._started
        if self.seconds is not None:
            return f"{clock(gone)} of about {clock(max(gone, self.seconds))}"
        since, before = self._first or (now, done)
        if done <= before or self.cost:  # the first gradients do not tell of the rest by themselves
            return f"{clock(gone)} gone"
        left = (now - since) * (total - done) / (done - before)
        return f"{clock(gone)} gone, {clock(left)} to go at most"

    def _show(self, done: int, total: int) -> None:
        if not self.shown:
            return
        if done >= total:
            self.close()
            return
        if self._first is None:
            self._first = time.monotonic(), done
        if self._view is None:
            self._view = self._made(total)
        if self._view is not None:
            self._view.draw(done, total)

    def _made(self, total: int) -> "_Terminal | _Notebook | _Lines | None":
        waits = time.monotonic() - self._started <= PATIENCE
        if in_notebook():
            return None if waits else _Notebook(self)
        if on_terminal():
            return None if waits else _Terminal(self, total)
        return _Lines(self, self._log)


class _Terminal:
    """A bar that is drawn anew in its place, on a terminal."""

    def __init__(self, bar: Bar, total: int) -> None:
        self._bar = bar
        self._progress = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None if bar.cost else 40),
            TextColumn("{task.percentage:>3.0f} %"),
            _Times(bar),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task(bar.head, total=total)

    def draw(self, done: int, total: int) -> None:
        self._progress.start()  # not before somebody is there to stop it, should Ctrl-C come
        head = self._bar.head
        self._progress.update(self._task, completed=done, total=total, description=head)

    def close(self) -> None:
        self._progress.stop()


class _Times(ProgressColumn):
    def __init__(self, bar: Bar) -> None:
        super().__init__(table_column=Column(no_wrap=True))  # the bar gives way to it
        self._bar = bar

    def render(self, task: Task) -> Text:
        return Text(self._bar.times(int(task.completed), int(task.total or 0)))


class _Notebook:
    """A line that is written over, by a carriage return: no widget need be installed for it."""

    def __init__(self, bar: Bar) -> None:
        self._bar, self._written, self._width = bar, -float("inf"), 0

    def draw(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now < self._written + REDRAWN:
            return
        self._written = now
        full = round(20 * done / total)
        drawn = "█" * full + "░" * (20 - full)
        said = f"{100 * done / total:.0f} %  {self._bar.times(done, total)}"
        self._write(f"{self._bar.head}  {drawn}  {said}")

    def close(self) -> None:
        self._write("")
        print("\r", end="", file=sys.stderr, flush=True)

    def _write(self, line: str) -> None:
        print(f"\r{line:<{self._width}}", end="", file=sys.stderr, flush=True)
        self._width = len(line)


class _Lines:
    """Lines in a log; the first says what the work will cost, as soon as the seconds are known."""

    def __init__(self, bar: Bar, log: Log) -> None:
        self._bar, self._log, self._said = bar, log, False

    def draw(self, done: int, total: int) -> None:
        seconds, cost = self._bar.seconds, "" if self._said else self._bar.cost
        early = bool(cost) and seconds is not None and seconds > FIRST

        def line(gone: float) -> str:
            del gone
            if early:
                return f"{cost}, about {clock(seconds or 0.0)}"
            said = f"{100 * done / total:.0f} %, {self._bar.times(done, total)}"
            return f"{cost}, {said}" if cost else said

        self._said |= self._log.say(line, early=early)

    def close(self) -> None:
        pass


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
