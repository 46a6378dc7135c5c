"""The decorator that stands in front of every public function: no argument gets past unchecked."""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, TypeVar, cast

from trebuchet._checks import nearest, optional, shown
from trebuchet.errors import InputError

T = TypeVar("T")
_REST = inspect.Parameter.VAR_KEYWORD
Check = Callable[[str, Any], Any]
"""Takes an argument's name and value, and returns the value as the function wants it."""


def door(**checks: Check) -> Callable[[T], T]:
    """Check a function's arguments, or a class's, before anything of it runs.

    Every argument that is given is replaced by what its check returns; defaults are the function's
    own and are not checked. A keyword that is unknown or missing is an `InputError` too. Checks of
    names that are no parameters are the keywords that a parameter such as ``**keywords`` takes; one
    of its own name checks them together, whatever they are called.

    Args:
        **checks: One for every parameter but `self` and `cls`.

    Returns:
        A decorator of functions, methods and classes (whose constructor it is put before).

    Raises:
        TypeError: If a parameter has no check, or a check no parameter; when the module is read.

    Example:
        >>> from trebuchet._checks import positive
        >>> @door(lr=positive)
        ... def half(lr: float) -> float:
        ...     return lr / 2
        >>> half("0.1")
        Traceback (most recent call last):
        trebuchet.errors.InputError: lr: expected a positive finite number, got '0.1'
        >>> half(Lr=1)
        Traceback (most recent call last):
        trebuchet.errors.InputError: half: has no argument 'Lr'; did you mean 'lr'?
    """

    def decorate(target: Any) -> Any:
        if inspect.isclass(target):
            guarded = _guard(target.__init__, checks, target.__name__)
            setattr(target, "__init__", guarded)  # noqa: B010  # mypy lets nobody assign a method
            return target
        return _guard(target, checks, target.__name__)

    return decorate


def rule(check: Callable[..., Any], *rules: Any, **limits: Any) -> Check:
    """A check with what is allowed filled in."""
    return lambda name, value: check(name, value, *rules, **limits)


def maybe(check: Callable[..., Any], *rules: Any, **limits: Any) -> Check:
    """The same, or None."""
    return lambda name, value: optional(check, name, value, *rules, **limits)


def _guard(function: Callable[..., Any], checks: dict[str, Check], called: str) -> Any:
    signature = inspect.signature(function)
    kinds = {name: p.kind for name, p in signature.parameters.items()}
    owned = {next(iter(kinds), "")} & {"self", "cls"}
    rest = next((name for name, kind in kinds.items() if kind is _REST), None)
    listed = rest is not None and rest not in checks
    names = set(kinds) - owned - ({rest} if listed else set())
    if not names <= set(checks) or (not listed and names != set(checks)):
        msg = f"{called}: parameters {sorted(names)} have checks {sorted(checks)}"
        raise TypeError(msg)

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise InputError(_unbound(checks, called, kwargs, str(error))) from None
        if listed and not checks.keys() >= kwargs.keys():
            raise InputError(_unbound(checks, called, kwargs, ""))
        given = bound.arguments
        for part in (given, given.get(str(rest), {}) if listed else {}):
            for name in part:
                if name in checks:
                    part[name] = checks[name](name, part[name])
        return function(*bound.args, **bound.kwargs)

    return guarded


def _unbound(checks: dict[str, Check], called: str, kwargs: dict[str, Any], why: str) -> str:
    """Why a call does not fit a signature, and what was probably meant."""
    for name in kwargs:
        if name not in checks:
            near = nearest(name, checks) or f"it takes {', '.join(checks) or 'none'}"
            return f"{called}: has no argument {name!r}; {near}"
    return f"{called}: {why}; it takes {', '.join(checks) or 'no arguments'}"


def grouped(kind: type[T], name: str, given: T | None, settings: Mapping[str, Any]) -> T:
    """Settings that belong together, from an object of them or from a door's keywords.

    Args:
        kind: Their dataclass.
        name: Of the argument that takes one.
        given: What it took.
        settings: Keywords of the door, of which those that `kind` has as fields are used.

    Returns:
        The settings.

    Raises:
        InputError: If there are both.
    """
    own = {f.name: settings[f.name] for f in fields(cast(Any, kind)) if f.name in settings}
    if given is None:
        return kind(**own)
    for setting, value in own.items():
        msg = (
            f"{setting}: expected nothing beside {name}=, which says it, got {shown(value)}; give "
            f"{name}={kind.__name__}({setting}=...)"
        )
        raise InputError(msg)
    return given
