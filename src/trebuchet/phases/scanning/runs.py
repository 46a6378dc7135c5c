"""Runs: trainings from one initialisation, each at a constant rate, that can be set aside."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from trebuchet._types import Status
from trebuchet.problem.state import Snapshot

EARLY = (1, 2, 3, 5, 7, 10, 15, 20, 25, 30)
"""Steps at which a mini-batch run is looked at: a catapult's peak is in the first few."""


class BudgetSpentError(Exception):
    """The next step would pass the budget. Caught inside a scan, never shown."""


@dataclass(slots=True)
class State:
    """Where a run is: copies of everything a step changes.

    Attributes:
        snapshot: Weights, buffers, and whatever else training moves.
        optimizer: On the model's own parameters, whoever's weights they hold.
        rates: Of the optimizer's groups, before the schedule.
        scheduler: One of torch's, if the schedule makes them.
    """

    snapshot: Snapshot
    optimizer: Optimizer
    rates: list[float]
    scheduler: LRScheduler | None = None

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """In the order of the trained parameters."""
        return self.snapshot.weights


@dataclass(slots=True, eq=False)
class Run:
    """One training at one rate.

    Attributes:
        rate: η, before the schedule.
        seed: The order of the batches.
        steps: Updates made.
        status: Why it stopped; None while it can go on.
        at: Steps at which the loss was looked at.
        losses: The loss there, on the fixed set that all runs are compared on.
        grad_norms: |∇L| of the first and the last step.
        weight_norms: |θ|² at the start and at the horizon.
        output_spread: 0 where the gradient is exactly zero and the output does not depend on the
            input; NaN elsewhere.
        loss_closing: Loss on the closing set at the horizon, as looks are taken; NaN before.
        loss_final: The same, or with BatchNorm the one in evaluation mode if that is worse.
        sparsity: Fraction of ReLU pre-activations < 0 at the end; NaN unknown.
        top_eigenvalue_final: λ at the end; NaN unless asked for.
    """

    rate: float
    seed: int
    steps: int = 0
    status: Status | None = None
    at: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    grad_norms: tuple[float, float] = (np.nan, np.nan)
    weight_norms: tuple[float, float] = (np.nan, np.nan)
    output_spread: float = np.nan
    loss_closing: float = np.nan
    loss_final: float = np.nan
    sparsity: float = np.nan
    top_eigenvalue_final: float = np.nan
    state: State | None = field(default=None, repr=False)

    @property
    def collapsed(self) -> bool:
        """Whether the gradient is exactly zero and the output does not depend on the input."""
        return self.status is Status.GRADIENT_ZERO and self.output_spread == 0

    @property
    def whole(self) -> bool:
        """Whether it ended by itself, or at the horizon: not dropped, and not interrupted."""
        return self.status not in (None, Status.INTERRUPTED)

    @property
    def dead(self) -> bool:
        """Whether it diverged."""
        return self.status in (Status.NON_FINITE, Status.BLEW_UP)

    def stopped(self) -> bool:
        """Whether it goes no further."""
        return self.status is not None

    def trace(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The steps looked at and the losses there."""
        return np.array(self.at, np.int64), np.array(self.losses, float)


def looks(horizon: int) -> frozenset[int]:
    """Steps at which a mini-batch run is looked at: the early ones, then forty more, and the end.

    Args:
        horizon: Steps of a whole run.

    Returns:
        The steps.

    Example:
        >>> sorted(looks(50))[:8], len(looks(200))
        ([1, 2, 3, 5, 7, 10, 15, 20], 44)
    """
    every = max(1, horizon // 40)
    regular = set(range(max(EARLY) + every, horizon, every))
    return frozenset({s for s in EARLY if s <= horizon} | regular | {horizon})
