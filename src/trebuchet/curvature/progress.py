"""One line that says how far a measurement has come."""

import contextlib
from collections.abc import Iterator

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from trebuchet._checks import instance
from trebuchet._doors import door, maybe
from trebuchet._progress import Log, clock
from trebuchet.curvature.lanczos import Step


@door(console=maybe(instance, Console, "a rich.console.Console, or None"))
@contextlib.contextmanager
def progress_line(console: Console | None = None) -> Iterator[Step]:
    """Show products, value, residual and the chance of a miss while a measurement runs.

    In a log, which is no terminal, a plain line is written to standard error now and then.

    Args:
        console: Where to; by default standard error.

    Yields:
        What to pass as ``on_step``.

    Raises:
        InputError: If it is no console.

    Example:
        >>> import io
        >>> quiet = Console(file=io.StringIO())
        >>> with progress_line(quiet) as on_step:
        ...     on_step(3, 1.5, 0.01, 1e-3)
    """
    console = console or Console(stderr=True)
    if not console.is_terminal:
        log = Log("curvature")

        def on_log(products: int, value: float, residual: float, missed: float) -> None:
            log.say(
                lambda gone: (
                    f"{products} products, λ = {value:.5g} ± {residual:.1e}, chance of a larger "
                    f"one {missed:.0e}, {clock(gone)} gone"
                )
            )

        yield on_log
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("first pass", total=None)

        def on_step(products: int, value: float, residual: float, missed: float) -> None:
            text = f"{products} products   λ = {value:.5g} ± {residual:.1e}"
            progress.update(task, description=f"{text}   chance of a larger one {missed:.0e}")

        yield on_step
