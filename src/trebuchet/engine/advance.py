"""Runs that are started one by one and advanced as far as somebody wants: what a scan works with.

A sweep takes all of its runs to the end; a scan takes some to the next rung. Both go through the
same `Runner`, on the same kernels, into the same `History`.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from trebuchet._types import Status
from trebuchet.engine.history import History
from trebuchet.engine.kernels.base import LAW, Kernel
from trebuchet.engine.kernels.host import Host
from trebuchet.engine.kernels.module import ModuleKernel
from trebuchet.engine.kernels.stack import NoRoomError, StackKernel
from trebuchet.engine.runner import DIVERGED, Control, Plan, Runner

RUNNING = ""
"""Status of a run that can go on."""


class Run:
    """One training at one rate: a row of a history, and the kernel that goes on from there.

    Attributes:
        engine: Takes it on.
        rate: η, before the schedule.
        seed: The order of the batches.
        row: Where it is written down.
        kernel: Where it is; None of a run that nobody goes on with.
    """

    def __init__(self, engine: "Engine", rate: float, seed: int, kernel: ModuleKernel) -> None:
        self.engine, self.rate, self.seed = engine, rate, seed
        self.kernel: ModuleKernel | None = kernel
        self._history = engine.history
        self.row = int(engine.history.add(1)[0])
        rows = np.array([self.row])
        self._history.status[self.row] = RUNNING
        self._history.observe(0, rows, np.array([engine.host.loss_first]))
        self._history.keep("weight_norm_first", rows, engine.weight_norm_first)

    def number(self, name: str) -> float:
        """One of the numbers of the history."""
        return float(self._history.per_run[name][self.row])

    @property
    def steps(self) -> int:
        """Updates made."""
        return int(self._history.steps[self.row])

    @property
    def status(self) -> Status | None:
        """Why it stopped; None while it can go on."""
        status = str(self._history.status[self.row])
        return None if status == RUNNING else Status(status)

    @status.setter
    def status(self, status: Status) -> None:
        self._history.status[self.row] = str(status)

    @property
    def last_loss(self) -> float:
        """The loss where it was judged last, on the set that runs are compared on."""
        return float(self.trace()[1][-1])

    @property
    def loss_first(self) -> float:
        """The loss at its start."""
        return self.number("loss_first")

    @property
    def peak(self) -> float:
        """The largest loss; infinite for a run that became infinite."""
        return self.number("loss_max")

    @property
    def loss_horizon(self) -> float:
        """The loss at its end, on the closing set, in the worse of both modes; NaN before."""
        if not self.whole:
            return np.nan
        horizon = self.number("loss_horizon")
        return self.number("loss_final") if np.isnan(horizon) else horizon

    @property
    def dead(self) -> bool:
        """Whether it diverged."""
        return self.status in DIVERGED

    @property
    def whole(self) -> bool:
        """Whether it ended by itself, or at the horizon: not dropped, and not interrupted."""
        return self.status not in (None, Status.INTERRUPTED, Status.DROPPED)

    def stopped(self) -> bool:
        """Whether it goes no further."""
        return self.status is not None

    def trace(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The recorded steps at which it was judged, and the losses there."""
        at, losses = self._history.trace(self.row)
        if self.status is Status.NON_FINITE and not (at.size and at[-1] == self.steps):
            # A NaN is not among them, nor a loss between two recorded steps.
            return np.append(at, self.steps), np.append(losses, self.number("loss_final"))
        return at, losses


class Engine:
    """Starts runs, and takes them on.

    Args:
        host: The module that they are trained on.
        plan: What they have in common.
        at_once: At most so many are stacked; 1 is one after the other. Halved when memory runs out.
        on_step: Called with the gradients spent.
        history: Where the runs are written down; a new one unless given.
    """

    def __init__(
        self,
        host: Host,
        plan: Plan,
        *,
        at_once: int = 1,
        on_step: Callable[[int], None] | None = None,
        history: History | None = None,
    ) -> None:
        self.host, self.plan, self.at_once, self.on_step = host, plan, at_once, on_step
        every = [*plan.observables, *plan.only_at_the_end]
        sizes = {o.name: o.size or 1 if o.dim else None for o in every}
        new = History(0, plan.schedule, {**sizes, LAW: None}, plan.delta)
        self.history = new if history is None else history
        self._training: list[Run] = []  # whose state is in the making
        norms = [float(w.double().square().sum()) for w in host.state.start.weights]
        self.weight_norm_first = np.array([sum(norms)])

    @property
    def horizon(self) -> int:
        """Steps of a whole run."""
        return self.plan.stop.max_steps

    def start(self, rate: float, seed: int) -> Run:
        """Return a new run at the initialisation.

        Args:
            rate: η, before the schedule.
            seed: The order of its batches.
        """
        return Run(self, rate, seed, ModuleKernel.at_start(self.host, rate, seed))

    def advance(self, runs: Sequence[Run], steps: int) -> None:
        """Take runs to a step, or until they end.

        Args:
            runs: The runs; nothing happens to one that has stopped or is there already.
            steps: Updates since the initialisation.
        """
        going = [run for run in runs if not run.stopped() and run.steps < steps]
        for group in self._groups(going):
            self._advance_group(group, steps)

    def load(self, run: Run) -> None:
        """Put a run's weights into the module."""
        assert run.kernel is not None
        self.host.load(run.kernel)

    def abandon(self) -> None:
        """Give up the runs that were being trained, in whatever state: they were interrupted."""
        self.host.abandon()
        for run in self._training:
            if not run.stopped():
                run.status, run.kernel = Status.INTERRUPTED, None
        self._training = []

    def _groups(self, runs: Sequence[Run]) -> list[list[Run]]:
        """Runs that can be stacked: as old as each other; of one seed if random numbers matter."""
        groups: dict[tuple[int, int], list[Run]] = {}
        for run in runs:
            seed = run.seed if self.host.objective.randomised else 0
            groups.setdefault((run.steps, seed), []).append(run)
        return list(groups.values())

    def _advance_group(self, group: list[Run], steps: int) -> None:
        while group:
            # Micro-batches of different sizes have their own weights: one run at a time, then.
            if min(self.at_once, len(group)) < 2 or self.host.objective.chunk is not None:
                for run in group:
                    assert run.kernel is not None
                    self._take([run], run.kernel, steps)
                return
            part = group[: self.at_once]
            stack = StackKernel([run.kernel for run in part if run.kernel is not None])
            try:
                self._take(part, stack, steps)
            except NoRoomError:
                self.at_once = len(part) // 2
                fewer = (
                    f"{self.at_once} runs at a time" if self.at_once > 1 else "one run at a time"
                )
                self.host.objective.notes.append(f"out of memory: went on with {fewer}")
            group = [run for run in group if not run.stopped() and run.steps < steps]

    def _take(self, runs: Sequence[Run], kernel: Kernel, steps: int) -> None:
        self._training = list(runs)
        rows = np.array([run.row for run in runs])
        runner = Runner(kernel, self.history, rows, self.plan, step=runs[0].steps)
        try:
            runner.run(Control(advance=lambda done: self._tell()), until=steps)
        finally:
            if isinstance(runner.kernel, StackKernel):
                runner.kernel.unstack()
        for run in runs:
            if run.dead and run.kernel is not None:
                self.host.forget(run.kernel)
                run.kernel = None
            elif run.stopped():
                self.host.set_aside()
        self._training = []

    def _tell(self) -> None:
        if self.on_step is not None:
            self.on_step(self.host.objective.cost.gradients)
