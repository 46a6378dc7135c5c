"""The loss in each of the NTK's top eigendirections."""

import torch
from torch import Tensor

from trebuchet.curvature.gram import eigen_of_gram
from trebuchet.observables.base import FloatArray, Observable, Runs
from trebuchet.observables.top_eigenvalues import TOP, first_vectors


class LossDirections(Observable):
    """The loss that is left in each of the NTK's top eigendirections e_i, at this step.

    With the half mean squared error and residuals ε it is (e_i·ε)²/2D, and these sum to the loss
    over all directions; of another loss it is D (e_i·∂L/∂z)²/2, the same in its own residuals.

    Args:
        k: How many directions.
        of_start: Those of the start, at every step: theorems speak of them, and they keep their
            numbers where eigenvalues cross. It needs no matrix but at the start.
    """

    name = "loss_directions"
    long_name = "loss in the NTK's eigendirections"
    units = "loss"
    dim = "direction"
    cost = "a dense matrix of samples × outputs"

    def __init__(self, k: int = TOP, *, of_start: bool = False) -> None:
        self.size, self.of_start = k, of_start
        if of_start:
            self.long_name = "loss in the eigendirections of the NTK at the start"

    def of(self, runs: Runs) -> FloatArray:
        """In the order of the eigenvalues."""
        return _along(eigen_of_gram(runs.gram(), self.size or TOP)[1], runs)

    def start(self, runs: Runs) -> FloatArray | None:
        """The first eigenvectors, if those are the directions."""
        return first_vectors(runs, self.size) if self.of_start else None

    def since(self, runs: Runs, start: FloatArray) -> FloatArray:
        """In the first eigenvectors."""
        return _along(torch.as_tensor(start), runs)


def _along(vectors: Tensor, runs: Runs) -> FloatArray:
    along = torch.einsum("rmk,rm->rk", vectors, runs.residual().double().cpu())
    found: FloatArray = (runs.samples * along.square() / 2).numpy()
    return found
