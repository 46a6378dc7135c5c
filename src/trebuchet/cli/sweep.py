"""`trebuchet sweep`: many runs at once, over learning rates and seeds."""

from pathlib import Path
from typing import Annotated

import typer

from trebuchet.cli.options import (
    LARGEST_GRID,
    RATES,
    Overwrite,
    command,
    did_you_mean,
    quoted,
    whole,
)
from trebuchet.errors import InputError

WHAT = ("digits",)
"""What can be swept by name."""


@command
def sweep(
    what: Annotated[
        str,
        typer.Argument(
            help="'digits': the paper's net on embedded digits, nothing else needed.",
            show_default=False,
        ),
    ],
    rates: Annotated[
        str | None,
        typer.Option(
            parser=RATES,
            metavar="RATES",
            help="Learning rates ηλ₀, as start:stop:step or 0.5,1,2; 0.5:14:0.5 unless given.",
            show_default=False,
        ),
    ] = None,
    seeds: Annotated[
        int,
        typer.Option(
            parser=whole("--seeds", most=LARGEST_GRID),
            metavar="N",
            help="How many initialisations.",
        ),
    ] = 3,
    steps: Annotated[
        int | None,
        typer.Option(
            parser=whole("--steps"),
            metavar="N",
            help="Most steps of a run; one whose loss changes by less than 1e-8 stops there.",
            show_default="1000",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the picture and the data; trebuchet-sweep-digits unless given.",
            show_default=False,
        ),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Train at every learning rate from every seed, to the end, and show what became of each.

    'digits' is the paper's experiment: a two-layer ReLU net on digits 0 and 1,
    full-batch gradient descent, rates as ηλ₀, ηλ followed in every run.

    Try it:  trebuchet sweep digits
    """  # noqa: DOC501 - this text is what --help shows
    if what not in WHAT:
        msg = (
            f"what: expected 'digits', got {quoted(what)}{did_you_mean(what, WHAT)}; a model of "
            "your own is swept by trebuchet.sweep, in Python"
        )
        raise InputError(msg)
    from trebuchet.cli.sweep_digits import sweep_digits

    sweep_digits(out, rates=rates, seeds=seeds, steps=steps, overwrite=overwrite)
