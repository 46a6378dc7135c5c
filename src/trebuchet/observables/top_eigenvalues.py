"""The top of the NTK's spectrum."""

import torch

from trebuchet.curvature.gram import eigen_of_gram
from trebuchet.observables.base import FloatArray, Observable, Runs

TOP = 5
"""How many eigenvalues are recorded, or as many as there are outputs."""


class TopEigenvalues(Observable):
    """The largest eigenvalues of the NTK, divided by the number of samples.

    Args:
        k: How many.
        of_start: e_iᵀ H e_i along the eigenvectors of the start, in their order: which of the
            directions has flattened, where eigenvalues cross.
    """

    name = "top_eigenvalues"
    long_name = "largest eigenvalues of the NTK / D"
    dim = "direction"
    cost = "a dense matrix of samples × outputs"

    def __init__(self, k: int = TOP, *, of_start: bool = False) -> None:
        self.size, self.of_start = k, of_start
        if of_start:
            self.long_name = "NTK / D along its eigenvectors at the start"

    def of(self, runs: Runs) -> FloatArray:
        """Descending."""
        found: FloatArray = eigen_of_gram(runs.gram(), self.size or TOP)[0].numpy()
        return found

    def start(self, runs: Runs) -> FloatArray | None:
        """The first eigenvectors, if it is along them."""
        return first_vectors(runs, self.size) if self.of_start else None

    def since(self, runs: Runs, start: FloatArray) -> FloatArray:
        """In the order of the start."""
        return runs.gram_along(torch.as_tensor(start))


def first_vectors(runs: Runs, k: int | None) -> FloatArray:
    """The top eigenvectors now, ``(R, m, k)``."""
    found: FloatArray = eigen_of_gram(runs.gram(), k or TOP)[1].numpy()
    return found
