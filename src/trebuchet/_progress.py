"""A progress bar for work that takes longer than two seconds."""

import sys
import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

Progress = Callable[[int, int], None]
"""Called with (work done, work in all)."""

PATIENCE = 2.0
"""Seconds of silence before a bar appears: what is over by then needs none."""


def progress_bar(title: str, *, shown: bool = True) -> Progress:
    """A function of (done, total) that draws a bar on standard error, on a terminal only.

    Args:
        title: What is being done, in a word or two.
        shown: False: draw nothing.

    Returns:
        The function; it closes its bar when done reaches total.
    """
    started = time.monotonic()
    bar: RichProgress | None = None

    def update(done: int, total: int) -> None:
        nonlocal bar
        if not shown or not sys.stderr.isatty():
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
