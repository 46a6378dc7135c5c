"""A Hessian needs the loss alone; gradients are there for those who take derivatives themselves."""

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import trebuchet as tb
from tests.curvature.reference import close, spectrum
from trebuchet.errors import InputError

F64 = torch.float64


class Named(NamedTuple):
    logits: Tensor
    aux: Tensor


class Returning(nn.Module):
    """Returns its outputs as something else than a tensor."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
        self.kind = kind

    def forward(self, x: Tensor) -> Any:
        z = self.net(x)
        return {
            "tuple": (z, z.sum()), "list": [z], "dict": {"z": z, "features": x},
            "named tuple": Named(z, x), "tensor": z,
        }[self.kind]  # fmt: skip


READ = {
    "tuple": lambda z: z[0], "list": lambda z: z[0], "dict": lambda z: z["z"],
    "named tuple": lambda z: z.logits,
}  # fmt: skip


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, 3, generator=generator, dtype=F64)
    return x, torch.randn(12, 2, generator=generator, dtype=F64)


@pytest.mark.parametrize("kind", list(READ))
def test_outputs_of_any_type_have_a_hessian(kind: str) -> None:
    x, y = data()

    def loss(z: Any, t: Tensor) -> Tensor:
        return F.mse_loss(READ[kind](z), t)

    truth = spectrum(Returning("tensor"), F.mse_loss, x, y, "hessian")[0]
    for method in ("lanczos", "dense"):
        top = tb.top_eigen(Returning(kind), loss, (x, y), "hessian", method=method, rtol=1e-8)
        assert close(top.value, truth, 1e-7)
    split = tb.top_eigen(
        Returning(kind), loss, [(x[:5], y[:5]), (x[5:], y[5:])], "hessian", reduction="mean",
        rtol=1e-8,
    )  # fmt: skip
    assert close(split.value, truth, 1e-7)
    half = tb.top_eigen(Returning(kind).bfloat16(), loss, (x.bfloat16(), y.bfloat16()), "hessian")
    assert half.converged
    for operator in ("ggn", "ntk"):
        with pytest.raises(InputError, match="operator='hessian'") as caught:
            tb.top_eigen(Returning(kind), loss, (x, y), operator)
        assert "\n" not in str(caught.value)


def physics(model: nn.Module, batch: Tensor) -> Tensor:
    """u″ = −u, u(0) = 1: second derivatives by the input."""
    t = batch.clone().requires_grad_()
    u = model(t)
    (slope,) = torch.autograd.grad(u.sum(), t, create_graph=True)
    (bend,) = torch.autograd.grad(slope.sum(), t, create_graph=True)
    return (bend + u).square().mean() + (model(0 * t) - 1).square().mean()  # type: ignore[no-any-return]


class Forces(nn.Module):
    """Minus the gradient of an energy, as in molecular dynamics."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.energy = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 1)).double()

    def forward(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(self.energy(x).sum(), x, create_graph=True)
        return -slope


@pytest.mark.parametrize("surrounding", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_losses_that_take_derivatives(surrounding: Any) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 1)).double()
    times = torch.linspace(0, 3, 9, dtype=F64)[:, None]
    params = list(net.parameters())

    def flat(gradients: Any) -> Tensor:
        return torch.cat([g.reshape(-1) for g in gradients])

    grads = flat(torch.autograd.grad(physics(net, times), params, create_graph=True))
    rows = [
        flat(torch.autograd.grad(g, params, retain_graph=True, materialize_grads=True))
        for g in grads
    ]
    truth = torch.linalg.eigvalsh(torch.stack(rows))[-1]
    with surrounding():
        top = tb.top_eigen(net, physics, times, "hessian", rtol=1e-7)
        several = tb.top_eigen(net, physics, [times[:4], times[4:8], times[8:]], "hessian")
    assert several.converged
    assert top.converged
    assert close(top.value, truth, 1e-6)


@pytest.mark.parametrize("operator", ["ggn", "ntk", "hessian"])
def test_forward_passes_that_take_derivatives(operator: Any) -> None:
    x = data()[0]
    y = torch.zeros(12, 3, dtype=F64)
    truth = spectrum(Forces(), F.mse_loss, x, y, operator)[0]

    def own(z: Tensor, t: Tensor) -> Tensor:  # a mean, which is found out by a trial
        return (z - t).square().mean()

    for loss in ("mse", own):
        for options in ({}, {"micro_batch": 5}, {"method": "dense"}):
            top = tb.top_eigen(Forces(), loss, (x, y), operator, rtol=1e-8, **options)
            assert close(top.value, truth, 1e-7)
