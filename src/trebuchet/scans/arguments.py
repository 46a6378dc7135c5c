"""What a scan is asked for besides its problem, checked before anything is touched."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from trebuchet._checks import (
    LONGEST,
    choice,
    factor,
    flag,
    from_zero,
    nearest,
    optional,
    rates,
    real,
    refuse,
    whole,
)
from trebuchet.errors import InputError
from trebuchet.observables.base import Observable
from trebuchet.observables.registry import observables
from trebuchet.problem.problem import Problem, check_schedule
from trebuchet.scans.budget import HORIZONS, Budget

Curvature = Literal["initial", "final", "none"]
"""Where λ is measured: at the initialisation, also at the end of every whole run, or nowhere."""


@dataclass(frozen=True, slots=True)
class Arguments:
    """The arguments of ``trebuchet.scan``; documented there."""

    problem: Problem
    horizon: int
    seeds: tuple[int, ...]
    budget: int | Budget | None
    rates: Sequence[float] | None
    edge_rtol: float | None
    curvature: Curvature
    stacked: bool | None
    delta: float | None
    blowup: float
    observables: Sequence[str | Observable] = ()
    check_law: bool = False

    def __post_init__(self) -> None:
        for name, value in self._checked().items():
            object.__setattr__(self, name, value)  # the way to normalise what is frozen
        if self.limit < 2 * self.horizon:
            msg = (
                f"budget: expected at least two horizons, {2 * self.horizon} gradient "
                f"evaluations, got {self.limit}; shorten the horizon, or give more"
            )
            raise InputError(msg)
        check_schedule(self.problem, self.horizon)

    def _checked(self) -> dict[str, object]:
        """Numbers as Python's own, whatever kind they came as; what is None stays so."""
        return {
            "horizon": whole(
                "horizon", self.horizon, "at least 10 steps", least=10, most=LONGEST
            ),
            "budget": _budget(self.budget),
            "rates": optional(rates, "rates", self.rates),
            "edge_rtol": optional(
                real, "edge_rtol", self.edge_rtol, "a number from 1e-4 to 1",
                lambda x: 1e-4 <= x < 1,
            ),
            "curvature": choice("curvature", self.curvature, get_args(Curvature)),
            "stacked": optional(flag, "stacked", self.stacked, "True, False or None"),
            "delta": optional(from_zero, "delta", self.delta),
            "blowup": factor("blowup", self.blowup),
            "observables": _recorded(self.observables),
            "check_law": flag("check_law", self.check_law),
        }  # fmt: skip

    @property
    def limit(self) -> int:
        """Gradient evaluations that successive halving, and what comes with it, may spend."""
        if isinstance(self.budget, int):
            return self.budget
        return HORIZONS[self.budget or "fast"] * self.horizon

    @property
    def limit_with_edges(self) -> float:
        """The same, bisected edges included: unlimited if they were asked for without a number."""
        numbered = isinstance(self.budget, int)
        return self.limit if numbered or self.edge_rtol is None else math.inf


def _budget(given: object) -> int | str:
    if given is None:
        return "fast"
    words = list(HORIZONS)
    if isinstance(given, str) and given not in words:
        expected = "a whole number, of gradient evaluations, or 'fast', 'default' or 'careful'"
        refuse("budget", expected, given, nearest(given, words) or "give an int")
    if isinstance(given, str):
        return given
    return whole("budget", given, "a positive number of gradient evaluations")


def _recorded(given: Sequence[str | Observable]) -> tuple[Observable, ...]:
    """Observables that can be looked at while the search goes on."""
    chosen = observables("observables", given)
    for o in chosen:
        if not o.recorded:
            msg = (
                f"observables: {o.name!r} is measured from the end of a run on, and a scan leaves "
                "most runs before theirs; give it to trebuchet.sweep"
            )
            raise InputError(msg)
    return chosen
