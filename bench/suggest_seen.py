"""A second development list of ``bench/suggest.py``: once held out from a search, and then seen."""

import torch
from sklearn import datasets
from torch import Tensor, nn
from torch.nn import functional as F

from suggest_tasks import (
    BCE,
    CE,
    IMAGES,
    MSE,
    Task,
    breast_cancer,
    diabetes,
    digits,
    digits_one_hot,
    half_mse,
    images,
    mlp,
    next_character,
    text,
    vocabulary,
    wine,
)


def iris() -> tuple[Tensor, Tensor]:
    """150 flowers, three classes."""
    x, y = datasets.load_iris(return_X_y=True)
    return torch.tensor((x - x.mean(0)) / x.std(0), dtype=torch.float32), torch.tensor(y)


def digit_images() -> tuple[Tensor, Tensor]:
    """The digits as pictures, one channel."""
    x, y = digits()
    return x.view(-1, 1, 8, 8), y


def digit_rows() -> tuple[Tensor, Tensor]:
    """The digits as sequences of eight rows."""
    x, y = digits()
    return x.view(-1, 8, 8), y


def themselves() -> tuple[Tensor, Tensor]:
    """The digits as their own targets."""
    x, _ = digits()
    return x, x


def even() -> tuple[Tensor, Tensor]:
    """Whether a digit is even."""
    x, y = digits()
    return x, (y % 2 == 0).float()[:, None]


class Residual(nn.Module):
    """An MLP with LayerNorm and skip connections."""

    def __init__(self, inputs: int, width: int, blocks: int, outputs: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(inputs, width), nn.Linear(width, outputs)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU())
            for _ in range(blocks)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs) to (N, outputs)."""
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        y: Tensor = self.last(x)
        return y


class Memory(nn.Module):
    """An LSTM that reads the rows of a picture."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(8, 24, batch_first=True), nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, 8) to (N, 10)."""
        y: Tensor = self.out(self.lstm(x)[0][:, -1])
        return y


class Windows(nn.Module):
    """The next character from the last few, by embeddings and causal convolutions."""

    def __init__(self, letters: int, width: int = 24) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(letters, width), nn.Linear(width, letters)
        self.convolutions = nn.ModuleList(nn.Conv1d(width, width, 3) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """(N, T) codes to (N, T, letters)."""
        z = self.embed(x).transpose(1, 2)
        for layer in self.convolutions:
            z = torch.relu(layer(F.pad(z, (2, 0))))
        y: Tensor = self.out(z.transpose(1, 2))
        return y


def smoothed(z: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy with smoothed labels."""
    return F.cross_entropy(z, y, label_smoothing=0.1)


def picture_net(*, batch_norm: bool = False, dropout: float = 0.0) -> nn.Module:
    """A small convolutional net for pictures of 8 × 8."""
    norm = nn.BatchNorm2d(12) if batch_norm else nn.Identity()
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), norm, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Dropout(dropout), nn.Linear(192, 10),
    )  # fmt: skip


TASKS: dict[str, Task] = {
    "digits deep tanh MLP, cross-entropy": Task(
        lambda: mlp(64, 48, 48, 48, 10, act=nn.Tanh), CE, digits, 50, ("sgd", "adamw")
    ),
    "digits residual MLP, cross-entropy": Task(
        lambda: Residual(64, 48, 3, 10), CE, digits, 64, ("momentum", "adam")
    ),
    "digits CNN, cross-entropy": Task(
        lambda: picture_net(), CE, digit_images, 64, ("sgd", "momentum", "adam")
    ),
    "digits CNN with BatchNorm, smoothed labels": Task(
        lambda: picture_net(batch_norm=True), smoothed, digit_images, 32, ("sgd", "adamw")
    ),
    "digits CNN with dropout, cross-entropy": Task(
        lambda: picture_net(dropout=0.3), CE, digit_images, 64, ("momentum", "adam")
    ),
    "digits LSTM, cross-entropy": Task(Memory, CE, digit_rows, 64, ("sgd", "adam")),
    "digits autoencoder, MSE": Task(
        lambda: mlp(64, 32, 8, 32, 64), MSE, themselves, 64, ("momentum", "adamw")
    ),
    "even digits, SiLU MLP, BCE": Task(
        lambda: mlp(64, 40, 40, 1, act=nn.SiLU), BCE, even, 100, ("sgd", "adam")
    ),
    "digits ReLU MLP, MSE to one-hot": Task(
        lambda: mlp(64, 256, 10), MSE, digits_one_hot, 128, ("sgd", "momentum")
    ),
    "iris MLP, cross-entropy, full batch": Task(
        lambda: mlp(4, 16, 16, 3), CE, iris, None, ("sgd", "momentum", "adam")
    ),
    "diabetes linear model, half-MSE, full batch": Task(
        lambda: nn.Linear(10, 1), half_mse, diabetes, None, ("sgd", "momentum")
    ),
    "diabetes tanh MLP, smooth L1": Task(
        lambda: mlp(10, 50, 1, act=nn.Tanh), F.smooth_l1_loss, diabetes, 20, ("sgd", "adamw")
    ),
    "breast cancer deep MLP, BCE, full batch": Task(
        lambda: mlp(30, 24, 24, 24, 1), BCE, breast_cancer, None, ("momentum", "adam")
    ),
    "wine residual MLP, cross-entropy": Task(
        lambda: Residual(13, 24, 2, 3), CE, wine, 16, ("sgd", "adam")
    ),
    "text convolutions, cross-entropy": Task(
        lambda: Windows(vocabulary()), next_character, text, 32, ("momentum", "adam")
    ),
}
if IMAGES.exists():
    TASKS |= {
        "Fashion-MNIST MLP, cross-entropy, full batch": Task(
            lambda: nn.Sequential(nn.Flatten(), mlp(784, 64, 2)), CE, lambda: images("fmnist01"),
            None, ("sgd", "adam"),
        ),
        "CIFAR two-layer ReLU net, half-MSE": Task(
            lambda: mlp(3072, 128, 1), half_mse, lambda: images("cifar01", regression=True), 16,
            ("sgd", "momentum"),
        ),
    }  # fmt: skip
