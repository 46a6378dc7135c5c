"""What only an evaluation can tell: whether the model, the loss and the data fit together."""

from collections.abc import Sequence
from typing import NoReturn

from torch import nn

from trebuchet._checks import one_line
from trebuchet.errors import InputError
from trebuchet.problem.batches import Batch
from trebuchet.problem.data_faults import check_samples, check_single_samples
from trebuchet.problem.losses import ModelLoss
from trebuchet.problem.risk import Objective, is_finite, out_of_memory
from trebuchet.problem.stream import Stream

TOO_FEW = "Expected more than 1"
"""How torch begins to say that a batch is too small for its statistics."""


def check_start(objective: Objective, fixed: Sequence[Batch], stream: Stream) -> None:
    """Evaluate the loss once, and say in one sentence what is wrong with it.

    Only the first evaluation's exceptions are translated, and torch's of the first evaluation of a
    batch as it is trained on: what a user's code raises later is no longer about the arguments, and
    propagates as it is. So does running out of memory.

    Args:
        objective: The model and the loss; nothing about them changes.
        fixed: The samples that runs are compared on.
        stream: The batches that they are trained on.

    Raises:
        InputError: If the loss cannot be evaluated or is not finite, if it has parameters of its
            own, if gradients would be sparse, or if a batch is too small for batch statistics.
    """
    _check_dense(objective.model)
    loss = objective.loss.fn if isinstance(objective.loss, ModelLoss) else objective.loss
    check_own_parameters(loss, objective.params)
    try:
        first = objective.value(fixed)
    except InputError:
        raise
    except Exception as error:  # the user's model and loss may raise anything
        _explain(error, objective, min(b.size for b in fixed))
    check_samples(objective, stream)
    if not is_finite(first):
        check_single_samples(objective, stream)
        msg = (
            f"model: its loss is {first} at the initialisation, before any step; no learning rate "
            "can mend that: check the data for NaN, and the model's outputs"
        )
        raise InputError(msg)
    if not stream.full_batch:
        _check_batch(objective, stream)


def check_own_parameters(loss: object, params: Sequence[nn.Parameter]) -> None:
    """Refuse a loss with trainable parameters that are not the model's: a scan trains the model's.

    Args:
        loss: The loss as the user gave it.
        params: The model's trainable parameters.

    Raises:
        InputError: If it has some.
    """
    if not isinstance(loss, nn.Module):
        return
    known = {id(p) for p in params}
    own = [name for name, p in loss.named_parameters() if p.requires_grad and id(p) not in known]
    if own:
        msg = (
            f"loss: expected no trainable parameters of its own, got {', '.join(own)}, which a "
            "scan would not train; put them into one module with the model and give a closure "
            "loss(model, batch), or call requires_grad_(False) on the loss"
        )
        raise InputError(msg)


def _check_dense(model: nn.Module) -> None:
    for name, module in model.named_modules():
        sparse = isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.sparse
        if sparse and module.weight.requires_grad:
            msg = (
                f"model: has sparse gradients, of its {type(module).__name__} {name!r}, and a scan "
                "needs dense ones; make it with sparse=False"
            )
            raise InputError(msg)


def _check_batch(objective: Objective, stream: Stream) -> None:
    """Evaluate the smallest batch in training mode: its statistics may need more samples."""
    whole = stream.batch_size is None
    batch = min(stream.pool, key=lambda b: b.size) if whole else stream.batches(0, 0)[0]
    try:
        objective.value([batch], evaluation=False)
    except InputError:
        raise
    except (RuntimeError, ValueError) as error:  # shapes that only all samples at once have
        _explain(error, objective, batch.size)


def _explain(error: Exception, objective: Objective, size: int) -> NoReturn:
    if out_of_memory(error):
        raise error
    if isinstance(error, ValueError) and TOO_FEW in str(error):
        name, got = "batch_size", f"{size} at a time"
        advice = "give more, and a loader drop_last=True"
        if objective.chunk is not None and objective.chunk < size:
            name, got = "micro_batch", f"{objective.chunk} at a time of {size}"
            advice = "give a number that leaves no single sample"
        msg = (
            f"{name}: expected enough samples for the model's batch statistics, got {got} "
            f"({one_line(error)}); {advice}"
        )
        raise InputError(msg) from error
    fit = "that loss(model(inputs), targets) works"
    if isinstance(objective.loss, ModelLoss):
        fit = "that loss(model, batch) works"
    msg = (
        f"model: cannot be evaluated with this loss on this data ({one_line(error)}); check "
        f"{fit} on one batch"
    )
    raise InputError(msg) from error
