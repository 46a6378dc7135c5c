"""Images: residual nets with batch statistics, patches with attention, a detector."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.models_of_others.case import Case


class Residual(nn.Module):
    """Two convolutions with BatchNorm around a skip."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)])

    def forward(self, x: Tensor) -> Tensor:
        inner = F.gelu(self.norms[0](self.first(x)))
        out: Tensor = F.gelu(x + self.norms[1](self.second(inner)))
        return out


def resnet() -> Case:
    """A residual net with BatchNorm and cross-entropy, trained on the whole batch."""
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3), nn.GELU(), Residual(3),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3),
    ).double()  # fmt: skip
    x, y = torch.randn(12, 1, 6, 6).double(), torch.randint(0, 3, (12,))
    return Case(
        model, nn.CrossEntropyLoss(), (x, y), lambda: F.cross_entropy(model(x), y),
        lambda: model(x), lambda z: F.cross_entropy(z.view(12, 3), y), 12,
    )  # fmt: skip


class PatchTransformer(nn.Module):
    """Patches, a class token, one pre-norm block, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 4, 3, stride=3)
        self.token = nn.Parameter(torch.randn(1, 1, 4) / 2)
        self.positions = nn.Parameter(torch.randn(1, 5, 4) / 2)
        self.block = nn.TransformerEncoderLayer(
            4, 2, 6, dropout=0.1, activation="gelu", batch_first=True, norm_first=True
        )
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).mT  # (B, 4, width)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], 1) + self.positions
        logits: Tensor = self.head(self.block(tokens)[:, 0])
        return logits


def vit() -> Case:
    """Attention with dropout, which curvature has switched off."""
    torch.manual_seed(2)
    model = PatchTransformer().double()
    x, y = torch.randn(8, 1, 6, 6).double(), torch.randint(0, 2, (8,))

    def outputs() -> Tensor:
        silent = [m for m in model.modules() if isinstance(m, nn.Dropout)]
        for m in silent:
            m.eval()
        dropout, model.block.self_attn.dropout = model.block.self_attn.dropout, 0.0
        try:
            z: Tensor = model(x)
        finally:
            model.block.self_attn.dropout = dropout
            for m in silent:
                m.train()
        return z

    return Case(
        model, "cross_entropy", (x, y), lambda: F.cross_entropy(outputs(), y), outputs,
        lambda z: F.cross_entropy(z.view(8, 2), y), 8, scan={"optimizer": "adamw"},
    )  # fmt: skip


class Detector(nn.Module):
    """Losses by name in train mode, detections in eval mode, as torchvision's detectors."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(1, 3, 3, padding=1)
        self.boxes, self.scores = nn.Linear(3, 4), nn.Linear(3, 2)

    def forward(self, images: Tensor, targets: list[dict[str, Tensor]] | None = None) -> Any:
        seen = torch.tanh(self.body(images)).mean((2, 3))
        boxes, scores = self.boxes(seen), self.scores(seen)
        if not self.training:
            return [
                {"boxes": b, "scores": s} for b, s in zip(boxes, scores.softmax(1), strict=True)
            ]
        assert targets is not None
        wanted = torch.stack([t["boxes"] for t in targets])
        labels = torch.stack([t["labels"] for t in targets])
        return {
            "loss_box": F.smooth_l1_loss(boxes, wanted),
            "loss_class": F.cross_entropy(scores, labels),
        }


def detector() -> Case:
    """Only a closure can train it, and only in train mode."""
    torch.manual_seed(3)
    model = Detector().double()
    images = torch.randn(6, 1, 5, 5).double()
    targets = [{"boxes": torch.rand(4).double(), "labels": torch.tensor(i % 2)} for i in range(6)]

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return torch.stack(list(model(*batch).values())).sum()

    return Case(model, loss, (images, targets), lambda: loss(model, (images, targets)))
