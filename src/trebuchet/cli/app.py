"""The commands, put together; each is a thin layer over one call."""

import importlib
import io
import re
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated, Any, NoReturn

import typer
from rich.text import Text

from trebuchet.cli.ending import INTERRUPTED, Ending, in_order
from trebuchet.cli.options import InterruptedCommandError, did_you_mean
from trebuchet.cli.output import console
from trebuchet.errors import InputError, TrebuchetError

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
    "sweep": "trebuchet.cli.sweep",
    "paper": "trebuchet.cli.paper",
    "beyond": "trebuchet.cli.beyond",
    "curvature": "trebuchet.cli.curvature",
    "show": "trebuchet.cli.show",
    "report": "trebuchet.cli.report",
}

ClickException: type[Exception] = next(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"
)  # typer brings its own copy of click, or none, by version


def build(wanted: str | None = None) -> typer.Typer:
    """The application, with all of its commands or only the one that is wanted."""
    app = typer.Typer(
        help=HELP,
        rich_markup_mode="rich",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.callback()(_root)  # a group, even of one command
    for name, module in COMMANDS.items():
        if wanted not in COMMANDS or name == wanted:
            app.command(name)(getattr(importlib.import_module(module), name))
    return app


def _version(asked: bool) -> None:
    if asked:
        named = ", ".join(f"{name} {version(name)}" for name in ("trebuchet", "torch", "numpy"))
        console().print(named)
        raise typer.Exit


def _root(
    asked: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Say which version."),
    ] = False,
) -> None:
    del asked


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; a mistake of the user's ends in one sentence and exit code 2.

    Ctrl-C ends it in order, with exit code 130, and so does SIGTERM, which a scheduler sends before
    it kills, with 143.

    Args:
        arguments: The words after ``trebuchet``; those of this process unless given.

    Raises:
        SystemExit: Always.
    """
    own_process = arguments is None
    arguments = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    for stream in (sys.stdout, sys.stderr) if own_process else ():
        # A pipe or a log that takes no η gets "?" there, rather than the numbers lost.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    with in_order(own_process=own_process) as ending:
        try:
            code = _run(arguments)
        except InterruptedCommandError as error:
            _interrupted(ending, str(error))
        except (KeyboardInterrupt, typer.Abort):
            _interrupted(ending)
        except Exception as error:
            # After Ctrl-C it is Ctrl-C's doing, unless results were to be written even so.
            if ending.code is not None and not isinstance(error.__cause__, OSError):
                _interrupted(ending)
            _explain(error, arguments)
        if code == INTERRUPTED:  # while options were read, where typer says nothing
            _interrupted(ending)
    raise SystemExit(code if isinstance(code, int) else 0)


def _run(arguments: list[str]) -> object:
    wanted = arguments[0]
    if wanted not in COMMANDS and not wanted.startswith("-"):
        near = did_you_mean(wanted, COMMANDS) or f"; there are {', '.join(COMMANDS)}"
        msg = f"no such command {wanted!r}{near}"
        raise InputError(msg)
    app = build(wanted)
    return app(args=arguments, prog_name="trebuchet", standalone_mode=False)


def _explain(error: Exception, arguments: Sequence[str]) -> NoReturn:
    """End with a sentence, or, where the error is a mistake of trebuchet's, with its traceback."""
    if isinstance(error, TrebuchetError):
        _fail(str(error))
    if isinstance(error, ClickException):
        _fail(_sentence(error, arguments))
    if isinstance(error, MemoryError):
        _fail("out of memory; give fewer samples, or --micro-batch")
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror or error}")
    raise error


def _sentence(error: Any, arguments: Sequence[str]) -> str:
    """What was wrong with the words of a command, on one line, the option first."""
    text = error.message if getattr(error, "message", "") else error.format_message()
    parameter = getattr(error, "param", None)
    option = parameter.opts[0] if parameter is not None and parameter.opts else ""
    if not option.startswith("-") and parameter is not None:
        option = parameter.name
    wrong = getattr(error, "option_name", None)
    if wrong and "requires" not in text:
        near = did_you_mean(wrong, getattr(error, "possibilities", None) or ())
        text = f"{wrong}: no such option{near}"
    elif type(error).__name__ == "MissingParameter":
        text = f"{option}: is needed"
    elif option and not text.startswith(f"{option}: "):
        text = f"{option}: {text}"
    text = re.sub(r"\.$", "", text.strip())
    return f"{text}; see trebuchet {arguments[0]} --help" if arguments[0] in COMMANDS else text


def _interrupted(ending: Ending, said: str = "interrupted") -> NoReturn:
    console(stderr=True).print(said, soft_wrap=True)
    raise SystemExit(ending.code or INTERRUPTED) from None


def _fail(message: str) -> NoReturn:
    """One line, whatever is in it: no markup, no line breaks, no bytes that are no text."""
    line = " ".join(message.splitlines()).encode("utf-8", "backslashreplace").decode()
    said = Text.assemble(("error:", "bold red"), " ", line)
    console(stderr=True).print(said, soft_wrap=True)
    raise SystemExit(2) from None
