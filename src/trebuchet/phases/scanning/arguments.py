"""What a scan is asked for, checked before anything is touched."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from trebuchet.errors import InputError
from trebuchet.phases.scanning.runs import Schedule

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
        if not isinstance(self.horizon, int) or self.horizon < 10:
            msg = f"horizon: expected at least 10 steps, got {self.horizon!r}"
            raise InputError(msg)
        if self.budget is not None and self.budget < 2 * self.horizon:
            msg = (
                f"budget: expected at least two horizons, {2 * self.horizon} gradient "
                f"evaluations, got {self.budget}; shorten the horizon, or give more"
            )
            raise InputError(msg)
        if self.rates is not None and (
            len(self.rates) == 0 or not all(math.isfinite(r) and r > 0 for r in self.rates)
        ):
            msg = f"rates: expected positive finite numbers, got {self.rates!r}"
            raise InputError(msg)
        if self.edge_rtol is not None and not 1e-4 <= self.edge_rtol < 1:
            msg = f"edge_rtol: expected a number from 1e-4 to 1, got {self.edge_rtol!r}"
            raise InputError(msg)
        if self.curvature not in ("initial", "final", "none"):
            msg = f"curvature: expected 'initial', 'final' or 'none', got {self.curvature!r}"
            raise InputError(msg)
        if self.delta is not None and not (math.isfinite(self.delta) and self.delta >= 0):
            msg = f"delta: expected a finite number >= 0, got {self.delta}"
            raise InputError(msg)
        if not self.blowup > 1:
            msg = f"blowup: expected a factor above 1, got {self.blowup}"
            raise InputError(msg)

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


def checked_seeds(seeds: int | Sequence[int]) -> tuple[int, ...]:
    """Seeds from a number of them, or as given.

    Args:
        seeds: How many, or which.

    Returns:
        Different ones, at least one.

    Raises:
        InputError: If there is none, or one comes twice.
    """
    found = tuple(range(seeds)) if isinstance(seeds, int) else tuple(int(s) for s in seeds)
    if not found or len(set(found)) < len(found):
        msg = f"seeds: expected a positive number, or different numbers, got {seeds!r}"
        raise InputError(msg)
    return found
