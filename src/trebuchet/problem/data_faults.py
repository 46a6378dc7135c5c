"""Samples whose loss is not finite at the start: no learning rate is to blame for those."""

from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor

from trebuchet.errors import InputError
from trebuchet.problem.batch import take
from trebuchet.problem.batches import Batch
from trebuchet.problem.losses import ModelLoss
from trebuchet.problem.risk import Objective, is_finite
from trebuchet.problem.stream import Stream
from trebuchet.problem.tree import mapped

NAMED = 5
"""At most so many samples are named."""


def check_samples(objective: Objective, stream: Stream) -> None:
    """Look for samples with NaN or infinity in them, and refuse those that spoil the loss.

    A loss may mask them: what it gives at the start decides.

    Args:
        objective: The model, at the start; nothing about it changes.
        stream: The data.

    Raises:
        InputError: If the loss of a batch with such a sample is not finite, naming the sample.
    """
    for i, batch in enumerate(stream.pool):
        bad = not_finite(batch, closure=isinstance(objective.loss, ModelLoss))
        if not bad:
            continue
        rows = bad[:1] + [row for row in range(batch.size) if row not in set(bad)][:3]
        tried = take(batch, rows) if stream.batch_size is not None else batch
        if not is_finite(objective.value([tried])):
            _refuse(stream, i, bad, "holds NaN or infinity")


def not_finite(batch: Batch, *, closure: bool) -> list[int]:
    """Rows in which an input or a target is NaN or infinite.

    Args:
        batch: The samples.
        closure: The loss reads the batch as it came.

    Returns:
        The rows, ascending; empty where no tensor with samples has any.
    """
    bad: set[int] = set()

    def look(x: Tensor) -> Tensor:
        if x.is_floating_point() and x.ndim and x.shape[0] == batch.size:
            finite = torch.isfinite(x)
            if not bool(finite.all()):
                bad.update((~finite).flatten(1).any(1).nonzero().flatten().tolist()
                           if x.ndim > 1 else (~finite).nonzero().flatten().tolist())  # fmt: skip
        return x

    for part in ("raw",) if closure else ("args", "kwargs", "targets"):
        mapped(look, getattr(batch, part))
    return sorted(bad)


def check_batch_met(objective: Objective, stream: Stream, seed: int, step: int) -> None:
    """Tell bad data from a bad rate, where a run met a loss that is not finite.

    Args:
        objective: The model, at the start; nothing about it changes.
        stream: The data.
        seed: The run's order.
        step: Where it met it.

    Raises:
        InputError: If the loss of one of the step's batches is not finite at the start either,
            naming the step and the sample.
    """
    for k in range(stream.accumulate):
        chosen, rows = stream.drawn(seed, step * stream.accumulate + k)
        whole = stream.pool[chosen]
        batch = whole if stream.batch_size is None else take(whole, rows)
        if is_finite(objective.in_training(batch)):
            continue
        found = _bisected(objective, whole, rows)
        _refuse(stream, chosen, found, f"has no finite loss at the start (met at step {step})")


def check_single_samples(objective: Objective, stream: Stream) -> None:
    """Where the loss at the start is not finite, look for one sample that alone is at fault.

    Args:
        objective: The model, at the start; nothing about it changes.
        stream: The data.

    Raises:
        InputError: If there is one, and another whose loss is finite: the model is not at fault.
    """
    for i, batch in enumerate(stream.pool):
        if is_finite(objective.value([batch])):
            continue
        found = _bisected(objective, batch, range(batch.size))
        others = [row for row in range(batch.size) if row not in found][:1]
        if len(found) == 1 and others and is_finite(objective.value([take(batch, others)])):
            _refuse(stream, i, found, "has no finite loss at the start")


def _bisected(objective: Objective, whole: Batch, rows: Sequence[int]) -> list[int]:
    """One sample that by itself has no finite loss; all of the rows if none is found so."""
    left = list(rows)
    while len(left) > 1:
        halves = left[: len(left) // 2], left[len(left) // 2 :]
        try:
            bad = [h for h in halves if not is_finite(objective.value([take(whole, list(h))]))]
        except Exception:  # parts that the model does not take, such as one sample with BatchNorm
            return left
        if not bad:
            return left
        left = list(bad[0])
    return left


def _refuse(stream: Stream, chosen: int, rows: Sequence[int], what: str) -> NoReturn:
    names = ", ".join(map(str, rows[:NAMED])) + (", …" if len(rows) > NAMED else "")
    where = f" of batch {chosen}" if len(stream.pool) > 1 else ""
    msg = (
        f"data: sample{'s' if len(rows) > 1 else ''} {names}{where}, counted from 0 as the data "
        f"was read, {what}, so training fails there at every learning rate; mend or remove it"
    )
    raise InputError(msg)
