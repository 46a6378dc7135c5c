"""A module that holds the weights of one run at a time."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from trebuchet.engine.law import Law
from trebuchet.engine.lawful import gradients, law_of
from trebuchet.engine.optimizers import GradientDescent, full_batch
from trebuchet.errors import InputError, LawViolationError
from trebuchet.models.scaling import Scaling
from trebuchet.observables.base import UnavailableError
from trebuchet.problem.batches import Batch, as_batches
from trebuchet.problem.bound import Bound
from trebuchet.problem.data_faults import check_batch_met
from trebuchet.problem.losses import ModelLoss, half_mse
from trebuchet.problem.noise import seed_all
from trebuchet.problem.risk import Objective, is_finite
from trebuchet.problem.schedules import attach
from trebuchet.problem.state import Snapshot

NTK = "NTK / D"
"""What results call the operator of the half mean squared error."""


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


class Guest(Protocol):
    """A run whose weights the module can hold."""

    state_: State | None


class Host:
    """A module that holds the weights of one run at a time, the *loaded* one.

    The others are kept as copies. The caller holds the model still, so that its own weights come
    back whatever happens here.

    Args:
        trained: The problem, bound to the module.
        check_law: Whether the weight-norm law is looked for, which takes a gradient or two.
    """

    def __init__(self, trained: Bound, *, check_law: bool = True) -> None:
        self.trained = trained
        self.objective: Objective = trained.objective
        self.stream, self.factory = trained.stream, trained.factory
        self.fixed, self.closing = trained.fixed, trained.closing
        self.schedule, self.scheduler = trained.problem.multiplier, trained.problem.scheduler
        self.free_looks = trained.free_looks
        self.state = self.objective.state
        self.loss_first = self.objective.value(self.fixed)
        self.scaling: Scaling | str = "nobody asked"
        self.law: Law | str = "nobody asked"
        if check_law:
            self.scaling, self.law = law_of(trained)
        self._closing_first: tuple[float, float] | None = None
        self._loaded: Guest | None = None
        self._blameless: set[tuple[int, int]] = set()  # (seed, step) whose batch is not at fault
        self._test: list[Batch] | None = None

    @property
    def model(self) -> nn.Module:
        """The module."""
        return self.objective.model

    @property
    def deterministic(self) -> bool:
        """Whether a step depends on the weights and the optimizer's state alone."""
        return self.free_looks and self.trained.problem.unchanging

    def begin(self, rate: float) -> State:
        """Where a new run at this rate starts.

        Args:
            rate: η, before the schedule.

        Returns:
            The state.

        Raises:
            InputError: If the weights' type cannot hold the rate: torch would, in the first step.
        """
        dtype = self.objective.params[0].dtype
        most = max(torch.finfo(dtype).max, torch.finfo(torch.float32).max)
        if rate > most:
            name = str(dtype).removeprefix("torch.")
            msg = (
                f"lr: expected rates up to {most:.1e}, which {name} weights can take, got {rate:g}"
            )
            raise InputError(msg)
        # An optimizer may copy the weights that it finds (Lookahead's slow ones).
        self.load_start()
        optimizer = self.factory(self.objective.params, rate)
        rates = [float(group["lr"]) for group in optimizer.param_groups]
        scheduler = None if self.scheduler is None else attach(self.scheduler, optimizer)
        return State(self.state.start, optimizer, rates, scheduler)

    def load(self, run: Guest) -> None:
        """Put a run's weights and all its state into the model; the run that was there is kept."""
        if self._loaded is run:
            return
        self.set_aside()
        assert run.state_ is not None
        self.state.restore(run.state_.snapshot)
        for p in self.objective.params:
            p.grad = None
        self._loaded = run

    def load_start(self) -> None:
        """Put the start back into the model; the run that was there is kept."""
        self.set_aside()
        self.state.restore(self.state.start)

    def set_aside(self) -> None:
        """Keep what the loaded run has moved; the model's may then be written over."""
        if self._loaded is not None and self._loaded.state_ is not None:
            self._loaded.state_.snapshot = self.state.snapshot()
            self.state.moved_beside()
        self._loaded = None

    def abandon(self) -> None:
        """Give up the loaded run, in whatever state: it was interrupted."""
        self._loaded = None

    def forget(self, run: Guest) -> None:
        """Let a run go that nobody goes on with."""
        if self._loaded is run:
            self._loaded = None
        run.state_ = None

    def seed(self, seed: int, step: int) -> None:
        """Set random states to those of a step: common to all rates, and to whoever goes on."""
        # A run that was set aside needs no memory of the random state.
        seed_all((seed * 1_000_003 + step) % 2**63)

    def blame(self, seed: int, step: int) -> None:
        """Ask whether a loss that is not finite is the rate's fault, or the data's at any rate."""
        if (seed, step) in self._blameless:
            return
        with self.objective.still():
            self.state.restore(self.state.start)
            check_batch_met(self.objective, self.stream, seed, step)
        self._blameless.add((seed, step))

    def closing_value(self) -> tuple[float, float]:
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
            self._closing_first = self.closing_value()
        return self._closing_first

    def test_batches(self) -> list[Batch]:
        """The problem's test data.

        Returns:
            Its batches.

        Raises:
            UnavailableError: If it has none.
        """
        problem = self.trained.problem
        if problem.test is None:
            raise UnavailableError("the problem has no test data")
        if self._test is None:
            device = self.objective.params[0].device
            closure = isinstance(self.objective.loss, ModelLoss)
            self._test = as_batches(
                problem.test, device=device, model=self.model, closure=closure,
                size_of=problem.size_of,
            )  # fmt: skip
        return self._test

    @contextlib.contextmanager
    def doubted(self) -> Iterator[None]:
        """Ask a violation of the law whether the model or the loss has changed its form meanwhile.

        Yields:
            Nothing.

        Raises:
            LawViolationError: If neither has.
            UnavailableError: If one has: the law is of the form that it had, and goes.
        """
        try:
            yield
        except LawViolationError:
            assert not isinstance(self.law, str)
            reason = gradients(self.trained, self.law)
            if not reason:
                raise
            self.law = reason
            raise UnavailableError(f"{reason}, from some step on") from None

    @property
    def operator(self) -> str:
        """Whose top eigenvalue λ is: of the half mean squared error Gauss–Newton is the NTK."""
        loss = self.objective.loss
        if isinstance(loss, ModelLoss):
            return "hessian"
        one = self.stream.full_batch and len(self.fixed) == 1 and not self.objective.randomised
        return NTK if loss is half_mse and one else "ggn"

    def descent(self) -> GradientDescent | None:
        """The optimizer as plain gradient descent, if that is what it is."""
        problem = self.trained.problem
        if self.schedule or self.scheduler or problem.clip or not self.stream.full_batch:
            return None
        return full_batch(problem.optimizer)
