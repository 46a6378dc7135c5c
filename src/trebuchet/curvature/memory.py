"""How much of a model's graph is kept at once: how many samples in a piece, how many pieces."""

import contextlib
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trebuchet.curvature.evaluation import Evaluation
from trebuchet.curvature.per_sample import mixes
from trebuchet.errors import InputError
from trebuchet.problem.batch import Batch, split, take
from trebuchet.problem.losses import ModelLoss
from trebuchet.problem.tree import leaves

KEEP_BYTES = 1 << 30
"""Memory for kept graphs when there are several micro-batches: 1 GiB."""

SHARE = 0.5
"""The graph of one piece may take so much of the memory that is free."""

GRAPH = 3
"""A graph with its recorded backward pass holds about so many times what a forward pass saves."""


def how_many_fit(evaluation: Evaluation, *, outputs: bool = True) -> int:
    """Return how many micro-batches' graphs may be kept at once.

    One micro-batch is always kept: its activations are alive during a product anyway. For several,
    one forward pass is watched to see how much it saves for its backward pass.

    Args:
        evaluation: The evaluation.
        outputs: Whether the graph is that of the outputs, or of the loss.

    Returns:
        A number of graphs, 0 if keeping even one would use memory that the next one needs.
    """
    if len(evaluation.batches) == 1:
        return 1
    forward = evaluation.outputs if outputs else evaluation.loss_of
    biggest = max(evaluation.batches, key=lambda b: b.size)
    return int(KEEP_BYTES // (GRAPH * _saved(evaluation, lambda: forward(biggest))[0] + 1))


def pieces_that_fit(evaluation: Evaluation) -> list[Batch] | None:
    """Cut batches whose graphs would not fit into memory, where that changes nothing.

    Two samples, alone and together, tell how much each of them saves for the backward pass, and
    whether what the model returns for one depends on the other, as where first axes are of time.
    They are not tried where a number for every weight and every number of the batch would fit.

    Args:
        evaluation: The evaluation, on the whole batches.

    Returns:
        The pieces; None if all fits, if it is not known how much does, or if it cannot be cut:
        the loss is a closure, or samples meet in the model, as in batch statistics.
    """
    most = max(evaluation.batches, key=lambda b: b.size)
    free = free_bytes(evaluation.device)
    meet = any(mixes(m) for module in evaluation.modules for m in module.modules())
    if free is None or most.size < 2 or meet or isinstance(evaluation.loss, ModelLoss):
        return None
    numbers = sum(x.numel() for x in leaves((most.args, most.kwargs)))
    if numbers * sum(p.nbytes for p in evaluation.leaves) <= SHARE * free / GRAPH:
        return None
    try:
        one, other, two = (take(most, slice(*at)) for at in ((0, 1), (1, 2), (0, 2)))
        with warnings.catch_warnings(action="ignore"):  # of so few samples, say
            small, first = _saved(evaluation, lambda: evaluation.raw_outputs(one))
            _, second = _saved(evaluation, lambda: evaluation.raw_outputs(other))
            large, both = _saved(evaluation, lambda: evaluation.raw_outputs(two))
        each = max(large - small, 1)
        left = SHARE * free / GRAPH - max(small - each, 0)
        alike = _alike(first, both, 0) and _alike(second, both, 1)
        if each * most.size <= left or not alike:
            return None
        number = -(-most.size // max(1, int(left // each)))
        size = -(-most.size // number)
        return [piece for batch in evaluation.batches for piece in split(batch, size)]
    except InputError:  # one sample is too few for it, or samples are not along first axes
        return None


def free_bytes(device: torch.device) -> int | None:
    """Return how much memory is free where a model is; None where nothing tells."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type != "cpu":
        return None
    found = []
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found.append(1024 * int(next(x for x in lines if x.startswith("MemAvailable")).split()[1]))
    with contextlib.suppress(OSError, ValueError):  # a container's own limit; "max" is none
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        found.append(max(0, limit - int((group / "memory.current").read_text())))
    return min(found) if found else None


def _saved(evaluation: Evaluation, forward: Callable[[], Any]) -> tuple[int, list[Tensor]]:
    """Bytes that a forward pass saves for its backward pass and returns; and what it returns."""
    seen: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in evaluation.leaves}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return x.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = [x.detach() for x in leaves(forward())]
    return sum(seen.values()) + sum(x.numel() * x.element_size() for x in out), out


def _alike(one: Sequence[Tensor], two: Sequence[Tensor], row: int) -> bool:
    """Whether all outputs for one sample are what they are for it beside another one."""
    if not one or len(one) != len(two):
        return False
    for a, b in zip(one, two, strict=True):
        if a.ndim < 1 or a.shape[0] != 1 or b.shape != (2, *a.shape[1:]):
            return False
        slack = 1e3 * torch.finfo(a.dtype).eps if a.is_floating_point() else 0.0
        if float((a[0] - b[row]).abs().max()) > slack * float(b.abs().max()):
            return False
    return True
