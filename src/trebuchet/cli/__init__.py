"""The command line: parse, call, print."""

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command, and exit; Ctrl-C counts from the first import on.

    Args:
        arguments: The words after ``trebuchet``; those of this process unless given.

    Raises:
        SystemExit: Always: 0, 1 where a number did not converge, 2 for a mistake, 130 for Ctrl-C.
    """
    try:
        from trebuchet.cli import app
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    app.main(arguments)


__all__ = ["main"]
