"""`trebuchet scan`: your own model, or the paper's net on digits."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trebuchet.cli.loading import LOSS, OPTIMIZER
from trebuchet.cli.options import (
    LARGEST_GRID,
    InterruptedCommandError,
    Overwrite,
    command,
    did_you_mean,
    quoted,
    whole,
)
from trebuchet.cli.output import check_folder, console, refuse_existing, together
from trebuchet.errors import InputError
from trebuchet.problem.loss_names import described as losses
from trebuchet.problem.optimizer_names import described
from trebuchet.scans.budget import HORIZONS

if TYPE_CHECKING:
    from trebuchet.scans.door import Scan

DEFAULT_OUT = Path("trebuchet-scan")
DIGITS_OUT = Path("trebuchet-scan-digits")
NAMES = ("scan.zarr", "scan.csv", "runs.csv", "scan.png")


@command
def scan(
    dataset: Annotated[
        str | None,
        typer.Argument(
            help="'digits': the paper's net on embedded digits, in batches of 32, nothing else "
            "needed. Leave it out and give --model, --data and --loss for a model of your own.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Where your model is made: package.module:factory. The factory takes no argument "
            "and returns an nn.Module.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="A .npz file with an array x (or inputs, x_train, input_ids), samples first, and "
            "an array y (or targets, labels, y_train).",
            show_default=False,
        ),
    ] = None,
    loss: Annotated[
        str | None,
        typer.Option(
            parser=LOSS,
            metavar="NAME",
            help=f"One of {losses()}",
            show_default=False,
        ),
    ] = None,
    optimizer: Annotated[
        str | None,
        typer.Option(
            parser=OPTIMIZER, metavar="NAME", help=f"One of {described()}", show_default="sgd"
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the picture, the tables and the data; trebuchet-scan unless given, "
            "with -digits for digits.",
            show_default=False,
        ),
    ] = None,
    horizon: Annotated[
        int | None,
        typer.Option(
            parser=whole("--horizon", least=10),
            metavar="N",
            help="Steps you will train for, or the first few.",
            show_default="200",
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            parser=whole("--batch-size"),
            metavar="N",
            help="Samples a batch: 32 for digits, else all of them.",
            show_default=False,
        ),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            parser=whole("--seeds", most=LARGEST_GRID),
            metavar="N",
            help="How many orders of the batches: 3 for digits, else 2.",
            show_default=False,
        ),
    ] = None,
    rates: Annotated[str | None, typer.Option(hidden=True)] = None,  # to say what takes them
    budget: Annotated[
        str | None,
        typer.Option(
            parser=whole("--budget", words=HORIZONS),
            metavar="WORD|N",
            help="What to spend: fast (four horizons; unless given), default (eight), careful "
            "(sixteen), or a number of gradients.",
            show_default=False,
        ),
    ] = None,
    edges: Annotated[
        bool | None,
        typer.Option(
            "--edges/--no-edges",
            help="Bisect to 10 % where the loss first rises and where training ends, with trials "
            "to the horizon, on top of --budget unless that is a number; without it, quickly, "
            "with what the budget leaves. On for digits, else off.",
            show_default=False,
        ),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Find which learning rates are lazy, catapult or divergent, and which one to use.

    Try it:            trebuchet scan digits

    On your own model: trebuchet scan --model mynet:make --data train.npz --loss cross_entropy
    """
    _check(dataset, {"--model": model, "--data": data, "--loss": loss}, rates)
    digits = dataset is not None
    out = out if out is not None else DIGITS_OUT if digits else DEFAULT_OUT
    refuse_existing([out / name for name in NAMES], overwrite=overwrite)
    check_folder(out)
    given: dict[str, Any] = {
        "optimizer": optimizer,
        "horizon": horizon,
        "batch_size": batch_size,
        "seeds": seeds,
        "budget": budget,
    }
    given = {name: value for name, value in given.items() if value is not None}
    if edges is not None:
        given["edge_rtol"] = 0.1 if edges else None
    found = _digits(given) if digits else _own(str(model), Path(str(data)), str(loss), given)
    console().print(found)
    deliver(found, out)


def _check(dataset: str | None, its: Mapping[str, object], rates: object) -> None:
    """See that either the digits were asked for or a model, and all that belongs to it."""
    if dataset not in (None, "digits"):
        msg = (
            f"dataset: expected 'digits', got {quoted(dataset)}"
            f"{did_you_mean(dataset, ['digits'])}; for a model of your own give --model, --data "
            "and --loss"
        )
        raise InputError(msg)
    if rates is not None:
        msg = (
            "--rates: a scan finds its rates by itself; for rates of your own there is `trebuchet "
            "sweep digits --rates ...`"
        )
        raise InputError(msg)
    given = [name for name, value in its.items() if value is not None]
    if dataset is not None and given:
        msg = f"{given[0]}: goes with a model of your own; 'digits' brings its model, data and loss"
        raise InputError(msg)
    lacking = [name for name in its if name not in given]
    if dataset is None and lacking:
        msg = f"{lacking[0]}: is needed; or try `trebuchet scan digits`, which needs nothing"
        raise InputError(msg)


def _digits(given: dict[str, Any]) -> "Scan":
    from trebuchet.paper.digits import digits_scan

    return digits_scan(progress=True, **given)


def _own(model: str, data: Path, loss: str, given: dict[str, Any]) -> "Scan":
    """A scan of a model from a file, with what was given of the options of ``trebuchet.scan``."""
    from trebuchet.cli.loading import TARGET_KEYS, load_data, load_model, shaped, users_code
    from trebuchet.scans.door import scan as scan_model

    net = load_model(model)
    inputs, targets = load_data(data, net, loss, None)
    if targets is None:
        msg = f"--data: {data} has no targets; add an array y (or {', '.join(TARGET_KEYS[1:])})"
        raise InputError(msg)
    with users_code("--model: it cannot take this data, or this loss its outputs"):
        targets = shaped(net, loss, inputs, targets)
        return scan_model(net, loss, (inputs, targets), progress=True, **given)


def deliver(found: "Scan", out: Path) -> None:
    """Write the picture, the tables and the data of a scan, and say where.

    Args:
        found: The scan.
        out: The folder.

    Raises:
        InputError: If they cannot be written.
        InterruptedCommandError: If the scan was interrupted; what was found by then is written.
    """
    with together(out, NAMES) as stage:
        _write(found, stage)
    for name in NAMES:
        console().print(f"wrote {out / name}", soft_wrap=True, markup=False)
    if found.settings["interrupted"]:
        msg = "interrupted: what was found by then is above and is written too"
        raise InterruptedCommandError(msg)


def _write(found: "Scan", stage: Path) -> None:
    from matplotlib.figure import Figure

    store, rates, runs, picture = (stage / name for name in NAMES)
    found.save(store)
    found.to_dataframe().to_csv(rates, index=False)
    _write_runs(found, runs)
    figure = Figure(figsize=(7.2, 3.8), layout="constrained")
    found.plot(figure.add_subplot())
    figure.savefig(picture, dpi=160)


def _write_runs(found: "Scan", place: Path) -> None:
    """The table of runs: one row a rate and seed."""
    found.run_table.to_csv(place, index=False)
