"""What is remembered of runs."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trebuchet._types import Status
from trebuchet.results.levels import risen
from trebuchet.results.schema import OF_STEP

Array = NDArray[Any]

PER_RUN = (
    "loss_first", "loss_max", "loss_max_step", "loss_min", "loss_final", "last_above",
    "output_spread", "gradient_norm_first", "gradient_norm_final", "loss_closing_first",
    "loss_horizon",
)  # fmt: skip
"""Numbers of every run that are no observable's."""


class History:
    """Traces on the recording schedule, and running numbers from every step, of many runs.

    A run is a row. Missing is NaN. The extremes of the loss are taken over every step, recorded or
    not, since a catapult's peak may fall between two recorded ones.

    Args:
        runs: Rows to begin with.
        schedule: Recorded steps, ascending.
        traces: What is recorded beside the loss, each with the size of its own dimension or None.
        delta: A loss counts as above its start when it exceeds (1 + δ) times it.
    """

    def __init__(
        self,
        runs: int,
        schedule: NDArray[np.int64],
        traces: Mapping[str, int | None],
        delta: float,
    ) -> None:
        self.schedule, self.delta = schedule, delta
        self.sizes = dict(traces)
        self.traces: dict[str, Array] = {}
        self.finals: dict[str, Array] = {}
        self.per_run: dict[str, Array] = {}
        self.extra: dict[str, Array] = {}  # of observables: their first and largest values, memory
        self.steps = np.zeros(0, dtype=np.int64)
        self.status = np.zeros(0, dtype="<U13")
        self.reasons: dict[str, str] = {}  # why an observable is missing
        self.rows = {int(t): row for row, t in enumerate(schedule)}
        self.add(runs)

    def add(self, runs: int) -> NDArray[np.int64]:
        """Make room for more runs.

        Args:
            runs: How many.

        Returns:
            Their rows.
        """
        old = self.steps.size
        length = self.schedule.size

        def grown(array: Array | None, shape: tuple[int, ...], fill: Any, dtype: Any) -> Array:
            new = np.full((runs, *shape), fill, dtype=dtype)
            return new if array is None else np.concatenate([array, new])

        for name, size in {"loss": None, **self.sizes}.items():
            extra = () if size is None else (size,)
            self.traces[name] = grown(self.traces.get(name), (length, *extra), np.nan, np.float64)
            self.finals[name] = grown(self.finals.get(name), extra, np.nan, np.float64)
        for name in PER_RUN:
            fill = -1.0 if name == "last_above" else np.nan  # never
            self.per_run[name] = grown(self.per_run.get(name), (), fill, np.float64)
        for name, array in self.extra.items():
            self.extra[name] = grown(array, array.shape[1:], np.nan, np.float64)
        self.steps = grown(self.steps, (), 0, np.int64)
        self.status = grown(self.status, (), str(Status.INTERRUPTED), "<U13")
        return np.arange(old, old + runs)

    def observe(self, step: int, runs: Array, loss: Array, *, judged: bool = True) -> None:
        """Take in L(θ_step) of runs.

        Args:
            step: t.
            runs: Their rows.
            loss: The losses.
            judged: Whether runs are judged by it; if not, only how far they came is noted.
        """
        stats = self.per_run
        self.steps[runs] = step
        if not judged:
            return
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
        row = self.rows.get(step)
        if row is not None:
            self.traces["loss"][runs, row] = loss

    def record(self, step: int, runs: Array, name: str, value: Array) -> None:
        """Fill in one observable at a recorded step."""
        self.traces[name][runs, self.rows[step]] = value

    def finish(self, runs: Array, status: Iterable[Status], finals: Mapping[str, Array]) -> None:
        """Close runs with their status, and the numbers at their last state."""
        self.status[runs] = [str(s) for s in status]
        for name, value in finals.items():
            place = self.per_run if name in self.per_run else self.finals
            place[name][runs] = value

    def keep(self, name: str, runs: Array, value: Array) -> None:
        """Put down a number, or a row of them, that is an observable's own."""
        if name not in self.extra:
            shape = (self.steps.size, *value.shape[1:])
            self.extra[name] = np.full(shape, np.nan, dtype=np.float64)
        self.extra[name][runs] = value

    def columns(self) -> dict[str, Array]:
        """What results hold of runs, by the names they have there: the arrays themselves.

        A number that the loop keeps too, as the last step's gradient norm, has a name of its own
        beside the observable's.

        Returns:
            Arrays with a row a run.
        """
        finals = {f"{n}_final": numbers for n, numbers in self.finals.items() if n != "loss"}
        return {
            **finals,
            **{name: numbers for name, numbers in self.extra.items() if "/" not in name},
            **self.traces,
            **{f"{n}{OF_STEP * (n in finals)}": numbers for n, numbers in self.per_run.items()},
            "steps": self.steps,
            "status": self.status,
        }

    def fill(self, found: Mapping[str, Array]) -> None:
        """Take over runs that have ended.

        Args:
            found: Arrays by the names of ``columns()``, a row a run.

        Raises:
            KeyError: If one is missing that all results have.
            ValueError: If one has another shape.
        """
        for name, values in found.items():
            of, _, which = name.rpartition("_")
            of_observable = of in self.traces and which in ("first", "max", "proofs")
            if of_observable and not np.isnan(values).all():
                self.extra.setdefault(name, np.full(values.shape, np.nan))
        always = {"status", "steps", "loss", "loss_first", "loss_final"}
        for name, mine in self.columns().items():
            if mine.size and (name in always or name in found):
                mine[...] = found[name]

    def state(self) -> dict[str, Array]:
        """Everything, for a checkpoint: arrays by name."""
        return {
            **{f"traces/{name}": trace for name, trace in self.traces.items()},
            **{f"finals/{name}": numbers for name, numbers in self.finals.items()},
            **{f"per_run/{name}": numbers for name, numbers in self.per_run.items()},
            **{f"extra/{name}": numbers for name, numbers in self.extra.items()},
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
        for name, saved in state.items():
            if name.startswith("extra/"):
                key = name.removeprefix("extra/")
                self.extra[key] = np.full((self.steps.size, *saved.shape[1:]), np.nan)
        for name, mine in self.state().items():
            saved = state[name]
            if saved.shape != mine.shape or saved.dtype != mine.dtype:
                msg = f"{name}: {saved.dtype} of shape {saved.shape}"
                raise ValueError(msg)
            mine[...] = saved

    def trace(self, row: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The recorded steps of one run at which it was judged, and the losses there."""
        losses = self.traces["loss"][row]
        known = np.flatnonzero(~np.isnan(losses))
        return self.schedule[known], losses[known]


def together(histories: Sequence[History]) -> History:
    """Histories of one schedule as one, rows after rows.

    Args:
        histories: At least one.

    Returns:
        A new history.
    """
    first = histories[0]
    whole = History(0, first.schedule, first.sizes, first.delta)

    def joined(parts: list[Array]) -> Array:
        return np.concatenate(parts)

    for name in first.traces:
        whole.traces[name] = joined([h.traces[name] for h in histories])
        whole.finals[name] = joined([h.finals[name] for h in histories])
    for name in PER_RUN:
        whole.per_run[name] = joined([h.per_run[name] for h in histories])
    for name in {name for h in histories for name in h.extra}:
        parts = []
        shape = next(h.extra[name].shape[1:] for h in histories if name in h.extra)
        for h in histories:
            blank = np.full((h.steps.size, *shape), np.nan)
            parts.append(h.extra.get(name, blank))
        whole.extra[name] = joined(parts)
    whole.steps = joined([h.steps for h in histories])
    whole.status = joined([h.status for h in histories])
    for h in histories:
        whole.reasons |= h.reasons
    return whole
