"""What a scan is asked for, checked before anything is touched."""

import math
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Literal, SupportsIndex, TypeVar, get_args

import numpy as np
import torch

from trebuchet.errors import InputError
from trebuchet.phases.scanning.runs import Schedule

T = TypeVar("T")
Curvature = Literal["initial", "final", "none"]
"""Where λ is measured: at the initialisation, also at the end of every whole run, or nowhere."""


@dataclass(frozen=True, slots=True)
class Arguments:
    """The arguments of ``trebuchet.scan`` but for the model; documented there."""

    loss: object
    data: object
    optimizer: object
    horizon: int
    batch_size: int | None
    seeds: tuple[int, ...]
    budget: int | None
    rates: Sequence[float] | None
    edge_rtol: float | None
    curvature: Curvature
    accumulate: int
    micro_batch: int | None
    autocast: torch.dtype | None
    schedule: Schedule | None
    stacked: bool | None
    delta: float | None
    blowup: float

    def __post_init__(self) -> None:
        for name, value in self._checked().items():
            object.__setattr__(self, name, value)  # the way to normalise what is frozen
        if self.budget is not None and self.budget < 2 * self.horizon:
            msg = (
                f"budget: expected at least two horizons, {2 * self.horizon} gradient "
                f"evaluations, got {self.budget}; shorten the horizon, or give more"
            )
            raise InputError(msg)
        if self.schedule is not None:
            _check_schedule(self.schedule, self.horizon)

    def _checked(self) -> dict[str, object]:
        """Numbers as Python's own, whatever kind they came as; what is None stays so."""
        return {
            "horizon": _whole("horizon", self.horizon, "at least 10 steps", least=10),
            "batch_size": _optional(
                _whole, "batch_size", self.batch_size, "a positive number of samples"
            ),
            "budget": _optional(
                _whole, "budget", self.budget, "a positive number of gradient evaluations"
            ),
            "rates": _rates(self.rates),
            "edge_rtol": _optional(
                _real, "edge_rtol", self.edge_rtol, "a number from 1e-4 to 1",
                lambda x: 1e-4 <= x < 1,
            ),
            "curvature": _curvature(self.curvature),
            "accumulate": _whole(
                "accumulate", self.accumulate, "a positive number of batches a step"
            ),
            "micro_batch": _optional(
                _whole, "micro_batch", self.micro_batch, "a positive number of samples"
            ),
            "autocast": _autocast(self.autocast),
            "stacked": _stacked(self.stacked),
            "delta": _optional(
                _real, "delta", self.delta, "a finite number >= 0",
                lambda x: 0 <= x < math.inf,
            ),
            "blowup": _real("blowup", self.blowup, "a factor above 1", lambda x: x > 1),
        }  # fmt: skip

    @property
    def limit(self) -> int:
        """Gradient evaluations that the race, and what comes with it, may spend."""
        return 4 * self.horizon if self.budget is None else self.budget

    @property
    def limit_with_edges(self) -> float:
        """The same, bisected edges included: unlimited if they were asked for without a budget."""
        return math.inf if self.budget is None and self.edge_rtol is not None else self.limit

    @property
    def loss_name(self) -> str:
        """What to call the loss."""
        if isinstance(self.loss, str):
            return self.loss
        return str(getattr(self.loss, "__name__", type(self.loss).__name__))


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
    count = _index(seeds)
    found = _items(seeds, _index) if count is None else list(range(count))
    if not found or None in found or len(set(found)) < len(found):
        msg = (
            "seeds: expected a positive number, or different numbers, all of them whole, got "
            f"{_shown(seeds)}; give an int, or a list of ints"
        )
        raise InputError(msg)
    return tuple(s for s in found if s is not None)


def _whole(name: str, value: object, expected: str, *, least: int = 1) -> int:
    number = _index(value)
    if number is None:
        msg = (
            f"{name}: expected a whole number, {expected}, got {_shown(value)} "
            f"({type(value).__name__}); give an int"
        )
        raise InputError(msg)
    if number < least:
        msg = f"{name}: expected {expected}, got {number}"
        raise InputError(msg)
    return number


def _real(name: str, value: object, expected: str, fits: Callable[[float], bool]) -> float:
    number = as_real(value)
    if number is None or not fits(number):
        msg = f"{name}: expected {expected}, got {_shown(value)}"
        raise InputError(msg)
    return number


def _optional(check: Callable[..., T], name: str, value: object, *rules: object) -> T | None:
    return None if value is None else check(name, value, *rules)


def _rates(rates: object) -> tuple[float, ...] | None:
    if rates is None:
        return None
    # A tuple, because a generator can be read only once.
    found = _items(rates, as_real)
    good = [r for r in found if r is not None and 0 < r < math.inf]
    if not found or len(good) < len(found):
        msg = f"rates: expected positive finite numbers, got {_shown(rates)}; give a list of them"
        raise InputError(msg)
    return tuple(good)


def _curvature(curvature: object) -> object:
    if isinstance(curvature, str) and curvature in get_args(Curvature):
        return curvature
    msg = f"curvature: expected 'initial', 'final' or 'none', got {_shown(curvature)}"
    raise InputError(msg)


def _autocast(dtype: object) -> object:
    if dtype is None or (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        return dtype
    msg = (
        "autocast: expected a floating dtype such as torch.bfloat16, got "
        f"{_shown(dtype)}; leave it out to run as torch.autocast is set around the scan"
    )
    raise InputError(msg)


def _stacked(stacked: object) -> bool | None:
    if stacked is None or isinstance(stacked, (bool, np.bool_)):
        return None if stacked is None else bool(stacked)
    msg = f"stacked: expected True, False or None, got {_shown(stacked)}"
    raise InputError(msg)


def _check_schedule(schedule: object, horizon: int) -> None:
    """Evaluate it at every step of a run: a multiplier that is none would end one in the middle."""
    if not callable(schedule):
        msg = (
            "schedule: expected a function of the step t that returns a multiplier of the rate, "
            f"got {_shown(schedule)}; give a function such as lambda t: 1 - t / {horizon}"
        )
        raise InputError(msg)
    highest = 0.0
    for t in range(horizon):
        try:
            factor = schedule(t)
        except Exception as error:  # the user's function may raise anything
            msg = (
                f"schedule: expected a multiplier of the rate for every step t from 0 to "
                f"{horizon - 1}, got {one_line(error)} at t = {t}; mend the function there"
            )
            raise InputError(msg) from error
        number = as_real(factor)
        if number is None or not 0 <= number < math.inf:
            msg = (
                "schedule: expected finite multipliers >= 0 of the rate, got "
                f"{_shown(factor)} at t = {t}; mend the function there"
            )
            raise InputError(msg)
        highest = max(highest, number)
    if highest == 0:
        msg = (
            f"schedule: expected a multiplier above 0 at some step, got 0 at all {horizon}; "
            "nothing would be trained"
        )
        raise InputError(msg)


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


def _index(value: object) -> int | None:
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        return None
    try:
        return operator.index(value)
    except TypeError:  # arrays have an index only if they are a single integer
        return None


def _items(values: object, read: Callable[[object], T | None]) -> list[T | None]:
    """Every item of an iterable, read; none of what is no iterable."""
    return [read(v) for v in values] if isinstance(values, Iterable) else []


def _shown(value: object) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else text[:77] + "..."
