"""Sharpness: the top eigenvalue of the loss's Hessian."""

from torch import nn

from trebuchet.curvature.top import top_eigen
from trebuchet.observables.base import Observable
from trebuchet.problem.problem import Problem


class Sharpness(Observable):
    """λ_max of ∂²L/∂θ², measured to 1e-3 by Lanczos on the whole training data."""

    name = "sharpness"
    long_name = "top eigenvalue of the Hessian"
    cost = "some tens of gradients"

    def __init__(self, rtol: float = 1e-3, max_batches: int | None = None) -> None:
        self.rtol, self.max_batches = rtol, max_batches

    def measure(self, model: nn.Module, problem: Problem) -> float:
        """The largest, not the largest in size.

        Args:
            model: The run's module.
            problem: What is trained.

        Returns:
            The eigenvalue.
        """
        return top_eigen(
            model, problem.loss, problem.data, "hessian", rtol=self.rtol,
            micro_batch=problem.micro_batch, max_batches=self.max_batches,
            weights=problem.weights, size_of=problem.size_of,
        ).value  # fmt: skip
