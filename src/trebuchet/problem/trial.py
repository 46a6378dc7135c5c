"""What an unknown loss divides by, found out by cutting batches and joining them.

d · L is additive over samples: cut in parts of different sizes, along every axis in which the
batches differ, each candidate for d must give Σ d L of the parts = d L of the whole. With d = 1
that is a sum; with the number of rows, of elements, or of targets that are not one of the usual
marks of what does not count (−100, padding 0, NaN …), a mean over these. What fits none (Dice over
a batch, contrastive losses) does not add up, and is refused rather than averaged.

What one batch says need not hold of the next: padding that the first does not have, classes that
it does not show. So all batches are then put to the test together, each joined to one before it;
those whose shapes do not allow that are cut as well.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from trebuchet.errors import InputError
from trebuchet.problem.batches import Batch, join, take
from trebuchet.problem.losses import LossFn, Reduction, check_scalar
from trebuchet.problem.tree import leaves, mapped

Count = Callable[[Any, Any, int], float]
"""d from the outputs (or their shapes), the targets and the number of samples."""

TOLERANCE = 1e-6
"""Relative; losses are tried in float64, but may hold float32 constants."""


class NotAdditiveError(InputError):
    """The loss on a batch does not follow from the losses on its parts."""


@dataclass(frozen=True, slots=True)
class Rule:
    """How the losses of micro-batches make up the whole's.

    Attributes:
        reduction: ``"mean"`` or ``"sum"``.
        count: d; 1 for a sum.
        sees_outputs: Whether it looks at the outputs' shapes.
        note: What to tell the user about it.
    """

    reduction: Reduction
    count: Count
    sees_outputs: bool = False
    note: str = ""

    def divisor(self, batch: Batch, outputs_of: Callable[[Batch], Any]) -> float:
        """Return d of one batch.

        Args:
            batch: The micro-batch.
            outputs_of: Gives its outputs, called only if they are needed.

        Returns:
            The caller's word if there is one, for means.
        """
        if self.reduction == "sum":
            return 1.0
        if batch.weight is not None:
            return batch.weight
        z = outputs_of(batch) if self.sees_outputs else None
        return self.count(z, batch.targets, batch.size)


def as_shapes(outputs: Any) -> Any:
    """Return outputs as tensors without values, all that a divisor looks at."""
    return mapped(lambda x: torch.empty(x.shape, dtype=x.dtype, device="meta"), outputs)


def one(z: Any, y: Any, n: int) -> float:
    """d = 1: a sum."""
    del z, y, n
    return 1.0


def by_samples(z: Any, y: Any, n: int) -> float:
    """d = n."""
    del z, y
    return float(n)


def _rows(z: Any, y: Any, n: int) -> float:
    first = next(leaves(z), None)
    return by_samples(z, y, n) if first is None else float(first.shape[0] if first.ndim else 1)


def _elements(z: Any, y: Any, n: int) -> float:
    first = next(leaves(y), next(leaves(z), None))
    return by_samples(z, y, n) if first is None else float(first.numel())


def _counted(z: Any, y: Any, n: int, mark: int = -100) -> float:
    del z, n
    return float((y != mark).sum())


def _numbers(z: Any, y: Any, n: int) -> float:
    del z, n
    return float((~y.isnan()).sum())


MARKS = (-1, 0, 255)
"""What targets that do not count are called beside −100: none, padding, void."""


def _shifted(z: Any, y: Any, n: int) -> float:
    return _counted(z, y[:, 1:], n)


def _candidates(batches: Sequence[Batch]) -> list[Count]:
    found: list[Count] = [one, _rows, _elements]
    targets = [b.targets for b in batches]
    if all(isinstance(y, Tensor) and not y.is_floating_point() for y in targets):
        found.append(_counted)
        found += [partial(_counted, mark=m) for m in MARKS if any((y == m).any() for y in targets)]
        if all(y.ndim > 1 for y in targets):
            found.append(_shifted)  # of language models, which predict the next token
    tensors = [y for y in targets if isinstance(y, Tensor)]
    if len(tensors) == len(targets) and any(bool(y.isnan().any()) for y in tensors):
        found.append(_numbers)
    return found


@dataclass(frozen=True, slots=True)
class _Part:
    """Some samples' outputs (None for a closure) and targets, how many, and their loss."""

    z: Any
    y: Any
    n: int
    value: float = 0.0


def tried(
    loss: LossFn,
    batches: Sequence[Batch],
    outputs_of: Callable[[Batch], Any],
    *,
    every_axis: bool = False,
) -> Rule:
    """Try an unknown ``loss(outputs, targets)`` on outputs, where samples can mix no more.

    Args:
        loss: The loss; its own state is left alone where it can be copied.
        batches: The micro-batches.
        outputs_of: Gives a batch's outputs.
        every_axis: Cut along axes in which these batches agree too; others may not.

    Returns:
        The rule.

    Raises:
        NotAdditiveError: If no candidate fits, or several do that differ.
    """
    wholes = {id(b): _Part(_plain(outputs_of(b)), b.targets, b.size) for b in _one_each(batches)}
    shapes = [tuple(z.shape) for part in wholes.values() for z in leaves(part.z)]
    axes = [0, *_differing(shapes)]
    if every_axis and shapes:
        axes += [a for a in range(1, len(shapes[0])) if a not in axes]
    candidates, tries = _candidates(batches), 0
    evaluate = _Evaluation(loss)
    for batch in _telling(batches):
        whole = wholes.get(id(batch)) or _Part(_plain(outputs_of(batch)), batch.targets, batch.size)
        for axis in axes:
            for table in _tables(whole, axis, wholes.values()):
                tries += 1
                left = _surviving([c for c in candidates if c is not _shifted], evaluate(table))
                if _shifted in candidates:
                    left += _surviving([_shifted], evaluate(_overlapped(table, axis)))
                # Along an axis that batches share the cut may make no sense, nor does it matter.
                if left or axis in (0, *_differing(shapes)):
                    candidates = left
    if not tries:
        raise NotAdditiveError(_UNTRIED)
    if len(batches) > 1:
        candidates = _together(candidates, batches, outputs_of, evaluate)
    return _chosen(candidates, batches, outputs_of)


def _together(
    candidates: list[Count],
    batches: Sequence[Batch],
    outputs_of: Callable[[Batch], Any],
    evaluate: Callable[[list[_Part]], list[_Part]],
) -> list[Count]:
    """The candidates that hold for every batch beside one before it, or for parts of each."""
    before: dict[Any, _Part] = {}
    for batch in batches:
        part = _Part(_plain(outputs_of(batch)), batch.targets, batch.size)
        kind = tuple(shape[1:] for shape in _sizes((part.z, part.y)))
        table = None
        if kind in before:
            table = _evaluated(_side_by_side(before[kind], part), evaluate)
        for one_table in [table] if table else _cut_apart(part, evaluate):
            candidates = _surviving(candidates, one_table)
        before[kind] = part
    return candidates


def _sizes(item: Any) -> list[tuple[int, ...]]:
    """The shapes of all tensors in an item."""
    return [tuple(x.shape) for x in leaves(item)]


def _cut_apart(
    part: _Part, evaluate: Callable[[list[_Part]], list[_Part]]
) -> Iterator[list[_Part]]:
    for table in _tables(part, 0, ()):
        found = _evaluated(table, evaluate)
        if found is not None:
            yield found


def _evaluated(
    table: list[_Part] | None, evaluate: Callable[[list[_Part]], list[_Part]]
) -> list[_Part] | None:
    if table is None:
        return None
    try:
        return evaluate(table)
    except Exception:  # it was never promised that other than whole batches will do
        return None


def _side_by_side(a: _Part, b: _Part) -> list[_Part] | None:
    """Both as one, and each; None where their first axes are not samples."""
    parts = []
    for part in (a, b):
        first = next(leaves(part.z), None)
        if first is None or not first.ndim or not _along(part.y, 0, first.shape[0]):
            return None
        parts.append(part)
    try:
        z = _cat(a.z, b.z)
        y = None if a.y is None else _cat(a.y, b.y)
    except (RuntimeError, TypeError, ValueError):
        return None
    return [_Part(z, y, a.n + b.n), a, b]


_UNTRIED = "reduction: cannot be found out for these targets; say reduction='mean' or 'sum'"
_NEITHER = (
    "loss: is neither a mean nor a sum over samples, so micro-batches cannot be combined; "
    "pass the data as one batch, or say reduction='mean' or 'sum', or what batches count"
)
_SEVERAL = (
    "loss: what its mean divides by cannot be told for batches of these shapes; say what each "
    "counts (weights=, or size_of= of a batch), or pass torch's own loss"
)


def tried_closure(batches: Sequence[Batch], value_of: Callable[[Batch], Tensor]) -> Rule:
    """Try a closure on samples of the largest batches.

    Args:
        batches: The micro-batches.
        value_of: The closure's loss on a batch.

    Returns:
        The rule; a mean over samples, with a note, where batches cannot be cut or the loss is
        random.

    Raises:
        NotAdditiveError: If no candidate fits.
    """
    if not all(b.counted for b in batches):
        return Rule("mean", by_samples)
    candidates = _candidates(batches)
    untried = Rule("mean", by_samples, note=_untold("could not be tried on parts of a batch"))
    for batch in _telling(batches):
        n = batch.size
        if n < 2:
            return untried
        try:
            for at in _places(n):
                pieces = [batch, take(batch, slice(0, at)), take(batch, slice(at, n))]
                table = [
                    _Part(None, b.targets, b.size, float(check_scalar(value_of(b)))) for b in pieces
                ]
                candidates = _surviving(candidates, table)
            again = float(check_scalar(value_of(batch)))
        except Exception:  # it was never promised that parts of a batch will do
            return untried
        if abs(again - table[0].value) > TOLERANCE * abs(again):
            return Rule("mean", by_samples, note=_untold("is random"))
    for table in _closure_tables(batches, value_of):
        candidates = _surviving(candidates, table)
    if not candidates:
        raise NotAdditiveError(_NEITHER)
    try:
        return _chosen(candidates, batches, None)
    except NotAdditiveError:
        return Rule("mean", by_samples, note=_untold("has batches of different shapes"))


def _closure_tables(
    batches: Sequence[Batch], value_of: Callable[[Batch], Tensor]
) -> Iterator[list[_Part]]:
    """Every batch joined to one before it, or cut where it does not fit any."""

    def valued(batch: Batch) -> _Part:
        return _Part(None, batch.targets, batch.size, float(_scalar(value_of(batch))))

    before: dict[Any, tuple[Batch, _Part]] = {}
    for batch in batches if len(batches) > 1 else ():
        kind = tuple(shape[1:] for shape, _ in batch.shapes)
        here = valued(batch)
        earlier = before.get(kind)
        before[kind] = (batch, here)
        try:
            whole = join([earlier[0], batch]) if earlier is not None else None
            if whole is not None and earlier is not None:
                table = [valued(whole), earlier[1], here]
            elif batch.size > 1:
                at = _places(batch.size)[0]
                cuts = (slice(0, at), slice(at, batch.size))
                table = [here, *(valued(take(batch, cut)) for cut in cuts)]
            else:
                continue
        except Exception:  # as above
            continue
        yield table


def _untold(why: str) -> str:
    return (
        f"the loss {why}, so its batches count by their samples; say size_of= or weights= if it "
        "divides by something else"
    )


def _plain(z: Any) -> Any:
    return mapped(lambda x: x.detach(), z)


def _one_each(batches: Sequence[Batch]) -> list[Batch]:
    """One batch of each kind: those whose tensors agree in all but their first axes."""
    kinds: dict[Any, Batch] = {}
    for b in batches:
        kinds.setdefault(tuple(shape[1:] for shape, _ in b.shapes), b)
    if len(batches) > 1 and len(kinds) == 1 and max(b.size for b in batches) < 2:
        kinds[None] = batches[1]  # single samples: one is joined to the other
    return list(kinds.values())


def _differing(shapes: Sequence[tuple[int, ...]]) -> list[int]:
    ranks = {len(s) for s in shapes}
    if len(ranks) != 1:
        return []
    return [a for a in range(1, ranks.pop()) if len({s[a] for s in shapes}) > 1]


def _telling(batches: Sequence[Batch]) -> list[Batch]:
    """The batches worth a trial: the largest, and the one with most targets that do not count."""

    def elements(b: Batch) -> tuple[int, int]:
        return b.size, sum(x.numel() for x in leaves((b.args, b.kwargs, b.targets)))

    def ignored(b: Batch) -> int:
        y = b.targets
        whole = isinstance(y, Tensor) and not y.is_floating_point()
        return int((y == -100).sum()) if whole else 0

    largest, most = max(batches, key=elements), max(batches, key=ignored)
    return [largest] if most is largest or not ignored(most) else [largest, most]


def _places(n: int) -> list[int]:
    """Where to cut: in unequal parts, and at two places if there is room."""
    return sorted({max(1, n // 3), n - max(1, n // 4)})


def _tables(whole: _Part, axis: int, others: Any) -> Iterator[list[_Part]]:
    """The whole and its parts, cut along one axis; nothing where it cannot be."""
    first = next(leaves(whole.z), None)
    if first is None or first.ndim <= axis:
        return
    n = first.shape[axis]
    if axis == 0 and n == 1:
        yield from _joined(whole, others)
    if n < 2 or not _along(whole.y, axis, n):
        return
    for at in _places(n):
        parts = []
        for start, end in ((0, at), (at, n)):
            size = end - start if axis == 0 else whole.n
            z = _narrow(whole.z, axis, n, start, end)
            parts.append(_Part(z, _narrow(whole.y, axis, n, start, end), size))
        yield [whole, *parts]


def _overlapped(table: list[_Part], axis: int) -> list[_Part]:
    """Parts of which the first holds one more token: a next token is predicted from one before."""
    whole, first, *rest = table
    if axis == 0:
        return table
    n, at = (next(leaves(part.z)).shape[axis] for part in (whole, first))
    z, y = (_narrow(item, axis, n, 0, at + 1) for item in (whole.z, whole.y))
    return [whole, _Part(z, y, whole.n), *rest]


def _joined(whole: _Part, others: Any) -> Iterator[list[_Part]]:
    """One sample joined to another, or to itself: the mean stays, and the sum is twice as much."""
    other = next((o for o in others if o.z is not whole.z), whole)
    for second in (other, whole):
        try:
            z = _cat(whole.z, second.z)
            y = None if whole.y is None else _cat(whole.y, second.y)
        except (RuntimeError, TypeError, ValueError):
            continue
        yield [_Part(z, y, whole.n + second.n), whole, second]
        return


def _cat(a: Any, b: Any) -> Any:
    rest = iter(list(leaves(b)))
    return mapped(lambda x: torch.cat([x, next(rest)]), a)


def _along(y: Any, axis: int, n: int) -> bool:
    """Whether targets have such an axis, with classes left out or not; or there are none."""
    tensors = list(leaves(y))
    return y is None or any(_axis(x, axis, n) is not None for x in tensors)


def _axis(x: Tensor, axis: int, n: int) -> int | None:
    for a in (axis, axis - 1) if axis > 0 else (axis,):
        if x.ndim > a and x.shape[a] == n and (a > 0 or axis == 0):
            return a
    return None


def _narrow(item: Any, axis: int, n: int, start: int, end: int) -> Any:
    def cut(x: Tensor) -> Tensor:
        a = _axis(x, axis, n)
        return x if a is None else x.narrow(a, start, end - start)

    return mapped(cut, item)


class _Evaluation:
    """Evaluates the loss on parts, in float64 where it takes that."""

    def __init__(self, loss: LossFn) -> None:
        self.loss = loss
        if isinstance(loss, nn.Module):
            with contextlib.suppress(TypeError, RuntimeError, AttributeError):
                self.loss = copy.deepcopy(loss)  # it may count its calls, or average over them

    def __call__(self, table: list[_Part]) -> list[_Part]:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            found = self._values(table)
            if all(part.value == 0.0 for part in found):
                # Zero is a mean and a sum: another point tells.
                found = self._values([
                    _Part(mapped(_shaken, part.z), part.y, part.n) for part in table
                ])  # fmt: skip
        return found

    def _values(self, table: list[_Part]) -> list[_Part]:
        try:
            return [self._valued(part, _wide) for part in table]
        except (RuntimeError, TypeError):
            return [self._valued(part, lambda x: x) for part in table]

    def _valued(self, part: _Part, widen: Callable[[Tensor], Tensor]) -> _Part:
        z, y = mapped(widen, part.z), mapped(widen, part.y)
        value = self.loss(z) if y is None else self.loss(z, y)
        number = float(_scalar(value))
        return _Part(part.z, part.y, part.n, number)


def _scalar(value: object) -> Tensor:
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
        return value.detach().reshape(())  # NaN of a part in which no target counts included
    return check_scalar(value)


def _wide(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x


def _shaken(x: Tensor) -> Tensor:
    if not x.is_floating_point():
        return x
    steps = torch.arange(x.numel(), device=x.device, dtype=torch.float64)
    return x * (1 + 0.01 * torch.cos(steps)).reshape(x.shape).to(x.dtype) + 1e-3


def _surviving(candidates: list[Count], table: list[_Part]) -> list[Count]:
    """The candidates for d with Σ d L over the parts = d L of the whole."""

    def share(count: Count, part: _Part) -> float:
        d = count(part.z, part.y, part.n)
        return 0.0 if d == 0 else d * part.value  # the mean of nothing is NaN, and counts nothing

    left = []
    for count in candidates:
        whole, *parts = (share(count, part) for part in table)
        scale = max(abs(whole), *(abs(x) for x in parts), 1e-300)
        if abs(whole - sum(parts)) <= TOLERANCE * scale:
            left.append(count)
    return left


def _chosen(
    candidates: list[Count],
    batches: Sequence[Batch],
    outputs_of: Callable[[Batch], Any] | None,
) -> Rule:
    if not candidates:
        raise NotAdditiveError(_NEITHER)
    means = [c for c in candidates if c is not one]
    if not means:
        return Rule("sum", one)
    if len(means) > 1 and len(batches) > 1:
        shapes = {}
        for b in batches:
            if b.shapes not in shapes:
                shapes[b.shapes] = as_shapes(outputs_of(b)) if outputs_of else None
        shares = [
            torch.tensor(
                [c(shapes[b.shapes], b.targets, b.size) for b in batches], dtype=torch.float64
            )
            for c in means
        ]
        shares = [s / s.sum() for s in shares]
        if any(not torch.allclose(s, shares[0], rtol=1e-6, atol=0) for s in shares[1:]):
            raise NotAdditiveError(_SEVERAL)
    return Rule("mean", means[0], sees_outputs=outputs_of is not None)
