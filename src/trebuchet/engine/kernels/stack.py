"""Runs of one module that take their steps stacked, by ``torch.vmap``."""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trebuchet._types import Status
from trebuchet.engine import law
from trebuchet.engine.kernels.base import LAW, FloatArray, Kernel
from trebuchet.engine.kernels.module import ModuleKernel
from trebuchet.engine.kernels.vmap import Stack
from trebuchet.engine.law import Law
from trebuchet.engine.lawful import together, updates
from trebuchet.problem.outputs_seen import OutputsSeen
from trebuchet.problem.risk import is_finite, out_of_memory


class NoRoomError(Exception):
    """So many runs at once do not fit into memory."""


class StackKernel(Kernel):
    """Runs of one module that take their steps stacked, for as long as they go together.

    Args:
        singles: The runs, all at one step; of one seed where random numbers matter. They are
            written back by ``unstack``, and stand still in between.
    """

    resumable: ClassVar[bool] = False
    autograd: ClassVar[bool] = True

    def __init__(self, singles: Sequence[ModuleKernel]) -> None:
        host = singles[0].host
        self.host, self.singles = host, list(singles)
        self.problem, self.free_looks = singles[0].problem, host.free_looks
        self.samples, self.layers = singles[0].samples, singles[0].layers
        host.set_aside()
        # What is not stacked is as at the start: `can_stack` has seen that nothing else moves.
        host.state.restore(host.state.start)
        states = [s.state_ for s in singles if s.state_ is not None]
        self.stack = Stack(
            host.objective, [s.snapshot.weights for s in states],
            [host.state.buffers(s.snapshot) for s in states],
        )  # fmt: skip
        self._grads: list[Tensor | None] = []
        self._euler: OutputsSeen | None = None

    @property
    def runs(self) -> int:
        """R."""
        return len(self.singles)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.singles[0].dtype

    def losses(self, step: int, *, last: bool = False, watched: Collection[str] = ()) -> FloatArray:
        """As of a single run, for all at once.

        Args:
            step: t.
            last: Whether no step follows.
            watched: Names of observables.

        Returns:
            The losses.

        Raises:
            NoRoomError: If memory does not suffice; nothing has changed then.
        """  # noqa: DOC501 - what the user's code raises
        host = self.host
        if last:
            self.unstack()
            return np.concatenate(
                [s.losses(step, last=True, watched=watched) for s in self.singles]
            )
        host.seed(self.singles[0].seed, step)
        drawn = {s.seed: host.stream.batches(s.seed, step) for s in self.singles}
        try:
            lawful = LAW in watched and isinstance(host.law, Law)
            self._euler = OutputsSeen() if lawful else None
            parts = [drawn[s.seed] for s in self.singles]
            values, self._grads = self.stack.gradients(parts, self._euler)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            raise NoRoomError from None
        host.objective.cost.gradients += self.runs
        known = [g for g in self._grads if g is not None]
        squares = [g.flatten(1).double().square().sum(1) for g in known]  # each (R,)
        for single, norm in zip(
            self.singles, torch.stack(squares).sum(0).sqrt().tolist(), strict=True
        ):
            single.norm, single._at = norm, (step, True)
        found = np.array(values)
        for single, value in zip(self.singles, values, strict=True):
            if not is_finite(value) and not host.stream.full_batch:
                host.blame(single.seed, step)
        if step == 0 and self.free_looks:
            found = np.where(np.isfinite(found), host.loss_first, found)
        return found

    def step_(self, step: int) -> NDArray[np.bool_]:
        """Each run's own optimizer steps in place, on its part of the stack."""
        params = self.host.objective.params
        homes = [p.data for p in params]
        moved = []
        try:
            for k, single in enumerate(self.singles):
                for p, w, g in zip(params, self.stack.weights, self._grads, strict=True):
                    p.data, p.grad = w[k], None if g is None else g[k]
                moved.append(single.step_(step)[0])
        finally:
            for p, home in zip(params, homes, strict=True):
                p.data, p.grad = home, None
        return np.array(moved)

    def predict(self, step: int) -> law.Prediction | None:
        """As of single runs, from the stack's gradients.

        Args:
            step: t.

        Returns:
            The prediction; None where there is no law.
        """
        of, seen = self.host.law, self._euler
        if isinstance(of, str) or seen is None:
            return None
        params = self.host.objective.params
        each = []
        moved = [g is not None for g in self._grads]
        for single in self.singles:
            single.set_rates(step)
            assert single.state_ is not None
            each.append(updates(single.state_.optimizer, params, moved))
        clip = np.array([s.clipped() for s in self.singles])
        weights, sums = self.stack.weights, seen.sums()
        grads = [
            torch.zeros_like(w) if g is None else g
            for g, w in zip(self._grads, weights, strict=True)
        ]
        return law.foretell(of, weights, grads, together(each), sums, clip)

    def violation(self, prediction: law.Prediction, step: int) -> FloatArray:
        """Of the step just made.

        Args:
            prediction: As made before it.
            step: t.

        Returns:
            The violation.
        """
        of, weights = self.host.law, self.stack.weights
        assert not isinstance(of, str)
        with self.host.doubted():
            return law.residual(of, prediction, law.norm(of, weights, self.runs), step=step)

    def look(self) -> FloatArray:
        """The losses on the fixed set."""
        host, objective = self.host, self.host.objective
        if self.singles[0].fresh:
            return np.full(self.runs, host.loss_first)
        size = sum(b.size for b in host.fixed) / host.stream.samples_per_step
        try:
            seen = self.stack.values(host.fixed, evaluation=objective.looks_in_evaluation())
            objective.cost.forwards += self.runs * size
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            seen = []
            for k in range(self.runs):  # one after the other, in as small pieces as it takes
                host.state.restore(host.state.replaced(host.state.start, *self.stack.state(k)))
                seen.append(objective.value(host.fixed))
        return np.array(seen)

    def finals(self, statuses: Sequence[Status]) -> dict[str, FloatArray]:
        """As of single runs.

        Args:
            statuses: Why each ended.

        Returns:
            Numbers by name.
        """
        self.unstack()
        each = [s.finals([status]) for s, status in zip(self.singles, statuses, strict=True)]
        names = sorted({name for found in each for name in found})
        nan = np.array([np.nan])
        return {n: np.concatenate([found.get(n, nan) for found in each]) for n in names}

    def tallies(self) -> dict[str, FloatArray]:
        """As of single runs."""
        each = [single.tallies() for single in self.singles]
        return {name: np.concatenate([found[name] for found in each]) for name in each[0]}

    def subset(self, index: Sequence[int]) -> "StackKernel":
        """The runs `index`."""
        self.unstack()
        return StackKernel([self.singles[i] for i in index])

    def unstack(self) -> None:
        """Copy each run's weights and buffers out of the stack into its own state."""
        state = self.host.state
        for k, single in enumerate(self.singles):
            if single.state_ is not None:
                single.state_.snapshot = state.replaced(state.start, *self.stack.state(k))

    def models(self) -> Iterator[nn.Module]:
        """The module with each run's weights."""
        self.unstack()
        for single in self.singles:
            yield from single.models()

    def weight_norm(self) -> FloatArray:
        """|θ|²."""
        total = torch.zeros(self.runs, dtype=torch.float64)
        for w in self.stack.weights:
            total += w.flatten(1).double().square().sum(1).cpu()
        return total.numpy()

    def _of_each(self, value: Callable[[ModuleKernel], FloatArray]) -> FloatArray:
        """What single runs say, one after the other."""
        self.unstack()
        return np.concatenate([value(single) for single in self.singles])

    def sparsity(self) -> FloatArray:
        """As of single runs."""
        return self._of_each(lambda single: single.sparsity())

    def test_loss(self) -> FloatArray:
        """As of single runs."""
        return self._of_each(lambda single: single.test_loss())

    def top_eigenvalue(self) -> FloatArray:
        """As of single runs."""
        return self._of_each(lambda single: single.top_eigenvalue())

    def outputs_and_targets(self) -> Iterator[tuple[Tensor, Tensor]]:
        """As of single runs."""
        self.unstack()
        for single in self.singles:
            yield from single.outputs_and_targets()

    def norms(self) -> FloatArray:
        """|∇L|."""
        return np.array([s.norm for s in self.singles])

    def gradient_norm(self) -> FloatArray:
        """As of single runs."""
        return self._of_each(lambda single: single.gradient_norm())
