"""Full-batch optimizers of stacked runs, each run with a learning rate of its own."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trebuchet.dynamics.kernels.base import Kernel
from trebuchet.errors import InputError


@dataclass(frozen=True, slots=True)
class GradientDescent:
    """θ' = θ − ηu with u' = βu + ∇L + wθ: gradient descent, heavy-ball and weight decay.

    The convention of ``torch.optim.SGD``: the velocity is not damped, and weight decay adds wθ to
    the gradient.

    Args:
        momentum: β, in [0, 1).
        weight_decay: w, at least 0.

    Raises:
        InputError: If either is out of range.
    """

    momentum: float = 0.0
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1:
            msg = f"momentum: expected 0 <= momentum < 1, got {self.momentum}"
            raise InputError(msg)
        if not 0 <= self.weight_decay < float("inf"):
            msg = f"weight_decay: expected a finite number >= 0, got {self.weight_decay}"
            raise InputError(msg)

    @property
    def plain(self) -> bool:
        """Whether this is gradient descent and nothing else."""
        return self.momentum == 0 and self.weight_decay == 0

    def start(self, kernel: Kernel) -> list[Tensor]:
        """The velocity u = 0 of every parameter; nothing for plain gradient descent."""
        return [] if self.momentum == 0 else [torch.zeros_like(p) for p in kernel.params]

    def step_(self, kernel: Kernel, dz: Tensor, lr: Tensor, velocity: Sequence[Tensor]) -> None:
        """Move every run by one step, in place, after ``kernel.forward``.

        Args:
            kernel: The runs.
            dz: ∂L/∂z, shape ``(R, D[, K])``.
            lr: η of every run, shape ``(R,)``.
            velocity: u, as ``start`` made it.
        """
        if self.plain:
            # ∇L = Jᵀdz is linear in dz, so the kernel can add −η∇L to the weights directly.
            kernel.add_vjp_(kernel.params, dz * -_column(lr, dz))
            return
        update = list(velocity) or [torch.zeros_like(p) for p in kernel.params]
        for u, p in zip(update, kernel.params, strict=True):
            u.mul_(self.momentum)
            if self.weight_decay:
                u.add_(p, alpha=self.weight_decay)
        kernel.add_vjp_(update, dz)
        for u, p in zip(update, kernel.params, strict=True):
            p.sub_(u * _column(lr, p))


def _column(lr: Tensor, like: Tensor) -> Tensor:
    return lr.view(-1, *[1] * (like.ndim - 1))
