"""Which samples a run sees at which step: a function of (seed, step) and of nothing else.

Runs at different rates share their batches (common random numbers): what differs between two of
them is the rate, not the luck of the draw. And a run that was set aside and taken up again sees the
batches it would have seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    SequentialSampler,
    default_collate,
)

from trebuchet.errors import InputError
from trebuchet.problem.batches import Batch, SizeOf, as_batches, join, split, take

REFERENCE_SAMPLES = 4096
"""Samples read besides, evenly from all of a loader in order that is longer than the runs."""


@dataclass(frozen=True, slots=True)
class Stream:
    """An endless sequence of batches for every seed.

    Attributes:
        pool: One batch with every sample, or the batches as a loader gave them.
        batch_size: Samples a batch, drawn without replacement from one shuffled pass after the
            other; None takes the pool's own batches.
        accumulate: Batches whose mean gradient makes one step.
        shuffle: Whether seeds differ in their order; an unshuffled loader keeps its own.
        reference: What runs are compared on is drawn from these; the pool unless given.
        whole: The loss is no mean over samples: fixed sets keep to batches of the size trained on.
        by_rows: Samples are known to lie along first axes, so that rows of batches may be mixed.
        joint: All batches together are one data set, and make every step.
    """

    pool: tuple[Batch, ...]
    batch_size: int | None = None
    accumulate: int = 1
    shuffle: bool = True
    reference: tuple[Batch, ...] = ()
    whole: bool = False
    by_rows: bool = False
    joint: bool = False

    @property
    def n_samples(self) -> int:
        """D: samples in the pool."""
        return sum(batch.size for batch in self.pool)

    @property
    def full_batch(self) -> bool:
        """Whether every step sees every sample."""
        single = len(self.pool) == 1 and self.batch_size is None and self.accumulate == 1
        return single or self.joint

    @property
    def samples_per_step(self) -> int:
        """Samples behind one gradient."""
        if self.joint:
            return self.n_samples
        size = self.pool[0].size if self.batch_size is None else self.batch_size
        return size * self.accumulate

    def batches(self, seed: int, step: int) -> list[Batch]:
        """The batches of one step, `accumulate` of them.

        Args:
            seed: Which order.
            step: t, from 0.

        Returns:
            The batches; their losses count equally, as in ``(loss / accumulate).backward()``, and
            by their size where all of them are one data set.
        """
        if self.joint:
            return list(self.pool)
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

        Rows drawn from the one pool; or, of a list or a loader, rows spread evenly over all its
        batches, and whole batches where rows cannot be put together.

        Args:
            samples: How many; all of them if there are no more.
            seed: Of the draw.

        Returns:
            One batch, or several.
        """
        source = self.reference or self.pool
        total = sum(b.size for b in source)
        if len(source) == 1 and self.whole and self.batch_size is not None:
            return self._of_training_size(samples, seed)
        if samples >= total:
            return list(source)
        if len(source) == 1:
            return [take(source[0], sorted(_shuffled(seed, 0, total)[:samples]))]
        count = max(1, min(len(source), round(samples * len(source) / total)))
        if self.by_rows and not self.whole:
            spread = _spread_rows(source, samples)
            if spread is not None:
                return [spread]
        return [source[i] for i in _evenly(len(source), count)]

    def described(self, batches: Sequence[Batch]) -> str:
        """Say of which samples a fixed set is.

        Args:
            batches: The fixed set.

        Returns:
            Such as "256 of 2560 samples, spread over 40 batches".
        """
        source = self.reference or self.pool
        size, total = sum(b.size for b in batches), sum(b.size for b in source)
        if size >= total:
            over = f"{total} samples" if self.reference else f"all {total} samples"
        else:
            over = f"{size} of {total} samples"
        return over if len(source) == 1 else f"{over}, spread over {len(source)} batches"

    def _of_training_size(self, samples: int, seed: int) -> list[Batch]:
        size, total = self.batch_size or 1, self.pool[0].size
        order = _shuffled(seed, 0, total)
        count = max(1, min(round(samples / size), total // size))
        return [take(self.pool[0], sorted(order[i * size : (i + 1) * size])) for i in range(count)]


def _evenly(n: int, count: int) -> list[int]:
    """`count` of n places, in the middles of as many equal parts."""
    return [(2 * i + 1) * n // (2 * count) for i in range(count)]


def _spread_rows(source: Sequence[Batch], samples: int) -> Batch | None:
    """Rows spread evenly over batches, as one batch; None where they do not go together."""
    wanted = _evenly(sum(b.size for b in source), samples)
    parts, start, at = [], 0, 0
    try:
        for batch in source:
            rows = []
            while at < len(wanted) and wanted[at] < start + batch.size:
                rows.append(wanted[at] - start)
                at += 1
            start += batch.size
            if rows:
                parts.append(take(batch, rows))
        return join(parts)
    except InputError:  # samples are not along first axes
        return None


@lru_cache(maxsize=16)
def _shuffled(seed: int, passes: int, n: int) -> list[int]:
    generator = torch.Generator().manual_seed((seed * 1_000_003 + passes) % 2**63)
    order: list[int] = torch.randperm(n, generator=generator).tolist()
    return order


def pieces(batch: Batch, size: int | None) -> list[Batch]:
    """Split a batch into micro-batches of at most `size` samples."""
    return [batch] if size is None or batch.size <= size else list(split(batch, size))


def make_stream(
    data: object,
    *,
    device: torch.device,
    batch_size: int | None,
    accumulate: int,
    horizon: int,
    closure: bool | None = False,
    model: nn.Module | None = None,
    weights: Sequence[float] | None = None,
    size_of: SizeOf | None = None,
) -> Stream:
    """Turn data in any of the usual shapes into a stream.

    Args:
        data: Tensors, pairs, dicts, a list of batches or a loader; see ``problem.batches``.
        device: Where the model is.
        batch_size: Samples a batch; None is the loader's own, or the full batch.
        accumulate: Batches a step.
        horizon: Steps a run; of a loader no more is read than they need.
        closure: The loss is a ``loss_fn(model, batch)``; None if not known yet.
        model: Tells which inputs it takes by name, and its type.
        weights: What each batch counts.
        size_of: The same as a function of a batch.

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
    settings: dict[str, Any] = {
        "device": device, "model": model, "closure": closure, "size_of": size_of,
    }  # fmt: skip
    batches = as_batches(data, max_batches=limit, weights=weights, **settings)
    reference: tuple[Batch, ...] = ()
    shuffle, by_rows = True, False
    if loader:
        shuffle = not isinstance(getattr(data, "sampler", None), SequentialSampler)
        size = batch_size or getattr(data, "batch_size", None)
        by_rows = _by_rows(data, batches)
        merged = _joined(batches) if shuffle and size and by_rows else None
        if merged is not None and len(batches) > 1:
            batches, batch_size = [merged], size
        elif batch_size is not None and batch_size != getattr(data, "batch_size", None):
            msg = "batch_size: the loader makes its own batches; set it there, or pass tensors"
            raise InputError(msg)
        else:
            batch_size = None
            if limit is not None and len(batches) >= limit and not shuffle:
                more = _from_all_of(data, len(batches), sum(b.size for b in batches) / len(batches))
                reference = () if more is None else tuple(as_batches(more, **settings))
    elif len(batches) > 1 and batch_size is not None:
        merged = _joined(batches)
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
    if batch_size is not None:
        take(batches[0], [0])  # says so now if the samples are not along first axes
    return Stream(tuple(batches), batch_size, accumulate, shuffle, reference, by_rows=by_rows)


def _by_rows(loader: object, batches: Sequence[Batch]) -> bool:
    """Whether what was counted along first axes are the samples that the loader puts together.

    Sequences that were padded with time first have another first axis.

    Args:
        loader: The loader.
        batches: Its batches.

    Returns:
        True also where only the loader's batch size agrees.
    """
    if getattr(loader, "collate_fn", None) is default_collate:
        return True
    size = getattr(loader, "batch_size", None)
    return all(b.size == size for b in batches[:-1]) and batches[-1].size <= (size or 0)


def _joined(batches: list[Batch]) -> Batch | None:
    """Batches as one that can be cut again; None where they cannot."""
    merged = join(batches)
    if merged is not None and len(batches) > 1:
        try:
            take(merged, [0])
        except InputError:
            return None
    return merged


def _from_all_of(loader: object, read: int, size: float) -> DataLoader[Any] | None:
    """A loader of batches spread evenly over all of one that yields them in order.

    Args:
        loader: The loader.
        read: Batches read of it.
        size: Samples a batch.

    Returns:
        It; None where its data can only be read from the start, or were read to the end.
    """
    assert isinstance(loader, DataLoader)
    sampler = loader.batch_sampler
    if isinstance(loader.dataset, IterableDataset) or type(sampler) is not BatchSampler:
        return None
    rows = list(sampler)
    if len(rows) <= read:
        return None
    count = min(len(rows), max(1, round(REFERENCE_SAMPLES / size)))
    chosen = [rows[i] for i in _evenly(len(rows), count)]
    return DataLoader(loader.dataset, batch_sampler=chosen, collate_fn=loader.collate_fn)
