"""The learning rate implied: both sides of the edge, by running the optimizer on a quadratic."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.curvature.nets import draw
from tests.curvature.reference import close
from trebuchet.curvature import half_mse, top_eigen

F64 = torch.float64


def quadratic() -> tuple[nn.Linear, Tensor, Tensor]:
    """Least squares with its optimum at zero."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(12, 4, dtype=F64, generator=g)
    net = nn.Linear(4, 1, bias=False, dtype=F64)
    with torch.no_grad():
        net.weight.copy_(torch.randn(1, 4, dtype=F64, generator=g))
    return net, x, torch.zeros(12, 1, dtype=F64)


Make = Callable[..., torch.optim.Optimizer]
OPTIMIZERS: dict[str, tuple[Make, dict[str, object], float]] = {
    "sgd": (torch.optim.SGD, {}, 2.0),
    "momentum": (torch.optim.SGD, {"momentum": 0.8}, 2 * 1.8),
    "nesterov": (torch.optim.SGD, {"momentum": 0.8, "nesterov": True}, 2 * 1.8 / 2.6),
}


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_both_sides_of_the_edge(name: str) -> None:
    make, options, product = OPTIMIZERS[name]
    net, x, y = quadratic()
    top = top_eigen(net, half_mse, (x, y), optimizer=make(net.parameters(), lr=1.0, **options))
    assert top.optimizer == name
    assert close(top.lr_crit * top.value, product, 1e-12)
    for factor, shrinks in ((0.95, True), (1.05, False)):
        net, x, y = quadratic()
        optimizer = make(net.parameters(), lr=factor * top.lr_crit, **options)
        start = float(net.weight.detach().norm())
        for _ in range(400):
            optimizer.zero_grad()
            half_mse(net(x), y).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        assert (float(net.weight.detach().norm()) < start) == shrinks


def test_adam_by_its_own_state_against_the_dense_preconditioned_matrix() -> None:
    model, x = draw("mlp")
    loss, y = nn.CrossEntropyLoss(), torch.arange(10) % 3
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, betas=(0.8, 0.99), eps=1e-3)
    for steps in (0, 7):
        for _ in range(steps):
            optimizer.zero_grad()
            loss(model(x), y).backward()
            optimizer.step()
        params = list(model.parameters())
        grads = torch.autograd.grad(loss(model(x), y), params, create_graph=True)
        if steps:
            second = [optimizer.state[p]["exp_avg_sq"] / (1 - 0.99**steps) for p in params]
        else:
            second = [g.detach() ** 2 for g in grads]
        denominator = torch.cat([(v.sqrt() + 1e-3).reshape(-1) for v in second])
        flat = torch.cat([g.reshape(-1) for g in grads])
        rows = [
            torch.cat([h.reshape(-1) for h in torch.autograd.grad(e, params, retain_graph=True)])
            for e in flat
        ]
        scale = denominator.rsqrt()
        truth = torch.linalg.eigvalsh(scale[:, None] * torch.stack(rows) * scale)[-1]
        for options in ({"method": "lanczos"}, {"method": "dense"}, {"micro_batch": 4}):
            top = top_eigen(
                model, loss, (x, y), "hessian", optimizer=optimizer, rtol=1e-8, **options
            )  # fmt: skip
            assert close(top.value, truth, 1e-7)
            assert close(top.lr_crit, 2 * 1.8 / 0.2 / float(truth), 1e-7)


def test_adam_gauss_newton_on_both_sides() -> None:
    model, x = draw("mlp")
    loss, y = nn.CrossEntropyLoss(), torch.arange(10) % 3
    outputs = top_eigen(model, loss, (x, y), optimizer="adam", rtol=1e-9, vectors=True)
    parameters = top_eigen(
        model, loss, (x, y), optimizer="adam", rtol=1e-9, micro_batch=5, vectors=True
    )
    dense = top_eigen(model, loss, (x, y), optimizer="adam", method="dense", vectors=True)
    assert {outputs.side, parameters.side} == {"outputs", "parameters"}
    assert close(outputs.value, dense.value, 1e-8)
    assert close(parameters.value, dense.value, 1e-8)
    assert outputs.vectors is not None
    assert parameters.vectors is not None
    assert dense.vectors is not None
    for other in (parameters.vectors, dense.vectors):
        assert close(abs(float(outputs.vectors[0] @ other[0])), 1, 1e-6)


def test_adam_both_sides_of_the_edge() -> None:
    """Adam with frozen v̂ (β₂ = 1 − tiny after many equal gradients) on a quadratic."""
    net, x, y = quadratic()
    lr = 1e-3
    optimizer = torch.optim.Adam(net.parameters(), lr=lr, betas=(0.9, 1 - 1e-12), eps=0.0)
    state = optimizer.state[net.weight]
    v = torch.tensor([[0.5, 1.0, 2.0, 4.0]], dtype=F64)
    for factor, shrinks in ((0.95, True), (1.05, False)):
        net, x, y = quadratic()
        start = float(net.weight.detach().norm())
        probe = torch.optim.Adam(net.parameters(), lr=lr, betas=(0.9, 1 - 1e-12), eps=0.0)
        state = probe.state[net.weight]
        # v̂ = v / (1 − β₂^t) is held at `v`, with m̂'s bias correction long gone.
        state["step"] = torch.tensor(10_000.0)
        state["exp_avg"] = torch.zeros_like(net.weight)
        state["exp_avg_sq"] = v * (1 - (1 - 1e-12) ** 10_000.0)
        top = top_eigen(net, half_mse, (x, y), optimizer=probe)
        probe.param_groups[0]["lr"] = factor * top.lr_crit
        for _ in range(600):
            state["step"] = torch.tensor(10_000.0)
            state["exp_avg_sq"] = v * (1 - (1 - 1e-12) ** 10_000.0)
            probe.zero_grad()
            half_mse(net(x), y).backward()  # type: ignore[no-untyped-call]
            probe.step()
        assert (float(net.weight.detach().norm()) < start) == shrinks


def test_no_curvature_no_limit() -> None:
    net = nn.Linear(2, 1)
    top = top_eigen(net, lambda z, y: z.mean(), (torch.ones(3, 2), torch.zeros(3, 1)), "hessian")
    assert top.value == 0
    assert top.converged
    assert top.lr_crit == float("inf")
