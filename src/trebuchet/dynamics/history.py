"""What is remembered of a chunk of runs."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trebuchet._types import Status
from trebuchet.results.levels import risen

Array = NDArray[Any]

TRACES = ("loss", "top_eigenvalue", "weight_norm", "test_loss", "law_residual")
PER_RUN = (
    "loss_first", "loss_max", "loss_max_step", "loss_min", "loss_final", "last_above",
    "top_eigenvalue_first", "top_eigenvalue_final", "top_eigenvalue_max",
    "weight_norm_first", "weight_norm_final", "test_loss_final", "output_spread",
)  # fmt: skip


class History:
    """Traces on the recording schedule, and running numbers from every step, of R runs.

    Missing is NaN. The extremes of the loss are taken over every step, recorded or not, since a
    catapult's peak may fall between two recorded ones.

    Args:
        runs: R.
        schedule: Recorded steps, ascending.
        layers: Hidden layers whose sparsity is observed; 0 for none.
        delta: A loss counts as above its start when it exceeds (1 + δ) times it.
    """

    def __init__(self, runs: int, schedule: NDArray[np.int64], layers: int, delta: float) -> None:
        self.schedule, self.delta = schedule, delta
        self.traces = {name: np.full((runs, schedule.size), np.nan) for name in TRACES}
        self.traces["sparsity"] = np.full((runs, schedule.size, layers), np.nan)
        self.per_run = {name: np.full(runs, np.nan) for name in PER_RUN}
        self.per_run["last_above"][:] = -1  # never
        self.sparsity_final = np.full((runs, layers), np.nan)
        self.steps = np.zeros(runs, dtype=np.int64)
        self.status = np.full(runs, str(Status.INTERRUPTED), dtype="<U13")

    def observe_loss(self, step: int, runs: Array, loss: Array) -> None:
        """Take in L(θ_step) of the runs still going."""
        stats = self.per_run
        if step == 0:
            for name in ("loss_first", "loss_max", "loss_min"):
                stats[name][runs] = loss
            stats["loss_max_step"][runs] = 0
        first = stats["loss_first"][runs]
        # A NaN is later than every number: it neither raises the peak nor lowers the minimum.
        higher = loss > stats["loss_max"][runs]
        if higher.any():
            stats["loss_max"][runs[higher]] = loss[higher]
            stats["loss_max_step"][runs[higher]] = step
        stats["loss_min"][runs] = np.fmin(stats["loss_min"][runs], loss)
        above = risen(loss, first, self.delta)
        stats["last_above"][runs[above]] = step
        stats["loss_final"][runs] = loss
        self.steps[runs] = step

    def record(self, row: int, runs: Array, values: dict[str, Array]) -> None:
        """Fill one row of the traces."""
        for name, value in values.items():
            self.traces[name][runs, row] = value

    def finish(self, runs: Array, status: Iterable[Status], finals: dict[str, Array]) -> None:
        """Close runs with their status and the observables at their last state."""
        self.status[runs] = [str(s) for s in status]
        sparsity = finals.pop("sparsity", None)
        if sparsity is not None:
            self.sparsity_final[runs] = sparsity
        for name, value in finals.items():
            self.per_run[name][runs] = value

    def state(self) -> dict[str, Array]:
        """Everything, for a checkpoint: arrays by name."""
        return {
            **{f"traces/{name}": trace for name, trace in self.traces.items()},
            **{f"per_run/{name}": numbers for name, numbers in self.per_run.items()},
            "sparsity_final": self.sparsity_final,
            "steps": self.steps,
            "status": self.status,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up where ``state()`` left off.

        Args:
            state: Arrays by the names of ``state()``.

        Raises:
            KeyError: If one is missing.
            ValueError: If one does not have the shape or the dtype that it has here.
        """
        for name, mine in self.state().items():
            saved = state[name]
            if saved.shape != mine.shape or saved.dtype != mine.dtype:
                msg = f"{name}: {saved.dtype} of shape {saved.shape}"
                raise ValueError(msg)
            mine[...] = saved
