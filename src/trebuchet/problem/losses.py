"""The losses that are known: one row each, with what a mean divides by and whether it is convex.

Curvature scales with the loss. ``nn.MSELoss()`` is (1/DK) Σ ε², the theory's half-MSE is
(1/2D) Σ ε²: for K = 1 the same problem has twice the eigenvalue and half the critical learning
rate under the first. So nothing here assumes a convention: the loss is called as given, and its
Hessian at the outputs comes from autodiff. What has to be known besides is how micro-batches add
up (divisors.py): the table says so for torch's own losses, and only for those themselves. A class
of the user's own that carries an attribute ``reduction``, or overrides ``forward``, is unknown.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trebuchet._checks import function, nearest, refuse, shown
from trebuchet._doors import door, rule
from trebuchet.errors import InputError
from trebuchet.problem.loss_names import NAMES

LossFn = Callable[..., Tensor]
Reduction = Literal["mean", "sum"]


@door(fn=rule(function, "a function of (model, batch)"))
@dataclass(frozen=True, slots=True)
class ModelLoss:
    """A closure ``loss_fn(model, batch) -> scalar``, for Hessians of anything.

    A function whose first parameter is called ``model`` is taken for one without this wrapper.

    Example:
        >>> penalty = ModelLoss(lambda m, batch: (m(batch) ** 2).mean())
    """

    fn: LossFn


def half_mse(outputs: Tensor, targets: Tensor) -> Tensor:
    """(1/2D) Σ_a |z_a − y_a|²: half, mean over samples, sum over outputs; the theory's loss.

    Args:
        outputs: z, shape (D, …).
        targets: y, the same shape, or (D,) against (D, 1).

    Returns:
        A scalar.

    Raises:
        InputError: If they differ in number of entries, or in device.

    Example:
        >>> half_mse(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 0.0]]))
        tensor(2.5000)
    """
    if not (isinstance(outputs, Tensor) and isinstance(targets, Tensor) and outputs.numel()):
        msg = f"outputs: expected tensors, not empty, got {shown(outputs)} and {shown(targets)}"
        raise InputError(msg)
    if outputs.device != targets.device:
        msg = f"targets: expected the outputs' device {outputs.device}, got {targets.device}"
        raise InputError(msg)
    if outputs.numel() != targets.numel():
        shapes = f"{tuple(outputs.shape)}, got {tuple(targets.shape)}"
        msg = f"targets: expected the outputs' shape {shapes}"
        raise InputError(msg)
    return (outputs - targets.reshape(outputs.shape)).square().sum() / (
        2 * (outputs.shape[0] if outputs.ndim else 1)
    )


# What a mean divides by, from the outputs (only their shape is looked at), targets and settings.
Divisor = Callable[[Tensor, Any, dict[str, Any]], float]


def _elements(z: Tensor, y: Any, settings: dict[str, Any]) -> float:
    if settings.get("reduction") == "batchmean":
        return _rows(z, y, settings)
    if not isinstance(y, Tensor):
        return float(z.numel())
    return float((z.to("meta") + y.to("meta")).numel())


def _rows(z: Tensor, y: Any, settings: dict[str, Any]) -> float:
    del y, settings
    return float(z.shape[0]) if z.ndim else 1.0


def _all_but_classes(z: Tensor, y: Any, settings: dict[str, Any]) -> float:
    del y, settings
    return z.numel() / z.shape[min(1, z.ndim - 1)]


def _targets(z: Tensor, y: Any, settings: dict[str, Any]) -> float:
    if y.is_floating_point():  # class probabilities, whose weights torch does not divide by
        return _all_but_classes(z, y, settings)
    counted = y != settings.get("ignore_index", -100)
    weight = settings.get("weight")
    return float(counted.sum() if weight is None else weight[y[counted]].sum())


@dataclass(frozen=True, slots=True)
class Row:
    """What is known about a loss.

    Attributes:
        name: What it is called at every door; empty if it has no name there.
        function: As in ``torch.nn.functional``, a mean unless told otherwise.
        module: torch's class of it.
        divides_by: What its mean divides by.
        convex: Whether it is convex in the outputs: H ⪰ 0, so H can serve as an inner product.
    """

    name: str
    function: LossFn
    module: type[nn.Module] | None
    divides_by: Divisor
    convex: bool


TABLE = (
    Row("half_mse", half_mse, None, _rows, True),
    Row("mse", F.mse_loss, nn.MSELoss, _elements, True),
    Row("l1", F.l1_loss, nn.L1Loss, _elements, True),
    Row("huber", F.huber_loss, nn.HuberLoss, _elements, True),
    Row("smooth_l1", F.smooth_l1_loss, nn.SmoothL1Loss, _elements, True),
    Row("cross_entropy", F.cross_entropy, nn.CrossEntropyLoss, _targets, True),
    Row("nll", F.nll_loss, nn.NLLLoss, _targets, True),
    Row("bce", F.binary_cross_entropy_with_logits, nn.BCEWithLogitsLoss, _elements, True),
    Row("", F.binary_cross_entropy, nn.BCELoss, _elements, False),
    Row("kl_div", F.kl_div, nn.KLDivLoss, _elements, False),
    Row("soft_margin", F.soft_margin_loss, nn.SoftMarginLoss, _elements, True),
    Row("poisson_nll", F.poisson_nll_loss, nn.PoissonNLLLoss, _elements, False),
    Row("", F.hinge_embedding_loss, nn.HingeEmbeddingLoss, _elements, False),
    Row("", F.multi_margin_loss, nn.MultiMarginLoss, _rows, False),
    Row("", F.multilabel_margin_loss, nn.MultiLabelMarginLoss, _rows, False),
    Row("", F.multilabel_soft_margin_loss, nn.MultiLabelSoftMarginLoss, _all_but_classes, True),
)

_NAMED = {row.name: row.function for row in TABLE}
LOSSES: dict[str, LossFn] = {name: _NAMED[name] for name in NAMES}
"""Losses by name, with torch's conventions (means), except `half_mse`. `bce` takes logits."""

_WEIGHTED = (F.cross_entropy, F.nll_loss, F.binary_cross_entropy, F.multi_margin_loss,
             F.binary_cross_entropy_with_logits, F.multilabel_soft_margin_loss)  # fmt: skip
_SETTINGS = ("reduction", "ignore_index", "weight")


def known(loss: object) -> tuple[Row, dict[str, Any]] | None:
    """Return what is known about a loss.

    Args:
        loss: A resolved loss.

    Returns:
        Its row and settings; None for anything but torch's own, with torch's own ``forward``, alone
        or in a ``functools.partial`` of settings.
    """
    settings: dict[str, Any] = {}
    while isinstance(loss, partial):
        if loss.args:
            return None
        settings = {**loss.keywords, **settings}
        loss = loss.func
    if isinstance(loss, nn.Module):
        kind = next(c for c in type(loss).__mro__ if "forward" in vars(c))
        changed = "forward" in vars(loss) or loss._forward_hooks or loss._forward_pre_hooks
        row = next((r for r in TABLE if r.module is kind), None)
        if row is None or changed or type(loss).__call__ is not nn.Module.__call__:
            return None
        settings = {n: getattr(loss, n) for n in _SETTINGS if hasattr(loss, n)} | settings
        return row, settings
    row = next((r for r in TABLE if r.function is loss), None)
    # Two ways of old to say the reduction, and weights of elements, which torch divides by.
    odd = {"size_average", "reduce"} & {k for k, v in settings.items() if v is not None}
    if settings.get("weight") is not None and not any(loss is f for f in _WEIGHTED):
        odd.add("weight")
    return None if row is None or odd else (row, settings)


def is_convex(loss: object) -> bool:
    """Say whether the loss is one of those known to be convex in the outputs.

    Args:
        loss: A resolved loss.

    Returns:
        False also for losses that are convex without being known.
    """
    found = known(loss)
    return found is not None and found[0].convex


def resolve(loss: object) -> LossFn | ModelLoss | None:
    """Return the loss as a callable: a name is looked up, a closure recognised.

    Args:
        loss: A name in :data:`LOSSES`, ``loss(outputs, targets)``, a closure, or None.

    Returns:
        The callable, wrapped in :class:`ModelLoss` if it is a closure.

    Raises:
        InputError: If the name is unknown, or it is neither a name nor callable.
    """
    if loss is None or isinstance(loss, ModelLoss):
        return loss
    if isinstance(loss, str):
        if loss not in LOSSES:
            expected = f"one of {', '.join(sorted(LOSSES))} or a callable"
            refuse("loss", expected, loss, nearest(loss, LOSSES))
        return LOSSES[loss]
    if isinstance(loss, type) and issubclass(loss, nn.Module):
        name = loss.__name__
        msg = f"loss: expected a loss, got the class {name}; make one: {name}()"
        raise InputError(msg)
    if not callable(loss):
        msg = f"loss: expected a name or a callable, got a {type(loss).__name__}"
        raise InputError(msg)
    found = known(loss)
    if found is not None and found[1].get("reduction") == "none":
        msg = "loss: has reduction='none' and returns a vector; use 'mean' or 'sum'"
        raise InputError(msg)
    if found is None and next(iter(parameters_of(loss)), "") == "model":
        return ModelLoss(loss)
    return loss


def parameters_of(loss: Callable[..., Any]) -> list[str]:
    """The names of what a callable must be called with, in order; empty where nothing tells."""
    try:
        found = inspect.signature(loss.forward if isinstance(loss, nn.Module) else loss).parameters
    except (TypeError, ValueError):  # builtins have no signature
        return []
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p.name for p in found.values() if p.kind in kinds and p.default is p.empty]


def check_scalar(value: object, where: str = "loss") -> Tensor:
    """Return `value` as a finite scalar tensor, or say what is wrong with it.

    Args:
        value: What the loss returned.
        where: The name in the message.

    Returns:
        A zero-dimensional tensor.

    Raises:
        InputError: If it is no tensor, no scalar, complex, or not finite.
    """
    if not isinstance(value, Tensor):
        msg = f"{where}: expected a scalar tensor, got a {type(value).__name__}"
        raise InputError(msg)
    if value.numel() != 1:
        shape = tuple(value.shape)
        msg = f"{where}: expected a scalar, got shape {shape}; take its mean or sum over samples"
        raise InputError(msg)
    if value.is_complex():
        msg = f"{where}: expected a real number, got {value.dtype}"
        raise InputError(msg)
    if not bool(torch.isfinite(value)):
        msg = f"{where}: is {value.item()} at these parameters; curvature needs a finite loss"
        raise InputError(msg)
    return value.reshape(())
