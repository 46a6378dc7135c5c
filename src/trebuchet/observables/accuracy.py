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
    if z.numel() == y.numel():  # one output a sample
        flat, wanted = z.flatten().double(), y.flatten().double()
        if bool(((wanted == 1) | (wanted == 0)).all()):
            right = (flat > _threshold(z, y)) == (wanted > 0.5)
        elif bool((wanted.abs() == 1).all()):
            right = (flat > 0) == (wanted > 0)
        elif z.ndim > 1 and z.shape[-1] > 1:  # rows of class scores, such as one-hot ones
            right = z.argmax(-1) == y.reshape(z.shape).argmax(-1)
        else:
            raise UnavailableError("the targets are no classes")
        if z.ndim > 1 and z.shape[-1] > 1 and bool(((wanted == 1) | (wanted == 0)).all()):
            rows = y.reshape(z.shape)
            if bool((rows.sum(-1) == 1).all()):
                right = z.argmax(-1) == rows.argmax(-1)
        return float(right.double().mean())
    if y.is_floating_point():
        raise UnavailableError("the targets are no classes")
    for axis in (-1, 1):
        if z.ndim > 1 and z.numel() // z.shape[axis] == y.numel():
            return float((z.argmax(axis).flatten() == y.flatten()).double().mean())
    raise UnavailableError("the outputs are no scores of classes")


def _threshold(z: Tensor, y: Tensor) -> float:
    """Between 0 and 1 for real targets, zero for logits of whole ones."""
    del z
    return 0.5 if y.is_floating_point() else 0.0
