"""The decorator that stands in front of every public function: no argument gets past unchecked."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from trebuchet._checks import nearest, optional
from trebuchet.errors import InputError

T = TypeVar("T")
Check = Callable[[str, Any], Any]
"""Takes an argument's name and value, and returns the value as the function wants it."""


def door(**checks: Check) -> Callable[[T], T]:
    """Check a function's arguments, or a class's, before anything of it runs.

    Every argument that is given is replaced by what its check returns; defaults are the function's
    own and are not checked. A keyword that is unknown or missing is an `InputError` too.

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
    owner = next(iter(signature.parameters), "")
    owned = {owner} & {"self", "cls"}
    names = set(signature.parameters) - owned
    if names != set(checks):
        msg = f"{called}: parameters {sorted(names)} have checks {sorted(checks)}"
        raise TypeError(msg)

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise InputError(_unbound(signature, called, kwargs, error)) from None
        given = bound.arguments
        for name in given:
            if name not in owned:
                given[name] = checks[name](name, given[name])
        return function(*bound.args, **bound.kwargs)

    return guarded


def _unbound(
    signature: inspect.Signature, called: str, kwargs: dict[str, Any], error: TypeError
) -> str:
    """Why a call does not fit a signature, and what was probably meant."""
    known = [name for name in signature.parameters if name not in ("self", "cls")]
    for name in kwargs:
        if name not in known:
            near = nearest(name, known) or f"it takes {', '.join(known) or 'none'}"
            return f"{called}: has no argument {name!r}; {near}"
    return f"{called}: {error}; it takes {', '.join(known) or 'no arguments'}"
