"""Nets that scale, as others write them: nothing in the library was written for one of these."""

import itertools
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

F64 = torch.float64


def plain(layers: int, *, bias: bool = True, width: int = 8, slope: float = 0.0) -> nn.Sequential:
    """ReLU, or leaky, with or without biases: 5 inputs, 3 outputs."""
    sizes = [5, *[width] * (layers - 1), 3]
    parts: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        parts += [nn.Linear(a, b, bias=bias), nn.LeakyReLU(slope) if slope else nn.ReLU()]
    return nn.Sequential(*parts[:-1])


class Vgg(nn.Module):
    """Convolutions, activations in place, pooling, PReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2),
            nn.Conv2d(6, 8, 3, padding=1), nn.LeakyReLU(0.1), nn.AdaptiveAvgPool2d(2),
        )  # fmt: skip
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(32, 10), nn.PReLU(), nn.Dropout(0.0))
        self.last = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.last(self.head(self.body(x)))
        return z


class Block(nn.Module):
    """Two convolutions, and the identity or a convolution beside them."""

    def __init__(self, inside: int, out: int) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(inside, out, 3, padding=1), nn.Conv2d(out, out, 3, padding=1)
        self.short = nn.Conv2d(inside, out, 1) if inside != out else None

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.b(F.relu(self.a(x)))
        h += x if self.short is None else self.short(x)
        return F.relu(h)


class Residual(nn.Module):
    """A small residual net without normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 5, 3, padding=1)
        self.first, self.second = Block(5, 5), Block(5, 7)
        self.last = nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.second(F.max_pool2d(self.first(F.relu(self.stem(x))), 2))
        z: Tensor = self.last(torch.mean(h, dim=(2, 3)).view(x.size(0), -1))
        return z


class Functional(nn.Module):
    """Parameters of its own and functions of them; an argument that nobody gives."""

    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.randn(5, 8)), nn.Parameter(torch.randn(8))
        self.v, self.c = nn.Parameter(torch.randn(3, 8)), nn.Parameter(torch.randn(3))
        self.register_buffer("shift", torch.randn(5))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        h = (x - self.shift) @ self.w + self.b
        if mask is not None:
            h = torch.tanh(h * mask)
        h = torch.where(h > 0, h, 0.1 * h)
        return F.linear(torch.cat([h[:, :4], h[:, 4:].clamp(min=0)], 1), self.v, self.c) / 3


class Dictionary(nn.Module):
    """Layers in a ModuleDict and a ModuleList, and one that forward never uses."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({n: nn.Linear(5, 5) for n in ("in", "h0", "h1")})
        self.heads = nn.ModuleList([nn.Linear(5, 3), nn.Linear(5, 3)])
        self.unused = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.parts["in"](x).relu()
        for name in ("h0", "h1"):
            h = torch.relu(self.parts[name](h))
        first, second = (head(h) for head in self.heads)
        z: Tensor = first + second
        return z


class Tokens(nn.Module):
    """Embeddings of tokens and of places."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(9, 6), nn.Parameter(torch.randn(4, 6))
        self.last = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.last(F.relu(self.token(x) + self.place).flatten(1))
        return z


def _made(
    kind: Callable[[], nn.Module], x: Callable[[], Tensor]
) -> Callable[[int], tuple[nn.Module, Tensor]]:
    def make(seed: int) -> tuple[nn.Module, Tensor]:
        torch.manual_seed(seed)
        return kind().to(F64), x()

    return make


def _rows() -> Tensor:
    return torch.randn(7, 5, dtype=F64)


def _images() -> Tensor:
    return torch.randn(6, 3, 8, 8, dtype=F64)


NETS: Mapping[str, Callable[[int], tuple[nn.Module, Tensor]]] = {
    **{f"{k} layers": _made(lambda k=k: plain(k), _rows) for k in (2, 3, 4, 5)},  # type: ignore[misc]
    "leaky": _made(lambda: plain(3, slope=0.3), _rows),
    "vgg": _made(Vgg, _images),
    "residual": _made(Residual, _images),
    "functional": _made(Functional, _rows),
    "dictionary": _made(Dictionary, _rows),
    "tokens": _made(Tokens, lambda: torch.randint(9, (7, 4))),
}
"""A seed to a net in float64 and a batch for it."""
