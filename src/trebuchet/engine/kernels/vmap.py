"""Several runs in one forward and backward pass, where ``torch.vmap`` takes the module.

Weights and buffers of R runs lie stacked, ``(R, …)``, and every run's own are views into them: its
optimizer steps in place, whatever optimizer it is. Only the gradient, nearly all of a step's cost,
is shared.
"""

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from trebuchet.errors import InputError
from trebuchet.problem.batches import Batch
from trebuchet.problem.losses import LossFn, ModelLoss
from trebuchet.problem.noise import LOOKS, seed_all
from trebuchet.problem.outputs_seen import OutputsSeen
from trebuchet.problem.risk import Objective, is_finite
from trebuchet.problem.selection import select
from trebuchet.problem.tree import mapped


class _Loss(nn.Module):
    """The loss as a module, so that ``functional_call`` reaches the model inside a closure too."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = objective.model, objective

    def forward(self, batch: Batch) -> Tensor:
        return self.objective.value_of(batch)


class Stack:
    """R models, evaluated together.

    Args:
        objective: The model and the loss.
        weights: Of each run, in the order of ``objective.params``; copied.
        buffers: Of each run, in the model's order; copied.
    """

    def __init__(
        self,
        objective: Objective,
        weights: Sequence[Sequence[Tensor]],
        buffers: Sequence[Sequence[Tensor]],
    ) -> None:
        self.objective = objective
        self.loss = _Loss(objective)
        model = objective.model
        self.names = [f"model.{name}" for name in select(model)]
        self.buffer_names = [f"model.{name}" for name, _ in model.named_buffers()]
        self.weights = [torch.stack(list(each)) for each in zip(*weights, strict=True)]  # (R, …)
        self.buffers = [torch.stack(list(each)) for each in zip(*buffers, strict=True)]  # (R, …)

    def gradients(
        self, batches: Sequence[Sequence[Batch]], seen: OutputsSeen | None = None
    ) -> tuple[list[float], list[Tensor | None]]:
        """Return every run's mean loss over its batches, and the gradients.

        Buffers move as in training. Nothing else changes, and if an exception is raised nothing.

        Args:
            batches: For each run, the batches of one step.
            seen: Takes up Σ z·∂L/∂z of every run, ``(R,)``, for a loss of outputs and targets.

        Returns:
            R losses, and for each parameter a gradient of shape ``(R, …)``; None where the loss
            does not see it, which optimizers tell from a gradient of zero.
        """
        leaves = [w.detach().requires_grad_() for w in self.weights]
        moved = [b.clone() for b in self.buffers]
        total = torch.zeros(len(batches), device=leaves[0].device)
        for part in zip(*batches, strict=True):  # of accumulated batches, one of every run
            values = self._values(leaves, moved, part, seen, 1 / len(batches[0])) / len(batches[0])
            torch.autograd.backward(values.sum(), inputs=leaves)
            total = total + values.detach()
        self.buffers = moved
        return total.tolist(), [w.grad for w in leaves]

    def values(self, batches: Sequence[Batch], *, evaluation: bool) -> list[float]:
        """Return every run's loss on a fixed set of batches, as ``Objective.value`` does.

        Args:
            batches: The fixed set.
            evaluation: Whether in evaluation mode.

        Returns:
            R losses.
        """
        runs = len(self.weights[0])
        total = torch.zeros(runs, dtype=torch.float64)
        with self.objective.flags(evaluation=evaluation), torch.no_grad():
            seed_all(LOOKS)
            for batch, share in zip(batches, self.objective.shares(batches), strict=True):
                kept = [b.clone() for b in self.buffers]
                values = self._values(self.weights, kept, [batch] * runs)
                total += values.double().cpu() * share
        return cast(list[float], total.tolist())

    def _values(
        self,
        weights: list[Tensor],
        buffers: list[Tensor],
        batches: Sequence[Batch],
        seen: OutputsSeen | None = None,
        share: float = 1.0,
    ) -> Tensor:
        shared = all(b is batches[0] for b in batches)
        parts = _parts(self.objective)
        samples = [] if shared else [_tensors(b, parts) for b in batches]
        stacked = [torch.stack(list(each)) for each in zip(*samples, strict=True)]

        def one(
            w: list[Tensor], b: list[Tensor], x: list[Tensor]
        ) -> Tensor | tuple[Tensor, Tensor]:
            named = dict(zip(self.names, w, strict=True))
            named |= dict(zip(self.buffer_names, b, strict=True))
            batch = batches[0] if shared else _with(batches[0], parts, x)
            value: Tensor = functional_call(self.loss, named, (batch,))
            return value if seen is None else (value, outputs.pop())

        def of_outputs(z: Tensor, x: list[Tensor]) -> Tensor:
            targets = (batches[0] if shared else _with(batches[0], parts, x)).targets
            loss = cast(LossFn, self.objective.loss)
            return (loss(z) if targets is None else loss(z, targets)).reshape(())

        outputs: list[Any] = []
        # Runs stacked here share their seed where the model draws random numbers.
        if seen is None:
            return cast(Tensor, vmap(one, randomness="same")(weights, buffers, stacked))
        self.objective.seen = outputs.append
        try:
            both: Any = vmap(one, randomness="same")(weights, buffers, stacked)
        finally:
            self.objective.seen = None
        # The outputs that come out of vmap need not be those that went into the loss in there.
        values: Tensor = both[0]
        z: Tensor = both[1].detach().requires_grad_()
        (slope,) = torch.autograd.grad(vmap(of_outputs)(z, stacked).sum(), z)
        seen.add(z.detach(), slope, share)
        return values

    def keep(self, index: Sequence[int]) -> None:
        """Go on with some of the runs."""
        rows = list(index)
        self.weights = [w[rows] for w in self.weights]
        self.buffers = [b[rows] for b in self.buffers]

    def state(self, run: int) -> tuple[list[Tensor], list[Tensor]]:
        """Views of one run's weights and buffers."""
        return [w[run] for w in self.weights], [b[run] for b in self.buffers]


def can_stack(objective: Objective, batches: Sequence[Batch]) -> bool:
    """Whether stacked runs are allowed, and give the gradients of single ones.

    Costs three gradients. What ``torch.vmap`` refuses (control flow that depends on the data,
    kernels without a batching rule) it would refuse at every step; what it would do one run after
    the other behind a warning is no gain.

    Args:
        objective: The model and the loss, holding the weights to try.
        batches: Of one step.

    Returns:
        Whether two stacked copies agree with the model itself, buffers included.

    Raises:
        InputError: If the loss is none.
    """
    model, state = objective.model, objective.state
    if state.moving or objective.looks_need_gradients:
        return False
    weights = [p.detach().clone() for p in objective.params]
    buffers = [b.detach().clone() for b in model.buffers()]
    stack = Stack(objective, [weights] * 2, [buffers] * 2)
    try:
        with warnings.catch_warnings(), objective.still():
            warnings.simplefilter("error")
            seed_all(0)
            losses, gradients = stack.gradients([batches] * 2)
            beside = state.moved_beside()
    except InputError:
        raise
    except (RuntimeError, ValueError, Warning):  # what vmap refuses with; memory included
        return False
    objective.cost.gradients += 2
    with objective.still():
        seed_all(0)
        loss = objective.gradient(batches)
        alone = [p.grad for p in objective.params]
        moved = [b.detach().clone() for b in model.buffers()]
        beside |= state.moved_beside()
    for p in objective.params:
        p.grad = None
    return (
        # Only weights and buffers are stacked: a teacher would be one for all.
        not beside
        and is_finite(loss)
        and _close([torch.tensor(v) for v in losses], [torch.tensor(loss)] * 2)
        and [g is None for g in gradients] == [g is None for g in alone]
        and all(
            _close([g[i] for g in gradients if g is not None], [g for g in alone if g is not None])
            for i in (0, 1)
        )
        and all(_close([b[i] for b in stack.buffers], moved) for i in (0, 1))
    )


def _close(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> bool:
    """Equal to the rounding of the dtype, summed over a layer's worth of terms."""
    if not wanted:
        return True
    eps = max(torch.finfo(w.dtype).eps if w.is_floating_point() else 0.0 for w in wanted)
    pairs = zip(found, wanted, strict=True)
    off = sum(float((a.double() - b.double()).square().sum()) for a, b in pairs)
    size = sum(float(b.double().square().sum()) for b in wanted)
    return bool(off <= (1e3 * eps) ** 2 * size)


def _parts(objective: Objective) -> tuple[str, ...]:
    """The fields of a batch that the loss reads."""
    return ("raw",) if isinstance(objective.loss, ModelLoss) else ("args", "kwargs", "targets")


def _tensors(batch: Batch, parts: Sequence[str]) -> list[Tensor]:
    found: list[Tensor] = []

    def collect(x: Tensor) -> Tensor:
        found.append(x)
        return x

    for part in parts:
        mapped(collect, getattr(batch, part))
    return found


def _with(batch: Batch, parts: Sequence[str], tensors: Sequence[Tensor]) -> Batch:
    remaining = iter(tensors)

    def put(x: Tensor) -> Tensor:
        del x
        return next(remaining)

    changed: dict[str, Any] = {part: mapped(put, getattr(batch, part)) for part in parts}
    return dataclasses.replace(batch, **changed)
