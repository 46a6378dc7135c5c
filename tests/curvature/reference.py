"""Dense float64 autograd: the truth the operators are held against, row by row of Jacobians."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

Loss = Callable[[Tensor, Tensor], Tensor]


def jacobian(model: nn.Module, x: Tensor, params: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return z flat (DK,) and J (DK, P)."""
    z = model(x).reshape(-1)
    rows = []
    for entry in z:
        grads = torch.autograd.grad(entry, params, retain_graph=True, materialize_grads=True)
        rows.append(torch.cat([g.reshape(-1) for g in grads]))
    return z.detach(), torch.stack(rows)


def spectrum(model: nn.Module, loss: Loss | None, x: Tensor, y: Tensor, operator: str) -> Tensor:
    """Return all eigenvalues, largest first."""
    params = [p for p in model.parameters() if p.requires_grad]
    if operator == "hessian":
        assert loss is not None
        grads = torch.autograd.grad(
            loss(model(x), y), params, create_graph=True, materialize_grads=True
        )
        flat = torch.cat([g.reshape(-1) for g in grads])
        rows = []
        for entry in flat:
            second = torch.autograd.grad(
                entry, params, retain_graph=True, materialize_grads=True
            ) if entry.requires_grad else [torch.zeros_like(p) for p in params]  # fmt: skip
            rows.append(torch.cat([g.reshape(-1) for g in second]))
        return torch.linalg.eigvalsh(torch.stack(rows)).flip(0)  # type: ignore[no-any-return]
    shape = model(x).shape
    z, j = jacobian(model, x, params)  # type: ignore[arg-type]
    if operator == "ntk":
        return torch.linalg.eigvalsh(j @ j.T / len(x)).flip(0)  # type: ignore[no-any-return]
    assert loss is not None
    h = torch.autograd.functional.hessian(lambda u: loss(u.view(shape), y), z)  # type: ignore[no-untyped-call]
    assert isinstance(h, Tensor)
    return torch.linalg.eigvalsh(j.T @ h @ j).flip(0)  # type: ignore[no-any-return]


def close(value: object, truth: object, rtol: float) -> bool:
    """Relative agreement."""
    return abs(float(value) - float(truth)) <= rtol * abs(float(truth))  # type: ignore[arg-type]
