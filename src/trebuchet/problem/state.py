"""Everything that training may move, copied and put back: what makes a run start fresh.

A step moves the trained parameters. A forward pass may move more: BatchNorm's statistics, a teacher
that follows the weights, a memory bank, a codebook, a counter that anneals something, a generator
of the model's own, in parameters without gradients, in buffers, or in plain attributes of a module.
:class:`ModelState` holds all of these, of the model and of the modules and tensors that the loss
reaches, tied ones once, and a :class:`Snapshot` of it can be put back at any time.

What is the same as at the start is shared with the start and costs no memory. Known are tensors,
NumPy arrays, numbers, text, random generators, and lists, tuples, dicts, sets and deques of these;
any other object that a module holds is kept as it is, whatever happens inside it.
"""

import pickle
import random
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trebuchet.problem.captured import captured
from trebuchet.problem.held_still import COPIED
from trebuchet.problem.same import same

MANY = 10_000
"""A container with more entries than this is kept as it is: a vocabulary, not a state."""

_REGISTRIES = ("_parameters", "_buffers", "_modules")
_INTERNAL = frozenset(nn.Module().__dict__) - {"training"}
_IMMUTABLE = (int, float, complex, bool, str, bytes, type(None), torch.dtype, torch.device, type)


@dataclass(frozen=True, slots=True)
class Saved:
    """One value: the object that was there, and what it held.

    Attributes:
        value: The object.
        content: A copy of what it held; None where the object is all there is to it.
    """

    value: Any
    content: Any = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Where everything is at one time; never written to, so several runs may share one.

    Attributes:
        weights: Of the trained parameters, in order.
        rest: For every namespace (a registry or the attributes of a module) its entries by name.
        tensors: Of captured tensors that belong to no module.
    """

    weights: tuple[Tensor, ...]
    rest: tuple[Mapping[str, Saved], ...]
    tensors: tuple[Saved, ...]


class ModelState:
    """What may move while a model is trained.

    Args:
        model: The model.
        trained: Its trained parameters.
        loss: What else is evaluated: the modules and tensors it reaches are held as well.
    """

    def __init__(self, model: nn.Module, trained: Sequence[nn.Parameter], loss: object) -> None:
        self.model, self.trained = model, list(trained)
        self._ids = {id(p) for p in self.trained}
        found = captured(model, loss, apart_from=model)
        modules = [m for root in [model, *found.modules] for m in root.modules()]
        self._spaces: list[Any] = []
        for module in {id(m): m for m in modules}.values():
            self._spaces += [getattr(module, name) for name in _REGISTRIES]
            self._spaces.append(module.__dict__)
        for optimizer in found.optimizers:  # a critic's own: moments are made at its first step
            self._spaces += [optimizer.state, *optimizer.param_groups]
        self._tensors = [t for t in found.tensors if t.is_leaf and not t.requires_grad]
        self._homes = [(t, t.data) for t in self._distinct()]
        self._too_large = self._beyond(COPIED)
        self._same: dict[int, Saved] = {}
        self._started = self.moving = False
        self.start = self.snapshot()
        self._started = True
        for saved in self._flat(self.start):
            if isinstance(saved.value, (Tensor, np.ndarray)) and saved.content is not None:
                self._same[id(saved.value)] = saved

    def _beyond(self, room: int) -> set[int]:
        """Tensors that are not copied, the small before the large: as ``held_still`` has it."""
        every = [v for space in self._spaces for v in space.values() if isinstance(v, Tensor)]
        others = {id(t): t for t in [*every, *self._tensors] if id(t) not in self._ids}
        large = set()
        for t in sorted(others.values(), key=lambda t: t.numel() * t.element_size()):
            room -= t.numel() * t.element_size()
            if room < 0:
                large.add(id(t))
        return large

    def _distinct(self) -> Iterable[Tensor]:
        found = [v for space in self._spaces for v in space.values() if isinstance(v, nn.Parameter)]
        return {id(t): t for t in [*self.trained, *found, *self.model.buffers()]}.values()

    @staticmethod
    def _flat(snapshot: Snapshot) -> Iterable[Saved]:
        waiting = [s for space in snapshot.rest for s in space.values()] + [*snapshot.tensors]
        while waiting:
            saved = waiting.pop()
            yield saved
            if isinstance(saved.content, list):
                waiting += saved.content
            elif isinstance(saved.content, dict):
                waiting += saved.content.values()

    def snapshot(self) -> Snapshot:
        """Copy where everything is now; what is as at the start is shared with it."""
        memo: dict[int, Saved] = {}
        weights = tuple(p.detach().clone() for p in self.trained)
        known = self.start.rest if self._started else ({},) * len(self._spaces)
        rest = tuple(
            {
                name: self._save(value, memo, entries.get(name))
                for name, value in space.items()
                if name not in _INTERNAL
            }
            for space, entries in zip(self._spaces, known, strict=True)
        )
        return Snapshot(weights, rest, tuple(self._save(t, memo) for t in self._tensors))

    def restore(self, snapshot: Snapshot) -> None:
        """Put everything back to where it was.

        Args:
            snapshot: Made by this state.
        """
        done: dict[int, Any] = {}
        with torch.no_grad():
            for p, w in zip(self.trained, snapshot.weights, strict=True):
                _write(p, w)
            for space, entries in zip(self._spaces, snapshot.rest, strict=True):
                for name in list(space.keys()):
                    if name not in entries and name not in _INTERNAL:
                        del space[name]
                for name, saved in entries.items():
                    value = saved.value
                    if saved.content is not None:
                        _put_back(saved, done)
                    # Untouched is left untouched: registries of compiled modules take no writing.
                    if name not in space or space[name] is not value:
                        space[name] = value
            for saved in snapshot.tensors:
                _put_back(saved, done)

    def bring_home(self) -> None:
        """Put everything back to the start, in the very memory where it lay."""
        for tensor, home in self._homes:
            # Sparse ones have no memory of their own; their entries are put back below.
            if tensor.layout is torch.strided and tensor.data_ptr() != home.data_ptr():
                tensor.data = home
        self.restore(self.start)

    def buffers(self, snapshot: Snapshot) -> list[Tensor]:
        """The model's buffers in a snapshot, in the model's order; not to be written to."""
        by_id = {
            id(s.value): s.content for space in snapshot.rest for s in space.values()
            if isinstance(s.value, Tensor) and s.content is not None
        }  # fmt: skip
        return [by_id[id(b)] for b in self.model.buffers()]

    def replaced(
        self, snapshot: Snapshot, weights: Sequence[Tensor], buffers: Sequence[Tensor]
    ) -> Snapshot:
        """A snapshot with other weights and buffers of the model; both are copied."""
        new = {
            id(b): Saved(b, value.detach().clone())
            for b, value in zip(self.model.buffers(), buffers, strict=True)
        }
        rest = tuple(
            {name: new.get(id(s.value), s) for name, s in space.items()} for space in snapshot.rest
        )
        return Snapshot(tuple(w.detach().clone() for w in weights), rest, snapshot.tensors)

    def moved_beside(self) -> bool:
        """Whether anything but trained parameters and the model's buffers is not as at the start.

        Returns:
            The answer; once True, `moving` remembers it.
        """
        apart = {id(b) for b in self.model.buffers()}
        now, start = self.snapshot(), self.start
        pairs = [*zip(now.rest, start.rest, strict=True)]
        pairs.append((dict(enumerate(now.tensors)), dict(enumerate(start.tensors))))  # type: ignore[arg-type]  # keys do not matter here
        moved = any(
            a.keys() != b.keys()
            or any(id(a[n].value) not in apart and not _same(a[n], b[n]) for n in a)
            for a, b in pairs
        )
        self.moving |= moved
        return moved

    def drew(self) -> bool:
        """Whether a random generator that is held by a module is not where it was at the start."""
        start = {id(s.value): s for s in self._flat(self.start)}
        return any(
            not _same(s, start.get(id(s.value), Saved(None)))
            for s in self._flat(self.snapshot())
            if _generator(s.value) is not None
        )

    def _save(self, value: Any, memo: dict[int, Saved], known: Saved | None = None) -> Saved:
        if known is not None and known.value is value and known.content is None:
            return known
        if isinstance(value, _IMMUTABLE):
            return Saved(value)
        if id(value) not in memo:
            memo[id(value)] = Saved(value)  # for what holds itself
            memo[id(value)] = self._copy(value, memo)
        return memo[id(value)]

    def _copy(self, value: Any, memo: dict[int, Saved]) -> Saved:
        if isinstance(value, Tensor):
            return self._copy_tensor(value)
        if isinstance(value, np.ndarray):
            same = self._same.get(id(value))
            if same is not None and np.array_equal(same.content, value):
                return same
            return Saved(value, value.copy()) if value.dtype != object else Saved(value)
        if type(value) is tuple and all(isinstance(v, _IMMUTABLE) for v in value):
            return Saved(value)
        if type(value) in (list, tuple, deque) and len(value) <= MANY:
            return Saved(value, [self._save(v, memo) for v in value])
        if isinstance(value, dict) and len(value) <= MANY:
            return Saved(value, {k: self._save(v, memo) for k, v in value.items()})
        if type(value) is set and len(value) <= MANY:
            return Saved(value, frozenset(value))
        reader = _generator(value)
        return Saved(value) if reader is None else Saved(value, reader[0]())

    def _copy_tensor(self, t: Tensor) -> Saved:
        if id(t) in self._ids or id(t) in self._too_large or t.is_meta or t.is_inference():
            return Saved(t)
        if t.grad_fn is not None:
            # What a pass left behind; the graph of a run that is set aside is not kept alive.
            return Saved(t.detach() if self._started else t)
        same = self._same.get(id(t))
        if same is not None and _equal(t, same.content):
            return same
        return Saved(t, t.detach().clone())


def _same(a: Saved, b: Saved) -> bool:
    if a is b:
        return True
    if a.value is not b.value and not (
        isinstance(a.value, _IMMUTABLE) and type(a.value) is type(b.value) and a.value == b.value
    ):
        return False
    if isinstance(a.content, list) and isinstance(b.content, list):
        return len(a.content) == len(b.content) and all(map(_same, a.content, b.content))
    if isinstance(a.content, dict) and isinstance(b.content, dict):
        return a.content.keys() == b.content.keys() and all(
            _same(v, b.content[k]) for k, v in a.content.items()
        )
    if isinstance(a.content, Tensor):
        return _equal(a.content, b.content)
    if isinstance(a.content, np.ndarray):
        return np.array_equal(a.content, b.content)
    return bool(a.content == b.content)


def _equal(a: Tensor, b: Tensor) -> bool:
    return (
        a.layout is b.layout
        and a.shape == b.shape
        and a.dtype == b.dtype
        and a.device == b.device
        and same(a, b)
    )


def _write(t: Tensor, content: Tensor) -> None:
    if t.shape != content.shape or t.dtype != content.dtype:
        t.data = content.clone()
    elif not _equal(t, content):  # writing what is there would spoil a graph that is still held
        t.copy_(content)


def _put_back(saved: Saved, done: dict[int, Any]) -> Any:
    """Write a value's contents back into the very object, which may be held elsewhere too."""
    value, content = saved.value, saved.content
    if content is None or id(value) in done:
        return value
    done[id(value)] = value
    if isinstance(value, Tensor):
        _write(value, content)
    elif isinstance(value, np.ndarray):
        value[...] = content
    elif isinstance(value, (list, deque, tuple)):
        items = [_put_back(s, done) for s in content]
        if not isinstance(value, tuple) and not _identical(value, items):
            value.clear()
            value.extend(items)
    elif isinstance(value, dict):
        entries = {k: _put_back(s, done) for k, s in content.items()}
        if list(value) != list(entries) or not _identical(value.values(), entries.values()):
            value.clear()
            value.update(entries)
    elif isinstance(value, set):
        if value != content:
            value.clear()
            value.update(content)
    else:
        reader = _generator(value)
        if reader is not None:
            reader[1](content)
    return value


def _identical(a: Iterable[Any], b: Iterable[Any]) -> bool:
    first, second = list(a), list(b)
    return len(first) == len(second) and all(x is y for x, y in zip(first, second, strict=True))


def _generator(value: Any) -> tuple[Callable[[], Any], Callable[[Any], object]] | None:
    """How to read and to set the state of a random generator."""
    if isinstance(value, torch.Generator):
        return value.get_state, value.set_state
    if isinstance(value, np.random.Generator):
        bits = value.bit_generator

        def put(state: Any) -> None:
            bits.state = pickle.loads(state)

        return lambda: pickle.dumps(bits.state), put
    if isinstance(value, random.Random):
        return value.getstate, value.setstate
    return None
