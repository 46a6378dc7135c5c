"""Models that move something of their own, draw random numbers, or need a second module."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.models_of_others.case import Case


class Distilled(nn.Module):
    """A student beside a teacher that follows it a little in every training pass (as in BYOL)."""

    def __init__(self) -> None:
        super().__init__()
        self.student = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                for t, s in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                    t.lerp_(s, 0.3)
        z: Tensor = self.student(x)
        out: Tensor = z - self.teacher(x.flip(1)).detach()
        return out


def distillation() -> Case:
    """Every run must begin with the teacher as it was."""
    torch.manual_seed(11)
    model = Distilled().double()
    x, y = torch.randn(10, 4).double(), torch.randn(10, 3).double()
    return Case(
        model,
        nn.MSELoss(),
        (x, y),
        lambda: F.mse_loss(model(x), y),
        scan={"horizon": 60},
        moves=True,
    )


class Codebook(nn.Module):
    """Vector quantisation: codes are a frozen parameter that forward moves."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(4, 2), nn.Linear(2, 4)
        self.codes = nn.Parameter(torch.randn(5, 2), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        z = self.encoder(x)
        nearest = (z[:, None] - self.codes).square().sum(-1).argmin(1)
        if self.training:
            with torch.no_grad():
                self.codes.index_copy_(0, nearest, 0.9 * self.codes[nearest] + 0.1 * z.detach())
        quantised = z + (self.codes[nearest] - z).detach()
        out: Tensor = self.decoder(quantised)
        return out


def vector_quantised() -> Case:
    """Its codes are not trainable, and not constant."""
    torch.manual_seed(12)
    model = Codebook().double()
    x = torch.randn(12, 4).double()
    return Case(
        model,
        nn.MSELoss(),
        (x, x),
        lambda: F.mse_loss(model(x), x),
        scan={"horizon": 60},
        moves=True,
    )


class Variational(nn.Module):
    """A variational autoencoder: noise in the forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(4, 4), nn.Linear(2, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = self.encoder(x).chunk(2, 1)
        z = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        return self.decoder(z), mean, log_variance


def vae() -> Case:
    """A closure over a tuple of outputs, random at every pass."""
    torch.manual_seed(13)
    model = Variational().double()
    x = torch.randn(16, 4).double()

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        out, mean, log_variance = model(batch)
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean()
        total: Tensor = F.mse_loss(out, batch) + 0.1 * kl
        return total

    return Case(model, loss, x, lambda: loss(model, x))


def gan() -> Case:
    """A generator whose loss calls its critic, which is neither trained nor moved."""
    torch.manual_seed(14)
    generator = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    critic = nn.Sequential(nn.Linear(2, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 1)).double()
    noise = torch.randn(12, 3).double()

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return F.softplus(-critic(model(batch))).mean()

    return Case(generator, loss, noise, lambda: loss(generator, noise), others=(critic,))


def contrastive() -> tuple[nn.Module, Any, Any]:
    """A loss module that says "mean" and is none over samples: it compares them with each other."""
    torch.manual_seed(15)

    class PairLoss(nn.Module):
        reduction = "mean"

        def forward(self, z: Tensor, labels: Tensor) -> Tensor:
            z = F.normalize(z, dim=1)
            logits = z @ z.T / 0.5 - 1e3 * torch.eye(len(z), dtype=z.dtype)
            return F.cross_entropy(logits, labels.roll(1) % len(z))

    model = nn.Linear(4, 3).double()
    return model, PairLoss(), (torch.randn(8, 4).double(), torch.arange(8))
