"""A sweep written down: a TOML file, its keys checked one by one, and what is made of it."""

import re
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    PositiveFloat,
    PositiveInt,
    Tag,
    ValidationError,
    model_validator,
)

from trebuchet.cli.options import did_you_mean, quoted
from trebuchet.errors import InputError

MOST_RUNS = 100_000
"""Of a file: more is a slip of the finger, and weeks of work."""
NonNegative = Annotated[float, Field(ge=0)]
Number = PositiveInt | PositiveFloat


class Part(BaseModel):
    """A table of the file: nothing but its keys, of their types."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Spaced(Part):
    """Rates from one number to another."""

    first: Number = Field(alias="from")
    last: Number = Field(alias="to")
    number: Annotated[int, Field(ge=2, le=10_000)]
    scale: Literal["log", "linear"] = "log"

    def values(self) -> list[float]:
        """The rates."""
        spaced = np.geomspace if self.scale == "log" else np.linspace
        return [float(v) for v in spaced(float(self.first), float(self.last), self.number)]


LIST, TABLE = "a list", "a table"
"""What pydantic calls the ways to write rates; no keys of a file."""
Rates = Annotated[
    Annotated[list[Number], Tag(LIST)] | Annotated[Spaced, Tag(TABLE)],
    Discriminator(lambda given: TABLE if isinstance(given, dict | Spaced) else LIST),
]
"""Which is meant is plain, so that a mistake in one is not told as one in the other."""


class What(Part):
    """[problem]: what is trained, on what, and how."""

    model: str
    data: str | None = None
    test: str | None = None
    loss: str | None = None
    optimizer: str | dict[str, Any] = "sgd"
    batch_size: PositiveInt | None = None
    accumulate: PositiveInt = 1
    micro_batch: PositiveInt | None = None
    clip_grad_norm: PositiveFloat | None = None
    clip_grad_value: PositiveFloat | None = None


class Grid(Part):
    """[sweep]: rates, seeds, steps."""

    lr: Rates | None = None
    lr_ratio: Rates | None = None
    seeds: PositiveInt | list[Annotated[int, Field(ge=0)]] = 1
    steps: PositiveInt = 1000
    tolerance: PositiveFloat | None = None
    blowup: Annotated[float, Field(gt=1)] = 1e8
    observables: list[str] | None = None

    @model_validator(mode="after")
    def _one_scale(self) -> "Grid":
        if (self.lr is None) == (self.lr_ratio is None):
            msg = "expected either lr (η) or lr_ratio (ηλ₀)"
            raise ValueError(msg)
        return self


class Record(Part):
    """[record]: which steps are kept."""

    every: PositiveInt = 1
    dense: PositiveInt | None = None
    per_decade: PositiveInt = 40
    tail: Annotated[int, Field(ge=0)] = 0


class Compute(Part):
    """[execution]: how it is computed."""

    engine: Literal["auto", "batched", "sequential", "module"] = "auto"
    backend: Literal["threads", "loky", "dask", "ray"] | None = None
    workers: PositiveInt | None = None
    chunk: PositiveInt | None = None
    device: str | None = None
    checkpoint_seconds: NonNegative = 5.0


class SweepFile(Part):
    """The whole of it."""

    problem: What
    sweep: Grid
    axes: dict[str, list[Any]] = Field(default_factory=dict)
    record: Record | None = None
    execution: Compute = Field(default_factory=Compute)


def read_sweep(path: Path) -> SweepFile:
    """Read a file, and say of the first mistake in it where it is and what was expected.

    Args:
        path: The file.

    Returns:
        What it says.

    Raises:
        InputError: If it cannot be read, is no TOML, or a key or a value is not what was expected.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it is no text"
        msg = f"what: cannot read {path} ({why})"
        raise InputError(msg) from error
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        msg = f"{path}: no TOML: {error}"
        raise InputError(msg) from error
    try:
        return SweepFile.model_validate(content)
    except ValidationError as error:
        said = _mistakes(text, error)
        more = f" (and {len(said) - 1} more)" if len(said) > 1 else ""
        msg = f"{path}, {said[0]}{more}"
        raise InputError(msg) from error


def _mistakes(text: str, error: ValidationError) -> list[str]:
    """What is wrong, a sentence a place, in the order of the lines; what is missing, last."""
    found: dict[tuple[str, ...], tuple[bool, int, str]] = {}
    for each in error.errors():
        keys = _keys(each["loc"])
        line = line_of(text, keys)
        sentence = f"line {line}: {'.'.join(keys)}: {_wrong(each, keys)}"
        found.setdefault(keys, (each["type"] == "missing", line, sentence))
    return [sentence for _, _, sentence in sorted(found.values())]


def _keys(loc: tuple[int | str, ...]) -> tuple[str, ...]:
    """The keys of the file on the way to a mistake: not what pydantic calls the ways it tried."""
    keys: tuple[str, ...] = ()
    for part in map(str, loc):
        if part == TABLE:
            continue
        if part == LIST or not _known(keys):
            break
        keys = (*keys, part)
    return keys


def _wrong(error: Any, keys: tuple[str, ...]) -> str:
    kind = error["type"]
    if kind == "extra_forbidden":
        known = _known(keys[:-1])
        near = did_you_mean(keys[-1], known)
        return f"no such key{near or '; there are ' + ', '.join(known)}"
    if kind == "missing":
        return "is needed"
    if kind == "value_error":
        return str(error["ctx"]["error"])
    if kind == "literal_error":
        allowed = str(error["ctx"]["expected"])
        near = did_you_mean(str(error["input"]), re.findall(r"'(.*?)'", allowed))
        return f"expected {allowed}, got {quoted(str(error['input']))}{near}"
    whole = next((told for name, told in EXPECTED.items() if ".".join(keys).startswith(name)), None)
    expected = whole or str(error["msg"]).removeprefix("Input should be ")
    return f"expected {expected}, got {error['input']!r}"


EXPECTED = {
    "sweep.lr_ratio": "positive rates, [1, 2.5] or {from = 0.5, to = 8, number = 16}",
    "sweep.lr": "positive rates, [0.01, 0.1] or {from = 0.01, to = 1, number = 9}",
    "sweep.seeds": "how many seeds, 3, or which, [0, 5]",
    "problem.optimizer": 'a name, "adamw", or a table, {name = "sgd", momentum = 0.9}',
}


def _known(keys: tuple[str, ...]) -> list[str]:
    tables: dict[tuple[str, ...], type[BaseModel]] = {
        (): SweepFile, ("problem",): What, ("sweep",): Grid, ("record",): Record,
        ("execution",): Compute, ("sweep", "lr"): Spaced, ("sweep", "lr_ratio"): Spaced,
    }  # fmt: skip
    table = tables.get(keys)
    return [] if table is None else [f.alias or name for name, f in table.model_fields.items()]


@contextmanager
def told_with_its_line(path: Path, asked: SweepFile) -> Iterator[None]:
    """Says of a mistake that only the problem or the sweep can see on which line it is.

    Args:
        path: The file.
        asked: What it says.

    Yields:
        Nothing.

    Raises:
        InputError: What was raised, with the line of the key that it is about, where there is one.
    """
    try:
        yield
    except InputError as error:
        keys = _about(str(error), asked)
        if not keys:
            raise
        msg = f"{path}, line {line_of(path.read_text(encoding='utf-8'), keys)}: {error}"
        raise InputError(msg) from error


def _about(said: str, asked: SweepFile) -> tuple[str, ...]:
    """The key that an error is about, which begins with the name of an argument; or none."""
    name = re.match(r"[\w.]*", said)[0]  # type: ignore[index]  # it matches anything
    first, *rest = name.split(".")
    if first in SweepFile.model_fields and first != "axes":
        return first, *rest
    if name in asked.axes:
        return "axes", name
    table = next((t for t in ("problem", "sweep", "execution") if first in _known((t,))), None)
    of_a_cell = "(in the cell " in said and table in (None, "problem") and first != "checkpoint"
    if first == "axes" or of_a_cell:
        named = (axis for axis in asked.axes if f"'{axis}'" in said or f"{axis}=" in said)
        return "axes", next(named, "")
    return () if table is None else (table, first)


def line_of(text: str, keys: tuple[str, ...]) -> int:
    """The line of a key; of its table where it is missing, else the first.

    Args:
        text: The file.
        keys: Table and key.

    Returns:
        Counted from 1.
    """
    table: tuple[str, ...] = ()
    best, deepest = 1, 0
    for number, line in enumerate(text.splitlines(), 1):
        header = re.match(r"\s*\[+\s*([^\]]+?)\s*\]+", line)
        assigned = re.match(r"\s*([\w\-\.\"']+)\s*=", line)
        here = table
        if header:
            table = here = _split(header[1])
        elif assigned:
            here = (*table, *_split(assigned[1]))
        else:
            continue
        shared = next((i for i, (a, b) in enumerate(zip(here, keys, strict=False)) if a != b), None)
        depth = min(len(here), len(keys)) if shared is None else shared
        if depth > deepest:
            best, deepest = number, depth
    return best


def _split(name: str) -> tuple[str, ...]:
    """The parts of a dotted key; a dot between quotes parts nothing."""
    return tuple(part.strip("\"'") for part in re.findall(r"\"[^\"]*\"|'[^']*'|[^.\s]+", name))
