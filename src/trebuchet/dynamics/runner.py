"""One chunk of runs, from its first step to its last."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trebuchet._types import Status
from trebuchet.curvature.gram import top_of_gram
from trebuchet.dynamics import law
from trebuchet.dynamics.checkpoint import ChunkFile
from trebuchet.dynamics.history import History
from trebuchet.dynamics.kernels import Kernel
from trebuchet.dynamics.losses import Loss
from trebuchet.dynamics.optimizers import GradientDescent
from trebuchet.dynamics.stopping import StopRule

ZERO_GRADIENT_BACKOFF = 4
"""A loss that stands still is checked for a zero gradient at once; after a false alarm, not again
until this many times as many steps have been made: at the rounding floor losses often stand still.
"""


DIVERGED = frozenset({Status.NON_FINITE, Status.BLEW_UP})


@dataclass(frozen=True, slots=True)
class Plan:
    """What all runs of a sweep have in common."""

    loss: Loss
    y: Tensor
    optimizer: GradientDescent
    stop: StopRule
    schedule: NDArray[np.int64]
    observables: frozenset[str]
    delta: float
    x: Tensor
    test: tuple[Tensor, Tensor] | None = None
    checkpoint_seconds: float = 5.0


@dataclass(slots=True)
class Control:
    """The strings by which the sweep holds its chunks."""

    stop: Event = field(default_factory=Event)
    advance: Callable[[int], None] = lambda steps: None


class Runner:
    """Runs a chunk; runs that end leave the stack.

    A chunk goes round in turns: *observe* θ_t, let runs go, *step* to θ_{t+1}. Between two turns it
    stands at a boundary: θ_t is in the kernel and has not been observed. Only there is it saved,
    and only there does it stop, so that what is taken up again makes every turn once.

    Args:
        kernel: The runs, at their first state.
        lr: η of every run, shape ``(R,)``.
        layers: Hidden layers whose sparsity is observed.
        plan: What is common to the sweep.
        checkpoint: File to resume from and to save to; None for neither.

    Raises:
        InputError: If the file is not a state of this chunk.
    """

    def __init__(
        self,
        kernel: Kernel,
        lr: Tensor,
        layers: int,
        plan: Plan,
        checkpoint: ChunkFile | None = None,
    ) -> None:
        self.kernel, self.lr, self.plan, self.checkpoint = kernel, lr, plan, checkpoint
        self.history = History(kernel.runs, plan.schedule, layers, plan.delta)
        self.step = 0
        self.runs = np.arange(kernel.runs)  # which runs are still in the stack
        self.previous = np.full(kernel.runs, np.nan)
        self.check_after = np.zeros(kernel.runs, dtype=np.int64)  # step of the next such check
        self.velocity = plan.optimizer.start(kernel)
        self.rows = {int(t): row for row, t in enumerate(plan.schedule)}
        self.pending: law.Prediction | None = None
        self.saved_at = time.monotonic()
        self._resume()

    @torch.no_grad()
    def run(self, control: Control | None = None) -> History:
        """Run to the end, or until told to stop; unfinished runs are then INTERRUPTED.

        Args:
            control: Progress and stopping; on its own, the chunk just runs.

        Returns:
            The history of every run.
        """
        control = control or Control()
        control.advance(self._steps_done())
        while self.runs.size:
            stopping = control.stop.is_set()
            if stopping or time.monotonic() - self.saved_at > self.plan.checkpoint_seconds:
                self._save()
            # What is observed of a chunk that stops goes to the caller, not to the checkpoint.
            self._observe()
            if stopping:
                if self.runs.size:
                    self._end(np.arange(self.runs.size), [Status.INTERRUPTED] * self.runs.size)
                return self.history
            if self.runs.size:
                self.plan.optimizer.step_(self.kernel, self._dz, self.lr, self.velocity)
                self.step += 1
                control.advance(self.runs.size)
        self._save()
        return self.history

    def _steps_done(self) -> int:
        """Updates that all runs of the chunk have made together."""
        ended = np.ones(self.history.steps.size, dtype=bool)
        ended[self.runs] = False
        return int(self.history.steps[ended].sum()) + self.step * self.runs.size

    def _observe(self) -> None:
        """Observe θ_t, and let the runs that have ended go."""
        row = self.rows.get(self.step)
        z = self.kernel.forward(sparsity=row is not None and "sparsity" in self.plan.observables)
        loss, self._dz = self.plan.loss(z, self.plan.y)
        losses = loss.double().cpu().numpy()
        self.history.observe_loss(self.step, self.runs, losses)
        if row is not None or self.pending is not None:
            weight_norm = self.kernel.weight_norm()
            self._check_law(weight_norm)
            if row is not None:
                self._record(row, z, losses, weight_norm)
        ended = self._ended(losses)
        self.previous = losses
        if ended:
            self._end(np.array(list(ended)), list(ended.values()))

    def _record(
        self, row: int, z: Tensor, losses: NDArray[np.float64], weight_norm: Tensor
    ) -> None:
        wanted = self.plan.observables
        values: dict[str, NDArray[Any]] = {"loss": losses}
        values["weight_norm"] = weight_norm.cpu().numpy()
        if "top_eigenvalue" in wanted:
            gram = self.kernel.gram()
            top = top_of_gram(gram).double().cpu().numpy()
            values["top_eigenvalue"] = top
            seen = self.history.per_run["top_eigenvalue_max"]
            seen[self.runs] = np.fmax(seen[self.runs], top)
            if self.kernel.degree is not None and self.plan.optimizer.momentum == 0:
                self.pending = law.predict(
                    self.kernel.degree, weight_norm, z, self._dz, gram, self.lr, self.plan.optimizer
                )
        if "sparsity" in wanted and self.kernel.sparsity is not None:
            values["sparsity"] = self.kernel.sparsity.cpu().numpy()
        if "test_loss" in wanted and self.plan.test is not None:
            values["test_loss"] = self._test_loss(self.kernel)
        self.history.record(row, self.runs, values)
        if self.step == 0:
            for name in ("top_eigenvalue", "weight_norm"):
                if name in values:
                    self.history.per_run[f"{name}_first"][self.runs] = values[name]

    def _check_law(self, weight_norm: Tensor) -> None:
        if self.pending is None:
            return
        violation = law.residual(
            self.pending,
            weight_norm.cpu().numpy(),
            torch.finfo(self.kernel.params[0].dtype),
            step=self.step,
        )
        self.history.record(self.rows[self.step - 1], self.runs, {"law_residual": violation})
        self.pending = None

    def _ended(self, losses: NDArray[np.float64]) -> dict[int, Status]:
        """Which runs of the stack have ended, by position."""
        first = self.history.per_run["loss_first"][self.runs]
        verdicts = self.plan.stop.verdicts(self.step, losses, self.previous, first)
        ended = {i: verdict for i, verdict in enumerate(verdicts) if verdict is not None}
        still = (losses == self.previous) & (self.step >= self.check_after)
        suspects = np.flatnonzero(still).tolist()
        if suspects and self.plan.optimizer.weight_decay == 0:
            ended.update(dict.fromkeys(self._at_rest(suspects), Status.GRADIENT_ZERO))
            self.check_after[suspects] = ZERO_GRADIENT_BACKOFF * self.step
        return ended

    def _at_rest(self, suspects: Sequence[int]) -> list[int]:
        """Those of the suspects whose gradient, and velocity, are exactly zero."""
        some = self.kernel.subset(suspects)
        some.forward()
        # ∂L/∂z as the whole stack had it: fewer rows round differently, to an exact zero at times.
        dz = self._dz[list(suspects)]
        gradient = [torch.zeros_like(p) for p in some.params]
        some.add_vjp_(gradient, dz)
        zero = torch.ones(some.runs, dtype=torch.bool, device=dz.device)
        for g in [*gradient, *(v[list(suspects)] for v in self.velocity)]:
            zero &= (g == 0).flatten(1).all(1)
        return [int(i) for i, at_rest in zip(suspects, zero.tolist(), strict=True) if at_rest]

    def _end(self, positions: NDArray[np.int64], statuses: Sequence[Status]) -> None:
        """Observe runs at their last state, and take them off the stack."""
        done = self.kernel.subset(positions.tolist())
        wanted = self.plan.observables
        done.forward(sparsity="sparsity" in wanted)
        finals: dict[str, NDArray[Any]] = {"weight_norm_final": done.weight_norm().cpu().numpy()}
        if "top_eigenvalue" in wanted:
            finals["top_eigenvalue_final"] = top_of_gram(done.gram()).double().cpu().numpy()
        if "sparsity" in wanted and done.sparsity is not None:
            finals["sparsity"] = done.sparsity.cpu().numpy()
        if self.plan.test is not None and not DIVERGED.issuperset(statuses):
            finals["test_loss_final"] = self._test_loss(done)
        if Status.GRADIENT_ZERO in statuses:
            finals["output_spread"] = self._spread(done)
        self.history.finish(self.runs[positions], statuses, finals)
        keep = np.setdiff1d(np.arange(self.runs.size), positions)
        if keep.size:
            self.kernel = self.kernel.subset(keep.tolist())
            self.kernel.forward()
            self._dz = self._dz[keep.tolist()]
        self.lr = self.lr[keep.tolist()]
        self.velocity = [v[keep.tolist()] for v in self.velocity]
        self.runs, self.previous = self.runs[keep], self.previous[keep]
        self.check_after = self.check_after[keep]
        if self.pending is not None:
            self.pending = law.Prediction(self.pending.weight_norm[keep], self.pending.scale[keep])

    def _test_loss(self, kernel: Kernel) -> NDArray[Any]:
        assert self.plan.test is not None
        x, y = self.plan.test
        loss, _ = self.plan.loss(kernel.outputs(x), y)
        return loss.double().cpu().numpy()

    def _spread(self, kernel: Kernel) -> NDArray[Any]:
        """How far outputs differ over the inputs and the inputs doubled: 0 when nothing is seen."""
        # One sample alone cannot tell a dead net from a live one; its double can.
        x = self.plan.x
        probes = torch.cat([x, 2 * x]) if x.is_floating_point() else x
        z = kernel.outputs(probes)
        return (z.amax(1) - z.amin(1)).reshape(kernel.runs, -1).amax(1).double().cpu().numpy()

    def _save(self) -> None:
        """Save the boundary that the chunk stands at; of a chunk that has ended, its history."""
        self.saved_at = time.monotonic()
        if self.checkpoint is None:
            return
        arrays: dict[str, Tensor | NDArray[Any]] = {
            f"history/{name}": array for name, array in self.history.state().items()
        }
        if self.runs.size:
            arrays |= {"previous": self.previous, "check_after": self.check_after, "lr": self.lr}
            arrays |= {f"params/{i}": p for i, p in enumerate(self.kernel.params)}
            arrays |= {f"velocity/{i}": v for i, v in enumerate(self.velocity)}
            if self.pending is not None:
                arrays["pending/weight_norm"] = self.pending.weight_norm
                arrays["pending/scale"] = self.pending.scale
        self.checkpoint.save({"step": self.step, "left": self.runs.tolist()}, arrays)

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
        self.step = int(header["step"])
        left = [int(run) for run in header["left"]]
        if left != self.runs.tolist():
            self.runs = np.array(left, dtype=np.int64)
            self.kernel = self.kernel.subset(left)
        device = self.lr.device
        self.previous, self.check_after = arrays["previous"], arrays["check_after"]
        self.lr = arrays["lr"].to(device)
        # Tensors of their own, in the strides of the saved ones: copies would lie differently.
        self.kernel.params = [
            _like(arrays[f"params/{i}"], p) for i, p in enumerate(self.kernel.params)
        ]
        self.velocity = [
            _like(arrays[f"velocity/{i}"], p)
            for i, p in zip(range(len(self.velocity)), self.kernel.params, strict=False)
        ]
        if "pending/scale" in arrays:
            self.pending = law.Prediction(arrays["pending/weight_norm"], arrays["pending/scale"])


def restore_ended(file: ChunkFile, history: History) -> bool:
    """Whether a saved chunk has ended; then the history becomes its.

    Args:
        file: Of the chunk.
        history: A new one, of the shape of the saved one.

    Returns:
        False where the chunk has runs left, or nothing is saved.

    Raises:
        InputError: If the file is not a state of this chunk.
    """
    saved = file.load()
    if saved is None or saved[0].get("left") != []:
        return False
    with _expected(file):
        history.restore(_history(saved[1]))
    return True


def _history(arrays: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix("history/"): array for name, array in arrays.items()}


@contextmanager
def _expected(file: ChunkFile) -> Iterator[None]:
    """Say of a file in one sentence that its contents, though whole, are not a chunk's."""
    try:
        yield
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError, AttributeError) as error:
        reason = f"it does not hold a state of these runs: {error}"
        raise file.damaged(reason) from error


def _like(saved: Tensor, like: Tensor) -> Tensor:
    """The saved tensor on the device of the other, whose shape and dtype it must have."""
    if saved.shape != like.shape or saved.dtype != like.dtype:
        msg = f"{saved.dtype} of shape {tuple(saved.shape)} for {tuple(like.shape)}"
        raise ValueError(msg)
    return saved.to(like.device)
