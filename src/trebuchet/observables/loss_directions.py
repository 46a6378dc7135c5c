"""The loss in each of the NTK's top eigendirections."""

import torch

from trebuchet.curvature.gram import eigen_of_gram
from trebuchet.observables.base import FloatArray, Observable, Runs
from trebuchet.observables.top_eigenvalues import TOP


class LossDirections(Observable):
    """The loss that is left in each of the NTK's top eigendirections e_i at this step.

    With the half mean squared error and residuals ε it is (e_i·ε)²/2D, and these sum to the loss
    over all directions; of another loss it is D (e_i·∂L/∂z)²/2, the same in its own residuals.
    """

    name = "loss_directions"
    long_name = "loss in the NTK's eigendirections"
    units = "loss"
    dim = "direction"
    cost = "a dense matrix of samples × outputs"

    def __init__(self, k: int = TOP) -> None:
        self.size = k

    def of(self, runs: Runs) -> FloatArray:
        """In the order of the eigenvalues."""
        gram, slope = runs.gram(), runs.residual()
        _, vectors = eigen_of_gram(gram, self.size or TOP)
        along = torch.einsum("rmk,rm->rk", vectors, slope.double().cpu())
        samples = runs.samples
        found: FloatArray = (samples * along.square() / 2).numpy()
        return found
