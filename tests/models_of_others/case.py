"""A case, and the truth about it: finite differences and dense Jacobians, by plain loops."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

Operator = Literal["hessian", "ggn", "ntk"]

STEP = 1e-5
"""Of the central differences, in float64: truncation 1e-10, rounding 1e-16 / 1e-5 = 1e-11."""


@dataclass
class Case:
    """A model with its loss and data, as a stranger would hand them over.

    Attributes:
        model: The module, in the mode it is trained in.
        loss: As given to ``scan`` and ``top_eigen``.
        data: As given to them.
        total: The loss on all the data, with its graph: the definition everything is checked by.
        outputs: The model's outputs on all the data, flat, with their graph; None where the model
            has none that a Gauss–Newton matrix could be made of.
        at_outputs: The loss as a function of those outputs.
        n_samples: D, for the NTK.
        others: Modules that are used but not trained; they must come back too.
        scan: More arguments of ``scan``.
        rtol: To which λ is compared.
        moves: Its forward pass moves state that depends on the weights. Derivatives hold that
            state constant, and differences of gradients would not.
    """

    model: nn.Module
    loss: Any
    data: Any
    total: Callable[[], Tensor]
    outputs: Callable[[], Tensor] | None = None
    at_outputs: Callable[[Tensor], Tensor] | None = None
    n_samples: int = 0
    others: tuple[nn.Module, ...] = ()
    scan: dict[str, Any] = field(default_factory=dict)
    rtol: float = 1e-5
    moves: bool = False

    @property
    def params(self) -> list[nn.Parameter]:
        """The trainable parameters."""
        return [p for p in self.model.parameters() if p.requires_grad]

    @property
    def operators(self) -> tuple[Operator, ...]:
        """Those that exist for it."""
        return ("hessian",) if self.outputs is None else ("hessian", "ggn", "ntk")


def snapshot(*modules: nn.Module) -> dict[str, Any]:
    """Everything about modules that must come back, bit for bit."""
    found: dict[str, Any] = {}
    for i, module in enumerate(modules):
        for name, p in module.named_parameters():
            found[f"{i}.{name}"] = p.detach().clone()
            found[f"{i}.{name}.grad"] = None if p.grad is None else p.grad.clone()
            found[f"{i}.{name}.requires_grad"] = p.requires_grad
        for name, b in module.named_buffers():
            found[f"{i}.{name}"] = b.detach().clone()
        for name, m in module.named_modules():
            found[f"{i}.{name}.training"] = m.training
    found["random"] = torch.get_rng_state()
    return found


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Names of what is not the same, bit for bit."""
    same = before.keys() == after.keys()
    changed = [] if same else sorted(before.keys() ^ after.keys())
    for name in before.keys() & after.keys():
        a, b = before[name], after[name]
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            equal = a.shape == b.shape and a.dtype == b.dtype and bool((a == b).all())
        else:
            equal = a is b or (not isinstance(a, Tensor) and not isinstance(b, Tensor) and a == b)
        if not equal:
            changed.append(name)
    return sorted(changed)


def gradient(case: Case) -> Tensor:
    """∇L at the weights, flat, float64; buffers and frozen parameters as they were before."""
    kept = [t.detach().clone() for t in _state(case)]
    torch.manual_seed(0)
    grads = torch.autograd.grad(case.total(), case.params, allow_unused=True)
    with torch.no_grad():
        for t, saved in zip(_state(case), kept, strict=True):
            t.copy_(saved)
    flat = [
        torch.zeros_like(p) if g is None else g for g, p in zip(grads, case.params, strict=True)
    ]
    return torch.cat([g.detach().reshape(-1).double() for g in flat])


def hessian_by_differences(case: Case) -> Tensor:
    """∂²L/∂θ², (P, P), float64: central differences of the gradient, one parameter at a time."""
    columns = []
    for p in case.params:
        flat = p.data.view(-1)
        for i in range(flat.numel()):
            kept = flat[i].item()
            flat[i] = kept + STEP
            up = gradient(case)
            flat[i] = kept - STEP
            down = gradient(case)
            flat[i] = kept
            columns.append((up - down) / (2 * STEP))
    found = torch.stack(columns)
    return (found + found.T) / 2


def hessian_by_derivatives(case: Case) -> Tensor:
    """∂²L/∂θ², (P, P), float64: a second backward pass an entry of the gradient."""
    kept = [t.detach().clone() for t in _state(case)]
    torch.manual_seed(0)
    first = torch.autograd.grad(case.total(), case.params, create_graph=True)
    rows = []
    for entry in torch.cat([g.reshape(-1) for g in first]):
        second = torch.autograd.grad(entry, case.params, retain_graph=True, allow_unused=True)
        rows.append(
            torch.cat(
                [
                    (torch.zeros_like(p) if g is None else g).reshape(-1).double()
                    for g, p in zip(second, case.params, strict=True)
                ]
            )
        )
    with torch.no_grad():
        for t, saved in zip(_state(case), kept, strict=True):
            t.copy_(saved)
    return torch.stack(rows)


def jacobian(case: Case) -> Tensor:
    """∂z/∂θ, (D·K, P), float64: a backward pass an output."""
    assert case.outputs is not None
    torch.manual_seed(0)
    rows = []
    for z in case.outputs().reshape(-1):
        grads = torch.autograd.grad(z, case.params, retain_graph=True, allow_unused=True)
        rows.append(
            torch.cat(
                [
                    (torch.zeros_like(p) if g is None else g).reshape(-1).double()
                    for g, p in zip(grads, case.params, strict=True)
                ]
            )
        )
    return torch.stack(rows)


def truth(case: Case, operator: str) -> float:
    """The largest eigenvalue of an operator, from its dense matrix."""
    if operator == "hessian":
        dense = hessian_by_derivatives if case.moves else hessian_by_differences
        return float(torch.linalg.eigvalsh(dense(case))[-1])
    rows = jacobian(case)
    if operator == "ntk":
        return float(torch.linalg.eigvalsh(rows @ rows.T)[-1]) / case.n_samples
    assert case.outputs is not None
    assert case.at_outputs is not None
    z = case.outputs().detach().reshape(-1).requires_grad_()
    (g,) = torch.autograd.grad(case.at_outputs(z), z, create_graph=True)
    h = torch.stack([torch.autograd.grad(e, z, retain_graph=True)[0] for e in g]).double()
    return float(torch.linalg.eigvalsh(rows.T @ h @ rows)[-1])


def _state(case: Case) -> list[Tensor]:
    modules = [case.model, *case.others]
    frozen = [p for m in modules for p in m.parameters() if not p.requires_grad]
    return [*frozen, *(b for m in modules for b in m.buffers())]
