"""The loss on held-out data."""

from trebuchet.observables.base import FloatArray, Observable, Runs


class HeldOutLoss(Observable):
    """The problem's loss on its test data, in evaluation mode."""

    name = "test_loss"
    long_name = "test loss"
    units = "loss"
    cost = "a forward pass over the test data"

    def of(self, runs: Runs) -> FloatArray:
        """The loss."""
        return runs.test_loss()
