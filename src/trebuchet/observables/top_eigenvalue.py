"""λ, the top eigenvalue: of the NTK where a kernel has it, of the loss's curvature elsewhere."""

from trebuchet.observables.base import FloatArray, Observable, Runs


class TopEigenvalue(Observable):
    """λ_max of the operator that the result's attribute ``operator`` names."""

    name = "top_eigenvalue"
    long_name = "top eigenvalue λ of the operator"
    first = True
    largest = True
    cheap = True
    cost = "a dense matrix of samples × outputs, or some tens of gradients"

    def of(self, runs: Runs) -> FloatArray:
        """λ."""
        return runs.top_eigenvalue()
