"""`trebuchet curvature`."""

import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from trebuchet.cli.loading import (
    LOSS,
    OPTIMIZER,
    load_data,
    load_model,
    load_weights,
    shaped,
    users_code,
)  # fmt: skip
from trebuchet.cli.options import between, command, one_of, whole
from trebuchet.cli.output import check_file, console, write_text
from trebuchet.errors import InputError
from trebuchet.problem.loss_names import described as losses
from trebuchet.problem.optimizer_names import described
from trebuchet.theory.stability import TABLE, earliest_rise, stability_product

if TYPE_CHECKING:
    from torch import nn

    from trebuchet.curvature import TopEigen


@command
def curvature(
    model: Annotated[
        str,
        typer.Option(
            help="Where your model is made: package.module:factory. The factory takes no argument "
            "and returns an nn.Module; an nn.Module itself will do too.",
            show_default=False,
        ),
    ],
    data: Annotated[
        Path,
        typer.Option(
            help="A .npz file with an array x (or inputs, x_train, input_ids), samples first, and "
            "an array y (or targets, labels, y_train). Bytes are taken for pixels, divided by 255.",
            show_default=False,
        ),
    ],
    loss: Annotated[
        str,
        typer.Option(
            parser=LOSS,
            metavar="NAME",
            help=f"The loss you train with: {losses()}",
            show_default=False,
        ),
    ],
    operator: Annotated[
        str,
        typer.Option(
            parser=one_of("--operator", "ggn", "hessian", "ntk"),
            metavar="NAME",
            help="ggn: Gauss–Newton. hessian: its top eigenvalue is the sharpness. ntk: the "
            "kernel ÷ samples, which knows no loss.",
        ),
    ] = "ggn",
    optimizer: Annotated[
        str,
        typer.Option(
            parser=OPTIMIZER, metavar="NAME", help=f"Whose critical rate: {described(edges=True)}"
        ),
    ] = "sgd",
    weights: Annotated[
        Path | None,
        typer.Option(help="A state dict to load first (torch.save of it).", show_default=False),
    ] = None,
    k: Annotated[
        int, typer.Option("-k", parser=whole("-k"), metavar="N", help="How many eigenvalues.")
    ] = 1,
    rtol: Annotated[
        float,
        typer.Option(parser=between("--rtol", 0, 1), metavar="X", help="Relative tolerance."),
    ] = 1e-3,
    mode: Annotated[
        str,
        typer.Option(
            parser=one_of("--mode", "train", "eval"),
            metavar="NAME",
            help="train: as it is trained, with batch statistics, no dropout. eval: with running "
            "statistics.",
        ),
    ] = "train",
    samples: Annotated[
        int | None,
        typer.Option(
            parser=whole("--samples"),
            metavar="N",
            help="Use the first so many samples only.",
            show_default=False,
        ),
    ] = None,
    micro_batch: Annotated[
        int | None,
        typer.Option(
            parser=whole("--micro-batch"),
            metavar="N",
            help="Samples at a time, if memory is short.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Also write the numbers here, as JSON.", show_default=False)
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace it if it exists.")
    ] = False,
) -> None:
    """Measure your model's largest curvature, and the learning rate it implies.

    Near the current weights the loss is a bowl. Gradient descent with learning
    rate η bounces out of it once η times the bowl's largest curvature λ exceeds
    2. So 2/λ is the critical rate: below it training starts smoothly (lazy),
    above it the loss first grows (catapult).

    The number comes with two bounds: the residual, within which an eigenvalue
    lies for certain, and an upper bound above which there is none, except with a
    chance of one in a million.

    Try it on a file of your own:

      trebuchet curvature --model mynet:make --data train.npz --loss cross_entropy
    """
    if out is not None:
        check_file(out, {"--data": data, "--weights": weights}, overwrite=overwrite)
    net = load_model(model)
    if weights is not None:
        load_weights(net, weights)
    inputs, targets = load_data(data, net, loss, samples)
    top = _measure(
        net, loss, (inputs, targets), operator=operator, optimizer=optimizer, k=k, rtol=rtol,
        mode=mode, micro_batch=micro_batch,
    )  # fmt: skip
    console().print(summary(top), soft_wrap=True)
    if out is not None:
        write_text(out, json.dumps(numbers(top), indent=1) + "\n")
    sys.exit(0 if top.converged else 1)


def _measure(net: "nn.Module", loss: str, data: Any, **options: Any) -> "TopEigen":
    from trebuchet.curvature import top_eigen
    from trebuchet.curvature.progress import progress_line

    blind = data[1] is None
    if blind and options["operator"] != "ntk":
        msg = f"--data: has no targets, which {loss} needs; add an array y"
        raise InputError(msg)
    what = "--model: it cannot take this data, or this loss its outputs"
    with progress_line(console(stderr=True)) as on_step, users_code(what):
        if blind:
            return top_eigen(net, None, data[0], on_step=on_step, **options)
        data = (data[0], shaped(net, loss, *data))
        return top_eigen(net, loss, data, on_step=on_step, **options)


def summary(top: "TopEigen") -> str:
    """Say what was found, in words.

    Args:
        top: The result.

    Returns:
        Rich markup, a few lines.
    """
    names = {"ggn": "Gauss–Newton matrix", "ntk": "NTK ÷ samples", "hessian": "Hessian"}
    known = top.worded()
    divided = "P⁻¹" in TABLE[top.optimizer].operator
    whose = f", in {top.optimizer}'s coordinates (P⁻¹ times it)" if divided else ""
    mode = f"{top.mode} mode" + (f" with {top.statistics}" * bool(top.statistics))
    lines = [
        f"[bold]λ {'= ' if top.converged else ''}{known}[/]  top eigenvalue of the "
        f"{names[top.operator]}{whose}  [dim]({top.n_samples} samples, "
        f"{top.n_parameters:,} parameters, {mode})[/]"
    ]
    for i, (value, residual) in enumerate(zip(top.values, top.residuals, strict=True)):
        if len(top.values) > 1:
            lines.append(f"    λ_{i + 1} = {float(value):.6g} ± {float(residual):.1e}")
    if top.converged:
        sure = f"λ is at most {top.upper:.6g}"
        if top.method != "lanczos":
            sure = "exact to rounding"
        elif len(top.values) > 1:
            sure = f"no other eigenvalue is above {top.upper:.6g}"
        lines.append(f"    converged: residual {top.residual:.1e}, {sure}")
    else:
        lines.append(f"    [bold yellow]not converged[/]: {escape(top.note) or 'see the bounds'}")
        lines.append(f"    residual {top.residual:.1e}, upper bound {top.upper:.6g}")
    lines += [f"    {escape(remark)}" for remark in top.remarks]
    rate = top.lr_crit
    if math.isnan(rate):
        lines.append("    no learning rate: the NTK knows no loss; use --operator ggn for it")
    elif math.isinf(rate) and top.converged:
        lines.append("    no critical rate: there is no positive curvature here")
    else:
        lines.append(
            f"[bold]critical rate {top.worded_rate()}[/]  for {top.optimizer} with this loss: "
            + _meaning(top)
        )
    return "\n".join(lines)


def _meaning(top: "TopEigen") -> str:
    """What the critical rate says of training: of plain descent everything, of others less."""
    known = {k: v for k, v in top.settings.items() if k in ("momentum", "dampening")}
    first = earliest_rise(top.optimizer, **known) / stability_product(top.optimizer, **top.settings)
    if math.isnan(first):
        return (
            "the linear stability of late training ends here; where the loss first grows is not "
            "known from λ"
        )
    if first < 1:
        return (
            f"linear stability ends here; the loss may first grow from {first:.2g} of this rate on"
        )
    return "below it training starts smoothly, above it the loss first grows"


def numbers(top: "TopEigen") -> dict[str, object]:
    """Return the result as plain numbers for JSON; what is not finite becomes null.

    Args:
        top: The result.

    Returns:
        Name → value.
    """

    def plain(x: float) -> float | None:
        return x if math.isfinite(x) else None

    return {
        "operator": top.operator,
        "values": [float(v) for v in top.values],
        "residuals": [float(r) for r in top.residuals],
        "upper": plain(top.upper),
        "gap": plain(top.gap),
        "converged": top.converged,
        "note": top.note,
        "lr_crit": plain(top.lr_crit),
        "lr_crit_bounds": [plain(rate) for rate in top.lr_crit_bounds],
        "remarks": list(top.remarks),
        "optimizer": top.optimizer,
        "method": top.method,
        "products": top.products,
        "mode": top.mode,
        "n_samples": top.n_samples,
        "n_parameters": top.n_parameters,
        "rtol": top.rtol,
        "failure": top.failure,
        "environment": top.environment,
    }
