"""What advances runs: one after the other on the user's own model, or several stacked."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from trebuchet._types import Status
from trebuchet.phases.scanning.data_faults import check_batch_met
from trebuchet.phases.scanning.runs import BudgetSpentError, Run, State, looks
from trebuchet.phases.scanning.stack import Stack
from trebuchet.problem.batches import Batch
from trebuchet.problem.noise import seed_all
from trebuchet.problem.optimizer_copies import set_mode
from trebuchet.problem.optimizers import Factory
from trebuchet.problem.risk import Objective, is_finite, out_of_memory
from trebuchet.problem.schedules import MakeScheduler, Multiplier, advance, attach
from trebuchet.problem.stream import Stream
from trebuchet.results.levels import blown_up


class _NoRoomError(Exception):
    """So many runs at once do not fit into memory."""


class Trainer:
    """Advances runs.

    The model holds the weights of one run at a time, the *loaded* one; others are kept as copies.
    The caller holds the model still, so that its own weights come back whatever happens here.

    Args:
        objective: The model and the loss.
        stream: The batches.
        factory: Makes optimizers.
        horizon: Steps of a whole run.
        fixed: The set that runs are compared on while they train.
        closing: The larger set they are compared on at the horizon.
        schedule: Multiplier of the rate.
        scheduler: Makes one of torch's schedulers for a run's optimizer, instead.
        modes: Whether the optimizer trains on other weights than those it is evaluated with.
        blowup: A loss above so many times its start has diverged.
        budget: Gradient evaluations that may be spent; None is no limit.
        at_once: At most so many runs are stacked; 1 is one after the other. Halved when memory
            runs out.
        on_step: Called with the gradients spent.
    """

    def __init__(
        self,
        objective: Objective,
        stream: Stream,
        factory: Factory,
        *,
        horizon: int,
        fixed: Sequence[Batch],
        closing: Sequence[Batch],
        schedule: Multiplier | None = None,
        scheduler: MakeScheduler | None = None,
        modes: bool = False,
        blowup: float = 1e8,
        budget: int | None = None,
        at_once: int = 1,
        on_step: Callable[[int], None] | None = None,
    ) -> None:
        self.objective, self.stream, self.factory = objective, stream, factory
        self.horizon, self.schedule, self.blowup, self.budget = horizon, schedule, blowup, budget
        self.fixed, self.closing, self.on_step = list(fixed), list(closing), on_step
        self.at_once, self.scheduler = at_once, scheduler
        # With the full batch and no randomness the training loss is the loss: no look costs extra.
        # Except for schedule-free optimizers, whose gradients are taken elsewhere.
        self.free_looks = stream.full_batch and not objective.randomised and not modes
        self.state = objective.state
        self._loaded: Run | None = None
        self._blameless: set[tuple[int, int]] = set()  # (seed, step) whose batch is not at fault
        self._training: list[Run] = []  # whose state is in the making
        self.loss_first = objective.value(self.fixed)
        self._closing_first: tuple[float, float] | None = None
        self._looks = looks(horizon)

    def start(self, rate: float, seed: int) -> Run:
        """Return a new run at the initialisation."""
        run = Run(rate, seed, at=[0], losses=[self.loss_first])
        # An optimizer may copy the weights that it finds (Lookahead's slow ones).
        self.load_start()
        optimizer = self.factory(self.objective.params, rate)
        rates = [float(group["lr"]) for group in optimizer.param_groups]
        scheduler = None if self.scheduler is None else attach(self.scheduler, optimizer)
        run.state = State(self.state.start, optimizer, rates, scheduler)
        return run

    def left(self) -> float:
        """Gradient evaluations that may still be spent."""
        return np.inf if self.budget is None else self.budget - self.objective.cost.gradients

    def advance(self, runs: Sequence[Run], steps: int) -> None:
        """Train runs up to `steps` updates, or until they diverge.

        Args:
            runs: The runs; nothing happens to one that has stopped or is there already.
            steps: Updates since the initialisation.

        Raises:
            BudgetSpentError: If the steps of one do not fit into the budget; it and those after it
                make none then.
        """
        affordable, left = [], self.left()
        for run in runs:
            if run.stopped() or run.steps >= steps:
                continue
            left -= steps - run.steps
            if left < 0:
                break
            affordable.append(run)
        for group in self._groups(affordable):
            self._advance_group(group, steps)
        if left < 0:
            raise BudgetSpentError

    def _groups(self, runs: Sequence[Run]) -> list[list[Run]]:
        """Runs that can be stacked: as old as each other; of one seed if random numbers matter."""
        groups: dict[tuple[int, int], list[Run]] = {}
        for run in runs:
            seed = run.seed if self.objective.randomised else 0
            groups.setdefault((run.steps, seed), []).append(run)
        return list(groups.values())

    def _advance_group(self, group: list[Run], steps: int) -> None:
        while group:
            # Micro-batches of different sizes have their own weights: one run at a time, then.
            if min(self.at_once, len(group)) < 2 or self.objective.chunk is not None:
                for run in group:
                    self._alone(run, steps)
                return
            part = group[: self.at_once]
            try:
                self._together(part, steps)
            except _NoRoomError:
                self.at_once = len(part) // 2
                fewer = (
                    f"{self.at_once} runs at a time" if self.at_once > 1 else "one run at a time"
                )
                self.objective.notes.append(f"out of memory: went on with {fewer}")
            group = [run for run in group if not run.stopped() and run.steps < steps]

    def _alone(self, run: Run, steps: int) -> None:
        self._training = [run]
        self.load(run)
        assert run.state is not None
        while run.steps < steps and not run.stopped():
            self._seed(run)
            set_mode(run.state.optimizer, training=True)
            value = self.objective.gradient(self.stream.batches(run.seed, run.steps))
            self._tell()
            grads = [p.grad for p in self.objective.params if p.grad is not None]
            norm = float(torch.nn.utils.get_total_norm(grads)) if grads else 0.0
            if self._account(run, value, norm):
                self._update(run)
                if self._looked_at(run):
                    set_mode(run.state.optimizer, training=False)
                    self._look(run, self.objective.value(self.fixed))
        self._finish(run)
        self._training = []

    def _together(self, runs: Sequence[Run], steps: int) -> None:
        self.set_aside()
        self._training = list(runs)
        states = [run.state for run in runs if run.state is not None]
        # What is not stacked is as at the start: `can_stack` has seen that nothing else moves.
        self.state.restore(self.state.start)
        stack = Stack(
            self.objective, [s.snapshot.weights for s in states],
            [self.state.buffers(s.snapshot) for s in states],
        )  # fmt: skip
        active = list(runs)
        try:
            while active and active[0].steps < steps:
                self._step_together(stack, active)
                going = [k for k, run in enumerate(active) if not run.stopped()]
                if len(going) < len(active):
                    self._unstack(stack, active)
                    stack.keep(going)
                    active = [active[k] for k in going]
        finally:
            self._unstack(stack, active)
        for run in runs:
            if run.stopped() or run.steps >= self.horizon:
                self._finish(run)
        self._training = []

    def _step_together(self, stack: Stack, runs: Sequence[Run]) -> None:
        self._seed(runs[0])
        step = runs[0].steps
        drawn = {run.seed: self.stream.batches(run.seed, step) for run in runs}
        try:
            values, grads = stack.gradients([drawn[run.seed] for run in runs])
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            raise _NoRoomError from None
        self.objective.cost.gradients += len(runs)
        self._tell()
        squares = [g.flatten(1).double().square().sum(1) for g in grads]  # each (R,)
        norms = torch.stack(squares).sum(0).sqrt().tolist()
        with self._homes_kept():
            for k, run in enumerate(runs):
                if self._account(run, values[k], norms[k]):
                    self._point_at([w[k] for w in stack.weights], [g[k] for g in grads])
                    self._update(run)
        looked = [k for k, run in enumerate(runs) if self._looked_at(run)]
        if looked:
            seen = self._values(stack, runs)
            for k in looked:
                self._look(runs[k], seen[k])

    def _values(self, stack: Stack, runs: Sequence[Run]) -> list[float]:
        """The losses of stacked runs on the fixed set."""
        size = sum(b.size for b in self.fixed) / self.stream.samples_per_step
        try:
            seen = stack.values(self.fixed, evaluation=self.objective.looks_in_evaluation())
            self.objective.cost.forwards += len(runs) * size
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            seen = []
        if not seen:  # one after the other, in as small pieces as it takes
            for k in range(len(runs)):
                self.state.restore(self.state.replaced(self.state.start, *stack.state(k)))
                seen.append(self.objective.value(self.fixed))
        return seen

    def _seed(self, run: Run) -> None:
        # Seeded by (seed, step): dropout masks are common to all rates, and a run that was set
        # aside needs no memory of the random state.
        seed_all((run.seed * 1_000_003 + run.steps) % 2**63)

    def _tell(self) -> None:
        if self.on_step is not None:
            self.on_step(self.objective.cost.gradients)

    def _account(self, run: Run, value: float, norm: float) -> bool:
        """Take note of a gradient; whether the run goes on to make its step."""
        if not is_finite(value) and not self.stream.full_batch:
            self._blame(run)
        if (self.free_looks and run.steps > 0) or not is_finite(value):
            self._look(run, value)
            if run.stopped():
                return False
        run.grad_norms = (norm if run.steps == 0 else run.grad_norms[0], norm)
        return True

    def _blame(self, run: Run) -> None:
        """Ask whether a loss that is not finite is the rate's fault, or the data's at any rate."""
        if (run.seed, run.steps) in self._blameless:
            return
        with self.objective.still():
            self.state.restore(self.state.start)
            check_batch_met(self.objective, self.stream, run.seed, run.steps)
        self._blameless.add((run.seed, run.steps))

    def _update(self, run: Run) -> None:
        assert run.state is not None
        optimizer = run.state.optimizer
        still = self.stream.full_batch and run.grad_norms[1] == 0.0
        before = [p.detach().clone() for p in self.objective.params] if still else []
        if self.schedule is not None:
            factor = float(self.schedule(run.steps))
            for group, rate in zip(optimizer.param_groups, run.state.rates, strict=True):
                group["lr"] = rate * factor
        optimizer.step()
        if run.state.scheduler is not None:
            advance(run.state.scheduler)
        # Momentum and weight decay move weights without a gradient; when they do not, no step will.
        if still and all(map(torch.equal, before, self.objective.params)):
            run.status = Status.GRADIENT_ZERO
            return
        run.steps += 1

    def _looked_at(self, run: Run) -> bool:
        return not self.free_looks and not run.stopped() and run.steps in self._looks

    def _look(self, run: Run, value: float) -> None:
        run.at.append(run.steps)
        run.losses.append(value)
        if not is_finite(value):
            run.status = Status.NON_FINITE
        elif blown_up(value, self.loss_first, self.blowup):
            run.status = Status.BLEW_UP

    def _finish(self, run: Run) -> None:
        """After its last step: the final loss of a run that got there."""
        if not run.dead and (run.stopped() or run.steps >= self.horizon):
            self.load(run)
            assert run.state is not None
            set_mode(run.state.optimizer, training=False)
            if run.status is Status.GRADIENT_ZERO:
                run.loss_closing = run.loss_final = self.objective.value(self.closing)
                if self.objective.ignores_input(self.closing[0]):
                    run.output_spread = 0.0
            else:
                self._close(run)
            self.set_aside()
        if run.dead:
            run.loss_closing = run.loss_final = np.inf
            if self._loaded is run:
                self._loaded = None
            run.state = None

    def _close(self, run: Run) -> None:
        """The horizon: the loss on the closing set."""
        if self.free_looks:
            self._look(run, self.objective.value(self.fixed))
            run.loss_closing = run.loss_final = run.losses[-1]
        else:
            run.loss_closing, run.loss_final = self._closing_value()
        if not run.stopped():
            run.status = Status.MAX_STEPS if is_finite(run.loss_final) else Status.NON_FINITE
        with torch.no_grad():
            norm = float(sum(p.double().square().sum() for p in self.objective.params))
        start = float(sum(w.double().square().sum() for w in self.state.start.weights))
        run.weight_norms = (start, norm)

    def _closing_value(self) -> tuple[float, float]:
        """The loss on the closing set, as looks are taken, and the worse of both modes."""
        value = worse = self.objective.value(self.closing)
        if self.objective.has_batch_norm:
            # Running statistics lag behind weights that move fast; who evaluates meets both.
            other = self.objective.value(self.closing, evaluation=True)
            worse = max(value, other) if is_finite(other) else other
        return value, worse

    def closing_first(self) -> tuple[float, float]:
        """What the closing set's losses are compared with: the same two, at the start."""
        if self._closing_first is None and self.free_looks:
            self._closing_first = (self.loss_first, self.loss_first)
        if self._closing_first is None:
            self.load_start()
            self._closing_first = self._closing_value()
        return self._closing_first

    def load(self, run: Run) -> None:
        """Put a run's weights and all its state into the model; the run that was there is kept."""
        if self._loaded is run:
            return
        self.set_aside()
        assert run.state is not None
        self.state.restore(run.state.snapshot)
        for p in self.objective.params:
            p.grad = None
        self._loaded = run

    def load_start(self) -> None:
        """Put the start back into the model; the run that was there is kept."""
        self.set_aside()
        self.state.restore(self.state.start)

    def abandon(self) -> None:
        """Give up the run that was being trained, in whatever state: it was interrupted."""
        for run in self._training:
            if not run.stopped():
                run.status, run.state = Status.INTERRUPTED, None
        self._loaded, self._training = None, []

    def set_aside(self) -> None:
        """Keep what the loaded run has moved; the model's may then be written over."""
        if self._loaded is not None and self._loaded.state is not None:
            self._loaded.state.snapshot = self.state.snapshot()
            self.state.moved_beside()
        self._loaded = None

    def _unstack(self, stack: Stack, runs: Sequence[Run]) -> None:
        """Copy each run's weights and buffers out of the stack into its own state."""
        for k, run in enumerate(runs):
            if run.state is not None:
                run.state.snapshot = self.state.replaced(self.state.start, *stack.state(k))

    def _point_at(self, weights: Sequence[Tensor], grads: Sequence[Tensor]) -> None:
        """Let the parameters *be* one run's part of a stack: its optimizer then steps in place."""
        for p, w, g in zip(self.objective.params, weights, grads, strict=True):
            p.data, p.grad = w, g

    @contextmanager
    def _homes_kept(self) -> Iterator[None]:
        homes = [p.data for p in self.objective.params]
        try:
            yield
        finally:
            for p, home in zip(self.objective.params, homes, strict=True):
                p.data, p.grad = home, None
