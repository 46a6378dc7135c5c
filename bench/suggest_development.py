"""The development list of ``bench/suggest.py``: the search's constants were chosen on these.

Disjoint from the reported list: teacher regressions, 1-D convolutions with and without BatchNorm,
a small attention net, autoencoders, layer-normed, deep and wide nets, all on generated data.
"""

import itertools
import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from suggest_tasks import BCE, CE, MSE, Data, Loss, Task, half_mse, mlp

THREE = ("sgd", "momentum", "adam")
TWO = ("sgd", "momentum")
ALL = ("sgd", "momentum", "adam", "adamw")


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


class Words(nn.Module):
    """A small causal transformer over symbols, torch's initialisation."""

    def __init__(self, letters: int = 12, width: int = 32) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(letters, width), nn.Embedding(12, width)
        self.block = nn.TransformerEncoderLayer(
            width, 2, 4 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.out = nn.Linear(width, letters)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T) codes to (N, T, letters)."""
        z = self.embed(x) + self.place(torch.arange(x.shape[1]))
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        y: Tensor = self.out(self.block(z, src_mask=mask, is_causal=True))
        return y


class Bag(nn.Module):
    """Embeddings N(0, 1) of a large vocabulary, averaged, and a linear layer."""

    def __init__(self, letters: int = 300, width: int = 16) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(letters, width), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T) codes to (N, 4)."""
        y: Tensor = self.out(self.embed(x).mean(1))
        return y


def sums(n: int = 500, length: int = 12) -> tuple[Tensor, Tensor]:
    """Sequences in which a symbol is the sum of the two before it, modulo twelve, or noise."""
    g = torch.Generator().manual_seed(21)
    x = torch.randint(12, (n, length + 1), generator=g)
    for t in range(2, length + 1):
        said = torch.rand(n, generator=g) < 0.9
        x[:, t] = torch.where(said, (x[:, t - 1] + x[:, t - 2]) % 12, x[:, t])
    return x[:, :-1], x[:, 1:]


def topics(n: int = 600, length: int = 20) -> tuple[Tensor, Tensor]:
    """Bags of words of four topics."""
    g = torch.Generator().manual_seed(22)
    y = torch.randint(4, (n,), generator=g)
    ours = torch.randint(75, (n, length), generator=g) + 75 * y[:, None]
    noise = torch.randint(300, (n, length), generator=g)
    return torch.where(torch.rand(n, length, generator=g) < 0.3, ours, noise), y


def unscaled() -> tuple[Tensor, Tensor]:
    """A teacher's data whose features have sizes from 0.1 to 300."""
    x, y = teacher(400, 10, 1, relu=True, seed=11)
    return x * torch.logspace(-1, 2.5, 10), y


def next_symbol(z: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy over all places."""
    return F.cross_entropy(z.flatten(0, -2), y.flatten())


def big(case: int) -> tuple[Tensor, Tensor]:
    """Teachers' data of several sizes: 1, 2, 3 and 4 times a unit's; 5: signs."""
    inputs, outputs = (16, 2) if case == 2 else (24, 1)
    x, y = teacher(256, inputs, outputs, relu=case % 2 == 1, seed=30 + case)
    return x, torch.sign(y) if case == 5 else min(case, 4) * y


def huber(z: Tensor, y: Tensor) -> Tensor:
    """Huber's loss with δ = 1."""
    return F.huber_loss(z, y)


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
        "words transformer": Task(Words, next_symbol, sums, 32, ALL),
        "bag of embeddings": Task(Bag, CE, topics, 40, ALL),
        "unscaled features": Task(lambda: mlp(10, 64, 1), huber, unscaled, 32, ALL),
        "deep linear net": Task(
            lambda: nn.Sequential(*(nn.Linear(12, 12, bias=False) for _ in range(5))), MSE,
            lambda: teacher(300, 12, 12, seed=12), None, ALL,
        ),
        "wide net, N(0, 1), MSE": Task(
            lambda: Scaled(24, 2048, 1), MSE, lambda: teacher(256, 24, 1, relu=True, seed=13), 32,
            ALL,
        ),
        "wide net, N(0, 1), Huber": Task(
            lambda: Scaled(24, 1024, 2), huber, lambda: teacher(256, 24, 2, seed=14), None, ALL
        ),
        "wide net, torch's initialisation, MSE": Task(
            lambda: mlp(24, 2048, 1), MSE, lambda: teacher(256, 24, 1, relu=True, seed=15), 32, TWO
        ),
        "wide net, torch's initialisation, Huber": Task(
            lambda: mlp(16, 1024, 3), huber, lambda: teacher(256, 16, 3, seed=16), None, TWO
        ),
    }  # fmt: skip


def _catapults() -> dict[str, Task]:
    """Wide nets with losses that grow like the error: many train best past the first rise."""
    made: dict[str, tuple[Callable[[], nn.Module], Loss, Data, int | None]] = {
        "512, Huber, full batch": (lambda: Scaled(24, 512, 1), huber, lambda: big(1), None),
        "4096, Huber": (lambda: Scaled(24, 4096, 1), huber, lambda: big(1), 32),
        "1024, Huber, two outputs": (lambda: Scaled(16, 1024, 2), huber, lambda: big(2), 64),
        "2048, torch's, Huber": (lambda: mlp(24, 2048, 1), huber, lambda: big(3), None),
        "three layers, Huber": (lambda: Scaled(24, 256, 256, 1), huber, lambda: big(4), None),
        "512, half-MSE, signs": (lambda: Scaled(24, 512, 1), half_mse, lambda: big(5), 32),
        "1024, smooth L1, δ = 0.1": (
            lambda: Scaled(24, 1024, 1), partial(F.smooth_l1_loss, beta=0.1), lambda: big(6), 32
        ),
    }  # fmt: skip
    return {
        f"wide net, {name}": Task(make, loss, data, size, TWO)
        for name, (make, loss, data, size) in made.items()
    }


TASKS = _tasks() | _catapults()
