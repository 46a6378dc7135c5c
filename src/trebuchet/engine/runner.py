"""The only loop: runs from a step to a later one."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trebuchet._checks import as_array, one_line, shown
from trebuchet._torch_checks import out_of_memory
from trebuchet._types import Status
from trebuchet.engine import law
from trebuchet.engine.chunkfile import ChunkFile
from trebuchet.engine.history import History
from trebuchet.engine.kernels.base import LAW, Kernel
from trebuchet.engine.stopping import StopRule
from trebuchet.errors import InputError
from trebuchet.observables.base import (
    FloatArray,
    Observable,
    ObservableError,
    UnavailableError,
)

DIVERGED = frozenset({Status.NON_FINITE, Status.BLEW_UP})


@dataclass(frozen=True, slots=True)
class Plan:
    """What all runs have in common.

    Attributes:
        stop: When a run ends.
        schedule: Recorded steps.
        observables: What is recorded beside the loss.
        only_at_the_end: What is measured at the end of a run alone.
        delta: δ of a loss above its start.
        check_law: Whether the weight-norm law is checked where it holds.
        checkpoint_seconds: How often an unfinished chunk is saved.
    """

    stop: StopRule
    schedule: NDArray[np.int64]
    observables: tuple[Observable, ...] = ()
    only_at_the_end: tuple[Observable, ...] = ()
    delta: float = 1e-3
    check_law: bool = True
    checkpoint_seconds: float = 5.0

    @property
    def watched(self) -> frozenset[str]:
        """Names of what is recorded."""
        return frozenset(o.name for o in self.observables)

    def history(self, runs: int, kernel: Kernel) -> History:
        """A history for so many runs of a kernel."""
        every = [*self.observables, *self.only_at_the_end]
        sizes = {o.name: o.extent(kernel) for o in every}
        return History(runs, self.schedule, {**sizes, LAW: None}, self.delta)


def asked(
    observable: Observable,
    kernel: Kernel,
    size: int | None,
    start: FloatArray | None = None,
    rows: NDArray[np.int64] | None = None,
) -> FloatArray:
    """What an observable says of runs, as numbers of each.

    Args:
        observable: Which.
        kernel: The runs.
        size: Of its dimension; None for one number a run.
        start: What it remembers of the start, by row.
        rows: Of the runs.

    Returns:
        Shape ``(R,)`` or ``(R, size)``.

    Raises:
        UnavailableError: If the runs cannot give it.
        ObservableError: If it raised something else, or gave other numbers than one of each run,
            which would be spread over the runs unseen.
        InputError: If there is nothing to be measured at these weights.
    """
    name = observable.name
    try:
        found = observable.of(kernel) if start is None else observable.since(kernel, start[rows])
    except (UnavailableError, InputError):
        raise
    except Exception as error:  # a class of the user's may raise anything
        if out_of_memory(error):
            raise
        msg = (
            f"observables: {name!r} raised {one_line(error)}; mend it, or let it raise "
            "trebuchet.observables.UnavailableError for what a run cannot give"
        )
        raise ObservableError(msg) from error
    # Those of ours are float64 arrays, at every recorded step.
    plain = isinstance(found, np.ndarray) and found.dtype == np.float64
    values = found if plain else as_array(found)
    wanted = (kernel.runs,) if size is None else (kernel.runs, size)
    if values is None or values.shape != wanted:
        got = shown(found) if values is None else f"shape {values.shape[1:]}"
        one = "one number" if size is None else f"{size} numbers"
        msg = f"observables: expected {one} of each run from {name!r}, got {got}; mend it"
        raise ObservableError(msg)
    return values


@dataclass(slots=True)
class Control:
    """The strings by which whoever runs a runner holds it."""

    stop: Event = field(default_factory=Event)
    advance: Callable[[int], None] = lambda steps: None


class Runner:
    """Takes runs from a step to a later one; runs that end leave the stack.

    It goes round in turns: *observe* θ_t, let runs go, *step* to θ_{t+1}. Between two turns it
    stands at a boundary: θ_t is in the kernel and has not been observed. Only there is it saved,
    and only there does it stop, so that what is taken up again makes every turn once.

    Args:
        kernel: The runs, at their present state.
        history: Where they are written down.
        rows: Their rows in it.
        plan: What is common to all.
        step: Where they are.
        checkpoint: File to resume from and to save to; None for neither.

    Raises:
        InputError: If the file is not a state of these runs.
    """

    def __init__(
        self,
        kernel: Kernel,
        history: History,
        rows: NDArray[np.int64],
        plan: Plan,
        *,
        step: int = 0,
        checkpoint: ChunkFile | None = None,
    ) -> None:
        self.kernel, self.history, self.plan, self.checkpoint = kernel, history, plan, checkpoint
        self.step, self.watched = step, plan.watched
        self.runs = rows  # those still in the stack
        self.previous = np.full(rows.size, np.nan)
        self.saved_at = time.monotonic()
        self._resume()

    def run(self, control: Control | None = None, *, until: int | None = None) -> History:
        """Run to a step, by default to the end, or until told to stop.

        Runs that are told to stop are INTERRUPTED. Runs that stand at `until`, before the end, can
        be taken up there by another runner.

        Args:
            control: Progress and stopping; on its own, it just runs.
            until: The step.

        Returns:
            The history.
        """
        control = control or Control()
        until = self.plan.stop.max_steps if until is None else until
        with torch.set_grad_enabled(self.kernel.autograd):
            self._run(control, min(until, self.plan.stop.max_steps))
        return self.history

    def _run(self, control: Control, until: int) -> None:
        most = self.plan.stop.max_steps
        control.advance(self._steps_done())
        while self.runs.size and (self.step < until or until == most):
            stopping = control.stop.is_set()
            if stopping or time.monotonic() - self.saved_at > self.plan.checkpoint_seconds:
                self._save()
            # What is observed of runs that stop goes to the caller, not to the checkpoint.
            self._observe(last=stopping or self.step >= most)
            if stopping:
                if self.runs.size:
                    self._end(np.arange(self.runs.size), [Status.INTERRUPTED] * self.runs.size)
                return
            if self.runs.size:
                going = self.runs.size
                self._step()
                control.advance(going)
        if until == most:
            self._save()

    def _steps_done(self) -> int:
        """Updates that all runs have made together."""
        ended = np.ones(self.history.steps.size, dtype=bool)
        ended[self.runs] = False
        return int(self.history.steps[ended].sum()) + self.step * self.runs.size

    def _observe(self, *, last: bool) -> None:
        """Observe θ_t, and let the runs that have ended go."""
        recorded = self.step in self.history.rows
        if self.step == 0 and not self.kernel.free_looks:
            self._look()
        if not self.runs.size:
            return
        watched = self.watched | ({LAW} if self.plan.check_law else set())
        losses = self.kernel.losses(self.step, last=last, watched=watched if recorded else ())
        norms = None if last else self.kernel.norms()
        if norms is not None:
            self._write_norms(norms)
        if self.kernel.free_looks:
            self.history.observe(self.step, self.runs, losses)
        elif not last:
            losses = self._take_failures(losses)
        if not self.runs.size:
            return
        if recorded:
            self._record()
        ended = self._ended(losses)
        self.previous = losses
        if ended:
            self._end(np.array(list(ended)), list(ended.values()))

    def _step(self) -> None:
        """Go to θ_{t+1}; there, runs whose steps say nothing of their loss are looked at."""
        lawful = self.plan.check_law and self.step in self.history.rows
        prediction = self._predicted() if lawful else None
        moved = self.kernel.step_(self.step)
        if prediction is not None:
            try:
                violation = self.kernel.violation(prediction, self.step)
                self.history.record(self.step, self.runs, LAW, violation)
            except UnavailableError as error:
                self.history.reasons[LAW] = str(error)
        if not moved.all():
            at_rest = np.flatnonzero(~moved)
            self._end(at_rest, [Status.GRADIENT_ZERO] * at_rest.size)
            if not self.runs.size:
                return
        self.step += 1
        self.history.steps[self.runs] = self.step
        if not self.kernel.free_looks and self.step in self.history.rows:
            self._look()

    def _look(self) -> None:
        losses = self.kernel.look()
        self.history.observe(self.step, self.runs, losses)
        self._end_failures(losses)

    def _take_failures(self, losses: FloatArray) -> FloatArray:
        """Let runs go whose batch has a loss that is not finite: nothing comes of it."""
        bad = ~np.isfinite(losses)
        if bad.any():
            self.history.observe(self.step, self.runs[bad], losses[bad])
            self._end(np.flatnonzero(bad), [Status.NON_FINITE] * int(bad.sum()))
        return losses[~bad]

    def _end_failures(self, losses: FloatArray) -> None:
        first = self.history.per_run["loss_first"][self.runs]
        found = enumerate(self.plan.stop.failures(losses, first))
        gone = {i: status for i, status in found if status is not None}
        if gone:
            self._end(np.array(list(gone)), list(gone.values()))

    def _write_norms(self, norms: FloatArray) -> None:
        numbers = self.history.per_run
        if self.step == 0:
            numbers["gradient_norm_first"][self.runs] = norms
        numbers["gradient_norm_final"][self.runs] = norms

    def _ended(self, losses: FloatArray) -> dict[int, Status]:
        """Which runs of the stack have ended, by position."""
        if not self.kernel.free_looks:
            over = self.step >= self.plan.stop.max_steps
            return dict.fromkeys(range(self.runs.size), Status.MAX_STEPS) if over else {}
        first = self.history.per_run["loss_first"][self.runs]
        verdicts = self.plan.stop.verdicts(self.step, losses, self.previous, first)
        ended = {i: verdict for i, verdict in enumerate(verdicts) if verdict is not None}
        at_rest = self.kernel.at_rest(self.step, losses, self.previous)
        return ended | dict.fromkeys(at_rest, Status.GRADIENT_ZERO)

    def _record(self) -> None:
        """Fill in the observables of a recorded step."""
        for observable in self.plan.observables:
            value = self._measured(observable, self.kernel, self.runs)
            if value is None:
                continue
            name = observable.name
            self.history.record(self.step, self.runs, name, value)
            if observable.first and self.step == 0:
                self.history.keep(f"{name}_first", self.runs, value)
            if observable.largest:
                known = self.history.extra.get(f"{name}_max")
                seen = value if known is None else np.fmax(known[self.runs], value)
                self.history.keep(f"{name}_max", self.runs, seen)

    def _measured(
        self, observable: Observable, kernel: Kernel, runs: NDArray[np.int64]
    ) -> FloatArray | None:
        """An observable of runs; None, with the reason kept, where they cannot give it."""
        name = observable.name
        try:
            if self.step == 0:
                start = observable.start(kernel)
                if start is not None:
                    self.history.keep(f"{name}/start", runs, start)
            start = self.history.extra.get(f"{name}/start")
            size = self.history.sizes.get(name)
            return asked(observable, kernel, size, start, runs)
        except ObservableError:
            raise
        except UnavailableError as error:
            self.history.reasons[name] = str(error)
        except InputError as error:  # weights at which nothing can be measured
            self.history.reasons.setdefault(name, str(error))
        return None

    def _predicted(self) -> law.Prediction | None:
        try:
            return self.kernel.predict(self.step)
        except UnavailableError as error:
            self.history.reasons[LAW] = str(error)
            return None

    def _end(self, positions: NDArray[np.int64], statuses: Sequence[Status]) -> None:
        """Observe runs at their last state, and take them off the stack."""
        rows = self.runs[positions]
        every = [*self.plan.observables, *self.plan.only_at_the_end]
        done = self.kernel.subset(positions.tolist())
        done.ready(frozenset(o.name for o in every))
        finals = done.finals(statuses)
        horizon = finals.get("loss_horizon")
        if horizon is not None:
            statuses = [
                Status.NON_FINITE if s is Status.MAX_STEPS and not np.isfinite(loss) else s
                for s, loss in zip(statuses, horizon, strict=True)
            ]
        lost = DIVERGED.issuperset(statuses)
        for observable in every:
            if observable.final and (observable.cheap or not lost):
                value = self._measured(observable, done, rows)
                if value is not None:
                    finals[observable.name] = value
        self.history.finish(rows, statuses, finals)
        for name, counts in done.tallies().items():
            self.history.keep(name, rows, counts)
        keep = np.setdiff1d(np.arange(self.runs.size), positions)
        self.runs, self.previous = self.runs[keep], self.previous[keep]
        if keep.size:
            self.kernel = self.kernel.subset(keep.tolist())

    def _save(self) -> None:
        """Save the boundary that the runs stand at; of runs that have ended, their history."""
        self.saved_at = time.monotonic()
        if self.checkpoint is None or (self.runs.size and not self.kernel.resumable):
            return
        arrays: dict[str, Any] = {}
        if self.runs.size:
            arrays["previous"] = self.previous
            arrays |= {f"kernel/{name}": array for name, array in self.kernel.state().items()}
        _write(self.checkpoint, self.history, self.step, self.runs.tolist(), arrays)

    def _resume(self) -> None:
        """Stand at the boundary that was saved, if one was."""
        saved = None if self.checkpoint is None else self.checkpoint.load()
        if saved is None:
            return
        assert self.checkpoint is not None
        with _expected(self.checkpoint):
            self._restore(*saved)

    def _restore(self, header: dict[str, Any], arrays: dict[str, Any]) -> None:
        self.history.restore(_history(arrays))
        self.history.reasons |= dict(header["reasons"])
        self.step = int(header["step"])
        left = [int(run) for run in header["left"]]
        if left != self.runs.tolist():
            self.runs = np.array(left, dtype=np.int64)
            self.kernel = self.kernel.subset(left)
        self.previous = arrays["previous"]
        prefix = "kernel/"
        self.kernel.restore(
            {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}
        )


def save_ended(file: ChunkFile, history: History) -> None:
    """Save runs that have ended, wherever they were made.

    Args:
        file: Of the runs.
        history: Theirs.

    Raises:
        InputError: If it cannot be written.
    """
    _write(file, history, int(history.steps.max(initial=0)), [], {})


def _write(
    file: ChunkFile, history: History, step: int, left: list[int], arrays: Mapping[str, Any]
) -> None:
    mine = {f"history/{name}": array for name, array in history.state().items()}
    file.save({"step": step, "left": left, "reasons": history.reasons}, {**mine, **arrays})


def restore_ended(file: ChunkFile, history: History) -> bool:
    """Whether saved runs have ended; then the history becomes theirs.

    Args:
        file: Of the runs.
        history: A new one, of the shape of the saved one.

    Returns:
        False where there are runs left, or nothing is saved.

    Raises:
        InputError: If the file is not a state of these runs.
    """
    saved = file.load()
    if saved is None or saved[0].get("left") != []:
        return False
    with _expected(file):
        history.restore(_history(saved[1]))
        history.reasons |= dict(saved[0]["reasons"])
    return True


def _history(arrays: Mapping[str, Any]) -> dict[str, Any]:
    prefix = "history/"
    return {n.removeprefix(prefix): array for n, array in arrays.items() if n.startswith(prefix)}


@contextmanager
def _expected(file: ChunkFile) -> Iterator[None]:
    """Say of a file in one sentence that its contents, though whole, are not a chunk's."""
    try:
        yield
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError, AttributeError) as error:
        reason = f"it does not hold a state of these runs: {error}"
        raise file.damaged(reason) from error
