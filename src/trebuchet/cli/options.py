"""What a user types after an option, read and checked before anything is imported or computed."""

import functools
import inspect
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import typer
from typer.models import OptionInfo

from trebuchet.errors import InputError

LARGEST_GRID = 10_000
"""Rates, or seeds, that one command takes: more is a slip of the finger, and weeks of work."""
LARGEST = 10**9
"""Steps, samples and the like."""
_DIGITS = re.compile(r"[+-]?[0-9]{1,18}")
_SHOWN = 60


ALIASES = {
    "path": "--out",
    "lr_ratio": "--rates",
    "edge_rtol": "--edges",
    "figure": "figures",
    "widths": "--width",
    "depths": "--depth",
    "params": "--model",
}
"""What the library calls things that go by another name on the command line."""

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace results that exist.")]
DataRoot = Annotated[
    Path | None,
    typer.Option(
        help="Folder with mnist01.npz, fmnist01.npz, cifar01.npz; "
        "without it, images come from OpenML through scikit-learn."
    ),
]
"""Options of several commands."""

T = TypeVar("T")
Reader = Callable[[object], Any]
"""From the text of an option to its value, or to what was wrong with it."""


@dataclass(frozen=True, slots=True)
class Refused:
    """In place of a value: an error raised while options are parsed would be typer's to word."""

    why: str


class InterruptedCommandError(Exception):
    """Ctrl-C, under a name that typer does not know: it would end the program without a word.

    Its text is the line to end with.
    """


def command(function: Callable[..., Any]) -> Callable[..., Any]:
    """A command whose options were read before it begins, and whose errors name them as typed.

    Args:
        function: The command, its options annotated.

    Returns:
        The same, for typer.

    Raises:
        InputError: If an option was refused, before anything else happens.
        InterruptedCommandError: After Ctrl-C.
    """
    names = dict(ALIASES)
    for name, parameter in inspect.signature(function).parameters.items():
        for info in get_args(parameter.annotation):
            if isinstance(info, OptionInfo):
                # In an annotation, typer keeps the first name where a default would be.
                given = [info.default, *(info.param_decls or ())]
                own = [word for word in given if isinstance(word, str) and word.startswith("-")]
                names[name] = own[-1] if own else f"--{name.replace('_', '-')}"

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        for value in (*args, *kwargs.values()):
            if isinstance(value, Refused):
                raise InputError(value.why)
        try:
            return function(*args, **kwargs)
        except KeyboardInterrupt as error:
            raise InterruptedCommandError("interrupted") from error
        except InputError as error:
            name, colon, rest = str(error).partition(": ")
            if name in names:
                raise InputError(f"{names[name]}{colon}{rest}") from error
            raise

    return run


def _reader(read: Callable[[str], Any]) -> Reader:
    def reader(given: object) -> Any:
        try:
            return read(str(given).strip())
        except InputError as error:
            return Refused(str(error))

    return reader


def whole(option: str, least: int = 1, most: int = LARGEST, words: Iterable[str] = ()) -> Reader:
    """A reader of whole numbers, or of a few words.

    Args:
        option: Its name, as typed.
        least: The smallest that makes sense.
        most: The largest that does.
        words: What may stand in place of a number.

    Returns:
        The reader.

    Example:
        >>> whole("--seeds")("3"), whole("--budget", words=["fast"])("fast")
        (3, 'fast')
        >>> whole("--seeds")("²").why
        "--seeds: expected a whole number from 1 to 1000000000, got '²'"
    """
    known = tuple(words)

    def read(text: str) -> int | str:
        if text in known:
            return text
        # Digits of ASCII only: Python reads others too, and underscores.
        number = int(text) if _DIGITS.fullmatch(text) else None
        if number is None or not least <= number <= most:
            expected = f"a whole number from {least} to {most}" + (
                f", or {' or '.join(known)}" if known else ""
            )
            msg = f"{option}: expected {expected}, got {quoted(text)}"
            raise InputError(msg)
        return number

    return _reader(read)


def whole_numbers(option: str) -> Reader:
    """A reader of positive whole numbers, as a list, or as a range that doubles.

    Args:
        option: Its name, as typed.

    Returns:
        The reader; its value ascends.

    Example:
        >>> whole_numbers("--width")("64:512"), whole_numbers("--depth")("8,2")
        ([64, 128, 256, 512], [2, 8])
    """

    def read(text: str) -> list[int]:
        parts = [p.strip() for p in text.split(":" if ":" in text else ",")]
        found = [int(p) for p in parts if _DIGITS.fullmatch(p) and 1 <= int(p) <= LARGEST]
        if ":" in text and len(found) == len(parts) == 2 and found[0] <= found[1]:
            low, high = found
            found = [low * 2**k for k in range((high // low).bit_length())]
        elif ":" in text or len(found) != len(parts):
            msg = (
                f"{option}: expected whole numbers, as a list (64,256) or a range that doubles "
                f"(64:512), got {quoted(text)}"
            )
            raise InputError(msg)
        return sorted(set(found))

    return _reader(read)


def between(option: str, low: float, high: float) -> Reader:
    """A reader of numbers between two others, which are not among them."""

    def read(text: str) -> float:
        number = as_number(text)
        if number is None or not low < number < high:
            got = quoted(text)
            msg = f"{option}: expected a number above {low:g} and below {high:g}, got {got}"
            raise InputError(msg)
        return number

    return _reader(read)


def word(option: str, check: Callable[[str], object], words: Callable[[], Iterable[str]]) -> Reader:
    """A reader of names, which are those that Python takes.

    Args:
        option: Its name, as typed.
        check: Raises an InputError for a name that is not known; so both doors take the same.
        words: The names, to suggest the nearest.

    Returns:
        The reader.
    """

    def read(text: str) -> str:
        try:
            check(text)
        except InputError:
            names = list(words())
            few = f"{names[0]} or {names[1]}" if len(names) == 2 else f"one of {', '.join(names)}"
            msg = f"{option}: expected {few}, got {quoted(text)}"
            raise InputError(msg + did_you_mean(text, names)) from None
        return text

    return _reader(read)


def one_of(option: str, *names: str) -> Reader:
    """A reader of a few words."""

    def check(text: str) -> None:
        if text not in names:
            raise InputError(text)

    return word(option, check, lambda: names)


def did_you_mean(text: str, names: Iterable[str]) -> str:
    """The nearest name, as a sentence's end; nothing where none is near."""
    near = get_close_matches(text.lower(), list(names), 1)
    return f"; did you mean {near[0]}?" if near else ""


def as_number(text: str) -> float | None:
    """A finite number in ASCII digits.

    Args:
        text: What was typed.

    Returns:
        The number; None if it is not one.

    Example:
        >>> as_number("1e-3"), as_number("inf"), as_number("١"), as_number("1_0")
        (0.001, None, None, None)
    """
    if not text.isascii() or "_" in text:
        return None
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def quoted(text: str) -> str:
    """What was typed, cut short, on one line."""
    return repr(text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…")


def read_rates(text: str) -> list[float]:
    """Rates from "start:stop:step", both ends included, or from a list "0.5,1,2".

    Args:
        text: What the user typed.

    Returns:
        The rates, ascending.

    Raises:
        InputError: If the text is neither, a rate is not positive and finite, or there are more
            than `LARGEST_GRID`.

    Example:
        >>> read_rates("0.5:2:0.5"), read_rates("3,1")
        ([0.5, 1.0, 1.5, 2.0], [1.0, 3.0])
        >>> read_rates("0.5:1e9:1e-9")
        Traceback (most recent call last):
            ...
        trebuchet.errors.InputError: --rates: 0.5:1e9:1e-9 are 1e+18 rates, expected at most 10000
    """
    parts = text.split(":") if ":" in text else [p for p in text.split(",") if p.strip()]
    numbers = [as_number(part.strip()) for part in parts]
    found = [number for number in numbers if number is not None and number > 0]
    count = float(len(found))
    whole_grid = ":" in text and len(found) == len(numbers) == 3
    if whole_grid:
        start, stop, step = found
        count = (stop - start) / step + 1 + 1e-9  # infinite if the step is lost in the range
    if len(found) < len(numbers) or count < 1 or (":" in text and not whole_grid):
        msg = (
            "--rates: expected positive numbers, as start:stop:step (0.5:14:0.5) or a list "
            f"(0.5,1,2), got {quoted(text)}"
        )
        raise InputError(msg)
    if count >= LARGEST_GRID + 1:
        msg = f"--rates: {text[:_SHOWN]} are {count:.6g} rates, expected at most {LARGEST_GRID}"
        raise InputError(msg)
    if whole_grid:
        found = [round(start + i * step, 10) for i in range(math.floor(count))]
    rates = sorted(set(found))
    if rates[0] <= 0 or (whole_grid and len(rates) < math.floor(count)):
        msg = f"--rates: steps of {step:g} are too small to tell rates apart, got {quoted(text)}"
        raise InputError(msg)
    return rates


def _rates(text: str) -> str:
    read_rates(text)
    return text


RATES = _reader(_rates)
"""The text of --rates, once it is known that it can be read."""
