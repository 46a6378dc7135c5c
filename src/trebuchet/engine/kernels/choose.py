"""Which kernel serves which model."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from trebuchet.engine.kernels.dual import DualMLPKernel, dual_of
from trebuchet.engine.kernels.functional import FunctionalKernel, SequentialKernel
from trebuchet.engine.kernels.mlp import MLPKernel
from trebuchet.engine.kernels.outputs import OutputKernel
from trebuchet.engine.kernels.quadratic import QuadraticKernel
from trebuchet.engine.span import compress
from trebuchet.errors import InputError
from trebuchet.models.mlp import MLP
from trebuchet.models.quadratic import PureQuadratic, QuadraticWithBias

Engine = Literal["auto", "batched", "sequential", "module"]
"""Where gradients come from: the model's own kernel where it has one, or else the module itself;
stacked by ``torch.vmap``; plain autograd of outputs, one by one; the module itself."""


def written_out(model: nn.Module) -> bool:
    """Whether a model has a kernel of its own, with its gradient written out."""
    mlp = isinstance(model, MLP) and model.slopes[0] > 0 and model.slopes[1] >= 0
    return mlp or isinstance(model, (PureQuadratic, QuadraticWithBias))


def make_kernel(
    models: Sequence[nn.Module], x: Tensor, *, engine: Engine = "auto", span: bool = True
) -> OutputKernel:
    """The fastest kernel that is exact for these models.

    Args:
        models: One module a run. Runs of one initialisation share the module object.
        x: Training inputs, D rows.
        engine: ``"auto"``: the model's own kernel, else ``torch.vmap``, else one by one;
            ``"batched"``: never one by one; ``"sequential"``: plain autograd, one by one.
        span: Use data-span compression where the model allows it.

    Returns:
        The kernel, its parameters copies of the models'.

    Raises:
        InputError: If the engine is unknown, or ``"batched"`` was asked for and the module cannot
            be batched.
    """
    first = models[0]
    if engine == "sequential":
        return SequentialKernel(_only(models), len(models), x)
    if engine not in ("auto", "batched"):
        msg = f"engine: expected 'auto', 'batched' or 'sequential' here, got {engine!r}"
        raise InputError(msg)
    if isinstance(first, MLP) and written_out(first):
        mlps = [m for m in models if isinstance(m, MLP)]
        if span and (dual := dual_of(x)) is not None:
            return DualMLPKernel(mlps, x, dual)
        return MLPKernel(mlps, x, compress(x) if span else None)
    if isinstance(first, (PureQuadratic, QuadraticWithBias)):
        return QuadraticKernel(_quadratic(models), len(models), x)
    kernel = FunctionalKernel(_only(models), len(models), x)
    try:
        with torch.no_grad():
            kernel.forward()
    except RuntimeError as refusal:
        if engine == "batched":
            msg = (
                f"engine: {type(first).__name__} cannot be batched by torch.vmap ({refusal}); "
                "use engine='auto' or 'sequential'"
            )
            raise InputError(msg) from refusal
        return SequentialKernel(_only(models), len(models), x)
    return kernel


def _only(models: Sequence[nn.Module]) -> nn.Module:
    if any(m is not models[0] for m in models):
        msg = "models: this kernel takes runs of one initialisation at a time"
        raise InputError(msg)
    return models[0]


def _quadratic(models: Sequence[nn.Module]) -> PureQuadratic | QuadraticWithBias:
    model = _only(models)
    assert isinstance(model, (PureQuadratic, QuadraticWithBias))
    return model
