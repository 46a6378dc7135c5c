"""Runs: trainings from one initialisation, each at a constant rate, that can be set aside."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import Optimizer

from trebuchet._types import Status
from trebuchet.curvature.batches import Batch
from trebuchet.phases.scanning.objective import Objective, is_finite
from trebuchet.phases.scanning.optimizers import Factory
from trebuchet.phases.scanning.stream import Stream

Schedule = Callable[[int], float]
"""A multiplier of the rate at step t."""

EARLY = (1, 2, 3, 5, 7, 10, 15, 20, 25, 30)
"""Steps at which a mini-batch run is looked at: a catapult's peak is in the first few."""


class BudgetSpentError(Exception):
    """The next step would pass the budget. Caught inside a scan, never shown."""


@dataclass(slots=True)
class State:
    """Where a run is: copies of everything a step changes."""

    weights: list[Tensor]
    buffers: list[Tensor]
    optimizer: Optimizer


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
        weight_norms: |θ|² at the first and the last look.
        loss_final: Loss on the closing set at the horizon; NaN before.
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
    loss_final: float = np.nan
    sparsity: float = np.nan
    top_eigenvalue_final: float = np.nan
    state: State | None = field(default=None, repr=False)

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


class Trainer:
    """Advances runs one after the other on the user's own model.

    The model holds the weights of one run at a time; others are kept as copies. The caller holds
    the model still, so that its own weights come back whatever happens here.

    Args:
        objective: The model and the loss.
        stream: The batches.
        factory: Makes optimizers.
        horizon: Steps of a whole run.
        fixed: The set that runs are compared on while they train.
        closing: The larger set they are compared on at the horizon.
        schedule: Multiplier of the rate.
        blowup: A loss above so many times its start has diverged.
        budget: Gradient evaluations that may be spent; None is no limit.
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
        schedule: Schedule | None = None,
        blowup: float = 1e8,
        budget: int | None = None,
        on_step: Callable[[int], None] | None = None,
    ) -> None:
        self.objective, self.stream, self.factory = objective, stream, factory
        self.horizon, self.schedule, self.blowup, self.budget = horizon, schedule, blowup, budget
        self.fixed, self.closing, self.on_step = list(fixed), list(closing), on_step
        # With the full batch and no randomness the training loss is the loss: no look costs extra.
        self.free_looks = stream.full_batch and not objective.randomised
        self._weights = [p.detach().clone() for p in objective.params]
        self._buffers = [b.detach().clone() for b in objective.model.buffers()]
        self._loaded: Run | None = None
        self.loss_first = objective.value(self.fixed)
        self.loss_first_closing = (
            self.loss_first if closing is fixed else objective.value(self.closing)
        )
        self._looks = looks(horizon)

    def start(self, rate: float, seed: int) -> Run:
        """Return a new run at the initialisation."""
        run = Run(rate, seed, at=[0], losses=[self.loss_first])
        run.state = State(
            [w.clone() for w in self._weights],
            [b.clone() for b in self._buffers],
            self.factory(self.objective.params, rate),
        )
        return run

    def left(self) -> float:
        """Gradient evaluations that may still be spent."""
        return np.inf if self.budget is None else self.budget - self.objective.cost.gradients

    def advance(self, run: Run, steps: int) -> None:
        """Train a run up to `steps` updates, or until it diverges.

        Args:
            run: The run; nothing happens if it has stopped or is there already.
            steps: Updates since the initialisation.

        Raises:
            BudgetSpentError: If the steps do not fit into the budget; none is made then.
        """
        if run.stopped() or steps <= run.steps:
            return
        if steps - run.steps > self.left():
            raise BudgetSpentError
        self.load(run)
        assert run.state is not None
        bases = [float(g["lr"]) for g in run.state.optimizer.param_groups]
        try:
            while run.steps < steps and not run.stopped():
                self._step(run, run.state.optimizer, bases)
        finally:
            for group, base in zip(run.state.optimizer.param_groups, bases, strict=True):
                group["lr"] = base
        if not run.stopped() and run.steps >= self.horizon:
            self._close(run)
        if run.stopped():
            if run.dead:
                run.loss_final = np.inf
            if self._loaded is run and not run.dead:
                run.state = self._saved(run)
            if run.dead:
                run.state, self._loaded = None, None

    def _step(self, run: Run, optimizer: Optimizer, bases: list[float]) -> None:
        # Seeded by (seed, step): dropout masks are common to all rates, and a run that was set
        # aside needs no memory of the random state.
        _seed((run.seed * 1_000_003 + run.steps) % 2**63)
        value = self.objective.gradient(self.stream.batches(run.seed, run.steps))
        if self.on_step is not None:
            self.on_step(self.objective.cost.gradients)
        if (self.free_looks and run.steps > 0) or not is_finite(value):
            self._look(run, value)
            if run.stopped():
                return
        norm = self._grad_norm()
        run.grad_norms = (norm if run.steps == 0 else run.grad_norms[0], norm)
        if norm == 0.0 and self.stream.full_batch:
            run.status = Status.GRADIENT_ZERO
            run.loss_final = self.objective.value(self.closing)
            return
        if self.schedule is not None:
            factor = float(self.schedule(run.steps))
            for group, base in zip(optimizer.param_groups, bases, strict=True):
                group["lr"] = base * factor
        optimizer.step()
        run.steps += 1
        if not self.free_looks and run.steps in self._looks:
            self._look(run, self.objective.value(self.fixed))

    def _look(self, run: Run, value: float) -> None:
        run.at.append(run.steps)
        run.losses.append(value)
        if not is_finite(value):
            run.status = Status.NON_FINITE
        elif value > self.blowup * max(abs(self.loss_first), 1e-30):
            run.status = Status.BLEW_UP

    def _close(self, run: Run) -> None:
        """The horizon: the loss on the closing set, the worse of both modes with BatchNorm."""
        if self.free_looks:
            self._look(run, self.objective.value(self.fixed))
            run.loss_final = run.losses[-1]
        else:
            run.loss_final = self.objective.value(self.closing)
            if self.objective.has_batch_norm:
                # Running statistics lag behind weights that move fast; who evaluates meets both.
                other = self.objective.value(self.closing, evaluation=True)
                run.loss_final = max(run.loss_final, other) if is_finite(other) else other
        if not run.stopped():
            run.status = Status.MAX_STEPS if is_finite(run.loss_final) else Status.NON_FINITE
        with torch.no_grad():
            norm = float(sum(p.double().square().sum() for p in self.objective.params))
        start = float(sum(w.double().square().sum() for w in self._weights))
        run.weight_norms = (start, norm)

    def _grad_norm(self) -> float:
        grads = [p.grad for p in self.objective.params if p.grad is not None]
        return float(torch.nn.utils.get_total_norm(grads)) if grads else 0.0

    def load(self, run: Run) -> None:
        """Put a run's weights and buffers into the model; the run that was there is kept."""
        if self._loaded is run:
            return
        if self._loaded is not None and self._loaded.state is not None:
            self._loaded.state = self._saved(self._loaded)
        assert run.state is not None
        self._put(run.state.weights, run.state.buffers)
        self._loaded = run

    def _saved(self, run: Run) -> State:
        assert run.state is not None
        with torch.no_grad():
            for saved, p in zip(run.state.weights, self.objective.params, strict=True):
                saved.copy_(p)
            for saved, b in zip(run.state.buffers, self.objective.model.buffers(), strict=True):
                saved.copy_(b)
        return run.state

    def rewind(self) -> None:
        """Put the initialisation into the model."""
        if self._loaded is not None and self._loaded.state is not None:
            self._loaded.state = self._saved(self._loaded)
        self._loaded = None
        self._put(self._weights, self._buffers)

    def _put(self, weights: list[Tensor], buffers: list[Tensor]) -> None:
        with torch.no_grad():
            for p, w in zip(self.objective.params, weights, strict=True):
                p.copy_(w)
                p.grad = None
            for b, saved in zip(self.objective.model.buffers(), buffers, strict=True):
                b.copy_(saved)


def _seed(seed: int) -> None:
    """Seed the devices in use. ``torch.manual_seed`` formats a traceback where CUDA is unused."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed)


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
