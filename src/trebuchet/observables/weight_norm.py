"""|θ|², which must fall for a catapult to land."""

from trebuchet.observables.base import FloatArray, Observable, Runs


class WeightNorm(Observable):
    """The squared norm of all trained weights."""

    name = "weight_norm"
    long_name = "squared weight norm |θ|²"
    first = True
    cheap = True
    cost = "one pass over the weights"

    def of(self, runs: Runs) -> FloatArray:
        """|θ|²."""
        return runs.weight_norm()
