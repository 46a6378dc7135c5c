"""Which samples a run sees at which step: a function of (seed, step) and of nothing else.

Runs at different rates share their batches (common random numbers): what differs between two of
them is the rate, not the luck of the draw. And a run that was set aside and taken up again sees the
batches it would have seen.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, SequentialSampler

from trebuchet.errors import InputError
from trebuchet.problem.batches import Batch, as_batches, split


@dataclass(frozen=True, slots=True)
class Stream:
    """An endless sequence of batches for every seed.

    Attributes:
        pool: One batch with every sample, or the batches as a loader gave them.
        batch_size: Samples a batch, drawn without replacement from one shuffled pass after the
            other; None takes the pool's own batches.
        accumulate: Batches whose mean gradient makes one step.
        shuffle: Whether seeds differ in their order; an unshuffled loader keeps its own.
    """

    pool: tuple[Batch, ...]
    batch_size: int | None = None
    accumulate: int = 1
    shuffle: bool = True

    @property
    def n_samples(self) -> int:
        """D: samples in the pool."""
        return sum(batch.size for batch in self.pool)

    @property
    def full_batch(self) -> bool:
        """Whether every step sees every sample."""
        return len(self.pool) == 1 and self.batch_size is None and self.accumulate == 1

    @property
    def samples_per_step(self) -> int:
        """Samples behind one gradient."""
        size = self.pool[0].size if self.batch_size is None else self.batch_size
        return size * self.accumulate

    def batches(self, seed: int, step: int) -> list[Batch]:
        """The batches of one step, `accumulate` of them.

        Args:
            seed: Which order.
            step: t, from 0.

        Returns:
            The batches; their losses count equally, as in ``(loss / accumulate).backward()``.
        """
        return [self._draw(seed, step * self.accumulate + k) for k in range(self.accumulate)]

    def _draw(self, seed: int, i: int) -> Batch:
        chosen, rows = self.drawn(seed, i)
        return self.pool[chosen] if self.batch_size is None else take(self.pool[0], rows)

    def drawn(self, seed: int, i: int) -> tuple[int, list[int]]:
        """Where the samples of a batch come from.

        Args:
            seed: Which order.
            i: Which batch, from 0; step t has ``accumulate`` of them from t · ``accumulate`` on.

        Returns:
            Which batch of the pool, and which of its rows.
        """
        if self.batch_size is None:
            passes, at = divmod(i, len(self.pool))
            chosen = self._order(seed, passes, len(self.pool))[at]
            return chosen, list(range(self.pool[chosen].size))
        size, total = self.batch_size, self.pool[0].size
        rows: list[int] = []
        while len(rows) < size:
            passes, at = divmod(i * size + len(rows), total)
            rows += self._order(seed, passes, total)[at : at + size - len(rows)]
        return 0, rows

    def _order(self, seed: int, passes: int, n: int) -> list[int]:
        return _shuffled(seed, passes, n) if self.shuffle and n > 1 else list(range(n))

    def fixed(self, samples: int, *, seed: int = 90210) -> list[Batch]:
        """A fixed set of about `samples` samples, the same for every run, to compare them on.

        Args:
            samples: How many; all of them if there are no more.
            seed: Of the draw.

        Returns:
            Batches: rows of the one pool, or so many of the loader's batches.
        """
        if len(self.pool) > 1:
            count = max(1, min(len(self.pool), round(samples / self.pool[0].size)))
            return list(self.pool[:count])
        if samples >= self.n_samples:
            return [self.pool[0]]
        return [take(self.pool[0], sorted(_shuffled(seed, 0, self.n_samples)[:samples]))]


@lru_cache(maxsize=16)
def _shuffled(seed: int, passes: int, n: int) -> list[int]:
    generator = torch.Generator().manual_seed((seed * 1_000_003 + passes) % 2**63)
    order: list[int] = torch.randperm(n, generator=generator).tolist()
    return order


def take(batch: Batch, rows: list[int]) -> Batch:
    """Return some samples of a batch; what has no sample dimension is passed on as it is."""
    index: dict[torch.device, Tensor] = {}

    def cut(x: Tensor) -> Tensor:
        if not x.ndim or x.shape[0] != batch.size:
            return x
        if x.device not in index:
            index[x.device] = torch.tensor(rows, device=x.device)
        return x[index[x.device]]

    return Batch(
        args=mapped(cut, batch.args),
        kwargs=mapped(cut, batch.kwargs),
        targets=mapped(cut, batch.targets),
        raw=mapped(cut, batch.raw),
        size=len(rows),
    )


def pieces(batch: Batch, size: int | None) -> list[Batch]:
    """Split a batch into micro-batches of at most `size` samples."""
    return [batch] if size is None or batch.size <= size else list(split(batch, size))


def mapped(f: Any, item: Any) -> Any:
    """Apply `f` to every tensor in a nest of tuples, lists and mappings."""
    if isinstance(item, Tensor):
        return f(item)
    if isinstance(item, Mapping):
        return {key: mapped(f, value) for key, value in item.items()}
    if isinstance(item, (tuple, list)):
        return (
            type(item)(mapped(f, value) for value in item) if type(item) in (tuple, list) else item
        )
    return item


def make_stream(
    data: object,
    *,
    device: torch.device,
    batch_size: int | None,
    accumulate: int,
    horizon: int,
    closure: bool = False,
) -> Stream:
    """Turn data in any of the usual shapes into a stream.

    Args:
        data: Tensors, pairs, dicts, a list of batches or a loader; see ``problem.batches``.
        device: Where the model is.
        batch_size: Samples a batch; None is the loader's own, or the full batch.
        accumulate: Batches a step.
        horizon: Steps a run; of a loader no more is read than they need.
        closure: The loss is a ``loss_fn(model, batch)``.

    Returns:
        The stream.

    Raises:
        InputError: If `batch_size` or `accumulate` does not fit the data.
    """
    if accumulate < 1:
        msg = f"accumulate: expected a positive number of batches a step, got {accumulate}"
        raise InputError(msg)
    if batch_size is not None and batch_size < 1:
        msg = f"batch_size: expected a positive number of samples, got {batch_size}"
        raise InputError(msg)
    loader = isinstance(data, DataLoader)
    limit = horizon * accumulate if loader else None
    batches = as_batches(data, device=device, closure=closure, max_batches=limit)
    shuffle = True
    if loader:
        shuffle = not isinstance(getattr(data, "sampler", None), SequentialSampler)
        size = batch_size or getattr(data, "batch_size", None)
        merged = _merge(batches) if shuffle and size else None
        if merged is not None and len(batches) > 1:
            batches, batch_size = [merged], size
        elif batch_size is not None and batch_size != getattr(data, "batch_size", None):
            msg = "batch_size: the loader makes its own batches; set it there, or pass tensors"
            raise InputError(msg)
        else:
            batch_size = None
    elif len(batches) > 1 and batch_size is not None:
        merged = _merge(batches)
        if merged is None:
            msg = "batch_size: these batches cannot be put together; leave batch_size out"
            raise InputError(msg)
        batches = [merged]
    total = sum(b.size for b in batches)
    if batch_size is not None and batch_size > total:
        msg = (
            f"batch_size: expected at most the number of samples, {total}, got {batch_size}; "
            "leave it out to train on all of them at once"
        )
        raise InputError(msg)
    if batch_size == total and len(batches) == 1:
        batch_size = None
    return Stream(tuple(batches), batch_size, accumulate, shuffle)


def _merge(batches: list[Batch]) -> Batch | None:
    """Put batches together along their first dimension; None if they do not fit."""
    if len(batches) == 1:
        return batches[0]
    whole = [_join([getattr(b, part) for b in batches], [b.size for b in batches])
             for part in ("args", "kwargs", "targets", "raw")]  # fmt: skip
    if any(part is _MISFIT for part in whole):
        return None
    args, kwargs, targets, raw = whole
    return Batch(args, kwargs, targets, raw, sum(b.size for b in batches))


_MISFIT = object()


def _join(items: list[Any], sizes: list[int]) -> Any:
    first = items[0]
    if isinstance(first, Tensor):
        fits = all(
            isinstance(x, Tensor)
            and x.ndim > 0
            and x.shape[0] == n
            and x.shape[1:] == first.shape[1:]
            for x, n in zip(items, sizes, strict=True)
        )
        return torch.cat(items) if fits else _MISFIT
    if isinstance(first, Mapping):
        if any(set(x) != set(first) for x in items):
            return _MISFIT
        joined = {key: _join([x[key] for x in items], sizes) for key in first}
        return _MISFIT if any(v is _MISFIT for v in joined.values()) else joined
    if isinstance(first, (tuple, list)):
        if any(len(x) != len(first) for x in items):
            return _MISFIT
        parts = [_join(list(column), sizes) for column in zip(*items, strict=True)]
        return _MISFIT if any(v is _MISFIT for v in parts) else type(first)(parts)
    return first if all(x == first for x in items) else _MISFIT
