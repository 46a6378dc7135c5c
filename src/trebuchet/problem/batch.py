"""One batch, read; to cut it is to cut every tensor with as many rows as it has samples."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from trebuchet.errors import InputError
from trebuchet.problem.tree import children, leaves, mapped, named_leaves, rebuilt


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Batch:
    """One micro-batch.

    Attributes:
        args: Positional inputs of the model.
        kwargs: Inputs by name (dict batches).
        targets: What the loss compares the outputs with; None if there is none.
        raw: The batch as it came, for a closure ``loss_fn(model, batch)``.
        size: Number of samples, see `as_batches`.
        weight: What the batch counts in a mean, where the caller said so.
        counted: Whether `size` is known; where nothing tells, it is 1.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    targets: Any
    raw: Any
    size: int
    weight: float | None = None
    counted: bool = True

    def outputs_of(self, model: nn.Module) -> Any:
        """Return ``model(*args, **kwargs)``."""
        return model(*self.args, **self.kwargs)

    @property
    def shapes(self) -> tuple[Any, ...]:
        """Shapes and types of all tensors: batches that agree in them count alike, but for NaNs."""
        parts = (self.args, self.kwargs, self.targets, self.raw)
        return tuple((tuple(x.shape), x.dtype) for x in leaves(parts))


def length(x: Any) -> int | None:
    """How many samples a tensor or a packed sequence holds, if along its first axis."""
    if isinstance(x, PackedSequence):
        return int(x.batch_sizes[0])
    return int(x.shape[0]) if x.ndim else None


def kind(x: object) -> str:
    """What to call it in a message."""
    return f"a {type(x).__name__}"


def split(batch: Batch, size: int) -> Iterator[Batch]:
    """Yield `batch` in pieces of at most `size` samples, as views."""
    if batch.size <= size:
        yield batch
        return
    for start in range(0, batch.size, size):
        yield take(batch, slice(start, min(start + size, batch.size)), "micro_batch")


def take(batch: Batch, rows: list[int] | slice, what: str = "batch_size") -> Batch:
    """Return some samples of a batch; what has no sample dimension is passed on as it is.

    Args:
        batch: The batch.
        rows: Which samples; of a slice the tensors are views.
        what: The argument that asks for it, named if it cannot be done.

    Returns:
        The smaller batch.

    Raises:
        InputError: If some tensor's samples are not along its first axis.
    """
    _check_cuttable(batch, what)
    cut = _Cut(rows, batch.size)
    parts = (batch.args, batch.kwargs, batch.targets, batch.raw)
    args, kwargs, targets, raw = (mapped(cut, part, (Tensor, PackedSequence)) for part in parts)
    weight = None if batch.weight is None else batch.weight * cut.count / batch.size
    return Batch(args, kwargs, targets, raw, cut.count, weight, batch.counted)


class _Cut:
    """Cuts tensors; the same one, met again in another part of a batch, only once."""

    def __init__(self, rows: list[int] | slice, size: int) -> None:
        self.rows, self.size = rows, size
        self.count = len(range(size)[rows]) if isinstance(rows, slice) else len(rows)
        self.done: dict[int, Any] = {}
        self.index: dict[torch.device, Tensor] = {}

    def __call__(self, x: Any) -> Any:
        if length(x) != self.size:
            return x
        if id(x) not in self.done:
            self.done[id(x)] = self._packed(x) if isinstance(x, PackedSequence) else self._rows(x)
        return self.done[id(x)]

    def _rows(self, x: Tensor) -> Tensor:
        if isinstance(self.rows, slice):
            return x[self.rows]
        if x.device not in self.index:
            self.index[x.device] = torch.tensor(self.rows, device=x.device)
        return x[self.index[x.device]]

    def _packed(self, x: PackedSequence) -> PackedSequence:
        padded, lengths = pad_packed_sequence(x, batch_first=True)
        return pack_padded_sequence(
            self._rows(padded), self._rows(lengths), batch_first=True, enforce_sorted=False
        )


def _check_cuttable(batch: Batch, what: str) -> None:
    """Refuse to cut where samples are not, as far as it can be known, along first axes."""
    n = batch.size
    kwargs = list(named_leaves(batch.kwargs, "inputs"))
    args = [pair for i, x in enumerate(batch.args) for pair in named_leaves(x, f"inputs[{i}]")]
    inputs, targets = [*args, *kwargs], list(named_leaves(batch.targets, "targets"))
    advice = (
        f"so {what} cannot cut it; put samples first (the model may transpose), pass a loader of "
        f"smaller batches, or leave {what} out"
    )
    if not any(length(x) == n for _, x in inputs):
        shapes = ", ".join(f"{name} of shape {_shape(x)}" for name, x in inputs[:3])
        msg = (
            f"data: no input has its {n} samples along the first axis "
            f"({shapes or kind(batch.raw)}), {advice}"
        )
        raise InputError(msg)
    for name, x in [*inputs, *targets]:
        if n > 1 and length(x) != n and isinstance(x, Tensor) and n in x.shape[1:]:
            msg = (
                f"data: {name} of shape {_shape(x)} has its {n} samples not along the first axis, "
                f"{advice}"
            )
            raise InputError(msg)
    if targets and not any(length(x) == n for _, x in targets):
        name, x = targets[0]
        msg = f"data: {name} of shape {_shape(x)} has no axis of {n} samples, {advice}"
        raise InputError(msg)


def _shape(x: Any) -> tuple[int, ...]:
    return tuple(x.data.shape) if isinstance(x, PackedSequence) else tuple(x.shape)


def join(batches: Sequence[Batch]) -> Batch | None:
    """Put batches together along their first dimension.

    A tensor that is the same in all of them, with rows that differ, is no set of samples but a
    constant (class weights, positions), and stays as it is.

    Args:
        batches: One or more.

    Returns:
        One batch; None if they do not fit.
    """
    if len(batches) == 1:
        return batches[0]
    whole = _Join([b.size for b in batches])
    # If all is the same in all of them, it is one batch many times over.
    varied = any(not _equal(list(leaves(b.raw)), list(leaves(batches[0].raw))) for b in batches)
    # Targets first: they are never constants, wherever else in the batch they turn up again.
    targets, args, kwargs, raw = (
        whole([getattr(b, part) for b in batches], varied and part != "targets")
        for part in ("targets", "args", "kwargs", "raw")
    )
    if any(part is _MISFIT for part in (targets, args, kwargs, raw)):
        return None
    weights = [b.weight for b in batches]
    known = [w for w in weights if w is not None]
    return Batch(
        args, kwargs, targets, raw, sum(whole.sizes),
        weight=sum(known) if len(known) == len(weights) else None,
        counted=all(b.counted for b in batches),
    )  # fmt: skip


_MISFIT: Any = object()


class _Join:
    """Joins the parts of several batches; a tensor met again in another part only once."""

    def __init__(self, sizes: list[int]) -> None:
        self.sizes = sizes
        self.done: dict[tuple[int, ...], Any] = {}

    def __call__(self, items: list[Any], constants: bool) -> Any:
        first = items[0]
        if isinstance(first, Tensor):
            key = tuple(map(id, items))
            if key not in self.done:
                self.done[key] = self._tensors(items, constants)
            return self.done[key]
        if any(type(x) is not type(first) for x in items):
            return _MISFIT
        if isinstance(first, PackedSequence):
            return _MISFIT
        columns = [children(x) for x in items]
        head = columns[0]
        if head is None:
            return first if all(x is first or _same(x, first) for x in items) else _MISFIT
        rows = [dict(c) for c in columns if c is not None]
        if any(set(row) != set(rows[0]) for row in rows):
            return _MISFIT
        joined = [self([row[label] for row in rows], constants) for label, _ in head]
        if any(value is _MISFIT for value in joined):
            return _MISFIT
        return rebuilt(first, joined)

    def _tensors(self, items: list[Any], constants: bool) -> Any:
        first = items[0]
        if any(not isinstance(x, Tensor) for x in items):
            return _MISFIT
        same = _equal(items, [first] * len(items))
        if constants and same and (first.ndim == 0 or bool((first != first[:1]).any())):
            return first
        fits = all(
            x.ndim > 0 and x.shape[0] == n and x.shape[1:] == first.shape[1:]
            for x, n in zip(items, self.sizes, strict=True)
        )
        return torch.cat(items) if fits else _MISFIT


def _equal(xs: list[Tensor], ys: list[Tensor]) -> bool:
    return len(xs) == len(ys) and all(
        x is y or (x.shape == y.shape and torch.equal(x, y)) for x, y in zip(xs, ys, strict=True)
    )


def _same(x: object, y: object) -> bool:
    try:
        return bool(x == y)
    except (RuntimeError, ValueError, TypeError):  # arrays and the like
        return False
