"""The development list of ``bench/suggest.py``: the search's constants were chosen on these.

Disjoint from the reported list: teacher regressions, 1-D convolutions with and without BatchNorm,
a small attention net, autoencoders, layer-normed, deep and wide nets, all on generated data.
"""

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from suggest_tasks import BCE, CE, MSE, Task, half_mse, mlp

THREE = ("sgd", "momentum", "adam")


def teacher(
    n: int, d: int, k: int, *, relu: bool = False, seed: int = 0, noise: float = 0.1
) -> tuple[Tensor, Tensor]:
    """A random net's outputs, with noise."""
    g = torch.Generator().manual_seed(1000 + seed)
    x = torch.randn(n, d, generator=g)
    w = torch.randn(d, 16, generator=g) / d**0.5
    v = torch.randn(16, k, generator=g) / 4
    hidden = torch.relu(2 * x @ w) if relu else torch.tanh(2 * x @ w)
    return x, hidden @ v + noise * torch.randn(n, k, generator=g)


def signals(n: int = 400, length: int = 32, classes: int = 5) -> tuple[Tensor, Tensor]:
    """Noisy sines; the class is the frequency."""
    g = torch.Generator().manual_seed(7)
    y = torch.randint(classes, (n,), generator=g)
    t, phase = torch.arange(length) / length, 2 * math.pi * torch.rand(n, 1, generator=g)
    x = torch.sin(2 * math.pi * (1 + y[:, None]) * t + phase)
    return (x + 0.8 * torch.randn(n, length, generator=g))[:, None], y


def counts(n: int = 400, length: int = 12) -> tuple[Tensor, Tensor]:
    """Sequences of twelve symbols; the class is how many are among the first three."""
    g = torch.Generator().manual_seed(9)
    x = torch.randint(12, (n, length), generator=g)
    return x, (x < 3).sum(1).clamp(max=3)


def blobs(n: int = 400, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    """Six overlapping clouds in twenty dimensions."""
    g = torch.Generator().manual_seed(3)
    centres = torch.randn(6, 20, generator=g) * spread
    y = torch.randint(6, (n,), generator=g)
    return centres[y] + 1.2 * torch.randn(n, 20, generator=g), y


def two_blobs() -> tuple[Tensor, Tensor]:
    """The clouds in two classes."""
    x, y = blobs(spread=0.3)
    return x, (y < 3).float()[:, None]


def curve() -> tuple[Tensor, Tensor]:
    """Points near a curved four-dimensional surface in 32 dimensions, as their own targets."""
    g = torch.Generator().manual_seed(4)
    x = torch.tanh(torch.randn(400, 4, generator=g) @ torch.randn(4, 32, generator=g))
    x = x + 0.05 * torch.randn(400, 32, generator=g)
    return x, x


def normed(*sizes: int) -> nn.Module:
    """A ReLU MLP with LayerNorm."""
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(itertools.pairwise(sizes)):
        layers += [nn.Linear(a, b)] + ([nn.LayerNorm(b), nn.ReLU()] if i < len(sizes) - 2 else [])
    return nn.Sequential(*layers)


def convolutions(*, batch_norm: bool) -> nn.Module:
    """Two 1-D convolutions."""

    def norm(channels: int) -> nn.Module:
        return nn.BatchNorm1d(channels) if batch_norm else nn.Identity()

    return nn.Sequential(
        nn.Conv1d(1, 8, 5, padding=2), norm(8), nn.ReLU(), nn.MaxPool1d(2),
        nn.Conv1d(8, 16, 5, padding=2), norm(16), nn.ReLU(), nn.AdaptiveAvgPool1d(4),
        nn.Flatten(), nn.Linear(64, 5),
    )  # fmt: skip


class Attention(nn.Module):
    """One block of attention, mean-pooled."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(12, width), nn.Parameter(0.1 * torch.randn(12, width))
        self.block = nn.TransformerEncoderLayer(
            width, 1, 2 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.out = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T) codes to (N, 4)."""
        y: Tensor = self.out(self.block(self.embed(x) + self.place).mean(1))
        return y


class Scaled(nn.Module):
    """Weights N(0, 1), layers divided by √fan-in."""

    def __init__(self, *sizes: int, tanh: bool = False) -> None:
        super().__init__()
        pairs = itertools.pairwise(sizes)
        self.weights = nn.ParameterList([nn.Parameter(torch.randn(a, b)) for a, b in pairs])
        self.tanh = tanh

    def forward(self, x: Tensor) -> Tensor:
        """(N, d) to (N, k)."""
        for i, w in enumerate(self.weights):
            x = x @ w / math.sqrt(w.shape[0])
            if i < len(self.weights) - 1:
                x = torch.tanh(x) if self.tanh else torch.relu(x)
        return x


def one_hot_mse(z: Tensor, y: Tensor) -> Tensor:
    """MSE to targets of zeros and ones."""
    return F.mse_loss(z, F.one_hot(y, 6).to(z.dtype))


def _tasks() -> dict[str, Task]:
    return {
        "teacher, tanh": Task(
            lambda: mlp(10, 64, 1, act=nn.Tanh), MSE, lambda: teacher(400, 10, 1), 32, THREE
        ),
        "teacher, ReLU": Task(
            lambda: mlp(20, 64, 64, 3), MSE, lambda: teacher(500, 20, 3, relu=True, seed=1), 50,
            THREE,
        ),
        "teacher, full batch": Task(
            lambda: mlp(8, 100, 1), half_mse, lambda: teacher(128, 8, 1, seed=2, noise=0.0), None,
            THREE,
        ),
        "1-D convolutions": Task(
            lambda: convolutions(batch_norm=False), CE, signals, 32, THREE
        ),
        "1-D convolutions, BatchNorm": Task(
            lambda: convolutions(batch_norm=True), CE, signals, 32, THREE
        ),
        "attention": Task(Attention, CE, counts, 40, THREE),
        "autoencoder, tanh": Task(
            lambda: mlp(32, 16, 4, 16, 32, act=nn.Tanh), MSE, curve, 32, THREE
        ),
        "autoencoder, ReLU": Task(lambda: mlp(32, 64, 8, 64, 32), MSE, curve, 64, THREE),
        "LayerNorm MLP": Task(lambda: normed(20, 48, 48, 6), CE, blobs, 32, THREE),
        "deep LayerNorm MLP": Task(
            lambda: normed(10, 32, 32, 32, 32, 1), MSE, lambda: teacher(400, 10, 1, seed=5), 32,
            THREE,
        ),
        "wide net, full batch": Task(
            lambda: Scaled(16, 1024, 1), half_mse, lambda: teacher(128, 16, 1, relu=True, seed=3),
            None, THREE,
        ),
        "wide net": Task(lambda: mlp(20, 1024, 6), CE, blobs, 32, THREE),
        "wide tanh net, MSE": Task(
            lambda: Scaled(20, 256, 256, 6, tanh=True), one_hot_mse, blobs, 64, THREE
        ),
        "deep wide net, full batch": Task(
            lambda: Scaled(10, 128, 128, 1), half_mse,
            lambda: teacher(64, 10, 1, relu=True, seed=8), None, THREE,
        ),
        "softmax regression": Task(
            lambda: nn.Linear(20, 6), CE, lambda: blobs(spread=0.4), 20, THREE
        ),
        "deep ReLU MLP": Task(lambda: mlp(20, 40, 40, 40, 40, 40, 6), CE, blobs, 40, THREE),
        "two classes": Task(lambda: mlp(20, 32, 1), BCE, two_blobs, 32, THREE),
    }  # fmt: skip


TASKS = _tasks()
