"""The commands, put together; each is a thin layer over one call."""

import importlib
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Event, current_thread, main_thread
from types import FrameType

import typer

from trebuchet.cli.output import console
from trebuchet.errors import TrebuchetError

HELP = """
Learning-rate phases of neural networks.

Train a network at a constant learning rate η, and one of three things
happens. Which one is decided by ηλ, with λ the top eigenvalue of its neural
tangent kernel, λ₀ at the start:

[bold cyan]lazy[/]       ηλ₀ < 2     the loss falls from the first step; the network
                       hardly leaves its linear approximation

[bold yellow]catapult[/]   ηλ₀ > 2     the loss first explodes, then falls to a flatter
                       minimum, where ηλ < 2 again

[bold red]divergent[/]  far above   past a second edge it never comes back

Start with:  [bold]trebuchet scan digits[/]
"""

# One module a command: only the one that is asked for is imported.
COMMANDS = {
    "scan": "trebuchet.cli.scan",
    "paper": "trebuchet.cli.paper",
    "curvature": "trebuchet.cli.curvature",
}


def build(wanted: str | None = None) -> typer.Typer:
    """The application, with all of its commands or only the one that is wanted."""
    app = typer.Typer(
        help=HELP,
        rich_markup_mode="rich",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.callback()(lambda: None)  # a group, even of one command
    for name, module in COMMANDS.items():
        if wanted not in COMMANDS or name == wanted:
            app.command(name)(getattr(importlib.import_module(module), name))
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; a mistake of the user's ends in one sentence and exit code 2.

    Ctrl-C ends it in order, with exit code 130, and so does SIGTERM, which a scheduler sends before
    it kills, with 143.

    Args:
        arguments: The words of the command line; this process's own unless given.

    Raises:
        SystemExit: With the exit code.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    with _terminated_in_order() as terminated:
        try:
            build(arguments[0] if arguments else None)(args=arguments, prog_name="trebuchet")
        except TrebuchetError as error:
            screen = console(stderr=True)
            screen.print(f"[bold red]error:[/] {error}", highlight=False, soft_wrap=True)
            raise SystemExit(2) from None
        except KeyboardInterrupt:
            console(stderr=True).print("interrupted")
            raise SystemExit(143 if terminated.is_set() else 130) from None
        except SystemExit as end:
            if end.code == 130 and terminated.is_set():
                raise SystemExit(143) from None
            raise


@contextmanager
def _terminated_in_order() -> Iterator[Event]:
    """Have SIGTERM do what Ctrl-C does, where nobody else has a say in it; the event tells."""
    terminated = Event()

    def interrupt(number: int, frame: FrameType | None) -> None:
        terminated.set()
        raise KeyboardInterrupt

    ours = current_thread() is main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, interrupt)
    try:
        yield terminated
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
