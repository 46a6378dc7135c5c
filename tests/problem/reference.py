"""Top Hessian eigenvalues by plain dense autograd, and batches to measure them on."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


def top(model: nn.Module, loss: Callable[[], Tensor]) -> float:
    """The largest eigenvalue of ∂²L/∂θ², row by row."""
    params = [p for p in model.parameters() if p.requires_grad]
    gradient = torch.autograd.grad(loss(), params, create_graph=True)
    flat = torch.cat([g.reshape(-1) for g in gradient])
    rows = [
        torch.cat([
            (torch.zeros_like(p) if g is None else g).reshape(-1)
            for p, g in zip(
                params, torch.autograd.grad(x, params, retain_graph=True, allow_unused=True),
                strict=True,
            )
        ])
        for x in flat
    ]  # fmt: skip
    h = torch.stack(rows)
    return float(torch.linalg.eigvalsh((h + h.T) / 2)[-1].detach())


def draws(*shapes: tuple[int, ...], seed: int = 0) -> list[Tensor]:
    """Normal numbers in float64."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]


def net(inputs: int = 3, outputs: int = 1) -> nn.Module:
    """Two layers, in float64."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs, 4), nn.Tanh(), nn.Linear(4, outputs)).double()
