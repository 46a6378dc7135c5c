"""What a scan is asked for, checked before anything is touched."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch

from trebuchet._checks import (
    LONGEST,
    as_real,
    choice,
    factor,
    flag,
    from_zero,
    one_line,
    optional,
    positive,
    rates,
    real,
    shown,
    whole,
)
from trebuchet.errors import InputError
from trebuchet.problem.batches import SizeOf
from trebuchet.problem.schedules import MakeScheduler, Multiplier, Schedule, makes_scheduler

Curvature = Literal["initial", "final", "none"]
"""Where λ is measured: at the initialisation, also at the end of every whole run, or nowhere."""

EVERY_STEP = 100_000
"""A schedule is evaluated beforehand at every step up to here."""


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
    clip_grad_norm: float | None
    clip_grad_value: float | None
    stacked: bool | None
    delta: float | None
    blowup: float
    weights: Sequence[float] | None = None
    size_of: SizeOf | None = None

    def __post_init__(self) -> None:
        for name, value in self._checked().items():
            object.__setattr__(self, name, value)  # the way to normalise what is frozen
        if self.budget is not None and self.budget < 2 * self.horizon:
            msg = (
                f"budget: expected at least two horizons, {2 * self.horizon} gradient "
                f"evaluations, got {self.budget}; shorten the horizon, or give more"
            )
            raise InputError(msg)
        if self.multiplier is not None:
            _check_schedule(self.multiplier, self.horizon)

    def _checked(self) -> dict[str, object]:
        """Numbers as Python's own, whatever kind they came as; what is None stays so."""
        return {
            "horizon": whole(
                "horizon", self.horizon, "at least 10 steps", least=10, most=LONGEST
            ),
            "batch_size": optional(
                whole, "batch_size", self.batch_size, "a positive number of samples"
            ),
            "budget": optional(
                whole, "budget", self.budget, "a positive number of gradient evaluations"
            ),
            "rates": optional(rates, "rates", self.rates),
            "edge_rtol": optional(
                real, "edge_rtol", self.edge_rtol, "a number from 1e-4 to 1",
                lambda x: 1e-4 <= x < 1,
            ),
            "curvature": choice("curvature", self.curvature, get_args(Curvature)),
            "accumulate": whole(
                "accumulate", self.accumulate, "a positive number of batches a step", most=1_000_000
            ),
            "micro_batch": optional(
                whole, "micro_batch", self.micro_batch, "a positive number of samples"
            ),
            "autocast": _autocast(self.autocast),
            "clip_grad_norm": optional(positive, "clip_grad_norm", self.clip_grad_norm),
            "clip_grad_value": optional(positive, "clip_grad_value", self.clip_grad_value),
            "stacked": optional(flag, "stacked", self.stacked, "True, False or None"),
            "delta": optional(from_zero, "delta", self.delta),
            "blowup": factor("blowup", self.blowup),
        }  # fmt: skip

    @property
    def scheduler(self) -> MakeScheduler | None:
        """What makes a scheduler for each run's optimizer, if that is what the schedule is."""
        if self.schedule is None or not makes_scheduler(self.schedule):
            return None
        return cast("MakeScheduler", self.schedule)

    @property
    def multiplier(self) -> Multiplier | None:
        """The schedule, if it is a function of the step."""
        if self.schedule is None or makes_scheduler(self.schedule):
            return None
        return cast("Multiplier", self.schedule)

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
        if self.loss is None:
            return "the model's own"
        return str(getattr(self.loss, "__name__", type(self.loss).__name__))


def _autocast(dtype: object) -> object:
    if dtype is None or (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        return dtype
    msg = (
        "autocast: expected a floating dtype such as torch.bfloat16, got "
        f"{shown(dtype)}; leave it out to run as torch.autocast is set around the scan"
    )
    raise InputError(msg)


def _looked_at(horizon: int) -> Iterable[int]:
    """Every step, or, of more than a function can be asked about, the first and some others."""
    if horizon <= EVERY_STEP:
        return range(horizon)
    return [*range(EVERY_STEP), *range(EVERY_STEP, horizon, horizon // EVERY_STEP), horizon - 1]


def _check_schedule(schedule: Multiplier, horizon: int) -> None:
    """Evaluate it at every step of a run: a multiplier that is none would end one in the middle."""
    highest = 0.0
    for t in _looked_at(horizon):
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
                f"{shown(factor)} at t = {t}; mend the function there"
            )
            raise InputError(msg)
        highest = max(highest, number)
    if highest == 0:
        msg = (
            f"schedule: expected a multiplier above 0 at some step, got 0 at all {horizon}; "
            "nothing would be trained"
        )
        raise InputError(msg)
