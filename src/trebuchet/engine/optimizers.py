"""Full-batch optimizers of stacked runs, each run with a learning rate of its own."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trebuchet._checks import from_zero, one_line, real
from trebuchet._doors import door
from trebuchet.engine.kernels.outputs import OutputKernel
from trebuchet.errors import InputError
from trebuchet.problem.optimizer_copies import has_hooks
from trebuchet.problem.optimizer_names import lookup
from trebuchet.problem.optimizers import called, describe, given


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
        for u, p in zip(update, kernel.params, strict=True):
            u.mul_(self.momentum)
            if self.weight_decay:
                u.add_(p, alpha=self.weight_decay)
        kernel.add_vjp_(update, dz)
        for u, p in zip(update, kernel.params, strict=True):
            p.sub_(u * _column(lr, p))


def full_batch(optimizer: object) -> GradientDescent:
    """The engine's own optimizer for one given as ``scan`` takes it.

    Args:
        optimizer: None for gradient descent, a `GradientDescent`, a name, or torch's ``SGD`` as a
            class, a partial, a factory or an instance, of which momentum and weight decay are read
            and the rate is not.

    Returns:
        Gradient descent, heavy ball, weight decay.

    Raises:
        InputError: If it is no optimizer, or one that this engine cannot do yet.

    Example:
        >>> full_batch("momentum")
        GradientDescent(momentum=0.9, weight_decay=0.0)
    """
    if optimizer is None:
        return GradientDescent()
    if isinstance(optimizer, GradientDescent):
        return optimizer
    if isinstance(optimizer, str):
        lookup(optimizer)  # a name that is none is told with its neighbours
    made: Any = given(optimizer)
    if not isinstance(made, Optimizer):
        factory = called(made)
        try:
            made = factory([nn.Parameter(torch.zeros(1, 1))], 1.0)
        except InputError:
            raise
        except Exception as error:  # the user's factory may raise anything
            _refuse(describe(optimizer), one_line(error))
    if type(made) is not torch.optim.SGD:
        _refuse(describe(optimizer))
    settings = {(g["momentum"], g["weight_decay"]) for g in made.param_groups}
    for name in ("nesterov", "dampening", "maximize"):
        if any(g[name] for g in made.param_groups):
            _refuse(describe(optimizer), f"with {name}")
    if len(settings) > 1:
        _refuse(describe(optimizer), "with settings that differ between its groups")
    if made.state or has_hooks(made) or "step" in vars(made):
        _refuse(describe(optimizer), "with a state, hooks or a step of its own")
    ((momentum, decay),) = settings
    return GradientDescent(float(momentum), float(decay))


def _refuse(name: str, why: str = "") -> NoReturn:
    msg = (
        "optimizer: expected 'sgd', 'momentum', GradientDescent(momentum, weight_decay) or torch's "
        f"SGD with these settings, which are all that full-batch sweeps can do yet, got {name}"
        f"{f' ({why})' if why else ''}; trebuchet.scan takes any optimizer"
    )
    raise InputError(msg)


def _column(lr: Tensor, like: Tensor) -> Tensor:
    return lr.view(-1, *[1] * (like.ndim - 1))
