"""Small nets of every supported kind, each with inputs; three outputs."""

import torch
from torch import Tensor, nn


class Recurrent(nn.Module):
    """Two recurrent layers with dropout between, read out at the end."""

    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU]) -> None:
        super().__init__()
        self.cells = kind(4, 5, num_layers=2, dropout=0.3, batch_first=True)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.cells(x)[0][:, -1])
        return out


class Attention(nn.Module):
    """One transformer encoder layer, averaged over positions."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.layer(x).mean(1))
        return out


class Tied(nn.Module):
    """An embedding whose weight is the readout's too."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(3, 6)
        self.head = nn.Linear(6, 3, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, i: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.embed(i)).mean(1))
        return out


class TwoInputs(nn.Module):
    """Takes two inputs, by position or by name."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(2, 3), nn.Linear(3, 3)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        out: Tensor = self.a(left) + torch.tanh(self.b(right))
        return out


def frozen_first() -> nn.Module:
    net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
    net[0].requires_grad_(False)
    return net


def conv() -> nn.Module:
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.GroupNorm(2, 4),
        nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, 3),
    )  # fmt: skip
    norm = net[1]
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    return net


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 9), nn.ReLU(), nn.Linear(9, 6), nn.Tanh(), nn.Linear(6, 3))


def layer_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.GELU(), nn.Linear(7, 3))


NETS = {
    "mlp": (mlp, (10, 5)),
    "conv": (conv, (10, 2, 6, 6)),
    "layer_norm": (layer_norm, (10, 5)),
    "attention": (Attention, (10, 4, 8)),
    "lstm": (lambda: Recurrent(nn.LSTM), (10, 4, 4)),
    "gru": (lambda: Recurrent(nn.GRU), (10, 4, 4)),
    "tied": (Tied, (10, 4)),
    "frozen": (frozen_first, (10, 5)),
}


def draw(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor]:
    """Return a net and its inputs, seeded, in evaluation mode."""
    torch.manual_seed(0)
    make, shape = NETS[name]
    net = make().to(dtype).eval()
    x = torch.randint(0, 3, shape) if name == "tied" else torch.randn(shape, dtype=dtype)
    return net, x
