"""|∇L|."""

from trebuchet.observables.base import FloatArray, Observable, Runs


class GradientNorm(Observable):
    """The norm of the gradient of the step's loss, before clipping."""

    name = "gradient_norm"
    long_name = "gradient norm |∇L|"
    units = "loss"
    cost = "nothing where gradients are formed, a dense NTK elsewhere"

    def of(self, runs: Runs) -> FloatArray:
        """|∇L|."""
        return runs.gradient_norm()
