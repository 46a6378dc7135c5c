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
            metavar="FILE.toml|digits",
            help="A sweep that is written down; or 'digits': the paper's net on embedded "
            "digits, nothing else needed.",
            show_default=False,
        ),
    ],
    rates: Annotated[
        str | None,
        typer.Option(
            parser=RATES,
            metavar="RATES",
            help="Of digits: ηλ₀, as start:stop:step or 0.5,1,2; 0.5:14:0.5 unless given.",
            show_default=False,
        ),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            parser=whole("--seeds", most=LARGEST_GRID),
            metavar="N",
            help="Of digits: how many initialisations.",
            show_default="3",
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            parser=whole("--steps"),
            metavar="N",
            help="Of digits: most steps of a run; one whose loss changes by less than 1e-8 ends.",
            show_default="1000",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the picture and the data; trebuchet-NAME unless given.",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Of a file: go on with a sweep that was interrupted.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    r"""Train at every learning rate from every seed, to the end, and show what became of each.

    A file says what is trained and at which rates, and may vary other things:

        \[problem]
        model = "mynet:make"        # a function of the seed, and of width
        data  = "train.npz"         # arrays x and y
        loss  = "cross_entropy"
        optimizer = {name = "sgd", momentum = 0.9}
        batch_size = 64
        \[sweep]
        lr    = {from = 1e-3, to = 1, number = 10}
        seeds = 3
        steps = 500
        \[axes]
        width = [64, 256]

    'digits' is the paper's experiment: a two-layer ReLU net on digits 0 and 1,
    full-batch gradient descent, rates as ηλ₀, ηλ followed in every run.

    Try it:  trebuchet sweep digits
    """  # noqa: DOC501 - this text is what --help shows
    if what.endswith(".toml"):
        for option, given in (("--rates", rates), ("--seeds", seeds), ("--steps", steps)):
            if given is not None:
                msg = f"{option}: is of 'digits'; {what} says it in its table [sweep]"
                raise InputError(msg)
        from trebuchet.cli.sweep_file import sweep_file

        sweep_file(Path(what), out, resume=resume, overwrite=overwrite)
        return
    if what not in WHAT:
        msg = (
            f"what: expected FILE.toml or 'digits', got {quoted(what)}{did_you_mean(what, WHAT)}; "
            "a model of your own is swept by a file, or by trebuchet.sweep, in Python"
        )
        raise InputError(msg)
    if resume:
        msg = "--resume: is of a file; digits takes a minute, and starts anew"
        raise InputError(msg)
    from trebuchet.cli.sweep_digits import sweep_digits

    sweep_digits(
        out, rates=rates, seeds=3 if seeds is None else seeds, steps=steps, overwrite=overwrite
    )
