"""Nests of tensors: tuples, lists, mappings, named tuples, data classes, packed sequences.

One walk for everything that is done to a batch (cut, move, widen, join): every container comes back
as the type it was, with the attributes it had, and as the same object where nothing in it changed.
"""

import copy
import dataclasses
from collections import UserDict
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from trebuchet.errors import InputError


def mapped(f: Callable[[Any], Any], item: Any, leaf: type | tuple[type, ...] = Tensor) -> Any:
    """Apply `f` to every tensor in a nest.

    A packed sequence counts as its one tensor of data: what keeps the number of its rows may be
    done to it.

    Args:
        f: Applied to every leaf.
        item: The nest; objects of unknown types in it stay as they are.
        leaf: What counts as a leaf.

    Returns:
        The nest, containers of the same types; `item` itself where no leaf changed.

    Example:
        >>> pair = mapped(lambda x: 2 * x, {"a": [torch.ones(1), "text"]})
        >>> pair
        {'a': [tensor([2.]), 'text']}
    """
    if isinstance(item, leaf):
        return f(item)
    if isinstance(item, PackedSequence):
        data = mapped(f, item.data, leaf)
        return item if data is item.data else item._replace(data=data)
    parts = children(item)
    if parts is None:
        return item
    values = [mapped(f, value, leaf) for _, value in parts]
    if all(new is old for new, (_, old) in zip(values, parts, strict=True)):
        return item
    return rebuilt(item, values)


def children(item: Any) -> list[tuple[str, Any]] | None:
    """What a container holds, each with how to write it; None if `item` is no container.

    Args:
        item: Anything.

    Returns:
        Such as ``[("['x']", x), …]`` for a mapping, ``[(".x", x), …]`` for a named tuple.
    """
    if isinstance(item, Mapping):
        return [(f"[{key!r}]", item[key]) for key in item]
    if is_named_tuple(item):
        return [(f".{name}", value) for name, value in zip(item._fields, item, strict=True)]
    if isinstance(item, (tuple, list)):
        return [(f"[{i}]", value) for i, value in enumerate(item)]
    if is_data_class(item):
        return [(f".{f.name}", getattr(item, f.name)) for f in dataclasses.fields(item)]
    return None


def is_named_tuple(item: object) -> bool:
    """Whether it is a tuple with names, other than a packed sequence."""
    return (
        isinstance(item, tuple)
        and hasattr(type(item), "_fields")
        and hasattr(type(item), "_make")
        and not isinstance(item, PackedSequence)
    )


def is_data_class(item: object) -> bool:
    """Whether it is an instance of a data class, and no module."""
    return (
        dataclasses.is_dataclass(item)
        and not isinstance(item, type)
        and not isinstance(item, nn.Module)
    )


def rebuilt(item: Any, values: list[Any]) -> Any:
    """Return a container like `item` with other contents, in the order of `children`.

    Args:
        item: The container.
        values: What it is to hold.

    Returns:
        One of the same type.

    Raises:
        InputError: If its type cannot be made anew.
    """  # noqa: DOC501 - made by a function of its own
    if isinstance(item, Mapping):
        return _mapping(item, dict(zip(item, values, strict=True)))
    if is_named_tuple(item):
        return type(item)._make(values)
    if isinstance(item, (tuple, list)):
        if type(item) in (tuple, list):
            return type(item)(values)
        try:
            made = type(item)(values)
        except Exception as error:  # a class of the user's own, and so any
            raise _stubborn(item, "an iterable") from error
        if len(made) != len(values):
            raise _stubborn(item, "an iterable")
        return made
    made = copy.copy(item)
    for field, value in zip(dataclasses.fields(item), values, strict=True):
        object.__setattr__(made, field.name, value)  # also of frozen ones
    return made


def _mapping(item: Mapping[Any, Any], new: dict[Any, Any]) -> Any:
    if type(item) is dict:
        return new
    old = dict(item)
    try:
        made: Any = copy.copy(item)  # keeps attributes; its constructor may want something else
        if made is not item and isinstance(made, (MutableMapping, UserDict)):
            for key, value in new.items():
                made[key] = value
            if all(item[key] is old[key] for key in old):
                return made
            for key, value in old.items():  # the copy shares its store with the user's
                made[key] = value
    except Exception:  # a class of the user's own, and so any: there is another way
        made = None
    try:
        made = type(item)(new)  # type: ignore[call-arg]  # what most mappings take
        if set(made) == set(new) and all(made[key] is new[key] for key in new):
            return made
    except Exception as error:  # a class of the user's own
        raise _stubborn(item, "a dict") from error
    raise _stubborn(item, "a dict")


def _stubborn(item: object, taken: str) -> InputError:
    name = type(item).__name__
    return InputError(
        f"data: cannot make another {name} with other tensors in it; give {name} a constructor "
        f"that takes {taken}, or pass a dict or a tuple"
    )


def leaves(item: Any) -> Iterator[Tensor]:
    """Yield every tensor of a nest, in the order of `mapped`."""
    for _, leaf in named_leaves(item):
        yield leaf.data if isinstance(leaf, PackedSequence) else leaf


def named_leaves(item: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every tensor and packed sequence of a nest with how to write its place.

    Args:
        item: The nest.
        name: What the nest is called.

    Yields:
        Such as ``("inputs[0]['x']", x)``.
    """
    if isinstance(item, (Tensor, PackedSequence)):
        yield name, item
        return
    for label, value in children(item) or ():
        yield from named_leaves(value, name + label)


def moved(item: Any, device: torch.device) -> Any:
    """Return a nest on a device; the same object where it is there already."""

    def move(x: Any) -> Any:
        if isinstance(x, PackedSequence):
            return x if x.data.device == device else x.to(device)  # type: ignore[arg-type]  # as torch annotates it
        return x if x.device == device else x.to(device)

    out = mapped(move, item, (Tensor, PackedSequence))
    if out is item and children(item) is None and device.type != "cpu" and moves(item):
        out = copy.copy(item).to(device)  # a copy, since such a method may change its object
    return out


def moves(item: object) -> bool:
    """Whether it is an object that knows how to move to a device, as batches of graphs do."""
    return not isinstance(item, (nn.Module, type)) and callable(getattr(type(item), "to", None))


def as_tensors(item: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """Return a nest with NumPy arrays, and tables that have ``to_numpy``, as tensors.

    Floating arrays come in the model's `dtype`, since float64 is what NumPy makes when nobody
    asked; integers as int64, the type of classes and indices; bytes and bools as they are.

    Args:
        item: The nest.
        dtype: Of the model.
        device: Of the model.

    Returns:
        The nest; the same object where it holds no array.

    Example:
        >>> x, y = as_tensors((np.ones((2, 1)), np.arange(2)), torch.float32, torch.device("cpu"))
        >>> x.dtype, y.dtype
        (torch.float32, torch.int64)
    """

    def convert(x: Any) -> Any:
        array = np.asarray(x if isinstance(x, np.ndarray) else x.to_numpy())
        if array.dtype.kind not in "fciub" or array.dtype.itemsize > (
            16 if array.dtype.kind == "c" else 8
        ):
            return x  # words, objects: what they mean only the model knows
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
        if array.dtype.kind in "iu" and array.dtype != np.uint8:
            array = array.astype(np.int64)
        # A copy of what is read-only: torch knows no such tensors.
        tensor = torch.from_numpy(np.require(array, requirements=["C", "W"]))
        return tensor.to(device, dtype if array.dtype.kind == "f" else None)

    tables = tuple({type(x) for x in _tables(item)})
    return mapped(convert, item, (np.ndarray, *tables))


def _tables(item: Any) -> Iterator[Any]:
    if isinstance(item, (Tensor, np.ndarray)):
        return
    if not isinstance(item, type) and callable(getattr(type(item), "to_numpy", None)):
        yield item
        return
    for _, value in children(item) or ():
        yield from _tables(value)
