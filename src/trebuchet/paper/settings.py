"""The sixteen figures of the paper, as a table.

References:
    Meltzer & Liu, arXiv 2301.07737, figures 1–16; settings from the authors' public notebook.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from trebuchet.models.meta_feature import ElementwiseName
from trebuchet.models.mlp import RELU, Slopes


@dataclass(frozen=True, slots=True)
class Pure:
    """A pure quadratic student of a pure quadratic teacher."""

    n: int
    d: int = 1
    masked: int = 0
    eigenvalues: tuple[float, float] = (1.0, 1.0)
    elementwise: ElementwiseName = "identity"


@dataclass(frozen=True, slots=True)
class Biased:
    """A quadratic student with bias, of a teacher of the same kind."""

    n: int
    p: int
    masked: int = 0
    masked_features: int = 0
    elementwise: ElementwiseName = "identity"


@dataclass(frozen=True, slots=True)
class Net:
    """A bias-free MLP of width 1024."""

    slopes: Slopes = RELU
    hidden: int = 1
    width: int = 1024


@dataclass(frozen=True, slots=True)
class Point:
    """One training sample."""

    x: float
    y: float


@dataclass(frozen=True, slots=True)
class Random:
    """Inputs scale · (U(0,1) − ½); labels standard normal, or the teacher's."""

    train: int
    test: int = 0
    d: int = 1
    scale: float = 1.0
    labels: Literal["normal", "teacher"] = "normal"


@dataclass(frozen=True, slots=True)
class Images:
    """Classes 0 and 1, 128 of them for training."""

    name: Literal["mnist", "fashion_mnist", "cifar10"]


@dataclass(frozen=True, slots=True)
class Grid:
    """ηλ₀ from `step` or `start` to `stop`, both included."""

    start: float
    stop: float
    step: float

    def ratios(self, *, thin: int = 1) -> NDArray[np.float64]:
        """Every `thin`-th rate of the grid, counted from the largest."""
        count = round((self.stop - self.start) / self.step) + 1
        full = np.round(self.start + self.step * np.arange(count), 10)
        return full[::-1][::thin][::-1].copy()


@dataclass(frozen=True, slots=True)
class Setting:
    """One figure.

    Attributes:
        title: What it shows, in a line.
        model: The model.
        data: What it is trained on.
        grid: The learning rates, as ηλ₀.
        steps: Most steps of a run.
        seed: The paper's.
        tolerance: |ΔL| at which a run stops; None: never.
        chunk: Runs stacked together, fixed so that digits repeat; measured on two cores.
    """

    title: str
    model: Pure | Biased | Net
    data: Point | Random | Images
    grid: Grid
    steps: int
    seed: int
    tolerance: float | None = None
    chunk: int = 60

    @property
    def long(self) -> bool:
        """Whether runs are too long to record every step."""
        return self.steps > 10_000


_QUADRATIC_GRID = Grid(0.1, 4.0, 0.1)
_LEAKY_GRID = Grid(0.1, 6.0, 0.1)
_IMAGE_GRID = Grid(0.5, 12.0, 0.5)
_SHORT_IMAGE_GRID = Grid(0.5, 8.0, 0.5)
_LEAKY: Slopes = (1.0, 0.5)


def _image(
    title: str, name: Literal["mnist", "fashion_mnist", "cifar10"], grid: Grid, hidden: int
) -> Setting:
    return Setting(
        title,
        Net(hidden=hidden),
        Images(name),
        grid,
        steps=100_000,
        seed=123,
        tolerance=1e-8,
        # A deeper net's weights alone fill the cache; of a shallow one, calls are shared.
        chunk=4 if hidden == 1 else 1,
    )


FIGURES: dict[int, Setting] = {
    1: Setting(
        "Pure quadratic model, one sample", Pure(1000, eigenvalues=(1.0, 2.0)), Point(1, 0),
        _QUADRATIC_GRID, steps=1000, seed=13),
    2: Setting(
        "Two-layer leaky ReLU net (slope 1/2), one sample", Net(_LEAKY), Point(1, 0),
        _LEAKY_GRID, steps=1000, seed=120),
    3: _image("Two-layer ReLU net, MNIST 0/1", "mnist", _IMAGE_GRID, hidden=1),
    4: Setting(
        "Pure quadratic model, 32 random samples", Pure(500, d=2, eigenvalues=(0.9, 1.1)),
        Random(32, d=2), _QUADRATIC_GRID, steps=100, seed=120),
    5: Setting(
        "Pure quadratic student of a masked teacher",
        Pure(500, masked=100, elementwise="tanh"), Random(32, test=1000, labels="teacher"),
        _QUADRATIC_GRID, steps=100, seed=120),
    6: Setting(
        "Quadratic model with bias, one sample", Biased(100, p=10), Point(1, 0),
        _QUADRATIC_GRID, steps=1000, seed=123),
    7: Setting(
        "Quadratic student with bias of a masked teacher",
        Biased(200, p=20, masked=50, masked_features=10, elementwise="tanh"),
        Random(32, test=2000, scale=2.0, labels="teacher"),
        _QUADRATIC_GRID, steps=1000, seed=123),
    8: Setting(
        "Two-layer leaky ReLU net (slope 3/4), one sample", Net((1.0, 0.75)), Point(1, 0),
        _LEAKY_GRID, steps=1000, seed=120),
    9: Setting(
        "Two-layer leaky ReLU net (slope 1/2), 32 random samples", Net(_LEAKY),
        Random(32, test=50), _LEAKY_GRID, steps=50, seed=120),
    10: Setting(
        "Two-layer ReLU net, one sample", Net(), Point(4, 2),
        Grid(0.1, 4.5, 0.1), steps=100, seed=123),
    11: _image("Two-layer ReLU net, MNIST 0/1, small rates", "mnist", Grid(0.5, 5, 0.5), hidden=1),
    12: _image("Two-layer ReLU net, Fashion-MNIST 0/1", "fashion_mnist", _IMAGE_GRID, hidden=1),
    13: _image("Two-layer ReLU net, CIFAR-10 0/1", "cifar10", _IMAGE_GRID, hidden=1),
    14: _image("Three-layer ReLU net, MNIST 0/1", "mnist", _IMAGE_GRID, hidden=2),
    15: _image(
        "Three-layer ReLU net, Fashion-MNIST 0/1", "fashion_mnist", _SHORT_IMAGE_GRID, hidden=2),
    16: _image("Three-layer ReLU net, CIFAR-10 0/1", "cifar10", _SHORT_IMAGE_GRID, hidden=2),
}  # fmt: skip
