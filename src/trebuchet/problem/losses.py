"""What a loss averages over: the half of "curvature" that tools get wrong.

Curvature scales with the loss. ``nn.MSELoss()`` is (1/DK) Σ ε², the theory's half-MSE is
(1/2D) Σ ε²: for K = 1 the same problem has twice the eigenvalue and half the critical learning
rate under the first. So nothing here assumes a convention: the loss is called as given, its
Hessian at the outputs comes from autodiff, and the only thing to find out is how micro-batches add
up. With L_b the loss on micro-batch b, the loss on everything is

    L = Σ_b w_b L_b,   w_b = 1 for a sum over samples,   w_b = d_b / Σ_b d_b for a mean,

with d_b what the mean divides by: the number of samples, or of targets that count (cross-entropy
with ``ignore_index``), or their total class weight.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trebuchet.errors import InputError
from trebuchet.problem.batches import Batch

LossFn = Callable[..., Tensor]
Reduction = Literal["mean", "sum"]


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
        InputError: If the shapes differ in number of entries.

    Example:
        >>> half_mse(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 0.0]]))
        tensor(2.5000)
    """
    if outputs.numel() != targets.numel():
        shapes = f"{tuple(outputs.shape)}, got {tuple(targets.shape)}"
        msg = f"targets: expected the outputs' shape {shapes}"
        raise InputError(msg)
    return (outputs - targets.reshape(outputs.shape)).square().sum() / (2 * outputs.shape[0])


LOSSES: dict[str, LossFn] = {
    "half_mse": half_mse,
    "mse": F.mse_loss,
    "cross_entropy": F.cross_entropy,
    "bce": F.binary_cross_entropy_with_logits,
    "huber": F.huber_loss,
    "smooth_l1": F.smooth_l1_loss,
    "nll": F.nll_loss,
}
"""Losses by name, with torch's conventions (means), except `half_mse`. `bce` takes logits."""


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
            msg = f"loss: expected one of {', '.join(sorted(LOSSES))} or a callable, got {loss!r}"
            raise InputError(msg)
        return LOSSES[loss]
    if not callable(loss):
        msg = f"loss: expected a name or a callable, got a {type(loss).__name__}"
        raise InputError(msg)
    if getattr(loss, "reduction", None) == "none":
        msg = "loss: has reduction='none' and returns a vector; use 'mean' or 'sum'"
        raise InputError(msg)
    if not isinstance(loss, nn.Module):
        try:
            first = next(iter(inspect.signature(loss).parameters), "")
        except (TypeError, ValueError):  # builtins have no signature: they are no closures either
            first = ""
        if first == "model":
            return ModelLoss(loss)
    return loss


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


def batch_weights(
    loss: LossFn | ModelLoss | None,
    batches: Sequence[Batch],
    *,
    reduction: Reduction | None,
    outputs_of: Callable[[Batch], Tensor],
    always: bool = False,
) -> tuple[list[float], Reduction, float]:
    """Return what the micro-batches' losses are multiplied with before they are added.

    Args:
        loss: The resolved loss; None (NTK without a loss) counts as a mean over samples.
        batches: The micro-batches, B of them.
        reduction: The caller's word on what the loss is; None finds out.
        outputs_of: Gives a batch's outputs, for the trial on an unknown callable.
        always: Find the reduction out even for one batch (distributed shards need it).

    Returns:
        B denominators d_b (all 1 for a sum), the reduction, and their total.

    Raises:
        InputError: If an unknown callable is neither a mean nor a sum over samples.
    """
    if reduction not in (None, "mean", "sum"):
        msg = f"reduction: expected 'mean', 'sum' or None, got {reduction!r}"
        raise InputError(msg)
    named = _stated_reduction(loss)
    if reduction is None:
        reduction = named
    if reduction is None:
        if isinstance(loss, ModelLoss) or loss is None or (len(batches) == 1 and not always):
            reduction = "mean"
        else:
            biggest = max(batches, key=lambda b: b.size)
            reduction = _tried_reduction(loss, outputs_of(biggest).detach(), biggest.targets)
    if reduction == "sum":
        return [1.0] * len(batches), "sum", 1.0
    divisors = [_divisor(loss, b) for b in batches]
    return divisors, "mean", sum(divisors)


def _settings(loss: object) -> tuple[object, dict[str, Any]]:
    """A loss's function and settings, whether it came as module, function or partial."""
    if isinstance(loss, partial):
        inner, settings = _settings(loss.func)
        return inner, {**settings, **loss.keywords}
    if isinstance(loss, nn.Module):
        names = ("reduction", "ignore_index", "weight")
        settings = {n: getattr(loss, n) for n in names if hasattr(loss, n)}
        return type(loss), settings
    return loss, {}


_TORCH_MEANS = (
    F.cross_entropy, F.nll_loss, F.mse_loss, F.l1_loss, F.huber_loss, F.smooth_l1_loss,
    F.binary_cross_entropy, F.binary_cross_entropy_with_logits, F.kl_div, F.soft_margin_loss,
    F.poisson_nll_loss, F.gaussian_nll_loss, half_mse,
)  # fmt: skip
_PER_TARGET = (F.cross_entropy, F.nll_loss, nn.CrossEntropyLoss, nn.NLLLoss)


def _stated_reduction(loss: object) -> Reduction | None:
    kind, settings = _settings(loss)
    stated = settings.get("reduction")
    if stated == "mean" or (stated is None and any(kind is f for f in _TORCH_MEANS)):
        return "mean"
    return "sum" if stated == "sum" else None


def _divisor(loss: object, batch: Batch) -> float:
    """What torch divides by in a mean over this batch, up to a factor common to all batches."""
    kind, settings = _settings(loss)
    targets = batch.targets
    if any(kind is f for f in _PER_TARGET) and isinstance(targets, Tensor):
        if targets.is_floating_point():  # class probabilities: torch divides by the batch size
            return float(batch.size)
        counted = targets != settings.get("ignore_index", -100)
        weight = settings.get("weight")
        if weight is not None:
            return float(weight[targets[counted]].sum())
        return float(counted.sum())
    return float(batch.size)


def _tried_reduction(loss: LossFn, outputs: Tensor, targets: Any) -> Reduction:
    """Split one batch in two unequal parts and see how their losses make up the whole's."""
    n = outputs.shape[0] if outputs.ndim else 0
    if n < 2 or not isinstance(targets, Tensor) or targets.ndim == 0 or targets.shape[0] != n:
        # A batch of one: two copies of it have the same mean and twice the sum.
        if n == 0 or (targets is not None and not isinstance(targets, Tensor)):
            msg = "reduction: cannot be found out for these targets; say reduction='mean' or 'sum'"
            raise InputError(msg)
        parts, n = [(outputs, targets)] * 2, 2
        whole = (torch.cat([outputs] * 2), None if targets is None else torch.cat([targets] * 2))
        sizes = [1, 1]
    else:
        cut = max(1, n // 3)
        parts = [(outputs[:cut], targets[:cut]), (outputs[cut:], targets[cut:])]
        whole, sizes = (outputs, targets), [cut, n - cut]
    total = float(check_scalar(loss(*whole)))
    losses = [float(check_scalar(loss(*part))) for part in parts]
    scale = max(abs(total), *(abs(x) for x in losses), 1e-30)
    tolerance = 1e3 * float(torch.finfo(outputs.dtype).eps) * scale
    mean = sum(x * s for x, s in zip(losses, sizes, strict=True)) / n
    if abs(total - mean) <= tolerance:
        return "mean"
    if abs(total - sum(losses)) <= tolerance:
        return "sum"
    msg = (
        "loss: is neither a mean nor a sum over samples, so micro-batches cannot be combined; "
        "pass the data as one batch, or say reduction='mean' or 'sum'"
    )
    raise InputError(msg)
