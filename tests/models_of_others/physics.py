"""Losses that differentiate: with respect to inputs, inside the loss or inside the model."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.models_of_others.case import Case


def pinn() -> Case:
    """A physics-informed net: u'' = −π² sin πx on [0, 1], u = 0 at both ends."""
    torch.manual_seed(21)
    model = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    x = torch.linspace(0, 1, 11).double()[:, None]

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        at = batch.detach().requires_grad_()
        u = model(at)
        (du,) = torch.autograd.grad(u.sum(), at, create_graph=True)
        (ddu,) = torch.autograd.grad(du.sum(), at, create_graph=True)
        inside = (ddu / torch.pi**2 + torch.sin(torch.pi * at)).square().mean()
        ends: Tensor = model(batch[[0, -1]]).square().mean()
        return inside + ends

    return Case(model, loss, x, lambda: loss(model, x))


class ForceField(nn.Module):
    """Energies, and forces as their gradient, from one forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 6), nn.SiLU(), nn.Linear(6, 1))

    def forward(self, positions: Tensor) -> Tensor:
        with torch.enable_grad():
            at = positions.detach().requires_grad_()
            pairs = torch.stack([at[:, 0] - at[:, 1], at[:, 1] - at[:, 2], at[:, 2] - at[:, 0]], 1)
            energy = self.net(pairs.square().sum(-1)).squeeze(-1)
            (gradient,) = torch.autograd.grad(energy.sum(), at, create_graph=True)
        out: Tensor = torch.cat([energy[:, None], -gradient.flatten(1)], 1)
        return out


def force_field() -> Case:
    """The model itself needs gradients, whatever the caller has switched off."""
    torch.manual_seed(22)
    model = ForceField().double()
    x, y = torch.randn(6, 3, 2).double(), torch.randn(6, 7).double()
    return Case(
        model, nn.MSELoss(), (x, y), lambda: F.mse_loss(model(x), y), lambda: model(x),
        lambda z: F.mse_loss(z, y.view(-1)), 6,
    )  # fmt: skip


def gradient_penalty() -> Case:
    """A critic with a penalty on its input gradient, as in WGAN-GP."""
    torch.manual_seed(23)
    model = nn.Sequential(nn.Linear(3, 6), nn.Softplus(), nn.Linear(6, 1)).double()
    real, fake = torch.randn(8, 3).double(), torch.randn(8, 3).double() + 1

    def loss(model: nn.Module, batch: Any) -> Tensor:
        real, fake = batch
        middle = ((real + fake) / 2).detach().requires_grad_()
        (slope,) = torch.autograd.grad(model(middle).sum(), middle, create_graph=True)
        penalty = (slope.norm(dim=1) - 1).square().mean()
        wasserstein: Tensor = model(fake).mean() - model(real).mean()
        # Bounded below, so that there is something to minimise.
        bounded: Tensor = F.softplus(wasserstein) + 10 * penalty
        return bounded

    return Case(model, loss, (real, fake), lambda: loss(model, (real, fake)))


class GraphNet(nn.Module):
    """Two rounds of messages along edges, then a mean over the nodes of every graph."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(3, 5), nn.Linear(5, 5), nn.Linear(5, 1)

    def forward(self, nodes: Tensor, edges: Tensor, graph: Tensor) -> Tensor:
        for layer in (self.first, self.second):
            h = torch.tanh(layer(nodes))
            nodes = h.index_add(0, edges[1], h[edges[0]])
        count = int(graph.max()) + 1
        sums = nodes.new_zeros(count, nodes.shape[1]).index_add(0, graph, nodes)
        sizes = torch.bincount(graph, minlength=count)[:, None]
        out: Tensor = self.head(sums / sizes)
        return out


def graphs() -> Case:
    """Nodes, edges and graph ids, one target a graph: batches of different numbers of graphs."""
    torch.manual_seed(24)
    model = GraphNet().double()
    batches = []
    for sizes in ((3, 4, 5), (6, 7)):
        nodes = torch.randn(sum(sizes), 3).double()
        graph = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
        edges = torch.stack([torch.arange(sum(sizes)), torch.arange(sum(sizes)).roll(1)])
        batches.append(((nodes, edges, graph), torch.randn(len(sizes), 1).double()))

    def total() -> Tensor:
        terms = [F.mse_loss(model(*inputs), y, reduction="sum") for inputs, y in batches]
        return torch.stack(terms).sum() / 5

    return Case(model, nn.MSELoss(), batches, total, scan={"horizon": 60})
