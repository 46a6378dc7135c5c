"""The same function in float64, at parameters moved a little: what finite differences are made of.

Whatever the model's own precision, its parameters and buffers, those of its loss, and the data are
taken to float64, and nothing of the model is written to.
"""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from trebuchet.curvature.explain import explained
from trebuchet.curvature.problem import Problem
from trebuchet.curvature.swapped import swapped
from trebuchet.errors import InputError
from trebuchet.problem.batches import Batch
from trebuchet.problem.losses import ModelLoss, check_scalar
from trebuchet.problem.tree import mapped as _map

_ADVICE = "it is evaluated in float64 here, as no second derivative can be had otherwise"


class Twin:
    """A problem's loss, gradient and outputs in float64, anywhere near its parameters.

    Args:
        problem: The problem.

    Attributes:
        moves: Whether a gradient's evaluation was seen to move state of the model's own.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem, self.moves = problem, False
        tensors = {
            id(t): t for m in problem.modules for t in [*m.parameters(), *m.buffers()]
        }  # fmt: skip
        self._state = [id(t) for t, _ in problem.state]
        self._fixed = {i: _double(t.detach()) for i, t in tensors.items()}
        self._chosen = list(problem.leaves)
        norm = sum(float(p.detach().double().square().sum()) for p in self._chosen) ** 0.5
        self.reach = norm or 1.0

    @contextlib.contextmanager
    def _moved(self, leaves: Sequence[Tensor]) -> Iterator[None]:
        # Buffers are copies of this evaluation's own: it may write to them.
        tensors = {i: t.clone() for i, t in self._fixed.items() if i not in self._ids}
        tensors |= dict(zip((id(p) for p in self._chosen), leaves, strict=True))
        with swapped(self.problem.modules, tensors), torch.autocast(self._device, enabled=False):
            yield
        mine = [(tensors[i], self._fixed[i]) for i in self._state if i in tensors]
        self.moves |= any(not torch.equal(t.detach(), was) for t, was in mine)

    @property
    def _ids(self) -> set[int]:
        return {id(p) for p in self._chosen}

    @property
    def _device(self) -> str:
        return self.problem.device.type

    def leaves(self, v: Sequence[Tensor] | None = None, step: float = 0.0) -> list[Tensor]:
        """Return θ + step · v, one tensor a parameter, float64, with gradients.

        Args:
            v: A direction; None is zero.
            step: How far.

        Returns:
            New leaves.
        """
        here = [self._fixed[id(p)] for p in self._chosen]
        if v is not None:
            here = [t + step * d.double().view(t.shape) for t, d in zip(here, v, strict=True)]
        return [t.detach().clone().requires_grad_() for t in here]

    def outputs(self, batch: Batch, leaves: Sequence[Tensor]) -> Tensor:
        """Return z, float64, at given parameters.

        Args:
            batch: The micro-batch.
            leaves: The parameters.

        Returns:
            The outputs, with their graph.

        Raises:
            InputError: If the model cannot be evaluated so.
        """
        self.problem.same_noise(batch)
        with self._moved(leaves), explained(self.problem.model, "model", _ADVICE):
            model = self.problem.model
            z = model(*_map(_double, batch.args), **_map(_double, batch.kwargs))
        # Outputs are only ever evaluated here, never differentiated.
        if not isinstance(z, Tensor) or z.dtype != torch.float64:
            msg = "model: does not follow its parameters into float64; " + _ADVICE
            raise InputError(msg)
        return z

    def loss_at(self, z: Tensor, batch: Batch) -> Tensor:
        """Return L_b at outputs `z`, float64.

        Args:
            z: The outputs.
            batch: The micro-batch.

        Returns:
            A scalar.
        """
        problem, targets = self.problem, _map(_double, batch.targets)
        loss = problem.loss
        assert loss is not None
        assert not isinstance(loss, ModelLoss)
        problem.same_noise(batch, of_loss=True)
        with self._moved(self.leaves()), explained(problem.model, "loss", _ADVICE):
            return check_scalar(loss(z) if targets is None else loss(z, targets))

    def gradient(self, v: Sequence[Tensor], step: float) -> Tensor:
        """Return ∇L(θ + step · v) over this process's micro-batches, flat, float64.

        Args:
            v: A direction, one tensor a parameter.
            step: How far.

        Returns:
            Shape (P,).
        """
        problem = self.problem
        out = torch.zeros(problem.n_parameters, dtype=torch.float64, device=problem.device)
        for batch, weight in zip(problem.batches, problem.weights, strict=True):
            leaves = self.leaves(v, step)
            # The backward pass inside too: checkpointing runs the forward pass again in it.
            with self._moved(leaves), explained(problem.model, "loss", _ADVICE):
                grads = torch.autograd.grad(self._loss(batch), leaves, allow_unused=True)
            problem.add_flat(out, grads, weight)
        return out

    def _loss(self, batch: Batch) -> Tensor:
        problem, loss = self.problem, self.problem.loss
        problem.same_noise(batch)
        if isinstance(loss, ModelLoss):
            return check_scalar(loss.fn(problem.model, _map(_double, batch.raw)))
        assert loss is not None
        z = problem.model(*_map(_double, batch.args), **_map(_double, batch.kwargs))
        targets = _map(_double, batch.targets)
        problem.same_noise(batch, of_loss=True)
        return check_scalar(loss(z) if targets is None else loss(z, targets))


def _double(t: Tensor) -> Tensor:
    return t.double() if t.is_floating_point() else t
