"""The top of the NTK's spectrum, and the loss in each of its directions."""

import numpy as np
import torch
from torch import Tensor

from trebuchet.observables.base import FloatArray, Observable, Runs

TOP = 5
"""How many eigenvalues are recorded, or as many as there are outputs."""


def eigen(gram: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest eigenvalues of each matrix of a stack, descending, and their eigenvectors.

    Args:
        gram: Shape ``(R, m, m)``.
        k: How many; missing ones are NaN.

    Returns:
        Shapes ``(R, k)`` and ``(R, m, k)``, float64.
    """
    runs, m = gram.shape[0], gram.shape[-1]
    values = torch.full((runs, k), torch.nan, dtype=torch.float64)
    vectors = torch.full((runs, m, k), torch.nan, dtype=torch.float64)
    found = min(k, m)
    for run, matrix in enumerate(gram.double().cpu()):
        if bool(torch.isfinite(matrix).all()):
            each, their = torch.linalg.eigh(matrix)
            values[run, :found] = each.flip(0)[:found]
            vectors[run, :, :found] = their.flip(1)[:, :found]
    return values, vectors


class TopEigenvalues(Observable):
    """The largest eigenvalues of the NTK, divided by the number of samples."""

    name = "top_eigenvalues"
    long_name = "largest eigenvalues of the NTK / D"
    dim = "direction"
    cost = "a dense matrix of samples × outputs"

    def __init__(self, k: int = TOP) -> None:
        self.size = k

    def of(self, runs: Runs) -> FloatArray:
        """Descending."""
        found: FloatArray = eigen(runs.gram(), self.size or TOP)[0].numpy()
        return found


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
        _, vectors = eigen(gram, self.size or TOP)
        along = torch.einsum("rmk,rm->rk", vectors, slope.double().cpu())
        samples = runs.samples
        found: FloatArray = (samples * along.square() / 2).numpy()
        return found


class KernelDrift(Observable):
    """How far the NTK's top eigenvector has turned: |e_t·e_0|, 1 where it has not."""

    name = "eigenvector_overlap"
    long_name = "overlap of the NTK's top eigenvector with the first"
    cost = "a dense matrix of samples × outputs"

    def of(self, runs: Runs) -> FloatArray:
        """1, at the start."""
        return np.ones(runs.runs)

    def start(self, runs: Runs) -> FloatArray:
        """The first eigenvector."""
        first: FloatArray = eigen(runs.gram(), 1)[1][..., 0].numpy()
        return first

    def since(self, runs: Runs, start: FloatArray) -> FloatArray:
        """The overlap."""
        now = eigen(runs.gram(), 1)[1][..., 0].numpy()
        found: FloatArray = np.abs((now * start).sum(1))
        return found
