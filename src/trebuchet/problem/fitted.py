"""Real targets in the shape of the outputs, where they differ in axes of length one only."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from trebuchet.problem.batch import Batch
from trebuchet.problem.losses import ModelLoss, half_mse


def fitted(
    loss: object, first: Batch, outputs_of: Callable[[Batch], Any]
) -> tuple[Callable[[Sequence[Batch]], list[Batch]], str] | None:
    """What gives batches targets of the shape of the outputs, and what to say of it.

    A loss of outputs ``(D, 1)`` and targets ``(D,)`` broadcasts them to ``(D, D)``: it is then
    another loss, of all pairs, which nobody means.

    Args:
        loss: The loss, resolved.
        first: A batch as the model sees it.
        outputs_of: The model's outputs on a batch; asked for only where targets may not fit.

    Returns:
        A function of batches, and a note; None where nothing has to be done.
    """
    targets = first.targets
    if (
        loss is None
        or isinstance(loss, ModelLoss)
        or loss is half_mse  # reshapes by itself
        or not (isinstance(targets, Tensor) and targets.is_floating_point() and targets.ndim)
        or not (targets.ndim == 1 or targets.shape[-1] == 1)
    ):
        return None
    z = outputs_of(first)
    if not isinstance(z, Tensor) or z.shape == targets.shape or z.numel() != targets.numel():
        return None
    rest = tuple(z.shape[1:])
    if z.shape[0] != targets.shape[0] or any(n != 1 for n in rest):
        return None

    def fit(batches: Sequence[Batch]) -> list[Batch]:
        return [replace(b, targets=b.targets.reshape(b.targets.shape[0], *rest)) for b in batches]

    return fit, (
        f"targets of shape {tuple(targets.shape)} were given the outputs' shape {tuple(z.shape)}, "
        "which broadcasting would spoil"
    )
