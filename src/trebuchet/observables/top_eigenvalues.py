"""The top of the NTK's spectrum."""

from trebuchet.curvature.gram import eigen_of_gram
from trebuchet.observables.base import FloatArray, Observable, Runs

TOP = 5
"""How many eigenvalues are recorded, or as many as there are outputs."""


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
        found: FloatArray = eigen_of_gram(runs.gram(), self.size or TOP)[0].numpy()
        return found
