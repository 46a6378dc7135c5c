"""Full-batch optimizers of stacked runs, each run with a learning rate of its own."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trebuchet._checks import from_zero, real
from trebuchet._doors import door
from trebuchet.engine.kernels.outputs import OutputKernel
from trebuchet.problem.optimizer_copies import has_hooks
from trebuchet.problem.optimizers import called, given


def _share(name: str, value: object) -> float:
    return real(name, value, f"0 <= {name} < 1", lambda x: 0 <= x < 1)


@door(momentum=_share, weight_decay=from_zero)
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

    def __call__(self, params: Sequence[nn.Parameter], rate: float) -> Optimizer:
        """torch's own optimizer of these settings: so it is a factory, as every door takes one.

        Args:
            params: What it trains.
            rate: η.

        Returns:
            ``torch.optim.SGD``.
        """
        return torch.optim.SGD(
            params, lr=rate, momentum=self.momentum, weight_decay=self.weight_decay
        )

    @property
    def plain(self) -> bool:
        """Whether this is gradient descent and nothing else."""
        return self.momentum == 0 and self.weight_decay == 0

    def start(self, kernel: OutputKernel) -> list[Tensor]:
        """The velocity u = 0 of every parameter; nothing for plain gradient descent."""
        return [] if self.momentum == 0 else [torch.zeros_like(p) for p in kernel.params]

    def step_(
        self, kernel: OutputKernel, dz: Tensor, lr: Tensor, velocity: Sequence[Tensor]
    ) -> None:
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
        reached = kernel.reached() if self.weight_decay else ()
        for u in update:
            u.mul_(self.momentum)
        for u, p, moves in zip(update, kernel.params, reached, strict=False):
            if moves:
                u.add_(p, alpha=self.weight_decay)
        kernel.add_vjp_(update, dz)
        for u, p in zip(update, kernel.params, strict=True):
            p.sub_(u * _column(lr, p))


def full_batch(optimizer: object) -> GradientDescent | None:
    """The engine's own optimizer for one given as ``scan`` takes it, where it is gradient descent.

    Args:
        optimizer: None for gradient descent, a `GradientDescent`, a name, or torch's ``SGD`` as a
            class, a partial, a factory or an instance, of which momentum and weight decay are read
            and the rate is not.

    Returns:
        Gradient descent, heavy ball, weight decay; None for any other optimizer, and for settings,
        states and hooks that these do not have.

    Example:
        >>> full_batch("momentum"), full_batch("adam")
        (GradientDescent(momentum=0.9, weight_decay=0.0), None)
    """
    if optimizer is None:
        return GradientDescent()
    if isinstance(optimizer, GradientDescent):
        return optimizer
    made: Any = given(optimizer)
    if not isinstance(made, Optimizer):
        try:
            made = called(made)([nn.Parameter(torch.zeros(1, 1))], 1.0)
        except Exception:  # the user's factory may raise anything; who trains with it says so
            return None
    if type(made) is not torch.optim.SGD:
        return None
    settings = {(g["momentum"], g["weight_decay"]) for g in made.param_groups}
    others = any(g[n] for g in made.param_groups for n in ("nesterov", "dampening", "maximize"))
    if others or len(settings) > 1 or made.state or has_hooks(made) or "step" in vars(made):
        return None
    ((momentum, decay),) = settings
    return GradientDescent(float(momentum), float(decay))


def _column(lr: Tensor, like: Tensor) -> Tensor:
    return lr.view(-1, *[1] * (like.ndim - 1))
