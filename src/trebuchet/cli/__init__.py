"""The command line: parse, call, print."""

from trebuchet.cli.app import main

__all__ = ["main"]
