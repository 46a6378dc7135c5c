"""Runs of any module, loss and optimizer, one at a time on the user's own model."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trebuchet._types import Status
from trebuchet.curvature.measurement import OperatorName
from trebuchet.curvature.top import top_eigen
from trebuchet.curvature.warm_top import SplitGram, WarmTop
from trebuchet.engine import law
from trebuchet.engine.kernels.base import LAW, FloatArray, Kernel
from trebuchet.engine.kernels.host import NTK, Host, State
from trebuchet.engine.law import Law
from trebuchet.engine.lawful import updates
from trebuchet.observables.base import UnavailableError
from trebuchet.problem.losses import ModelLoss
from trebuchet.problem.noise import seed_all
from trebuchet.problem.optimizer_copies import set_mode
from trebuchet.problem.outputs_seen import OutputsSeen
from trebuchet.problem.problem import Problem
from trebuchet.problem.risk import is_finite
from trebuchet.problem.schedules import advance

DENSE_LIMIT = 4096
"""Largest samples × outputs whose Gram matrix is formed."""


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
        self.euler: OutputsSeen | None = None
        self._rates_of = -1
        self._at = (0, False)  # the step of the last losses, and whether they came with a gradient
        self._seen: _Outputs | None = None
        self.top: WarmTop | None = None

    @classmethod
    def at_start(cls, host: Host, rate: float, seed: int) -> "ModuleKernel":
        """Return a new run at the initialisation.

        Args:
            host: The module.
            rate: η, before the schedule.
            seed: The order of its batches, and of its random numbers.
        """
        return cls(host, rate, seed, host.begin(rate))

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
        self.euler = OutputsSeen() if LAW in watched and isinstance(host.law, Law) else None
        objective.seen = self.euler
        try:
            value = objective.gradient(batches, equally=not host.stream.joint)
        finally:
            objective.seen = None
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
        self.set_rates(step)
        optimizer.step()
        if self.state_.scheduler is not None:
            advance(self.state_.scheduler)
        self._seen, self.fresh = None, False
        # Momentum and weight decay move weights without a gradient; when they do not, no step will.
        return np.array([not (still and all(map(torch.equal, before, params)))])

    def set_rates(self, step: int) -> None:
        """Give the optimizer the rates of a step, once."""
        schedule = self.host.schedule
        if schedule is None or self._rates_of == step:
            return
        assert self.state_ is not None
        factor, self._rates_of = float(schedule(step)), step
        for group, rate in zip(self.state_.optimizer.param_groups, self.state_.rates, strict=True):
            group["lr"] = rate * factor

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

    def tallies(self) -> dict[str, FloatArray]:
        """What proved the top eigenvalues of the NTK."""
        return {} if self.top is None else self.top.tallies()

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

    def descent(self) -> tuple[FloatArray, tuple[float, float] | None]:
        """Of a full batch at one rate, without clipping."""
        if not self.host.deterministic or self.problem.clip:
            return super().descent()
        found = self.host.descent()
        known = None if found is None else (found.momentum, found.weight_decay)
        return np.array([self.rate]), known

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

    def gram_along(self, vectors: Tensor) -> FloatArray:
        """One backward pass a vector, |Jᵀe|²/D, where the matrix is not at hand."""
        seen = self._outputs()
        if seen.gram is not None:
            return super().gram_along(vectors)
        found = []
        for e in vectors[0].unbind(1):
            along = e.to(seen.z).view_as(seen.z)
            grads = torch.autograd.grad(
                seen.z, self.host.objective.params, along, retain_graph=True, allow_unused=True
            )
            squares = sum(float(g.double().square().sum()) for g in grads if g is not None)
            found.append(squares / self.samples)
        return np.array([found])

    def top_eigenvalue(self) -> FloatArray:
        """λ of the NTK for the half mean squared error, of the loss's curvature elsewhere."""
        host = self.host
        if host.operator == NTK:
            gram = self.gram()
            if self.top is None:
                self.top = WarmTop(1, gram.shape[-1])
            return self.top.of(SplitGram(gram))
        host.load(self)
        operator: OperatorName = "hessian" if host.operator == "hessian" else "ggn"
        with host.objective.autocast():
            found = top_eigen(host.model, host.objective.loss, host.fixed, operator, rtol=1e-4)
        return np.array([found.value])

    def residual(self) -> Tensor:
        """∂L/∂z on the full batch."""
        return self._outputs().slope.reshape(1, -1)

    def predict(self, step: int) -> law.Prediction | None:
        """The law of a step of SGD on a net that scales, from the gradient at hand.

        Args:
            step: t.

        Returns:
            The prediction; None where there is no law.

        Raises:
            UnavailableError: If the outputs of this step's passes were not seen.
        """
        of, seen = self.host.law, self.euler
        if isinstance(of, str) or seen is None:
            return None
        params = self.host.objective.params
        sparse = any(p.grad is not None and p.grad.is_sparse for p in params)
        if sparse or seen.missing:
            raise UnavailableError(seen.missing or "a gradient is sparse")
        self.set_rates(step)
        assert self.state_ is not None
        there = [p.grad is not None for p in params]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in params]
        steps = updates(self.state_.optimizer, params, there)
        clip = self.clipped()
        return law.foretell(of, params, gradients, steps, seen.sums(), clip)

    def clipped(self) -> float:
        """What the step's gradients are multiplied with, as ``clip_grad_norm_`` has it."""
        longest = self.problem.clip.norm
        return 1.0 if longest is None else min(1.0, longest / (self.norm + 1e-6))

    def violation(self, prediction: law.Prediction, step: int) -> FloatArray:
        """Of the step just made.

        Args:
            prediction: As made before it.
            step: t.

        Returns:
            The violation.
        """
        of, params = self.host.law, self.host.objective.params
        assert not isinstance(of, str)
        with self.host.doubted():
            return law.residual(of, prediction, law.norm(of, params, 1), step=step)

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
