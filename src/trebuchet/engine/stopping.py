"""When a run ends, and why."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trebuchet._checks import factor, positive, steps as step_count
from trebuchet._doors import door, maybe
from trebuchet._types import Status
from trebuchet.results.levels import blown_up


@door(max_steps=step_count, tolerance=maybe(positive), blowup=factor)
@dataclass(frozen=True, slots=True)
class StopRule:
    """The ways a run can end.

    Args:
        max_steps: Budget of updates.
        tolerance: A run has converged when its loss changes by less than this in one step; None:
            never. The paper uses 1e-8 for images.
        blowup: A run has blown up when its loss passes this many times its start. Peaks of 1e5
            still come back, so this is no place to be stingy.

    Raises:
        InputError: If a number is out of range.
    """

    max_steps: int = 1000
    tolerance: float | None = None
    blowup: float = 1e8

    def failures(
        self, loss: NDArray[np.float64], first: NDArray[np.float64]
    ) -> list[Status | None]:
        """Status of each run whose loss has failed; None for the others.

        Args:
            loss: L, shape ``(R,)``.
            first: L(θ_0).

        Returns:
            One a run.
        """
        finite = np.isfinite(loss)
        blew_up = finite & blown_up(loss, first, self.blowup)
        if finite.all() and not blew_up.any():
            return [None] * loss.size
        return [
            Status.NON_FINITE if not fine else Status.BLEW_UP if blown else None
            for fine, blown in zip(finite, blew_up, strict=True)
        ]

    def verdicts(
        self,
        step: int,
        loss: NDArray[np.float64],
        previous: NDArray[np.float64],
        first: NDArray[np.float64],
    ) -> list[Status | None]:
        """Status of each run whose loss says that it has ended; None where it goes on.

        A zero gradient cannot be seen from losses and is the runner's to find.

        Args:
            step: Updates made so far.
            loss: L(θ_t), shape ``(R,)``.
            previous: L(θ_{t−1}), NaN at the start.
            first: L(θ_0).

        Returns:
            One verdict a run.
        """
        verdicts = self.failures(loss, first)
        over = step >= self.max_steps
        converged = np.zeros(loss.shape, dtype=bool)
        if self.tolerance is not None:
            with np.errstate(invalid="ignore"):  # infinite losses
                converged = np.abs(loss - previous) < self.tolerance
        if not over and not converged.any():
            return verdicts
        return [
            verdict or (Status.CONVERGED if still else Status.MAX_STEPS if over else None)
            for verdict, still in zip(verdicts, converged, strict=True)
        ]
