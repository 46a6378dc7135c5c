"""Data in any of the usual shapes, as one list of micro-batches.

A *micro-batch* is what the model sees in one forward pass. Two questions are answered here, and
nowhere else: whether what came is one batch or a list of them, and how many samples a batch holds,
along which axis of which tensor. What is read is a `Batch`; a `Batch` is data too, and is never
read a second time.

Curvature is additive over samples, so an operator is a weighted sum over micro-batches; the weights
come from the loss (divisors.py), never from the assumption that all have the same size.
"""

import copy
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trebuchet._checks import as_real, items, one_line, shown
from trebuchet._torch_checks import out_of_memory
from trebuchet.errors import InputError
from trebuchet.problem.batch import Batch, join, kind, length, split, take
from trebuchet.problem.binding import TARGET_KEYS, parsed
from trebuchet.problem.tree import (
    as_tensors,
    children,
    is_data_class,
    leaves,
    moved,
    moves,
    named_leaves,
)

__all__ = [
    "TARGET_KEYS",
    "Batch",
    "as_batches",
    "join",
    "split",
    "take",
    "uncounted",
    "warn_uncounted",
]

SizeOf = Callable[[Any], float]
"""From a batch, as the loader gave it, to how much it counts."""


def as_batches(
    data: object,
    *,
    device: torch.device,
    model: nn.Module | None = None,
    micro_batch: int | None = None,
    closure: bool | None = False,
    max_batches: int | None = None,
    weights: Sequence[float] | None = None,
    size_of: SizeOf | None = None,
) -> list[Batch]:
    """Return `data` as micro-batches, all on `device`.

    Samples are counted along the first axis of the targets, if they are a tensor and some input has
    as many rows (or as many columns: time first, one target a sequence); of the first input
    otherwise; a packed sequence holds ``batch_sizes[0]``, and a list of images beside a list of
    targets as many as the lists are long. To cut a batch is to cut every tensor with as many rows.

    Args:
        data: A tensor (inputs without targets), a pair ``(inputs, targets)`` whose inputs may be a
            tensor, a tuple (several inputs) or a dict (inputs by name), a dict, a data class or a
            named tuple with one of :data:`TARGET_KEYS`, an object of the user's own that has a
            method ``to`` (a batch of graphs), or an iterable of any of these that can be read again
            (a ``DataLoader``, a list; but a list of two tensors, of a list and a tensor, or of
            tensors as long as each other and of different kinds is the one batch that collating
            makes of a tuple). NumPy arrays are taken for tensors, floating ones in the model's
            type. A loader is read once, in full, and its batches are kept, so that a shuffled one
            is one fixed data set and not a different one at every product. Batches that were read
            before are passed through.
        device: Where the model is. A loader's batches are moved there; tensors given directly must
            be there already, since a silent copy of a whole data set is never what was meant.
        model: Tells which inputs it takes by name, and its type.
        micro_batch: Split each batch into pieces of at most this many samples, to bound memory.
        closure: The loss is a ``loss_fn(model, batch)``: any batch will do. None if not known yet.
        max_batches: Read only the first so many batches of a loader.
        weights: What each batch counts, where neither the loss nor the tensors tell.
        size_of: The same as a function of a batch.

    Returns:
        At least one batch.

    Raises:
        InputError: If there is no data, it has an unknown shape, or it is on another device.
    """
    if micro_batch is not None and micro_batch < 1:
        msg = f"micro_batch: expected a positive number of samples, got {micro_batch}"
        raise InputError(msg)
    if data is None:
        msg = "data: expected tensors, a dict, or a loader of batches, got None"
        raise InputError(msg)
    batches = _passed_through(data)
    if batches is None:
        batches = _all_read(data, device, model, closure, max_batches)
    batches = _weighted(batches, weights, size_of)
    if any(b.size == 0 for b in batches):
        msg = "data: a batch holds no sample; every batch needs at least one"
        raise InputError(msg)
    if micro_batch is None:
        return batches
    if closure:
        msg = "micro_batch: a closure's batch cannot be split; pass a loader of smaller batches"
        raise InputError(msg)
    return [piece for batch in batches for piece in split(batch, micro_batch)]


def _passed_through(data: object) -> list[Batch] | None:
    if isinstance(data, Batch):
        return [data]
    if isinstance(data, (list, tuple)) and data and all(isinstance(b, Batch) for b in data):
        return list(data)
    return None


def _all_read(
    data: object,
    device: torch.device,
    model: nn.Module | None,
    closure: bool | None,
    max_batches: int | None,
) -> list[Batch]:
    dtype = _dtype(model)
    # Not of a loader, which is converted batch by batch.
    array = isinstance(data, np.ndarray) or hasattr(type(data), "to_numpy")
    if array or isinstance(data, Mapping) or children(data) is not None:
        data = as_tensors(data, dtype, device)
    if _is_one_batch(data, closure=closure):
        _check_device(data, device)
        return [_read(data, model, closure)]
    if not isinstance(data, Iterable) or isinstance(data, (str, bytes)):
        advice = ""
        if hasattr(type(data), "__getitem__") and hasattr(type(data), "__len__"):
            advice = "; wrap a data set in a DataLoader"
        msg = f"data: expected tensors, a dict, or a loader of batches, got {kind(data)}{advice}"
        raise InputError(msg)
    if isinstance(data, Iterator):
        msg = (
            "data: got an iterator, which reading would use up; "
            "pass the loader itself, or list(...) of it"
        )
        raise InputError(msg)
    batches = []
    for i, item in enumerate(_iterated(data)):
        if max_batches is not None and i >= max_batches:
            break
        batches.append(_read(moved(as_tensors(item, dtype, device), device), model, closure))
    if not batches:
        msg = "data: the loader is empty; it must yield at least one batch"
        raise InputError(msg)
    return batches


def _dtype(model: nn.Module | None) -> torch.dtype:
    floating = (p.dtype for p in model.parameters() if p.is_floating_point()) if model else ()
    return next(iter(floating), torch.get_default_dtype())


def _iterated(loader: Iterable[Any]) -> Iterator[Any]:
    """Iterate without touching the loader's own iterator (persistent workers keep one)."""
    if isinstance(loader, torch.utils.data.DataLoader):
        loader = copy.copy(loader)
        loader._iterator = None  # type: ignore[attr-defined]  # torch annotates it in __iter__ only
    try:
        yield from loader
    except InputError:
        raise
    except Exception as error:  # somebody's loader may raise anything
        if out_of_memory(error):
            raise
        msg = (
            f"data: could not be read ({one_line(error)}); check that iterating over it works, and "
            "that collating makes tensors of its samples"
        )
        raise InputError(msg) from error


def _is_one_batch(data: object, *, closure: bool | None) -> bool:
    if isinstance(data, (Tensor, Mapping, tuple)) or is_data_class(data) or moves(data):
        return not isinstance(data, tuple) or len(data) > 0
    if not isinstance(data, list):
        return False
    # A list is a list of batches, unless it is the tuple that a collate_fn makes a list of. Batches
    # of one loader are alike, so what is not alike is one batch.
    tensors = [x for x in data if isinstance(x, Tensor)]
    if len(data) == 2 and isinstance(data[1], Tensor):
        return len(tensors) == 2 or children(data[0]) is not None
    if len(data) < 2 or len(tensors) < len(data) or any(x.ndim == 0 for x in tensors):
        return False
    if len({x.shape[0] for x in tensors}) > 1:
        return False
    if len({(x.ndim, x.is_floating_point()) for x in tensors}) > 1:
        return True
    if closure and len({x.shape for x in tensors}) == 1:
        msg = (
            f"data: a list of {len(data)} tensors of one shape may be one batch or {len(data)} of "
            "them; pass a tuple for one batch, or a list of tuples for many"
        )
        raise InputError(msg)
    return False


def _read(item: Any, model: nn.Module | None, closure: bool | None) -> Batch:
    args, kwargs, targets = parsed(item, model)
    batch = Batch(args, kwargs, targets, item, 1)
    if closure is False:
        check_readable(batch)
    size = _size(batch)
    return replace(batch, size=1 if size is None else size, counted=size is not None)


def check_readable(batch: Batch) -> None:
    """Refuse a batch that only a closure could read.

    Args:
        batch: The batch.

    Raises:
        InputError: If it holds no tensor.
    """
    if next(leaves((batch.args, batch.kwargs, batch.targets)), None) is None and not any(
        moves(x) for x in batch.args
    ):
        msg = f"data: expected a batch of tensors, got {kind(batch.raw)}"
        raise InputError(msg)


def _size(batch: Batch) -> int | None:
    """How many samples; None if nothing tells."""
    if isinstance(batch.raw, (tuple, list)) and len(batch.raw) == 2:
        x, y = batch.raw
        if isinstance(x, list) and isinstance(y, list) and len(x) == len(y) > 0:
            return len(x)
    inputs = [leaf for _, leaf in named_leaves((batch.args, batch.kwargs))]
    lengths = [n for n in map(length, inputs) if n is not None]
    target = next((leaf for _, leaf in named_leaves(batch.targets)), None)
    wanted = None if target is None else length(target)
    if not lengths:
        # A scalar is one sample; an object that is not known is not.
        return wanted if wanted is not None else (1 if inputs else None)
    first = lengths[0]
    if wanted is None or wanted in lengths:
        return first if wanted is None else wanted
    columns = [x.shape[1] for x in inputs if isinstance(x, Tensor) and x.ndim > 1]
    if wanted in columns[:1]:
        return wanted  # time first
    # Targets that were flattened (all tokens) keep the inputs' number; nodes of graphs do not.
    return first if wanted > first > 0 and wanted % first == 0 else wanted


def uncounted(batches: Sequence[Batch]) -> str:
    """What to tell the user where several batches counted equally for want of knowing better.

    Args:
        batches: The batches.

    Returns:
        A sentence; empty where sizes are known or do not matter.
    """
    if len(batches) < 2 or all(b.counted for b in batches):
        return ""
    return (
        f"how many samples a batch ({kind(batches[0].raw)}) holds is not known, so all counted "
        "equally; say size_of=, a function of a batch, or weights="
    )


def warn_uncounted(batches: Sequence[Batch]) -> None:
    """Warn of the same, where a result has no notes.

    Args:
        batches: The batches.
    """
    note = uncounted(batches)
    if note:
        warnings.warn(note, stacklevel=3)


def _weighted(batches: list[Batch], weights: object, size_of: Any) -> list[Batch]:
    """Take the caller's word for what batches count."""
    if weights is not None and size_of is not None:
        msg = "weights: expected either weights= or size_of=, got both; give one"
        raise InputError(msg)
    if size_of is not None:
        if not callable(size_of):
            msg = f"size_of: expected a function of a batch to its size, got {shown(size_of)}"
            raise InputError(msg)
        return [_sized(b, size_of) for b in batches]
    if weights is None:
        return batches
    found = items(weights, as_real)
    good = [w for w in found if w is not None and 0 < w < math.inf]
    if len(good) != len(batches) or len(found) != len(good):
        msg = (
            f"weights: expected {len(batches)} positive numbers, one a batch, got "
            f"{shown(weights)}; give what each batch counts, such as its number of samples"
        )
        raise InputError(msg)
    return [replace(b, weight=w, counted=True) for b, w in zip(batches, good, strict=True)]


def _sized(batch: Batch, size_of: SizeOf) -> Batch:
    try:
        value = as_real(size_of(batch.raw))
    except Exception as error:  # the user's function, and so any
        msg = (
            f"size_of: expected the size of every batch, got {one_line(error)}; it is called with "
            "a batch as the loader gives it"
        )
        raise InputError(msg) from error
    if value is None or not 0 < value < math.inf:
        msg = f"size_of: expected a positive number for every batch, got {shown(value)}"
        raise InputError(msg)
    return replace(batch, size=max(1, round(value)), weight=value, counted=True)


def _check_device(data: object, device: torch.device) -> None:
    for x in leaves(data):
        if x.device != device:
            msg = f"data: is on {x.device} but the model is on {device}; move one of them"
            raise InputError(msg)
