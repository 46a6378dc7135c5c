"""Bias-free ReLU and tanh nets on two classes of images; the digits unless others are named."""

from itertools import pairwise
from pathlib import Path

import torch
from torch import nn

from trebuchet import _torch_checks as checks
from trebuchet._checks import anything, choice, path as a_path
from trebuchet._doors import door, maybe, rule
from trebuchet.data import TwoClassData, load_digits01, load_images
from trebuchet.data.images import IMAGE_SETS
from trebuchet.models import MLP
from trebuchet.problem.problem import ModelFactory, Problem

DIGITS = "digits"


DATA = (DIGITS, *IMAGE_SETS)
_NET = {
    "width": checks.size, "hidden": checks.depth, "data": rule(choice, DATA),
    "data_root": maybe(a_path), "n_train": anything, "dtype": checks.dtype,
}  # fmt: skip


@door(**_NET)
def relu_problem(
    width: int,
    *,
    hidden: int = 1,
    data: str = DIGITS,
    data_root: str | Path | None = None,
    n_train: int = 128,
    dtype: torch.dtype = torch.float32,
) -> Problem:
    """A ReLU net in the paper's parametrisation, weights N(0, 1), the scale outside.

    Args:
        width: Units in each hidden layer.
        hidden: Number of hidden layers.
        data: ``"digits"``, which needs no download, or a name that
            :func:`trebuchet.data.load_images` knows.
        data_root: Folder of image files.
        n_train: Training samples; labels are −1 and +1.
        dtype: Of data and weights.

    Returns:
        The problem, all test samples of the two classes as its ``test``; a seed draws its weights.

    Raises:
        InputError: If an argument is not what was expected, or the data cannot be had.

    Example:
        >>> relu_problem(16, n_train=8).initial(0).degree
        2
    """
    samples = load(data, data_root, n_train)
    d = samples.x_train.shape[1]

    def model(seed: int) -> MLP:
        return MLP.draw(d, width, hidden=hidden, generator=seed, dtype=dtype)

    return _problem(model, samples, dtype, f"ReLU net, {hidden} hidden × {width}, on {data}")


@door(**_NET)
def tanh_problem(
    width: int,
    *,
    hidden: int = 1,
    data: str = DIGITS,
    data_root: str | Path | None = None,
    n_train: int = 128,
    dtype: torch.dtype = torch.float32,
) -> Problem:
    """A tanh net as an ordinary ``nn.Sequential``, weights N(0, 1/fan-in), no biases.

    The paper's N(0, 1) weights would saturate every tanh past the first layer; with 1/fan-in each
    layer's inputs are of order one at any width.

    Args:
        width: Units in each hidden layer.
        hidden: Number of hidden layers.
        data: As for :func:`relu_problem`.
        data_root: Folder of image files.
        n_train: Training samples.
        dtype: Of data and weights.

    Returns:
        The problem, all test samples of the two classes as its ``test``; a seed draws its weights.

    Raises:
        InputError: If an argument is not what was expected, or the data cannot be had.

    Example:
        >>> [type(layer).__name__ for layer in tanh_problem(16, n_train=8).initial(0)]
        ['Linear', 'Tanh', 'Linear']
    """
    samples = load(data, data_root, n_train)
    sizes = [samples.x_train.shape[1], *[width] * hidden, 1]

    def model(seed: int) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(sizes):
            # Made on "meta": the default initialisation would draw from the global generator.
            empty = nn.Linear(fan_in, fan_out, bias=False, dtype=dtype, device="meta")
            linear = empty.to_empty(device="cpu")
            nn.init.normal_(linear.weight, std=fan_in**-0.5, generator=generator)
            layers += [linear, nn.Tanh()]
        return nn.Sequential(*layers[:-1])

    return _problem(model, samples, dtype, f"tanh net, {hidden} hidden × {width}, on {data}")


def load(data: str, data_root: str | Path | None, n_train: int) -> TwoClassData:
    """Two classes of images, by the name of the set."""
    if data == DIGITS:
        return load_digits01(n_train)
    return load_images(data, data_root, n_train=n_train)


def _problem(model: ModelFactory, samples: TwoClassData, dtype: torch.dtype, name: str) -> Problem:
    def tensors(*arrays: object) -> tuple[torch.Tensor, ...]:
        return tuple(torch.as_tensor(a).to(dtype) for a in arrays)

    return Problem(
        model,
        "half_mse",
        tensors(samples.x_train, samples.y_train),
        test=tensors(samples.x_test, samples.y_test),
        name=name,
    )
