"""Finite differences in float64, entry by entry: the truth where automatic derivatives fail."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

STEP = 1e-5


def hessian(model: nn.Module, loss: Callable[[], Tensor]) -> Tensor:
    """Return ∂²L/∂θ² by central differences of the gradient; not made symmetric."""
    params = [p for p in model.parameters() if p.requires_grad]
    buffers = [(b, b.clone()) for b in model.buffers()]

    def gradient() -> Tensor:
        with torch.no_grad():
            for b, saved in buffers:
                b.copy_(saved)
        grads = torch.autograd.grad(loss(), params, materialize_grads=True)
        return torch.cat([g.reshape(-1) for g in grads])

    rows = []
    for p in params:
        flat = p.detach().view(-1)
        for i in range(p.numel()):
            here, ends = flat[i].item(), []
            for sign in (1, -1):
                flat[i] = here + sign * STEP
                ends.append(gradient())
            flat[i] = here
            rows.append((ends[0] - ends[1]) / (2 * STEP))
    with torch.no_grad():
        for b, saved in buffers:
            b.copy_(saved)
    return torch.stack(rows)


def top(matrix: Tensor) -> float:
    """The largest eigenvalue of the symmetric part."""
    return float(torch.linalg.eigvalsh((matrix + matrix.T) / 2)[-1])


def loss_hessian(loss: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """Return ∂²L/∂z² by central differences of the gradient, shape (DK, DK)."""
    rows = []
    for i in range(z.numel()):
        ends = []
        for sign in (1, -1):
            u = z.detach().clone().reshape(-1)
            u[i] += sign * STEP
            u = u.view(z.shape).requires_grad_()
            ends.append(torch.autograd.grad(loss(u), u)[0].reshape(-1))
        rows.append((ends[0] - ends[1]) / (2 * STEP))
    h = torch.stack(rows)
    return (h + h.T) / 2
