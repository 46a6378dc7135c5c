"""`trebuchet scan`."""

from pathlib import Path
from typing import Annotated

import typer

from trebuchet.cli.digits import run_digits
from trebuchet.errors import InputError


def scan(
    dataset: Annotated[str, typer.Argument(help="'digits': the paper's net on embedded digits.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the picture and the data.", show_default=False)
    ] = None,
    seeds: Annotated[int, typer.Option(help="How many seeds.")] = 3,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace results that exist.")
    ] = False,
) -> None:
    """Find which learning rates are lazy, catapult or divergent."""
    if dataset != "digits":
        msg = f"dataset: expected 'digits', got {dataset!r}"
        raise InputError(msg)
    run_digits(out, seeds=seeds, overwrite=overwrite)
