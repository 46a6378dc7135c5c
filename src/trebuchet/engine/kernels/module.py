"""Runs of any module, loss and optimizer, one at a time on the user's own model."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from trebuchet._types import Status
from trebuchet.curvature.gram import top_of_gram
from trebuchet.curvature.measurement import OperatorName
from trebuchet.curvature.top import top_eigen
from trebuchet.engine import law
from trebuchet.engine.kernels.base import FloatArray, Kernel
from trebuchet.engine.optimizers import GradientDescent, full_batch
from trebuchet.errors import InputError
from trebuchet.observables.base import UnavailableError
from trebuchet.problem.batches import Batch, as_batches
from trebuchet.problem.bound import Bound
from trebuchet.problem.data_faults import check_batch_met
from trebuchet.problem.losses import ModelLoss, half_mse
from trebuchet.problem.noise import seed_all
from trebuchet.problem.optimizer_copies import set_mode
from trebuchet.problem.problem import Problem
from trebuchet.problem.risk import Objective, is_finite
from trebuchet.problem.schedules import advance, attach
from trebuchet.problem.state import Snapshot

NTK = "NTK / D"
"""What results call the operator of the half mean squared error."""

DENSE_LIMIT = 4096
"""Largest samples × outputs whose Gram matrix is formed."""


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


class Host:
    """A module that holds the weights of one run at a time, the *loaded* one.

    The others are kept as copies. The caller holds the model still, so that its own weights come
    back whatever happens here.

    Args:
        trained: The problem, bound to the module.
    """

    def __init__(self, trained: Bound) -> None:
        self.trained = trained
        self.objective: Objective = trained.objective
        self.stream, self.factory = trained.stream, trained.factory
        self.fixed, self.closing = trained.fixed, trained.closing
        self.schedule, self.scheduler = trained.problem.multiplier, trained.problem.scheduler
        self.free_looks = trained.free_looks
        self.state = self.objective.state
        self.loss_first = self.objective.value(self.fixed)
        self._closing_first: tuple[float, float] | None = None
        self._loaded: ModuleKernel | None = None
        self._blameless: set[tuple[int, int]] = set()  # (seed, step) whose batch is not at fault
        self._test: list[Batch] | None = None

    @property
    def model(self) -> nn.Module:
        """The module."""
        return self.objective.model

    def start(self, rate: float, seed: int) -> "ModuleKernel":
        """Return a new run at the initialisation.

        Args:
            rate: η, before the schedule.
            seed: The order of its batches, and of its random numbers.
        """
        # An optimizer may copy the weights that it finds (Lookahead's slow ones).
        self.load_start()
        optimizer = self.factory(self.objective.params, rate)
        rates = [float(group["lr"]) for group in optimizer.param_groups]
        scheduler = None if self.scheduler is None else attach(self.scheduler, optimizer)
        state = State(self.state.start, optimizer, rates, scheduler)
        return ModuleKernel(self, rate, seed, state)

    def load(self, run: "ModuleKernel") -> None:
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

    def forget(self, run: "ModuleKernel") -> None:
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
        try:
            return full_batch(problem.optimizer)
        except InputError:
            return None


@dataclass(slots=True)
class _Outputs:
    """Outputs of a run on the fixed set, with the graph that observables need."""

    z: Tensor
    slope: Tensor
    gram: Tensor | None = field(default=None)


class ModuleKernel(Kernel):
    """One run of a module.

    Args:
        host: The module.
        rate: η, before the schedule.
        seed: The order of its batches.
        state: Where it is.
    """

    resumable: ClassVar[bool] = False
    autograd: ClassVar[bool] = True

    def __init__(self, host: Host, rate: float, seed: int, state: State) -> None:
        self.host, self.rate, self.seed = host, rate, seed
        self.state_: State | None = state
        self.problem: Problem = host.trained.problem
        self.free_looks = host.free_looks
        self.samples = sum(b.size for b in host.fixed)
        relus = any(isinstance(m, nn.ReLU) for m in host.model.modules())
        self.layers = 1 if relus else 0
        self.norm = np.nan  # |∇L| of the last step
        self.fresh = True
        self._at = (0, False)  # the step of the last losses, and whether they came with a gradient
        self._seen: _Outputs | None = None

    @property
    def runs(self) -> int:
        """One."""
        return 1

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.host.objective.params[0].dtype

    def losses(self, step: int, *, last: bool = False, watched: Collection[str] = ()) -> FloatArray:
        """The loss of the step's batches with their gradient; of the fixed set at the end.

        Args:
            step: t.
            last: Whether no step follows.
            watched: Names of observables.

        Returns:
            One loss.
        """
        del watched
        host, objective = self.host, self.host.objective
        host.load(self)
        self._seen, self._at = None, (step, not last)
        if last:
            value = objective.value(host.fixed) if self.free_looks else np.nan
            return np.array([value])
        assert self.state_ is not None
        host.seed(self.seed, step)
        set_mode(self.state_.optimizer, training=True)
        batches = host.stream.batches(self.seed, step)
        value = objective.gradient(batches, equally=not host.stream.joint)
        grads = [p.grad for p in objective.params if p.grad is not None]
        self.norm = float(torch.nn.utils.get_total_norm(grads)) if grads else 0.0
        if not is_finite(value) and not host.stream.full_batch:
            host.blame(self.seed, step)
        # All runs start from one loss.
        if step == 0 and self.free_looks and is_finite(value):
            value = host.loss_first
        return np.array([value])

    def norms(self) -> FloatArray:
        """|∇L|."""
        return np.array([self.norm])

    def look(self) -> FloatArray:
        """The loss on the fixed set; of a run that has not begun that of the start."""
        assert self.state_ is not None
        if self.fresh:
            return np.array([self.host.loss_first])
        self.host.load(self)
        set_mode(self.state_.optimizer, training=False)
        return np.array([self.host.objective.value(self.host.fixed)])

    def step_(self, step: int) -> NDArray[np.bool_]:
        """One step of the run's own optimizer; False if it moved nothing, nor ever will."""
        host = self.host
        assert self.state_ is not None
        params, optimizer = host.objective.params, self.state_.optimizer
        still = host.stream.full_batch and self.norm == 0.0
        before = [p.detach().clone() for p in params] if still else []
        if host.schedule is not None:
            factor = float(host.schedule(step))
            for group, rate in zip(optimizer.param_groups, self.state_.rates, strict=True):
                group["lr"] = rate * factor
        optimizer.step()
        if self.state_.scheduler is not None:
            advance(self.state_.scheduler)
        self._seen, self.fresh = None, False
        # Momentum and weight decay move weights without a gradient; when they do not, no step will.
        return np.array([not (still and all(map(torch.equal, before, params)))])

    def finals(self, statuses: Sequence[Status]) -> dict[str, FloatArray]:
        """The loss on the closing set, and whether outputs still depend on the input."""
        (status,) = statuses
        host = self.host
        if status in (Status.NON_FINITE, Status.BLEW_UP):
            return {"loss_horizon": np.array([np.inf])}
        assert self.state_ is not None
        first = host.closing_first()  # loads the start, the first time
        host.load(self)
        set_mode(self.state_.optimizer, training=False)
        found: dict[str, float] = {}
        if status is Status.GRADIENT_ZERO:
            value = worse = host.objective.value(host.closing)
            if host.objective.ignores_input(host.closing[0]):
                found["output_spread"] = 0.0
        elif self.free_looks:
            value = worse = np.nan  # the last loss is it
        else:
            value, worse = host.closing_value()
        if not np.isnan(value) or not self.free_looks:
            found |= {"loss_final": value, "loss_horizon": worse}
        if not self.free_looks:
            found["loss_closing_first"] = first[0]
        return {name: np.array([value]) for name, value in found.items()}

    def subset(self, index: Sequence[int]) -> "ModuleKernel":
        """Itself."""
        assert list(index) == [0]
        return self

    # What observables ask for.

    def models(self) -> Iterator[nn.Module]:
        """The module, with this run's weights."""
        self.host.load(self)
        with self.host.objective.still():
            yield self.host.model

    def weight_norm(self) -> FloatArray:
        """|θ|² of the trained parameters."""
        self.host.load(self)
        with torch.no_grad():
            squares = [p.double().square().sum() for p in self.host.objective.params]
        return np.array([float(sum(squares))])

    def gradient_norm(self) -> FloatArray:
        """|∇L| of the step's batches."""
        step, known = self._at
        if not known:  # no step follows, so that there was no need of it
            host, cost = self.host, self.host.objective.cost
            host.load(self)
            spent = cost.gradients
            with host.objective.still():
                host.seed(self.seed, step)
                batches = host.stream.batches(self.seed, step)
                host.objective.gradient(batches, equally=not host.stream.joint)
                grads = [p.grad for p in host.objective.params if p.grad is not None]
                norm = float(torch.nn.utils.get_total_norm(grads)) if grads else 0.0
            cost.gradients = spent
            return np.array([norm])
        return np.array([self.norm])

    def sparsity(self) -> FloatArray:
        """Share of inputs of ``nn.ReLU`` modules that are negative, over all of them."""
        relus = [m for m in self.host.model.modules() if isinstance(m, nn.ReLU)]
        if not relus:
            return super().sparsity()
        negative = total = 0

        def count(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            nonlocal negative, total
            del module
            negative += int((inputs[0] < 0).sum())
            total += inputs[0].numel()

        self.host.load(self)
        hooks = [m.register_forward_pre_hook(count) for m in relus]
        try:
            self.host.objective.value(self.host.fixed)
        finally:
            for hook in hooks:
                hook.remove()
        return np.array([[negative / total if total else np.nan]])

    def test_loss(self) -> FloatArray:
        """On the test data, in evaluation mode."""
        batches = self.host.test_batches()
        self.host.load(self)
        return np.array([self.host.objective.value(batches, evaluation=True)])

    def outputs_and_targets(self) -> Iterator[tuple[Tensor, Tensor]]:
        """On the test data, or else on the fixed set; in evaluation mode."""
        host = self.host
        batches = host.fixed if self.problem.test is None else host.test_batches()
        if isinstance(host.objective.loss, ModelLoss):
            raise UnavailableError("a closure's batches are not known to be inputs and targets")
        host.load(self)
        found: list[tuple[Tensor, Tensor]] = []
        with host.objective.still(), host.objective.flags(evaluation=True), torch.no_grad():
            seed_all(0)
            for batch in batches:
                with host.objective.autocast():
                    z = batch.outputs_of(host.model)
                if not (isinstance(z, Tensor) and isinstance(batch.targets, Tensor)):
                    raise UnavailableError("outputs or targets are not one tensor")
                found.append((z, batch.targets))
        try:
            z = torch.cat([z for z, _ in found])
            y = torch.cat([y for _, y in found])
        except RuntimeError as error:
            raise UnavailableError("batches cannot be put together") from error
        yield z, y

    def gram(self) -> Tensor:
        """H on the full batch, one backward pass an output."""
        seen = self._outputs()
        if seen.gram is None:
            size = seen.z.numel()
            if size > DENSE_LIMIT:
                raise UnavailableError(f"samples × outputs is {size}, above {DENSE_LIMIT}")
            params = self.host.objective.params
            rows = []
            for output in seen.z.reshape(-1).unbind():
                grads = torch.autograd.grad(output, params, retain_graph=True, allow_unused=True)
                parts = [
                    torch.zeros_like(p) if g is None else g
                    for p, g in zip(params, grads, strict=True)
                ]
                rows.append(torch.cat([g.reshape(-1) for g in parts]))
            jacobian = torch.stack(rows)  # (D·K, P)
            seen.gram = (jacobian @ jacobian.T / self.samples).unsqueeze(0)
        return seen.gram

    def top_eigenvalue(self) -> FloatArray:
        """λ of the NTK for the half mean squared error, of the loss's curvature elsewhere."""
        host = self.host
        if host.operator == NTK:
            top: FloatArray = top_of_gram(self.gram()).double().cpu().numpy()
            return top
        host.load(self)
        operator: OperatorName = "hessian" if host.operator == "hessian" else "ggn"
        with host.objective.autocast():
            found = top_eigen(host.model, host.objective.loss, host.fixed, operator, rtol=1e-4)
        return np.array([found.value])

    def residual(self) -> Tensor:
        """∂L/∂z on the full batch."""
        return self._outputs().slope.reshape(1, -1)

    def predict(self, gram: Tensor, weight_norm: FloatArray) -> law.Prediction | None:
        """The law, for a module that states its degree, under gradient descent."""
        degree, descent = getattr(self.host.model, "degree", None), self.host.descent()
        if not isinstance(degree, int) or descent is None or descent.momentum != 0:
            return None
        seen = self._outputs()
        z, dz = (t.detach().reshape(1, self.samples, -1) for t in (seen.z, seen.slope))
        lr = torch.tensor([self.rate], dtype=torch.float64, device=z.device)
        norm = torch.as_tensor(weight_norm, device=z.device)
        return law.predict(degree, norm, z, dz, gram, lr, descent)

    def _outputs(self) -> _Outputs:
        if self._seen is not None:
            return self._seen
        host, objective = self.host, self.host.objective
        if not host.stream.full_batch or len(host.fixed) > 1:
            raise UnavailableError("the data are not one full batch")
        if isinstance(objective.loss, ModelLoss):
            raise UnavailableError("a closure has no outputs")
        if objective.randomised:
            raise UnavailableError("outputs are random, or those of a batch as a whole")
        host.load(self)
        (batch,) = host.fixed
        with objective.as_looked_at(), torch.enable_grad(), objective.autocast():
            z = batch.outputs_of(host.model)
            if not (isinstance(z, Tensor) and z.is_floating_point()):
                raise UnavailableError("the model does not return one real tensor")
            leaf = z.detach().requires_grad_(True)
            loss = objective.loss
            value = loss(leaf) if batch.targets is None else loss(leaf, batch.targets)
            (slope,) = torch.autograd.grad(value, leaf)
        self._seen = _Outputs(z, slope)
        return self._seen
