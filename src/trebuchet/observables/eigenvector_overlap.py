"""Kernel drift in direction: how far the NTK's top eigenvector has turned."""

import numpy as np

from trebuchet.curvature.gram import eigen_of_gram
from trebuchet.observables.base import FloatArray, Observable, Runs


class EigenvectorOverlap(Observable):
    """How far the NTK's top eigenvector has turned: |e_t·e_0|, 1 where it has not."""

    name = "eigenvector_overlap"
    long_name = "overlap of the NTK's top eigenvector with the first"
    cost = "a dense matrix of samples × outputs"

    def of(self, runs: Runs) -> FloatArray:
        """1, at the start."""
        return np.ones(runs.runs)

    def start(self, runs: Runs) -> FloatArray:
        """The first eigenvector."""
        first: FloatArray = eigen_of_gram(runs.gram(), 1)[1][..., 0].numpy()
        return first

    def since(self, runs: Runs, start: FloatArray) -> FloatArray:
        """The overlap."""
        now = eigen_of_gram(runs.gram(), 1)[1][..., 0].numpy()
        found: FloatArray = np.abs((now * start).sum(1))
        return found
