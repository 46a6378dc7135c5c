"""Losses of a stack of runs, and their gradients at the outputs."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor
from torch.func import grad, grad_and_value, jacrev, vmap

LossFunction = Callable[[Tensor, Tensor], Tensor]
"""A loss of one run: outputs, of the shape in which the module returns them, and targets."""


class Loss(ABC):
    """Maps the outputs of R runs to R losses and the gradients ∂L/∂z."""

    name: str

    def of_column(self) -> "Loss":
        """The same loss for a module that returns a column, of which kernels keep ``(D,)``."""
        return self

    @abstractmethod
    def __call__(self, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """(L of shape ``(R,)``, ∂L/∂z of the shape of z) for z of shape ``(R, D[, K])``."""

    def curvature(self, z: Tensor, y: Tensor) -> Tensor | None:
        """∂²L/∂z², ``(R, D·K, D·K)``; None where it is 1/D times the identity."""
        del z, y
        return None


@dataclass(frozen=True, slots=True)
class HalfMeanSquare(Loss):
    """L = (1/2D) Σ_a |z_a − y_a|². ``torch.nn.MSELoss`` of one output is twice this."""

    name: str = "half_mse"

    def __call__(self, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """(L, ε/D)."""
        epsilon = z - y
        samples = z.shape[1]
        loss = epsilon.flatten(1).square().sum(1) / (2 * samples)
        return loss, epsilon / samples


@dataclass(frozen=True, slots=True)
class UserLoss(Loss):
    """Any scalar loss of one run's outputs and targets, differentiated by ``torch.func``.

    Args:
        function: The loss, as in ``torch.nn.functional``.
        name: What results call it.
        column: Whether the function gets outputs as a column, ``(D, 1)``, for z of ``(R, D)``.
    """

    function: LossFunction
    name: str
    column: bool = False

    def of_column(self) -> "UserLoss":
        """The same, with `column`: a reduction over the last axis is another one without it."""
        return replace(self, column=True)

    def __call__(self, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """(L, ∂L/∂z) of every run."""

        def one(outputs: Tensor) -> Tensor:
            return self.function(outputs.unsqueeze(-1) if self.column else outputs, y)

        gradient, loss = vmap(grad_and_value(one))(z)
        return loss, gradient

    def curvature(self, z: Tensor, y: Tensor) -> Tensor:
        """Of the outputs of a run, in the order of its kernel matrix."""

        def one(outputs: Tensor) -> Tensor:
            return self.function(outputs.unsqueeze(-1) if self.column else outputs, y)

        found: Tensor = vmap(jacrev(grad(one)))(z)
        size = z[0].numel()
        return found.reshape(z.shape[0], size, size)
