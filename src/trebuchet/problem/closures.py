"""Losses that call the model themselves: its own, and closures told from other functions."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from trebuchet._checks import one_line
from trebuchet.errors import InputError
from trebuchet.problem.autocast import Autocast
from trebuchet.problem.batches import Batch, check_readable
from trebuchet.problem.binding import called_with
from trebuchet.problem.losses import LossFn, ModelLoss, known, parameters_of
from trebuchet.problem.state import ModelState

_OUTPUTS = {
    "z", "o", "out", "outs", "output", "outputs", "pred", "preds", "prediction", "predictions",
    "predicted", "logit", "logits", "score", "scores", "input", "inputs", "y_pred", "ypred",
    "y_hat", "yhat",
}  # fmt: skip
"""Names of a first parameter that say what it is, and spare the trial."""


def _own(model: nn.Module, batch: Any) -> Tensor:
    args, kwargs = called_with(batch, model)
    out = model(*args, **kwargs)
    if isinstance(out, Tensor) and out.ndim == 0:
        return out
    value = out.get("loss") if isinstance(out, Mapping) else getattr(out, "loss", None)
    if value is None and isinstance(out, (tuple, list)) and out:
        value = out[0] if isinstance(out[0], Tensor) and out[0].ndim == 0 else None
    if not isinstance(value, Tensor):
        msg = (
            "loss: expected a loss, got None, which means the model's own, but it returned "
            f"a {type(out).__name__}, no scalar and nothing with a `loss` in it; give the "
            "loss that is trained on"
        )
        raise InputError(msg)
    return value


OWN_LOSS = ModelLoss(_own)
"""What ``loss=None`` means: the model is given the whole batch, targets too, and says its loss."""


def maybe_closure(loss: object) -> bool | None:
    """Whether a resolved loss is a closure; None where only a trial can tell.

    Args:
        loss: The resolved loss.

    Returns:
        True, False or None.
    """
    if isinstance(loss, ModelLoss):
        return True
    if loss is None or isinstance(loss, nn.Module) or not callable(loss) or known(loss):
        return False
    names = parameters_of(loss)
    return False if len(names) != 2 or names[0].lower() in _OUTPUTS else None


def settled(
    loss: LossFn | ModelLoss, model: nn.Module, batch: Batch, autocast: Autocast
) -> LossFn | ModelLoss:
    """Find out whether a function of two arguments is ``loss(outputs, targets)`` or a closure.

    It is called as the first, and as ``loss(model, batch)`` only if that fails. Nothing about the
    model changes, what a teacher or a queue in a plain dict or list holds included: runs start from
    here.

    Args:
        loss: The resolved loss.
        model: The model, held still.
        batch: One batch of its data.
        autocast: The autocast the model runs in.

    Returns:
        The loss, wrapped in ``ModelLoss`` if it is a closure.

    Raises:
        InputError: If it can be called neither way.
    """
    if maybe_closure(loss) is not None:
        return loss
    assert not isinstance(loss, ModelLoss)
    state = ModelState(model, [p for p in model.parameters() if p.requires_grad], loss)
    devices = [t.device.index for t in (*model.parameters(), *model.buffers()) if t.is_cuda]
    try:
        with torch.random.fork_rng(devices=sorted(set(devices))), torch.enable_grad(), autocast():
            try:
                check_readable(batch)
                z = batch.outputs_of(model)
                loss(z) if batch.targets is None else loss(z, batch.targets)
                return loss
            except Exception as error:  # the user's model and loss may raise anything
                if _memory(error):
                    raise
                as_loss = error
            try:
                value: object = loss(model, batch.raw)
                if isinstance(value, Tensor) and value.numel() == 1:
                    return ModelLoss(loss)
                as_closure = f"it gave a {type(value).__name__}"
            except Exception as error:  # the user's loss may raise anything
                if _memory(error):
                    raise
                as_closure = one_line(error)
    finally:
        state.bring_home()
    msg = (
        f"model: cannot be evaluated with this loss on this data ({one_line(as_loss)}); check that "
        f"loss(model(inputs), targets) works on one batch, or loss(model, batch), which was tried "
        f"too ({as_closure}) and needs no trial if its first parameter is called model"
    )
    raise InputError(msg) from as_loss


def _memory(error: Exception) -> bool:
    text = str(error).lower()
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in text
