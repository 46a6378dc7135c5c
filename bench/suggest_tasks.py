"""The tasks of ``bench/suggest.py``: the reported list, on which nothing was tuned.

A task makes a model from a seed, and holds its loss, its data and its batch size. Data ship with
scikit-learn or with Python, or are the two-class images of a folder ``shared/data`` beside the
project, whose tasks are left out where it is absent. Small, so that 200 steps take a second.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn import datasets
from torch import Tensor, nn
from torch.nn import functional as F

IMAGES = Path(__file__).parents[1] / "../shared/data"


Loss = Callable[[Tensor, Tensor], Tensor]
Data = Callable[[], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Task:
    """One thing to train.

    Attributes:
        make: Seed → model.
        loss: ``loss(outputs, targets)``.
        data: Makes inputs and targets.
        batch_size: Samples a batch; None is all.
        optimizers: Those it is paired with.
    """

    make: Callable[[], nn.Module]
    loss: Loss
    data: Data
    batch_size: int | None
    optimizers: tuple[str, ...]


def mlp(*sizes: int, act: type[nn.Module] = nn.ReLU) -> nn.Module:
    """Linear layers with an activation between them, torch's default initialisation."""
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(itertools.pairwise(sizes)):
        layers += [nn.Linear(a, b)] + ([act()] if i < len(sizes) - 2 else [])
    return nn.Sequential(*layers)


def _table(name: str) -> tuple[Tensor, np.ndarray]:
    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    x = (x - x.mean(0)) / (x.std(0) + 1e-8)
    return torch.tensor(x, dtype=torch.float32), y


def digits() -> tuple[Tensor, Tensor]:
    """1,797 images of 8 × 8."""
    x, y = datasets.load_digits(return_X_y=True)
    return torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y)


def digits_one_hot() -> tuple[Tensor, Tensor]:
    """The same with targets of zeros and ones."""
    x, y = digits()
    return x, F.one_hot(y, 10).float()


def diabetes() -> tuple[Tensor, Tensor]:
    """442 patients, targets scaled to unit variance."""
    x, y = _table("diabetes")
    return x, torch.tensor((y - y.mean()) / y.std(), dtype=torch.float32)[:, None]


def breast_cancer() -> tuple[Tensor, Tensor]:
    """569 patients, two classes."""
    x, y = _table("breast_cancer")
    return x, torch.tensor(y, dtype=torch.float32)[:, None]


def wine() -> tuple[Tensor, Tensor]:
    """178 wines, three classes."""
    x, y = _table("wine")
    return x, torch.tensor(y)


def images(name: str, *, regression: bool = False) -> tuple[Tensor, Tensor]:
    """128 real images of two classes."""
    with np.load(IMAGES / f"{name}.npz") as stored:
        x, y = stored["x_train"], stored["y_train"]
    x = torch.tensor(x / 255.0, dtype=torch.float32)
    x = (x - x.mean()) / x.std()
    x = x if x.ndim == 4 else x[:, None]
    if regression:
        return x.flatten(1), torch.tensor(y, dtype=torch.float32)[:, None]
    return x, torch.tensor(y > 0).long()


def text(length: int = 24, count: int = 600) -> tuple[Tensor, Tensor]:
    """Characters of Python's own help pages, and the next character at every place."""
    from pydoc_data import topics

    pages = " ".join(topics.topics[k] for k in sorted(topics.topics))[:40_000].lower()
    letters = sorted(set(pages))
    codes = torch.tensor([letters.index(c) for c in pages])
    starts = torch.randperm(len(codes) - length - 1, generator=torch.Generator().manual_seed(1))
    rows = torch.stack([codes[s : s + length + 1] for s in starts[:count].tolist()])
    return rows[:, :-1], rows[:, 1:]


def vocabulary() -> int:
    """Number of different characters in `text`."""
    return int(text()[0].max()) + 1


class WideNet(nn.Module):
    """One hidden ReLU layer, all weights N(0, 1), outputs scaled: the theory's model 3 with n."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.u = nn.Parameter(torch.randn(inputs, width))
        self.v = nn.Parameter(torch.randn(width, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs) to (N, 1)."""
        return torch.relu(x @ self.u) @ self.v / math.sqrt(self.u.numel())


class Convolutions(nn.Module):
    """Two convolutions with BatchNorm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(144, 2),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, 2)."""
        y: Tensor = self.body(x)
        return y


class Transformer(nn.Module):
    """One causal block that predicts the next character."""

    def __init__(self, letters: int, width: int = 32, length: int = 24) -> None:
        super().__init__()
        self.embed = nn.Embedding(letters, width)
        self.place = nn.Parameter(0.02 * torch.randn(length, width))
        self.block = nn.TransformerEncoderLayer(
            width, 4, 64, dropout=0.0, batch_first=True, norm_first=True
        )
        self.out = nn.Linear(width, letters)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T) codes to (N, T, letters)."""
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        y: Tensor = self.out(self.block(self.embed(x) + self.place, src_mask=mask, is_causal=True))
        return y


class Recurrent(nn.Module):
    """A GRU that predicts the next character."""

    def __init__(self, letters: int, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Embedding(letters, width)
        self.gru = nn.GRU(width, width, batch_first=True)
        self.out = nn.Linear(width, letters)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T) codes to (N, T, letters)."""
        y: Tensor = self.out(self.gru(self.embed(x))[0])
        return y


def next_character(z: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy over all places."""
    return F.cross_entropy(z.flatten(0, -2), y.flatten())


def half_mse(z: Tensor, y: Tensor) -> Tensor:
    """(1/2D) Σ (z − y)²."""
    return 0.5 * F.mse_loss(z, y)


def unscaled_diabetes() -> tuple[Tensor, Tensor]:
    """The patients' measurements in units as far apart as 1 and 1000."""
    x, y = diabetes()
    return x * torch.logspace(0, 3, 10), y


def pairs_of_words() -> tuple[Tensor, Tensor]:
    """A word of Python's help pages and one of the three after it: which, among 400."""
    from pydoc_data import topics

    words = " ".join(topics.topics[k] for k in sorted(topics.topics))[:60_000].lower().split()
    common = sorted(set(words), key=lambda w: (-words.count(w), w))[:400]
    codes = {w: k for k, w in enumerate(common)}
    known = torch.tensor([codes[w] for w in words if w in codes])
    return torch.stack([known[:-3], known[1:-2], known[2:-1]], 1), known[3:]


class NextWord(nn.Module):
    """Embeddings N(0, 1) of three words, one hidden layer, the next word."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.embed = nn.Embedding(400, width)
        self.rest = mlp(3 * width, 64, 400)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3) codes to (N, 400)."""
        y: Tensor = self.rest(self.embed(x).flatten(1))
        return y


def deep_linear(depth: int, *sizes: int) -> nn.Module:
    """Linear layers with nothing between them, no biases."""
    inner = [nn.Linear(sizes[1], sizes[1], bias=False) for _ in range(depth - 2)]
    ends = nn.Linear(sizes[0], sizes[1], bias=False), nn.Linear(sizes[1], sizes[2], bias=False)
    return nn.Sequential(ends[0], *inner, ends[1])


FOUR = ("sgd", "momentum", "adam", "adamw")
CE, BCE, MSE = F.cross_entropy, F.binary_cross_entropy_with_logits, F.mse_loss

TASKS: dict[str, Task] = {
    "digits MLP, cross-entropy": Task(lambda: mlp(64, 64, 10), CE, digits, 64, FOUR),
    "digits tanh MLP, MSE": Task(
        lambda: mlp(64, 100, 10, act=nn.Tanh), MSE, digits_one_hot, 64, FOUR
    ),
    "diabetes MLP, MSE": Task(lambda: mlp(10, 64, 64, 1), MSE, diabetes, 32, FOUR),
    "breast cancer MLP, BCE": Task(lambda: mlp(30, 32, 1), BCE, breast_cancer, 32, FOUR),
    "wine MLP, cross-entropy, full batch": Task(lambda: mlp(13, 32, 3), CE, wine, None, FOUR),
    "text transformer, cross-entropy": Task(
        lambda: Transformer(vocabulary()), next_character, text, 32, FOUR
    ),
    "text GRU, cross-entropy": Task(
        lambda: Recurrent(vocabulary()), next_character, text, 32, FOUR
    ),
    "words, embeddings N(0, 1), cross-entropy": Task(NextWord, CE, pairs_of_words, 32, FOUR),
    "diabetes in its own units, Huber": Task(
        lambda: mlp(10, 32, 1), F.huber_loss, unscaled_diabetes, 32, FOUR
    ),
    "digits deep linear net, MSE, full batch": Task(
        lambda: deep_linear(4, 64, 32, 10), MSE, digits_one_hot, None, FOUR
    ),
    "digits wide net, N(0, 1), Huber": Task(
        lambda: WideNet(64, 1024), F.huber_loss, lambda: (digits()[0], digits()[1][:, None] / 9.0),
        64, FOUR,
    ),
}  # fmt: skip
if IMAGES.exists():
    TASKS |= {
        "Fashion-MNIST CNN with BatchNorm, cross-entropy": Task(
            lambda: Convolutions(1), CE, lambda: images("fmnist01"), 32, FOUR
        ),
        "CIFAR CNN with BatchNorm, cross-entropy": Task(
            lambda: Convolutions(3), CE, lambda: images("cifar01"), 32, FOUR
        ),
        "MNIST wide ReLU net, half-MSE, full batch": Task(
            lambda: WideNet(784, 512), half_mse, lambda: images("mnist01", regression=True), None,
            FOUR,
        ),
    }  # fmt: skip
