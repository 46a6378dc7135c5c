"""Arguments checked by kind and value, for every public function alike.

A check takes the argument's name, the value and what is allowed, and returns the value as the body
wants it (a NumPy integer as an int, any iterable of rates as a tuple), or raises an `InputError`
that says in one sentence which argument it is, what was expected, what came, and what to do.
`trebuchet._doors` puts checks in front of functions; nothing here knows torch.
"""

import difflib
import inspect
import math
import operator
import os
import reprlib
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Set
from itertools import islice
from numbers import Real
from pathlib import Path
from typing import Any, NoReturn, SupportsIndex, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from trebuchet._places import place_of
from trebuchet.errors import InputError

T = TypeVar("T")
FloatArray = NDArray[np.float64]

LARGEST_WHOLE = 2**63 - 1
"""Results hold 64-bit integers; of larger ones Python itself prints and multiplies only some."""

LARGEST_SEED = LARGEST_WHOLE
"""Seeds are coordinates of results."""

MANY = 1_000_000
"""No argument is a list of more items than this: past it, an iterable is taken for endless."""

LARGEST_NUMBER = 1e100
"""In arrays of a formula: products of three such numbers are finite."""

LONGEST = 10**9
"""Steps of a run: more would not end in a lifetime, and what is kept of them fits nowhere."""


def refuse(name: str, expected: str, value: object, advice: str = "") -> NoReturn:
    """Say that an argument is not what was expected."""
    msg = f"{name}: expected {expected}, got {shown(value)}" + (f"; {advice}" if advice else "")
    raise InputError(msg)


# Numbers


def whole(
    name: str, value: object, expected: str, *, least: int = 1, most: int = LARGEST_WHOLE
) -> int:
    """A whole number of any kind, in a range, as an int."""
    number = as_index(value)
    if number is None:
        msg = (
            f"{name}: expected a whole number, {expected}, got {shown(value)} "
            f"({type(value).__name__}); give an int"
        )
        raise InputError(msg)
    if not least <= number <= most:
        limit = f" and at most {most}" if number > most else ""
        refuse(name, expected + limit, number)
    return number


def steps(name: str, value: object, *, least: int = 1) -> int:
    """A number of steps that a run can make."""
    expected = {0: "0 or more steps", 1: "a positive number"}.get(least, f"at least {least} steps")
    return whole(name, value, expected, least=least, most=LONGEST)


def workers(name: str, value: object) -> int | None:
    """How many at once; None for what the machine has."""
    return optional(whole, name, value, "a positive number of chunks in flight, or None", most=4096)


def seed(name: str, value: object, *, most: int = LARGEST_SEED) -> int:
    """One seed."""
    return whole(name, value, "a seed from 0 up", least=0, most=most)


def seeds(name: str, value: object) -> tuple[int, ...]:
    """Seeds from a number of them, or as given: different ones from 0 up, at least one.

    Args:
        name: What the argument is called.
        value: How many, or which.

    Returns:
        The seeds.

    Example:
        >>> seeds("seeds", 2), seeds("seeds", [7, 3])
        ((0, 1), (7, 3))
    """
    return checked_seeds(value, name=name)


def checked_seeds(seeds: object, *, first: int = 0, name: str = "seeds") -> tuple[int, ...]:
    """Seeds from a number of them, or as given.

    Args:
        seeds: How many, or which: whole numbers, Python's or NumPy's.
        first: The first one where it is said how many.
        name: What the argument is called.

    Returns:
        Different ones from 0 up, at least one.

    Raises:
        InputError: If there is none, one comes twice, is negative, or is no whole number.

    Example:
        >>> checked_seeds(2), checked_seeds(2, first=5), checked_seeds([7, 3])
        ((0, 1), (5, 6), (7, 3))
    """
    count = as_index(seeds)
    if count is None:
        found = items(seeds, as_index)
    else:
        found = list(range(first, first + count)) if count <= MANY else []
    good = [s for s in found if s is not None and 0 <= s <= LARGEST_SEED]
    if not good or len(set(good)) < len(found):
        msg = (
            f"{name}: expected a positive number, or different numbers, all of them whole and from "
            f"0 up, got {shown(seeds)}; give an int, or a list of ints"
        )
        raise InputError(msg)
    return tuple(good)


def real(name: str, value: object, expected: str, fits: Callable[[float], bool]) -> float:
    """A real number of any kind that fits, as a float."""
    number = as_real(value)
    if number is None or not fits(number):
        refuse(name, expected, value)
    return number


def positive(name: str, value: object) -> float:
    """The value as a float, if finite and above zero."""
    return real(name, value, "a positive finite number", lambda x: 0 < x < math.inf)


def finite(name: str, value: object) -> float:
    """The value as a float, if neither NaN nor infinite."""
    return real(name, value, "a finite number", math.isfinite)


def from_zero(name: str, value: object) -> float:
    """The value as a float, if finite and not negative."""
    return real(name, value, "a finite number >= 0", lambda x: 0 <= x < math.inf)


def fraction(name: str, value: object) -> float:
    """The value as a float, if in [0, 1)."""
    return real(name, value, "a number in [0, 1)", lambda x: 0 <= x < 1)


def between_0_and_1(name: str, value: object, what: str = "number") -> float:
    """The value as a float, if in (0, 1)."""
    return real(name, value, f"a {what} between 0 and 1", lambda x: 0 < x < 1)


def factor(name: str, value: object) -> float:
    """The value as a float, if above 1; infinite for never."""
    return real(name, value, "a factor above 1", lambda x: x > 1)


def rate_array(name: str, value: object) -> FloatArray:
    """Learning rates: one or several different positive finite numbers."""
    # An iterator can be read once only, and NumPy takes a set for one object.
    found = np.array(rates(name, value)) if isinstance(value, (Iterator, Set)) else as_array(value)
    if found is None:
        refuse(name, "numbers", value)
    found = np.atleast_1d(found)
    if found.ndim != 1 or found.size == 0:
        msg = f"{name}: expected a list of one or more rates, got shape {found.shape}"
        raise InputError(msg)
    bad = found[~(np.isfinite(found) & (found > 0))]
    if bad.size:
        msg = f"{name}: expected positive, finite rates, got {bad[0]}"
        raise InputError(msg)
    if np.unique(found).size < found.size:
        msg = f"{name}: expected distinct rates, got one twice"
        raise InputError(msg)
    return found


def rates(name: str, value: object) -> tuple[float, ...]:
    """Learning rates: one or several positive finite numbers, in a list."""
    # A tuple, because a generator can be read only once.
    found = items(value, as_real)
    good = [r for r in found if r is not None and 0 < r < math.inf]
    if not found or len(good) < len(found):
        refuse(name, "positive finite numbers", value, "give a list of them")
    return tuple(good)


def pair(name: str, value: object, expected: str = "two numbers") -> tuple[float, float]:
    """Two finite numbers."""
    found = items(value, as_real)
    good = [x for x in found if x is not None and math.isfinite(x)]
    if len(found) != 2 or len(good) != 2:
        refuse(name, expected, value, "give a tuple of two")
    return good[0], good[1]


def words(name: str, value: object, known: Collection[str]) -> list[str]:
    """Some of a few words, in the order given.

    Args:
        name: Of the argument.
        value: What was given: one of them, or a list of some.
        known: The words.

    Returns:
        Them.

    Raises:
        InputError: If there is none, or one is not known.
    """
    found = items([value] if isinstance(value, str) else value, as_text)
    if not found or not all(word in known for word in found):
        refuse(name, f"any of {sorted(known)}", value)
    return [str(word) for word in found]


def several(
    name: str, value: object, check: Callable[..., T], *rules: object, **limits: Any
) -> tuple[T, ...]:
    """One or more items, each of which passes another check."""
    kept = items(value, lambda item: (item,))
    if not kept:
        refuse(name, "a list of one or more items", value)
    return tuple(check(name, item[0], *rules, **limits) for item in kept if item is not None)


def one_by_one(name: str, value: object, expected: str) -> Iterator[Any]:
    """The items of an iterable, as they are asked for: what is too large to be held at once."""
    count = 0
    try:
        if isinstance(value, (str, bytes, Mapping)):
            raise TypeError
        for item in value:  # type: ignore[attr-defined]  # that is what is tried
            count += 1
            if count > MANY:
                raise OverflowError  # endless
            yield item
    except InputError:
        raise
    except Exception:  # an iterator may raise anything
        refuse(name, expected, value)


def optional(
    check: Callable[..., T], name: str, value: object, *rules: object, **limits: Any
) -> T | None:
    """None, or what passes the check."""
    return None if value is None else check(name, value, *rules, **limits)


# Arrays


def array(
    name: str, value: object, ranks: int | Iterable[int], *, limited: bool = True
) -> FloatArray:
    """Numbers as a float64 array of one of the given ranks, not empty.

    Args:
        name: The argument.
        value: An array, a tensor, or numbers in lists.
        ranks: How many dimensions it may have.
        limited: NaN, infinities and what is near them are refused.

    Returns:
        A copy, or the array itself where it is in float64.

    Raises:
        InputError: If it is none of this.

    Example:
        >>> array("x", [1, 2], 1)
        array([1., 2.])
    """
    allowed = (ranks,) if isinstance(ranks, int) else tuple(ranks)
    result = as_array(value)
    wanted = " or ".join(str(rank) for rank in allowed)
    if result is None:
        refuse(name, f"an array of numbers of rank {wanted}", value)
    if result.ndim not in allowed or result.size == 0:
        msg = f"{name}: expected a non-empty array of rank {wanted}, got shape {result.shape}"
        raise InputError(msg)
    if limited and not np.isfinite(result).all():
        msg = f"{name}: expected finite numbers, got NaN or infinity; clean the array first"
        raise InputError(msg)
    if limited and np.abs(result).max() > LARGEST_NUMBER:
        msg = f"{name}: expected numbers up to {LARGEST_NUMBER:g} in size, got {shown(value)}"
        raise InputError(msg)
    return result


def numbers(name: str, value: object) -> FloatArray:
    """Numbers of any shape as a float64 array, NaN and infinities included."""
    result = as_array(value)
    if result is None:
        refuse(name, "a number or an array of numbers", value)
    return result


def symmetric(name: str, value: object) -> FloatArray:
    """A symmetric matrix, symmetrised past rounding."""
    matrix = array(name, value, 2)
    if matrix.shape[0] != matrix.shape[1]:
        msg = f"{name}: expected a square matrix, got shape {matrix.shape}"
        raise InputError(msg)
    # float32 matrix products of symmetric matrices are symmetric to about 1e-6 of their scale
    with np.errstate(over="ignore"):
        uneven = np.abs(matrix - matrix.T).max() > 1e-4 * np.abs(matrix).max()
    if uneven:
        msg = f"{name}: expected a symmetric matrix; symmetrise it, (A + A.T) / 2"
        raise InputError(msg)
    return matrix / 2 + matrix.T / 2


# Words, switches, functions, places


def choice(name: str, value: object, allowed: Iterable[str], *, quoted: bool = True) -> str:
    """One of a few words; the nearest is named where another comes."""
    words = list(allowed)
    if isinstance(value, str) and value in words:
        return str(value)
    listed = [repr(word) if quoted else word for word in words]
    expected = (
        f"{', '.join(listed[:-1])} or {listed[-1]}" if quoted else f"one of {', '.join(words)}"
    )
    refuse(name, expected, value, nearest(value, words))


def nearest(value: object, words: Iterable[str]) -> str:
    """The question whether 'ggn' was meant, or nothing where nothing is near."""
    near = (
        difflib.get_close_matches(value.lower(), list(words), 1) if isinstance(value, str) else []
    )
    return f"did you mean {near[0]!r}?" if near else ""


def flag(name: str, value: object, expected: str = "True or False") -> bool:
    """True or False."""
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    refuse(name, expected, value)


def text(name: str, value: object) -> str:
    """A string."""
    if isinstance(value, str):
        return value
    refuse(name, "a string", value)


def function(name: str, value: object, expected: str, *, takes: int | None = None) -> Any:
    """Anything that can be called, with so many arguments where it says how many it takes."""
    if not callable(value):
        refuse(name, expected, value)
    if takes is not None:
        if isinstance(value, type):
            refuse(name, expected, value, "a class is none")
        try:
            signature = inspect.signature(value)
        except (TypeError, ValueError):  # builtins do not say
            return value
        try:
            signature.bind(*range(takes))
        except TypeError as error:
            refuse(name, expected, value, f"with {takes} arguments: {error}")
    return value


def instance(
    name: str, value: object, kinds: type[T] | tuple[type[T], ...], expected: str, advice: str = ""
) -> T:
    """An object of one of the given classes."""
    if isinstance(value, kinds):
        return value
    hint = "give an instance, not the class" if isinstance(value, type) else advice
    refuse(name, expected, value, hint)


def mapping(name: str, value: object) -> Mapping[Any, Any]:
    """A dict, or what behaves like one."""
    if isinstance(value, Mapping):
        return value
    refuse(name, "a dict", value)


def path(name: str, value: object) -> Path:
    """A file or a folder, which need not exist."""
    if isinstance(value, (str, os.PathLike)) and not isinstance(value, bytes):
        try:
            text = os.fspath(value)
        except Exception:  # somebody's __fspath__ may raise anything
            text = b""
        if isinstance(text, str) and "://" in text:
            refuse(name, "a path on this machine, not an address", value)
        if isinstance(text, str) and text and not set(text) & set("\0\n\r") and _short(text):
            return Path(text)
    refuse(name, "a path, as a string or a pathlib.Path", value)


def place(name: str, value: object) -> Path:
    """A file or a folder, which need not exist, here or in a store: ``s3://bucket/runs.zarr``."""
    if hasattr(value, "fs") and hasattr(value, "protocol"):
        return cast("Path", value)  # a UPath
    if not (isinstance(value, str) and "://" in value):
        return path(name, value)
    try:
        return place_of(value)
    except (ImportError, ValueError) as error:
        refuse(
            name, "a path, or an address that fsspec knows; pip install 'trebuchet[remote]' and, "
            f"for {value.partition(':')[0]}, what fsspec asks for ({error})", value,
        )  # fmt: skip


def _short(text: str) -> bool:
    return all(len(os.fsencode(part)) <= 255 for part in Path(text).parts)


def progress(name: str, value: object) -> Any:
    """True, False, None for where someone watches, or a function of (done, in all)."""
    if value is None or isinstance(value, (bool, np.bool_)):
        return None if value is None else bool(value)
    return function(name, value, "True, False, None or a function of (done, in all)", takes=2)


def anything(name: str, value: object) -> Any:
    """What the function itself looks at, in a place that knows more."""
    del name
    return value


# Reading values


def one_line(error: BaseException) -> str:
    """An exception's type, and the first line of what it says, at most 300 characters of it."""
    lines = str(error).strip().splitlines()
    said = lines[0] if lines and len(lines[0]) <= 300 else "".join(lines[:1])[:297] + "..."
    return f"{type(error).__name__}: {said}" if lines else type(error).__name__


def as_real(value: object) -> float | None:
    """A real number as a float, infinities and NaN included; None if it is not one."""
    value = _scalar(value)
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, Real):
        return None
    try:
        return float(value)
    except OverflowError:  # an integer beyond every float
        return math.inf if bool(value > 0) else -math.inf  # type: ignore[operator]  # an int


def as_index(value: object) -> int | None:
    """A whole number as an int; None if it is not one."""
    value = _scalar(value)
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, SupportsIndex):
        return None
    if getattr(value, "ndim", 0):
        return None
    try:
        return operator.index(value)
    except Exception:  # arrays have an index only if they are a single integer
        return None


def as_array(value: object) -> FloatArray | None:
    """Real numbers as a float64 array; None if there is anything else among them."""
    try:
        detach = getattr(value, "detach", None)
        given = detach().cpu() if callable(detach) else value
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            raw = np.asarray(given)
            if raw.dtype.kind == "O":  # Python integers beyond 64 bits, fractions, decimals
                read = [as_real(item) for item in raw.ravel().tolist()]
                if any(number is None for number in read):
                    return None
                return np.array(read, dtype=np.float64).reshape(raw.shape)
            return raw.astype(np.float64) if raw.dtype.kind in "fiu" else None
    except Exception:  # an array protocol may raise anything
        return None


def as_text(value: object) -> str | None:
    """A string; None if it is none."""
    return str(value) if isinstance(value, str) else None


def items(values: object, read: Callable[[object], T | None]) -> list[T | None]:
    """Every item of an iterable, read; none of what is no list of items."""
    if isinstance(values, (str, bytes, bytearray, Mapping)) or not isinstance(values, Iterable):
        return []
    try:
        found = list(islice(values, MANY + 1))
    except Exception:  # an iterator may raise anything
        return []
    return [] if len(found) > MANY else [read(item) for item in found]


def _scalar(value: object) -> object:
    """The number in an array or a tensor without dimensions."""
    if getattr(value, "ndim", None) == 0 and callable(item := getattr(value, "item", None)):
        try:
            return item()
        except Exception:  # a tensor on "meta" has none
            return None
    return value


_SHORT = reprlib.Repr()
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxset = _SHORT.maxfrozenset = _SHORT.maxdict = 20
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = 80
_BUILTIN = (list, tuple, set, frozenset, dict, str, int)


def shown(value: object) -> str:
    """A value in one line of at most 80 characters."""
    if isinstance(value, int) and value.bit_length() > 256:  # Python itself refuses 5 000 digits
        return f"an integer of about {round(value.bit_length() * math.log10(2))} digits"
    try:
        text = _SHORT.repr(value) if type(value) in _BUILTIN else repr(value)
    except Exception:  # somebody's __repr__ may raise anything
        text = f"a {type(value).__name__}"
    text = " ".join(text.split())
    return text if len(text) <= 80 else text[:77] + "..."
