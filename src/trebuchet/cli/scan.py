"""`trebuchet scan`: your own model, or the paper's sweep on digits."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trebuchet.cli.loading import LOSS, OPTIMIZER
from trebuchet.cli.options import (
    LARGEST_GRID,
    RATES,
    InterruptedCommandError,
    command,
    did_you_mean,
    quoted,
    whole,
)
from trebuchet.cli.output import check_folder, console, refuse_existing, together
from trebuchet.errors import InputError
from trebuchet.problem.optimizer_names import described

if TYPE_CHECKING:
    from trebuchet.phases.scan import Scan

DEFAULT_OUT = Path("trebuchet-scan")
NAMES = ("scan.zarr", "scan.csv", "runs.csv", "scan.png")


@command
def scan(
    dataset: Annotated[
        str | None,
        typer.Argument(
            help="'digits': the paper's net on embedded digits, nothing else needed. Leave it out "
            "and give --model, --data and --loss for a model of your own.",
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
            help="mse, cross_entropy, bce (logits), huber, smooth_l1, l1, nll, soft_margin, "
            "poisson_nll, kl_div, or half_mse.",
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
        typer.Option(help="Folder for the picture, the tables and the data.", show_default=False),
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
            help="Samples a batch; all unless given.",
            show_default=False,
        ),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            parser=whole("--seeds", most=LARGEST_GRID),
            metavar="N",
            help="How many seeds: 3 for digits, else 2.",
            show_default=False,
        ),
    ] = None,
    rates: Annotated[
        str | None,
        typer.Option(
            parser=RATES,
            metavar="RATES",
            help="Of digits: learning rates ηλ₀, as start:stop:step or 0.5,1,2; "
            "0.5:14:0.5 unless given.",
            show_default=False,
        ),
    ] = None,
    budget: Annotated[
        int | None,
        typer.Option(
            parser=whole("--budget"),
            metavar="N",
            help="Gradients to spend; four horizons unless given.",
            show_default=False,
        ),
    ] = None,
    edges: Annotated[
        bool,
        typer.Option(
            "--edges",
            help="Bisect to 10 % where the loss first rises and where training ends, with trials "
            "to the horizon, past four horizons unless --budget is given; without it, quickly, "
            "with what the budget leaves.",
        ),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace results that exist.")
    ] = False,
) -> None:
    """Find which learning rates are lazy, catapult or divergent, and which one to use.

    Try it:            trebuchet scan digits

    On your own model: trebuchet scan --model mynet:make --data train.npz --loss cross_entropy
    """
    if dataset is not None:
        _check_digits(
            dataset,
            {
                "--model": model,
                "--data": data,
                "--loss": loss,
                "--optimizer": optimizer,
                "--horizon": horizon,
                "--batch-size": batch_size,
                "--budget": budget,
                "--edges": edges or None,
            },
        )
        from trebuchet.cli.digits import run_digits

        run_digits(out, rates=rates, seeds=3 if seeds is None else seeds, overwrite=overwrite)
        return
    _check_given({"--model": model, "--data": data, "--loss": loss}, rates)
    assert model is not None
    assert data is not None
    assert loss is not None
    run_model(
        model, data, loss, "sgd" if optimizer is None else optimizer, out,
        horizon=200 if horizon is None else horizon, batch_size=batch_size,
        seeds=2 if seeds is None else seeds, budget=budget, edges=edges, overwrite=overwrite,
    )  # fmt: skip


def _check_digits(dataset: str, others: dict[str, object]) -> None:
    if dataset != "digits":
        msg = (
            f"dataset: expected 'digits', got {quoted(dataset)}"
            f"{did_you_mean(dataset, ['digits'])}; for a model of your own give --model, --data "
            "and --loss"
        )
        raise InputError(msg)
    given = [name for name, other in others.items() if other is not None]
    if given:
        msg = (
            f"{given[0]}: goes with a model of your own; 'digits' brings its model, data, loss and "
            "optimizer, and takes --rates, --seeds, --out and --overwrite only"
        )
        raise InputError(msg)


def _check_given(options: dict[str, object], rates: object) -> None:
    if rates is not None:
        msg = "--rates: goes with 'digits'; a scan of your own model finds its rates by itself"
        raise InputError(msg)
    lacking = [name for name, value in options.items() if value is None]
    if lacking:
        msg = f"{lacking[0]}: is needed; or try `trebuchet scan digits`, which needs nothing"
        raise InputError(msg)


def run_model(
    model: str,
    data: Path,
    loss: str,
    optimizer: str,
    out: Path | None,
    *,
    horizon: int,
    batch_size: int | None,
    seeds: int,
    budget: int | None,
    edges: bool,
    overwrite: bool,
) -> None:
    """Scan a model from a file, print the result, write the picture, the tables and the data.

    Args:
        model: ``package.module:factory``.
        data: A .npz file.
        loss: A name.
        optimizer: A name.
        out: Folder; ``trebuchet-scan`` unless given.
        horizon: Steps of a whole run.
        batch_size: Samples a batch; None is all.
        seeds: Orders of the batches.
        budget: Gradient evaluations; None is four horizons.
        edges: Bisect the edges to 10 %, with trials to the horizon.
        overwrite: Replace results that exist.

    Raises:
        InputError: If an option, the model or the data is not what was expected.
        InterruptedCommandError: After Ctrl-C; what was found by then is written.
    """
    from trebuchet.cli.loading import TARGET_KEYS, load_data, load_model, shaped, users_code
    from trebuchet.phases.scan import scan as scan_model

    out = DEFAULT_OUT if out is None else out
    places = [out / name for name in NAMES]
    refuse_existing(places, overwrite=overwrite)
    check_folder(out)
    net = load_model(model)
    inputs, targets = load_data(data, net, loss, None)
    if targets is None:
        msg = f"--data: {data} has no targets; add an array y (or {', '.join(TARGET_KEYS[1:])})"
        raise InputError(msg)
    with users_code("--model: it cannot take this data, or this loss its outputs"):
        targets = shaped(net, loss, inputs, targets)
        found = scan_model(
            net, loss, (inputs, targets), optimizer, horizon=horizon, batch_size=batch_size,
            seeds=seeds, budget=budget, edge_rtol=0.1 if edges else None, progress=True,
        )  # fmt: skip
    console().print(found)
    with together(out, NAMES) as stage:
        _write(found, stage)
    for place in places:
        console().print(f"wrote {place}", soft_wrap=True, markup=False)
    if found.settings["interrupted"]:
        msg = "interrupted: what was found by then is above and is written too"
        raise InterruptedCommandError(msg)


def _write(found: "Scan", stage: Path) -> None:
    from matplotlib.figure import Figure

    store, rates, runs, picture = (stage / name for name in NAMES)
    found.save(store)
    found.to_dataframe().to_csv(rates, index=False)
    found.run_table.to_csv(runs, index=False)
    figure = Figure(figsize=(7.2, 3.8), layout="constrained")
    found.plot(figure.add_subplot())
    figure.savefig(picture, dpi=160)
