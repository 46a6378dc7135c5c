"""Data in any of the usual shapes, as one list of micro-batches.

A *micro-batch* is what the model sees in one forward pass. Curvature is additive over samples, so
an operator is a weighted sum over micro-batches; the weights come from the loss (losses.py), never
from the assumption that all micro-batches have the same size.
"""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trebuchet.errors import InputError

TARGET_KEYS = ("labels", "label", "targets", "target", "y")
"""Keys of a dict batch that hold the targets; all other keys are passed to the model by name."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One micro-batch.

    Attributes:
        args: Positional inputs of the model.
        kwargs: Inputs by name (dict batches).
        targets: What the loss compares the outputs with; None if there is none.
        raw: The batch as it came, for a closure ``loss_fn(model, batch)``.
        size: Number of samples: the length of the first tensor's first dimension.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    targets: Any
    raw: Any
    size: int

    def outputs_of(self, model: nn.Module) -> Any:
        """Return ``model(*args, **kwargs)``."""
        return model(*self.args, **self.kwargs)


def as_batches(
    data: object,
    *,
    device: torch.device,
    micro_batch: int | None = None,
    closure: bool = False,
    max_batches: int | None = None,
) -> list[Batch]:
    """Return `data` as micro-batches, all on `device`.

    Args:
        data: A tensor (inputs without targets), a pair ``(inputs, targets)`` whose inputs may be a
            tensor, a tuple (several inputs) or a dict (inputs by name), a dict batch with one of
            :data:`TARGET_KEYS`, or an iterable of any of these that can be read again (a
            ``DataLoader``, a list; but a list of two tensors is the pair that collating makes of
            inputs and targets). A loader is read once, in full, and its batches are kept, so
            that a shuffled one is one fixed data set and not a different one at every product.
        device: Where the model is. A loader's batches are moved there; tensors given directly must
            be there already, since a silent copy of a whole data set is never what was meant.
        micro_batch: Split each batch into pieces of at most this many samples, to bound memory.
        closure: The loss is a ``loss_fn(model, batch)``: batches are passed on whole.
        max_batches: Read only the first so many batches of a loader.

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
    batches = []
    if _is_one_batch(data, closure=closure):
        _check_device(data, device)
        batches.append(_batch(data, closure=closure))
    else:
        if not isinstance(data, Iterable) or isinstance(data, (str, bytes)):
            msg = f"data: expected tensors, a dict, or a loader of batches, got {_kind(data)}"
            raise InputError(msg)
        if isinstance(data, Iterator):
            msg = (
                "data: got an iterator, which reading would use up; "
                "pass the loader itself, or list(...) of it"
            )
            raise InputError(msg)
        for i, item in enumerate(_read(data)):
            if max_batches is not None and i >= max_batches:
                break
            batches.append(_batch(_to(item, device), closure=closure))
        if not batches:
            msg = "data: the loader is empty; it must yield at least one batch"
            raise InputError(msg)
    if any(b.size == 0 for b in batches):
        msg = "data: a batch holds no sample; every batch needs at least one"
        raise InputError(msg)
    if micro_batch is None:
        return batches
    if closure:
        msg = "micro_batch: a closure's batch cannot be split; pass a loader of smaller batches"
        raise InputError(msg)
    return [piece for batch in batches for piece in split(batch, micro_batch)]


def split(batch: Batch, size: int) -> Iterator[Batch]:
    """Yield `batch` in pieces of at most `size` samples, as views."""
    if batch.size <= size:
        yield batch
        return
    for start in range(0, batch.size, size):
        rows = slice(start, min(start + size, batch.size))

        def cut(x: Tensor, rows: slice = rows) -> Tensor:
            return x[rows] if x.ndim and x.shape[0] == batch.size else x

        yield Batch(
            args=_map(cut, batch.args),
            kwargs=_map(cut, batch.kwargs),
            targets=_map(cut, batch.targets),
            raw=None,
            size=rows.stop - rows.start,
        )


def _read(loader: Iterable[Any]) -> Iterator[Any]:
    """Iterate without touching the loader's own iterator (persistent workers keep one)."""
    if isinstance(loader, torch.utils.data.DataLoader):
        loader = copy.copy(loader)
        loader._iterator = None  # type: ignore[attr-defined]  # torch annotates it in __iter__ only
    yield from loader


def _is_one_batch(data: object, *, closure: bool) -> bool:
    if isinstance(data, (Tensor, Mapping)):
        return True
    if closure and isinstance(data, tuple):
        return True
    # A tuple is a batch; a list is a list of batches, unless it is the pair a collate_fn makes.
    if isinstance(data, tuple):
        return len(data) >= 1 and (isinstance(data[0], (Tensor, Mapping, Sequence)))
    return isinstance(data, list) and len(data) == 2 and all(isinstance(x, Tensor) for x in data)


def _batch(item: Any, *, closure: bool) -> Batch:
    first = next(_leaves(item), None)
    size = 1 if first is None or first.ndim == 0 else int(first.shape[0])
    if closure:
        return Batch((), {}, None, item, size)
    if first is None:
        msg = f"data: expected a batch of tensors, got {_kind(item)}"
        raise InputError(msg)
    if isinstance(item, Tensor):
        return Batch((item,), {}, None, item, size)
    if isinstance(item, Mapping):
        key = next((k for k in TARGET_KEYS if k in item), None)
        inputs = {str(k): v for k, v in item.items() if k != key}
        return Batch((), inputs, None if key is None else item[key], item, size)
    if isinstance(item, (tuple, list)):
        if len(item) == 1:
            return _batch(item[0], closure=False)
        *inputs_, targets = item
        if len(inputs_) == 1 and isinstance(inputs_[0], (tuple, list)):
            inputs_ = list(inputs_[0])
        if len(inputs_) == 1 and isinstance(inputs_[0], Mapping):
            return Batch((), {str(k): v for k, v in inputs_[0].items()}, targets, item, size)
        return Batch(tuple(inputs_), {}, targets, item, size)
    msg = f"data: expected a tensor, a pair (inputs, targets) or a dict, got {_kind(item)}"
    raise InputError(msg)


def _check_device(data: object, device: torch.device) -> None:
    for x in _leaves(data):
        if x.device != device:
            msg = f"data: is on {x.device} but the model is on {device}; move one of them"
            raise InputError(msg)


def _leaves(item: object) -> Iterator[Tensor]:
    if isinstance(item, Tensor):
        yield item
    elif isinstance(item, Mapping):
        for value in item.values():
            yield from _leaves(value)
    elif isinstance(item, (tuple, list)):
        for value in item:
            yield from _leaves(value)


def _map(f: Any, item: Any) -> Any:
    if isinstance(item, Tensor):
        return f(item)
    if isinstance(item, Mapping):
        return {k: _map(f, v) for k, v in item.items()}
    if isinstance(item, (tuple, list)):
        return tuple(_map(f, v) for v in item)
    return item


def _to(item: Any, device: torch.device) -> Any:
    def move(x: Tensor) -> Tensor:
        return x.to(device)

    moved = _map(move, item)
    return moved if any(x.device != device for x in _leaves(item)) else item


def _kind(x: object) -> str:
    return f"a {type(x).__name__}"
