"""A result that is a dataclass, as plain values for JSON, and back."""

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from typing import Any, TypeVar

import numpy as np

from trebuchet.errors import InputError

T = TypeVar("T")


def plain(value: object) -> Any:
    """A value as JSON holds it.

    Args:
        value: Numbers, text, None, enum members, dataclasses, mappings and sequences of these.

    Returns:
        The value, tuples as lists and dataclasses as dicts.

    Raises:
        InputError: If it is anything else.

    Example:
        >>> plain({"shape": (2, 3), "seen": np.int64(4)})
        {'shape': [2, 3], 'seen': 4}
    """
    if isinstance(value, Enum):
        return plain(value.value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    msg = f"result: cannot save a {type(value).__name__} in it; save numbers, text and lists"
    raise InputError(msg)


def rebuilt(kind: type[T], parts: object, **others: Any) -> T:
    """Make a dataclass of what was read.

    Args:
        kind: The dataclass.
        parts: Its fields by name, as `plain` gave them.
        **others: Fields that were read from elsewhere.

    Returns:
        The instance.

    Raises:
        InputError: If a field that is needed is missing, or one is not known.

    Example:
        >>> from trebuchet.results.schema import Variable
        >>> rebuilt(Variable, {"dims": ["lr"], "kind": "f", "units": "1"}, long_name="η").required
        False
        >>> rebuilt(Variable, {"colour": "red"})
        Traceback (most recent call last):
            ...
        trebuchet.errors.InputError: a Variable has no 'colour'; a later trebuchet may have saved it
    """
    name = kind.__name__
    if not isinstance(parts, dict):
        msg = f"expected the fields of a {name}, found a {type(parts).__name__}"
        raise InputError(msg)
    given = {**parts, **others}
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]  # a dataclass
    for key in sorted(given.keys() - known.keys()):
        msg = f"a {name} has no {key!r}; a later trebuchet may have saved it"
        raise InputError(msg)
    for key, field in known.items():
        optional = field.default is not MISSING or field.default_factory is not MISSING
        if key not in given and not optional:
            msg = f"the {key} of a {name} is missing"
            raise InputError(msg)
    try:
        return kind(**given)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        msg = f"the fields of a {name} do not fit it ({error})"
        raise InputError(msg) from error
