"""What a loss or a model reaches beside its own parameters: modules and tensors it closes over.

A closure that trains a generator against its critic, a perceptual loss, a teacher hidden in a list
so that it is not registered: their state moves with every evaluation, and no ``state_dict`` of the
model knows of it. They are found by looking where Python keeps references: closure cells, default
arguments, the globals that the code names, ``functools.partial``, the object of a bound method,
attributes of callable objects and of modules, and containers of these. Functions that are called by
name are looked into as well, except those of installed libraries.

What is reached in no such way (through ``globals()``, a registry inside a library, another process)
is not found.
"""

import functools
import sys
import types
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

LOOKED_AT = 20_000
"""At most so many objects are looked at: a list of a million samples holds no module."""

_LIBRARIES = frozenset({"torch", "numpy", "functorch", "torchvision", *sys.stdlib_module_names})
_PLAIN = (
    str, bytes, bytearray, int, float, complex, bool, type(None), type, np.ndarray, np.generic,
    torch.dtype, torch.device, torch.Generator, types.ModuleType, torch.utils.data.Dataset,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Captured:
    """What was found.

    Attributes:
        modules: Modules, none of them part of another one here.
        tensors: Tensors that belong to none of the modules met.
        optimizers: Such as a critic's, which a closure steps by itself.
    """

    modules: list[nn.Module]
    tensors: list[Tensor]
    optimizers: list[torch.optim.Optimizer] = field(default_factory=list)


def captured_modules(*roots: object, apart_from: nn.Module | None = None) -> list[nn.Module]:
    """Return the modules that functions, objects or modules reach; see :func:`captured`.

    Args:
        roots: A loss, a closure, a model.
        apart_from: A module whose own parts are left out: the model that is trained.

    Returns:
        Modules, none of them part of another one here, in the order they were found.

    Example:
        >>> critic = nn.Linear(2, 1)
        >>> def loss(model, batch):
        ...     return critic(model(batch)).mean()
        >>> captured_modules(loss) == [critic]
        True
    """
    return captured(*roots, apart_from=apart_from).modules


def captured(*roots: object, apart_from: nn.Module | None = None) -> Captured:
    """Return the modules and tensors that functions, objects or modules reach.

    Args:
        roots: A loss, a closure, a model.
        apart_from: A module whose own parts are left out: the model that is trained.

    Returns:
        The findings.
    """
    own = set() if apart_from is None else {id(m) for m in apart_from.modules()}
    modules, tensors, optimizers = _search(roots)
    parts = {id(part) for m in modules for part in m.modules() if part is not m}
    outer = [m for m in modules if id(m) not in own and id(m) not in parts]
    everything = [*modules, *([] if apart_from is None else [apart_from])]
    theirs = {id(t) for m in everything for t in [*m.parameters(), *m.buffers()]}
    return Captured(outer, [t for t in tensors if id(t) not in theirs], optimizers)


def _search(
    roots: tuple[object, ...],
) -> tuple[list[nn.Module], list[Tensor], list[torch.optim.Optimizer]]:
    modules: list[nn.Module] = []
    tensors: list[Tensor] = []
    optimizers: list[torch.optim.Optimizer] = []
    # Breadth first, and every object kept: an id is only good while its object lives.
    queue = deque((root, True) for root in roots)
    seen: dict[int, object] = {}
    while queue and len(seen) < LOOKED_AT:
        item, given = queue.popleft()
        if isinstance(item, _PLAIN) or id(item) in seen:
            continue
        seen[id(item)] = item
        if isinstance(item, Tensor):
            tensors.append(item)
            continue
        if isinstance(item, nn.Module):
            modules.append(item)
        if isinstance(item, torch.optim.Optimizer):
            optimizers.append(item)
        # A closure of an installed package is looked into where it is what was given.
        through = given and not isinstance(item, (types.FunctionType, nn.Module))
        queue.extend((found, through) for found in _reached(item, given=given))
    return modules, tensors, optimizers


def _reached(item: Any, *, given: bool) -> Iterator[object]:
    """What one object refers to."""
    if isinstance(item, functools.partial):
        yield from (item.func, *item.args, *item.keywords.values())
    elif isinstance(item, types.MethodType):
        yield from (item.__self__, item.__func__)
    elif isinstance(item, types.FunctionType):
        if given or not _is_library(item):
            yield from _of_function(item)
    elif isinstance(item, Mapping):
        if isinstance(item, dict):  # others may compute, or read, what they hold
            yield from item.values()
    elif isinstance(item, (list, tuple, set, frozenset, deque)):
        yield from item
    else:
        yield from _of_object(item)


def _of_function(function: types.FunctionType) -> Iterator[object]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # a cell that is not filled yet
            continue
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    if "__wrapped__" in vars(function):
        yield vars(function)["__wrapped__"]
    names = set(_names(function.__code__))
    for name in names & function.__globals__.keys():
        value = function.__globals__[name]
        if isinstance(value, types.ModuleType):  # losses.critic(x), with losses a Python module
            if _root(value.__name__) not in _LIBRARIES:
                yield from (vars(value)[n] for n in names & vars(value).keys())
        else:
            yield value


def _names(code: types.CodeType) -> Iterator[str]:
    """Names of globals and attributes in the code, and in the functions defined inside it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _of_object(item: Any) -> Iterator[object]:
    attributes = getattr(item, "__dict__", None)
    if isinstance(attributes, dict):
        yield from attributes.values()
    for kind in type(item).__mro__:
        for value in list(vars(kind).values()) if _root(kind.__module__) not in _LIBRARIES else ():
            if isinstance(value, types.MemberDescriptorType):
                try:
                    yield value.__get__(item, kind)
                except AttributeError:  # a slot that is not filled
                    continue
            # What a method names: forward may use a global, as any function.
            method = getattr(value, "__func__", value)
            if isinstance(method, types.FunctionType) and not _is_library(method):
                yield method


def _is_library(function: types.FunctionType) -> bool:
    return (
        _root(function.__module__ or "") in _LIBRARIES
        or "site-packages" in function.__code__.co_filename
        or "dist-packages" in function.__code__.co_filename
    )


def _root(module: str) -> str:
    return module.partition(".")[0]
