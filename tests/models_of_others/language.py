"""Text: a decoder with its own loss, adapters on a frozen base, recurrent nets, embeddings."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from tests.models_of_others.case import Case


@dataclass
class Output:
    """As language models return it."""

    logits: Tensor
    loss: Tensor | None = None


class Decoder(nn.Module):
    """GPT-2's shape: tied embeddings, causal attention, its own shifted cross-entropy."""

    def __init__(self, vocabulary: int = 7, width: int = 4, length: int = 6) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(length, width)
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(3)])
        self.attention = nn.Linear(width, 3 * width)
        self.mlp = nn.Sequential(nn.Linear(width, 8), nn.GELU(), nn.Linear(8, width))
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> Output:
        x = self.tokens(input_ids) + self.positions.weight[: input_ids.shape[1]]
        q, k, v = self.attention(self.norms[0](x)).unsqueeze(1).chunk(3, -1)
        x = x + F.scaled_dot_product_attention(q, k, v, is_causal=True)[:, 0]
        x = x + self.mlp(self.norms[1](x))
        logits = self.head(self.norms[2](x))
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return Output(logits, loss)


def gpt() -> Case:
    """A dict batch, ``loss=None``: the model's own."""
    torch.manual_seed(4)
    model = Decoder().double()
    ids = torch.randint(0, 7, (5, 6))
    batch = {"input_ids": ids, "labels": ids}

    def total() -> Tensor:
        loss: Tensor = model(**batch).loss
        return loss

    return Case(model, None, batch, total)


class Adapted(nn.Module):
    """A frozen layer with a low-rank update beside it."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, base.in_features) / 2)
        self.up = nn.Parameter(torch.randn(base.out_features, rank) / 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x) + x @ self.down.T @ self.up.T
        return out


def lora() -> Case:
    """Only the adapters are trained."""
    torch.manual_seed(5)
    model = nn.Sequential(
        Adapted(nn.Linear(5, 6), 2), nn.Tanh(), Adapted(nn.Linear(6, 3), 2)
    ).double()
    x, y = torch.randn(10, 5).double(), torch.randint(0, 3, (10,))
    return Case(
        model, nn.CrossEntropyLoss(label_smoothing=0.1), (x, y),
        lambda: F.cross_entropy(model(x), y, label_smoothing=0.1), lambda: model(x),
        lambda z: F.cross_entropy(z.view(10, 3), y, label_smoothing=0.1), 10,
    )  # fmt: skip


class Reader(nn.Module):
    """A recurrent net over packed sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(3, 4), nn.Linear(4, 1)

    def forward(self, sequences: PackedSequence) -> Tensor:
        _, last = self.rnn(sequences)
        out: Tensor = self.head(last[-1])
        return out


def packed() -> Case:
    """A PackedSequence is a tuple of four tensors, and one input."""
    torch.manual_seed(6)
    model = Reader().double()
    lengths = torch.tensor([5, 4, 4, 2])
    x, y = pack_padded_sequence(torch.randn(5, 4, 3).double(), lengths), torch.randn(4, 1).double()
    return Case(
        model, nn.MSELoss(), (x, y), lambda: F.mse_loss(model(x), y), lambda: model(x),
        lambda z: F.mse_loss(z, y.view(-1)), 4,
    )  # fmt: skip


class TimeFirst(nn.Module):
    """(T, B, n) in, (T, B, 1) out, as recurrent layers like it."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(2, 3), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.rnn(x)[0])
        return out


def time_first() -> Case:
    """Two batches of 20 and 3 sequences: a mean over elements weighs them by elements."""
    torch.manual_seed(7)
    model = TimeFirst().double()
    batches = [
        (torch.randn(4, b, 2).double(), scale * torch.randn(4, b, 1).double())
        for b, scale in ((20, 1.0), (3, 3.0))
    ]
    x, y = torch.cat([b[0] for b in batches], 1), torch.cat([b[1] for b in batches], 1)
    # A loss that falls by 3 % in all: twenty steps and eighty gradients do not find where.
    return Case(model, nn.MSELoss(), batches, lambda: F.mse_loss(model(x), y), scan={"horizon": 40})


class Bag(nn.Module):
    """Bags of words with offsets; its layer has no double backward."""

    def __init__(self) -> None:
        super().__init__()
        self.bag, self.head = nn.EmbeddingBag(9, 3, mode="mean"), nn.Linear(3, 2)

    def forward(self, words: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.bag(words)))
        return out


def embedding_bag() -> Case:
    """Gauss–Newton needs first derivatives only."""
    torch.manual_seed(8)
    model = Bag().double()
    x, y = torch.randint(0, 9, (7, 4)), torch.randint(0, 2, (7,))
    return Case(
        model, nn.CrossEntropyLoss(), (x, y), lambda: F.cross_entropy(model(x), y),
        lambda: model(x), lambda z: F.cross_entropy(z.view(7, 2), y), 7,
    )  # fmt: skip


class Sparse(nn.Module):
    """An embedding whose gradients are sparse."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(20, 3, sparse=True), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.table(x).mean(1))
        return out


def sparse_embedding() -> tuple[nn.Module, Any, Any]:
    """What a scan refuses in a sentence."""
    torch.manual_seed(9)
    model = Sparse().double()
    return model, nn.MSELoss(), (torch.randint(0, 20, (6, 3)), torch.randn(6, 1).double())
