"""Sparsity: how many of a ReLU net's units are off."""

from trebuchet.observables.base import FloatArray, Observable, Runs


class Sparsity(Observable):
    """Share of (sample, unit) pre-activations below zero of each hidden layer."""

    name = "sparsity"
    long_name = "share of pre-activations < 0"
    dim = "layer"
    cheap = True
    cost = "one comparison a unit"

    def of(self, runs: Runs) -> FloatArray:
        """One share a layer."""
        return runs.sparsity()

    def extent(self, runs: Runs) -> int | None:
        """The number of hidden layers with ReLUs."""
        return runs.layers
