"""Accuracy: the share of samples that are classified right."""

import numpy as np
from torch import Tensor

from trebuchet.observables.base import FloatArray, Observable, Runs, UnavailableError


class Accuracy(Observable):
    """Share of right classes on the test data, or on the training data where there are none.

    With several outputs the largest is the class; with one, its sign is compared with that of
    targets −1 and +1, or of 0 and 1 less one half.
    """

    name = "accuracy"
    long_name = "share of samples classified right"
    cost = "a forward pass over the data"

    def of(self, runs: Runs) -> FloatArray:
        """The share of every run."""
        return np.array([share(z, y) for z, y in runs.outputs_and_targets()])


def share(z: Tensor, y: Tensor) -> float:
    """Share of samples whose class is right.

    Args:
        z: Outputs: ``(…, K)``, classes last or, as torch has it for images, ``(B, K, …)``.
        y: Classes as whole numbers, classes as ±1 or 0/1, or a row of K numbers a sample.

    Returns:
        A number from 0 to 1.

    Raises:
        UnavailableError: If the targets are no classes.

    Example:
        >>> import torch
        >>> share(torch.tensor([[0.1, 2.0], [3.0, 1.0]]), torch.tensor([1, 1]))
        0.5
        >>> share(torch.tensor([[0.3], [-0.2]]), torch.tensor([1.0, -1.0]))
        1.0
    """
    if z.numel() == y.numel():
        rows = y.reshape(z.shape)
        if z.ndim > 1 and z.shape[-1] > 1:  # a row of scores a sample, such as a one-hot one
            return _mean(z.argmax(-1) == rows.argmax(-1))
        if bool((rows.abs() == 1).all()):
            return _mean((z > 0) == (rows > 0))
        if bool(((rows == 1) | (rows == 0)).all()):
            between = 0.5 if y.is_floating_point() else 0.0  # of logits, where targets are whole
            return _mean((z > between) == (rows == 1))
    elif not y.is_floating_point():
        for axis in (-1, 1):
            if z.ndim > 1 and z.numel() == y.numel() * z.shape[axis]:
                return _mean(z.argmax(axis).flatten() == y.flatten())
    raise UnavailableError("the targets are no classes, or the outputs no scores of them")


def _mean(right: Tensor) -> float:
    return float(right.double().mean())
