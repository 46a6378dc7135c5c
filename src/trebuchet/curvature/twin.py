"""The same function in float64, at parameters moved a little: what finite differences are made of.

Whatever the model's own precision, its parameters and buffers, those of its loss, and the data are
taken to float64, and nothing of the model is written to.
"""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from trebuchet._swapped import swapped
from trebuchet.curvature.evaluation import Evaluation
from trebuchet.curvature.explain import explained
from trebuchet.errors import InputError
from trebuchet.problem.batches import Batch
from trebuchet.problem.losses import ModelLoss, check_scalar
from trebuchet.problem.same import same
from trebuchet.problem.tree import mapped as _map

_ADVICE = "it is evaluated in float64 here, as no second derivative can be had otherwise"


class Twin:
    """An evaluation's loss, gradient and outputs in float64, anywhere near its parameters.

    Args:
        evaluation: The evaluation.

    Attributes:
        moves: Whether a gradient's evaluation was seen to move state of the model's own.
    """

    def __init__(self, evaluation: Evaluation) -> None:
        self.evaluation, self.moves = evaluation, False
        tensors = {
            id(t): t for m in evaluation.modules for t in [*m.parameters(), *m.buffers()]
        }  # fmt: skip
        self._state = [id(t) for t, _ in evaluation.state]
        self._fixed = {i: _double(t.detach()) for i, t in tensors.items()}
        self._chosen = list(evaluation.leaves)
        norm = sum(float(p.detach().double().square().sum()) for p in self._chosen) ** 0.5
        self.reach = norm or 1.0

    @contextlib.contextmanager
    def _moved(self, leaves: Sequence[Tensor]) -> Iterator[None]:
        # Buffers are copies of this evaluation's own: it may write to them.
        tensors = {i: t.clone() for i, t in self._fixed.items() if i not in self._ids}
        tensors |= dict(zip((id(p) for p in self._chosen), leaves, strict=True))
        with swapped(self.evaluation.modules, tensors), torch.autocast(self._device, enabled=False):
            yield
        mine = [(tensors[i], self._fixed[i]) for i in self._state if i in tensors]
        self.moves |= any(not same(t.detach(), was) for t, was in mine)

    @property
    def _ids(self) -> set[int]:
        return {id(p) for p in self._chosen}

    @property
    def _device(self) -> str:
        return self.evaluation.device.type

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
        self.evaluation.same_noise(batch)
        with self._moved(leaves), explained(self.evaluation.model, "model", _ADVICE):
            model = self.evaluation.model
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
        evaluation, targets = self.evaluation, _map(_double, batch.targets)
        loss = evaluation.loss
        assert loss is not None
        assert not isinstance(loss, ModelLoss)
        evaluation.same_noise(batch, of_loss=True)
        with self._moved(self.leaves()), explained(evaluation.model, "loss", _ADVICE):
            return check_scalar(loss(z) if targets is None else loss(z, targets))

    def gradient(self, v: Sequence[Tensor], step: float) -> Tensor:
        """Return ∇L(θ + step · v) over this process's micro-batches, flat, float64.

        Args:
            v: A direction, one tensor a parameter.
            step: How far.

        Returns:
            Shape (P,).
        """
        evaluation = self.evaluation
        out = torch.zeros(evaluation.n_parameters, dtype=torch.float64, device=evaluation.device)
        for batch, weight in zip(evaluation.batches, evaluation.weights, strict=True):
            leaves = self.leaves(v, step)
            # The backward pass inside too: checkpointing runs the forward pass again in it.
            with self._moved(leaves), explained(evaluation.model, "loss", _ADVICE):
                grads = torch.autograd.grad(self._loss(batch), leaves, allow_unused=True)
            evaluation.add_flat(out, grads, weight)
        return out

    def _loss(self, batch: Batch) -> Tensor:
        evaluation, loss = self.evaluation, self.evaluation.loss
        evaluation.same_noise(batch)
        if isinstance(loss, ModelLoss):
            return check_scalar(loss.fn(evaluation.model, _map(_double, batch.raw)))
        assert loss is not None
        z = evaluation.model(*_map(_double, batch.args), **_map(_double, batch.kwargs))
        targets = _map(_double, batch.targets)
        evaluation.same_noise(batch, of_loss=True)
        return check_scalar(loss(z) if targets is None else loss(z, targets))


def _double(t: Tensor) -> Tensor:
    return t.double() if t.is_floating_point() else t
