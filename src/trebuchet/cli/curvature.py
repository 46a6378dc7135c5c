"""`trebuchet curvature`."""

import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from trebuchet.cli.loading import load_data, load_model, load_weights, shaped
from trebuchet.cli.output import console
from trebuchet.errors import InputError
from trebuchet.problem.optimizer_names import described

if TYPE_CHECKING:
    from torch import nn

    from trebuchet.curvature import TopEigen


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
            help="The loss you train with, as torch has it: mse, cross_entropy, bce (logits), "
            "huber, smooth_l1, nll; or half_mse, the theory's: half, summed over outputs.",
            show_default=False,
        ),
    ],
    operator: Annotated[
        str,
        typer.Option(
            help="ggn: Gauss–Newton. hessian: its top eigenvalue is the sharpness. ntk: the "
            "kernel ÷ samples, which knows no loss.",
        ),
    ] = "ggn",
    optimizer: Annotated[
        str, typer.Option(help=f"Whose critical rate: {described(edges=True)}")
    ] = "sgd",
    weights: Annotated[
        Path | None,
        typer.Option(help="A state dict to load first (torch.save of it).", show_default=False),
    ] = None,
    k: Annotated[int, typer.Option("-k", help="How many eigenvalues.")] = 1,
    rtol: Annotated[float, typer.Option(help="Relative tolerance.")] = 1e-3,
    mode: Annotated[
        str, typer.Option(help="eval, or train: BatchNorm with batch statistics, no dropout.")
    ] = "eval",
    samples: Annotated[
        int | None, typer.Option(help="Use the first so many samples only.", show_default=False)
    ] = None,
    micro_batch: Annotated[
        int | None,
        typer.Option(help="Samples at a time, if memory is short.", show_default=False),
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
    from trebuchet.cli.output import refuse_existing

    if out is not None:
        refuse_existing([out], overwrite=overwrite)
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
        out.write_text(json.dumps(numbers(top), indent=1) + "\n", encoding="utf-8")
    sys.exit(0 if top.converged else 1)


def _measure(net: "nn.Module", loss: str, data: Any, **options: Any) -> "TopEigen":
    from trebuchet.curvature import top_eigen
    from trebuchet.curvature.measurement import OperatorName
    from trebuchet.curvature.progress import progress_line

    if options["operator"] not in get_args(OperatorName):
        expected = ", ".join(get_args(OperatorName))
        msg = f"--operator: expected one of {expected}, got {options['operator']!r}"
        raise InputError(msg)
    blind = data[1] is None
    if blind and options["operator"] != "ntk":
        msg = f"--data: has no targets, which {loss} needs; add an array y"
        raise InputError(msg)
    with progress_line(console(stderr=True)) as on_step:
        try:
            if blind:
                return top_eigen(net, None, data[0], on_step=on_step, **options)
            data = (data[0], shaped(net, loss, *data))
            return top_eigen(net, loss, data, on_step=on_step, **options)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            if isinstance(error, InputError):
                raise
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            msg = f"model: it cannot take this data, or this loss its outputs ({first})"
            raise InputError(msg) from error


def summary(top: "TopEigen") -> str:
    """Say what was found, in words.

    Args:
        top: The result.

    Returns:
        Rich markup, a few lines.
    """
    names = {"ggn": "Gauss–Newton matrix", "ntk": "NTK ÷ samples", "hessian": "Hessian"}
    lines = [
        f"[bold]λ = {top.value:.6g}[/]  top eigenvalue of the {names[top.operator]}"
        f"  [dim]({top.n_samples} samples, {top.n_parameters:,} parameters, {top.mode} mode)[/]"
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
        lines.append(f"    [bold yellow]not converged[/]: {top.note or 'see the bounds'}")
        lines.append(f"    residual {top.residual:.1e}, upper bound {top.upper:.6g}")
    rate = top.lr_crit
    if math.isnan(rate):
        lines.append("    no learning rate: the NTK knows no loss; use --operator ggn for it")
    elif math.isinf(rate):
        lines.append("    no critical learning rate: there is no positive curvature here")
    else:
        lines.append(
            f"[bold]critical learning rate {rate:.6g}[/]  for {top.optimizer} with this loss: "
            "below it training starts smoothly, above it the loss first grows"
        )
    return "\n".join(lines)


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
        "optimizer": top.optimizer,
        "method": top.method,
        "products": top.products,
        "mode": top.mode,
        "n_samples": top.n_samples,
        "n_parameters": top.n_parameters,
        "rtol": top.rtol,
        "failure": top.failure,
    }
