"""Arguments checked by kind and value, for every public function alike."""

import math
import operator
from collections.abc import Callable, Iterable
from numbers import Real
from typing import SupportsIndex, TypeVar

import numpy as np
import torch

from trebuchet.errors import InputError

T = TypeVar("T")


def checked_seeds(seeds: object) -> tuple[int, ...]:
    """Seeds from a number of them, or as given.

    Args:
        seeds: How many, or which: whole numbers, Python's or NumPy's.

    Returns:
        Different ones, at least one.

    Raises:
        InputError: If there is none, one comes twice, or one is no whole number.

    Example:
        >>> checked_seeds(2), checked_seeds([7, 3])
        ((0, 1), (7, 3))
    """
    count = as_index(seeds)
    found = items(seeds, as_index) if count is None else list(range(count))
    if not found or None in found or len(set(found)) < len(found):
        msg = (
            "seeds: expected a positive number, or different numbers, all of them whole, got "
            f"{shown(seeds)}; give an int, or a list of ints"
        )
        raise InputError(msg)
    return tuple(s for s in found if s is not None)


def whole(name: str, value: object, expected: str, *, least: int = 1) -> int:
    number = as_index(value)
    if number is None:
        msg = (
            f"{name}: expected a whole number, {expected}, got {shown(value)} "
            f"({type(value).__name__}); give an int"
        )
        raise InputError(msg)
    if number < least:
        msg = f"{name}: expected {expected}, got {number}"
        raise InputError(msg)
    return number


def real(name: str, value: object, expected: str, fits: Callable[[float], bool]) -> float:
    number = as_real(value)
    if number is None or not fits(number):
        msg = f"{name}: expected {expected}, got {shown(value)}"
        raise InputError(msg)
    return number


def optional(check: Callable[..., T], name: str, value: object, *rules: object) -> T | None:
    return None if value is None else check(name, value, *rules)


def one_line(error: BaseException) -> str:
    """An exception's type, and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def as_real(value: object) -> float | None:
    """A real number as a float, infinities and NaN included; None if it is not one."""
    if isinstance(value, (torch.Tensor, np.ndarray)) and value.ndim == 0:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    try:
        return float(value)
    except OverflowError:  # an integer beyond every float
        return math.inf


def as_index(value: object) -> int | None:
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        return None
    try:
        return operator.index(value)
    except TypeError:  # arrays have an index only if they are a single integer
        return None


def items(values: object, read: Callable[[object], T | None]) -> list[T | None]:
    """Every item of an iterable, read; none of what is no iterable."""
    return [read(v) for v in values] if isinstance(values, Iterable) else []


def shown(value: object) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else text[:77] + "..."
