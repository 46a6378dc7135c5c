"""The third list of ``bench/suggest.py``: written when the search was finished, and run once.

Other models, data, losses and pairings than in the other lists, among them nets whose best rate
catapults first, features in their own units, embeddings and products of matrices. Nothing in the
search was changed after these were seen: what they give is what to expect on a task of one's own.
"""

import itertools

import numpy as np
import torch
from sklearn import datasets
from torch import Tensor, nn
from torch.nn import functional as F

from suggest_development import Scaled
from suggest_tasks import BCE, CE, MSE, Task, deep_linear, digits, half_mse, mlp, next_character

TWO, ADAMS, FOUR = ("sgd", "momentum"), ("sgd", "adam"), ("sgd", "momentum", "adam", "adamw")


def friedman() -> tuple[Tensor, Tensor]:
    """Friedman's first regression, targets of unit variance."""
    x, y = datasets.make_friedman1(n_samples=400, noise=0.5, random_state=3)
    y = (y - y.mean()) / y.std()
    return torch.tensor(x - 0.5, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)[:, None]


def five_classes() -> tuple[Tensor, Tensor]:
    """Five classes in thirty dimensions, some labels wrong."""
    x, y = datasets.make_classification(
        500, 30, n_informative=12, n_classes=5, flip_y=0.05, random_state=5
    )
    return torch.tensor(x, dtype=torch.float32), torch.tensor(y)


def moons() -> tuple[Tensor, Tensor]:
    """Two moons."""
    x, y = datasets.make_moons(200, noise=0.15, random_state=7)
    return torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)[:, None]


def roll() -> tuple[Tensor, Tensor]:
    """A rolled sheet: where on it a point lies."""
    x, t = datasets.make_swiss_roll(400, noise=0.2, random_state=8)
    x = (x - x.mean(0)) / x.std(0)
    t = (t - t.mean()) / t.std()
    return torch.tensor(x, dtype=torch.float32), torch.tensor(t, dtype=torch.float32)[:, None]


def raw(name: str) -> tuple[Tensor, Tensor]:
    """A table of scikit-learn's in the units it comes in."""
    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    return torch.tensor(x, dtype=torch.float32), torch.tensor(y)


def raw_two() -> tuple[Tensor, Tensor]:
    """The same of two classes."""
    x, y = raw("breast_cancer")
    return x / 100, y.float()[:, None]


def low_or_high() -> tuple[Tensor, Tensor]:
    """Digits up to four or above, as signs."""
    x, y = digits()
    return x[:512], torch.sign(y[:512].float() - 4.5)[:, None]


def pictures() -> tuple[Tensor, Tensor]:
    """Digits, one channel."""
    x, y = digits()
    return x.view(-1, 1, 8, 8), y


def remembered(n: int = 400, length: int = 10) -> tuple[Tensor, Tensor]:
    """Noisy sequences of eight numbers a step; the class is the largest of the third step's."""
    g = torch.Generator().manual_seed(41)
    x = torch.randn(n, length, 8, generator=g)
    return x, x[:, 2].argmax(1)


def brackets(n: int = 500, length: int = 16) -> tuple[Tensor, Tensor]:
    """Nested brackets of three kinds; the next symbol at every place."""
    g = np.random.default_rng(42)
    rows = np.zeros((n, length + 1), np.int64)
    for row in rows:
        waiting: list[int] = []
        for t in range(length + 1):
            close = bool(waiting) and g.random() < 0.5
            row[t] = 3 + waiting.pop() if close else int(g.integers(3))
            if not close:
                waiting.append(int(row[t]))
    codes = torch.tensor(rows)
    return codes[:, :-1], codes[:, 1:]


def ratings() -> tuple[Tensor, Tensor]:
    """Some entries of a 60 × 40 matrix of rank 4, with noise."""
    g = torch.Generator().manual_seed(43)
    full = torch.randn(60, 4, generator=g) @ torch.randn(4, 40, generator=g) / 2
    at = torch.stack(
        [torch.randint(60, (900,), generator=g), torch.randint(40, (900,), generator=g)], 1
    )
    return at, full[at[:, 0], at[:, 1]][:, None] + 0.1 * torch.randn(900, 1, generator=g)


class Factors(nn.Module):
    """A matrix as a product of embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.columns = nn.Embedding(60, 8), nn.Embedding(40, 8)
        for e in (self.rows, self.columns):
            nn.init.normal_(e.weight, std=0.1)

    def forward(self, at: Tensor) -> Tensor:
        """(N, 2) places to (N, 1)."""
        y: Tensor = (self.rows(at[:, 0]) * self.columns(at[:, 1])).sum(1, keepdim=True)
        return y


class Blocks(nn.Module):
    """Two causal blocks of attention that predict the next symbol."""

    def __init__(self, letters: int = 6, width: int = 24, length: int = 16) -> None:
        super().__init__()
        self.embed = nn.Embedding(letters, width)
        self.place = nn.Parameter(0.1 * torch.randn(length, width))
        layer = nn.TransformerEncoderLayer(width, 2, 48, 0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(width, letters)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T) codes to (N, T, letters)."""
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        y: Tensor = self.out(self.blocks(self.embed(x) + self.place, mask=mask, is_causal=True))
        return y


class Reader(nn.Module):
    """A plain recurrent net that reads a sequence, and says a class."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.out = nn.RNN(8, 32, batch_first=True), nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, 8) to (N, 8)."""
        y: Tensor = self.out(self.rnn(x)[0][:, -1])
        return y


class Mixer(nn.Module):
    """Layers over the rows and over the columns of a picture in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm([8, 8]) for _ in range(4))
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 24), nn.GELU(), nn.Linear(24, 8)) for _ in range(4)
        )
        self.out = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, 8, 8) to (N, 10)."""
        z = x[:, 0]
        for norm, layer in zip(self.norms, self.layers, strict=True):
            z = (z + layer(norm(z))).transpose(1, 2)
        y: Tensor = self.out(z.flatten(1))
        return y


def normed_mlp(*sizes: int) -> nn.Module:
    """A ReLU MLP with BatchNorm."""
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes[:-1]):
        layers += [nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1]))


def grouped() -> nn.Module:
    """Two convolutions with GroupNorm."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.SiLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.SiLU(), nn.Flatten(),
        nn.Linear(256, 10),
    )  # fmt: skip


def far_huber(z: Tensor, y: Tensor) -> Tensor:
    """Huber's loss, targets three times as large."""
    return F.huber_loss(z, 3 * y)


def hinge(z: Tensor, y: Tensor) -> Tensor:
    """The squared hinge loss."""
    return torch.relu(1 - z * y).square().mean()


TASKS: dict[str, Task] = {
    "Friedman, deep ReLU MLP, MSE": Task(lambda: mlp(10, 100, 100, 1), MSE, friedman, 50, FOUR),
    "five classes, MLP with BatchNorm": Task(
        lambda: normed_mlp(30, 48, 48, 5), CE, five_classes, 25, ("momentum", "adam")
    ),
    "moons, tanh MLP, BCE, full batch": Task(
        lambda: mlp(2, 32, 32, 1, act=nn.Tanh), BCE, moons, None, ("sgd", "adamw")
    ),
    "rolled sheet, GELU MLP, MSE": Task(
        lambda: mlp(3, 64, 64, 1, act=nn.GELU), MSE, roll, 40, ("momentum", "adam")
    ),
    "digits mixer, cross-entropy": Task(Mixer, CE, pictures, 64, ("sgd", "adamw")),
    "digits CNN with GroupNorm, cross-entropy": Task(grouped, CE, pictures, 32, ADAMS),
    "remembering RNN, cross-entropy": Task(Reader, CE, remembered, 40, ("momentum", "adam")),
    "brackets transformer, cross-entropy": Task(
        Blocks, next_character, brackets, 32, ("sgd", "momentum", "adamw")
    ),
    "wine in its own units, cross-entropy": Task(
        lambda: mlp(13, 32, 3), CE, lambda: raw("wine"), 32, ADAMS
    ),
    "breast cancer, hundredths of its units, logistic regression": Task(
        lambda: nn.Linear(30, 1), BCE, raw_two, 64, ADAMS
    ),
    "Friedman, six linear layers, half-MSE": Task(
        lambda: deep_linear(6, 10, 16, 1), half_mse, friedman, None, ("momentum", "adamw")
    ),
    "matrix factors, MSE": Task(Factors, MSE, ratings, 64, ADAMS),
    "digits wide net, N(0, 1), half-MSE to signs": Task(
        lambda: Scaled(64, 2048, 1), half_mse, low_or_high, None, TWO
    ),
    "digits wide net, N(0, 1), squared hinge": Task(
        lambda: Scaled(64, 512, 1), hinge, low_or_high, 64, TWO
    ),
    "Friedman, wide net, torch's initialisation, Huber": Task(
        lambda: mlp(10, 4096, 1), far_huber, friedman, 64, TWO
    ),
    "Friedman, wide tanh net, N(0, 1), Huber": Task(
        lambda: Scaled(10, 1024, 1, tanh=True), far_huber, friedman, None, TWO
    ),
}
