"""Results compared by what they hold: equal if every number is, a missing one equal to another."""

import sys
from collections.abc import Hashable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

_NAN = ("not a number",)


class ByContent:
    """A dataclass that is equal to another of its type if every field is, and hashes alike.

    Python's own comparison of dataclasses asks arrays for a truth value that they do not have, and
    calls NaN different from NaN, so that no result would equal itself once read back from a file.
    Use it with ``@dataclass(frozen=True, eq=False)``.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True, eq=False)
        ... class Loss(ByContent):
        ...     values: np.ndarray
        >>> a, b = (Loss(np.array([1.0, np.nan])) for _ in range(2))
        >>> a == b, hash(a) == hash(b), a == Loss(np.array([1.0, 2.0]))
        (True, True, False)
    """

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self is other or self._content() == other._content()

    def __hash__(self) -> int:
        return hash((type(self).__qualname__, self._content()))

    def _content(self) -> Hashable:
        """What is compared: every field, unless a class says otherwise."""
        named = fields(self)  # type: ignore[arg-type]  # it is mixed into dataclasses
        return tuple(content(getattr(self, field.name)) for field in named)


def content(value: Any) -> Hashable:
    """A hashable stand-in for a value, the same for equal values.

    Args:
        value: Numbers, text, arrays, tensors, frames, datasets, dataclasses, and mappings and
            sequences of these. Lists and tuples count as the same, and so do −0.0 and 0.0; the
            order of a mapping does not matter, and neither does a tensor's device.

    Returns:
        The stand-in.

    Example:
        >>> content({"a": [1.0, float("nan")]}) == content({"a": (1.0, np.nan)})
        True
        >>> content(np.zeros(2)) == content(np.zeros(3))
        False
    """
    if isinstance(value, (float, np.floating)):
        return _NAN if value != value else float(value)
    if isinstance(value, ByContent):
        return value
    if isinstance(value, Mapping):
        return ("mapping", frozenset((key, content(item)) for key, item in value.items()))
    if isinstance(value, (list, tuple)):
        return tuple(content(item) for item in value)
    if isinstance(value, np.ndarray):
        return _array(value)
    if is_dataclass(value) and not isinstance(value, type):
        inner = tuple(content(getattr(value, field.name)) for field in fields(value))
        return (type(value).__qualname__, inner)
    return _foreign(value)


def _foreign(value: Any) -> Hashable:
    """Containers of libraries that need not be imported: what is not there is not one of theirs."""
    torch, pandas, xarray = (sys.modules.get(name) for name in ("torch", "pandas", "xarray"))
    if torch is not None and isinstance(value, torch.Tensor):
        plain = value.detach().cpu()
        name = str(plain.dtype)
        if plain.dtype is torch.bfloat16:  # NumPy has none; float32 holds each of its numbers
            plain = plain.float()
        return ("tensor", name, _array(plain.numpy()))
    if pandas is not None and isinstance(value, pandas.DataFrame):
        return ("frame", tuple((name, _array(value[name].to_numpy())) for name in value))
    if pandas is not None and isinstance(value, (pandas.Series, pandas.Index)):
        return ("series", _array(value.to_numpy()))
    if xarray is not None and isinstance(value, xarray.DataArray):
        value = value.to_dataset(name="values")
    if xarray is not None and isinstance(value, xarray.Dataset):
        held = {name: (v.dims, _array(v.values), v.attrs) for name, v in value.variables.items()}
        return ("dataset", content(held), content(value.attrs))
    return value  # type: ignore[no-any-return]  # all else is hashable


def _array(values: np.ndarray[Any, Any]) -> Hashable:
    kind = values.dtype.kind
    if kind in "fc":
        whole = np.where(np.isnan(values), np.nan, values + 0.0)  # one NaN, and one zero
        return ("array", values.dtype.str, values.shape, whole.astype(values.dtype).tobytes())
    if kind in "iub":
        return ("array", values.dtype.str, values.shape, values.tobytes())
    return ("array", "objects", values.shape, content(values.ravel().tolist()))
