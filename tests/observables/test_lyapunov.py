"""The exponent against closed forms, the map's own, and a plain loop with a dense Hessian."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import trebuchet as tb
from trebuchet.errors import InputError
from trebuchet.observables.lyapunov import Lyapunov
from trebuchet.theory import quadratic_map

hessian_of: Any = torch.autograd.functional.hessian
ONE = torch.ones(1, 1, dtype=torch.float64)


class OneWeight(nn.Module):
    """z = θ²/2, whose residual under the rate η and the label 1 is the quadratic map with a = η."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([0.9], dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.theta**2 / 2 * x[:, 0]
        return out


class NoSecondDerivative(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        out: torch.Tensor = x**2 / 2
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = g * ctx.saved_tensors[0]
        return out


class Once(OneWeight):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        half: Any = NoSecondDerivative.apply(self.theta)  # type: ignore[no-untyped-call]
        out: torch.Tensor = half * x[:, 0]
        return out


def exponent(runs: Any) -> tuple[np.ndarray, np.ndarray]:
    found = tb.label(runs).isel(seed=0)
    return found.lyapunov_exponent.values, found.lyapunov_error.values


def test_on_cycles_it_is_the_closed_form() -> None:
    """Half the log of the cycle's multiplier, to rounding: also by two nearby runs."""
    a = np.array([1.05, 1.15])
    want = []
    for rate in a:
        x = quadratic_map.iterate(-0.3, rate, 4000)[-2:]
        want.append(math.log(abs(np.prod((1 - x) * (1 - 2 * rate - 3 * x)))) / 2)
    for model, rtol in ((OneWeight(), 1e-9), (Once(), 1e-4)):
        runs = tb.sweep(
            model, "half_mse", (ONE, ONE[0]), lr=a, steps=600, observables=[Lyapunov(64, 16)]
        )
        np.testing.assert_allclose(exponent(runs)[0], want, rtol=rtol)
    assert list(tb.label(runs).phase.values[:, 0]) == ["periodic", "periodic"]


def test_in_chaos_it_is_the_maps_within_its_error() -> None:
    a = np.array([1.4, 1.95])
    runs = tb.sweep(
        OneWeight(), "half_mse", (ONE, ONE[0]), lr=a, steps=1100, observables=[Lyapunov(1024, 16)]
    )
    found, error = exponent(runs)
    want = [quadratic_map.lyapunov_exponent(rate, steps=100_000) for rate in a]
    assert (error < 0.05).all()
    assert (np.abs(found - want) < 5 * error).all()
    assert set(tb.label(runs).phase.values.ravel()) <= {"chaotic", "lazy", "unsettled"}
    assert "chaotic" in tb.label(runs).phase.values
    # without the exponent nothing is called chaotic
    bare = tb.label(runs.drop_vars("lyapunov_final"))
    assert "chaotic" not in bare.phase.values


@pytest.mark.parametrize(("momentum", "decay"), [(0.0, 0.0), (0.8, 0.0), (0.5, 0.3)])
def test_net_against_a_loop_with_a_dense_jacobian(momentum: float, decay: float) -> None:
    """The same steps from the run's end, the whole Hessian, and a QR-free product of Jacobians."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(6, 2, dtype=torch.float64, generator=generator)
    y = torch.randn(6, 1, dtype=torch.float64, generator=generator)
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    descent, lr = tb.GradientDescent(momentum, decay), 0.3
    runs = tb.sweep(
        net, "half_mse", (x, y), lr=[lr], steps=5, optimizer=descent,
        observables=[Lyapunov(64, 100)],
    )  # fmt: skip
    theta = torch.cat([p.detach().reshape(-1) for p in net.parameters()])
    shapes = [p.shape for p in net.parameters()]

    def loss(flat: torch.Tensor) -> torch.Tensor:
        parts = torch.split(flat, [s.numel() for s in shapes])
        w1, b1, w2, b2 = (p.view(s) for p, s in zip(parts, shapes, strict=True))
        out = torch.tanh(x @ w1.T + b1) @ w2.T + b2
        total: torch.Tensor = ((out - y) ** 2).sum() / 12
        return total

    def gradient(at: torch.Tensor) -> torch.Tensor:
        (found,) = torch.autograd.grad(loss(leaf := at.clone().requires_grad_()), leaf)
        return found

    size = theta.numel()
    u = torch.zeros(size, dtype=torch.float64)
    for _ in range(5):
        u = momentum * u + gradient(theta) + decay * theta
        theta = theta - lr * u
    velocity = torch.zeros(size, dtype=torch.float64)  # as the measurement begins
    eye = torch.eye(size, dtype=torch.float64)
    product = torch.eye(2 * size, dtype=torch.float64)
    grown = 0.0
    for t in range(164):
        hessian = hessian_of(loss, theta) + decay * eye
        velocity = momentum * velocity + gradient(theta) + decay * theta
        theta = theta - lr * velocity
        top = torch.cat([eye - lr * hessian, -lr * momentum * eye], 1)
        product = torch.cat([top, torch.cat([hessian, momentum * eye], 1)]) @ product
        scale = float(torch.linalg.matrix_norm(product, 2))
        product /= scale
        grown += math.log(scale) if t >= 100 else 0.0
    assert exponent(runs)[0][0] == pytest.approx(grown / 64, abs=5e-3)


def test_two_nearby_runs_of_an_optimizer_without_a_jacobian() -> None:
    """Nesterov's steps are linear on a quadratic: the exponent is its largest root's."""
    net = nn.Linear(1, 1, bias=False).double()
    runs = tb.sweep(
        net, "half_mse", (ONE, 0 * ONE), lr=[0.5], steps=3,
        optimizer=lambda params, lr: torch.optim.SGD(params, lr=lr, momentum=0.9, nesterov=True),
        observables=[Lyapunov(64, 64)],
    )  # fmt: skip
    roots = np.roots([1, -(1 + 0.9) * (1 - 0.5), 0.9 * (1 - 0.5)])
    assert exponent(runs)[0][0] == pytest.approx(math.log(np.abs(roots).max()), abs=2e-2)


def test_runs_that_cannot_be_judged_say_why() -> None:
    x, y = torch.randn(8, 2), torch.randn(8, 1)
    torch.manual_seed(0)
    for how in ({"batch_size": 4}, {"schedule": lambda t: 1 / (1 + t)}):
        settings: dict[str, Any] = dict(how)
        problem = tb.Problem(nn.Linear(2, 1), "half_mse", (x, y), **settings)
        runs = tb.sweep(problem, lr=[0.1], steps=40, observables=["lyapunov"])
        assert "lyapunov_final" not in runs or np.isnan(runs.lyapunov_final).all()
        assert runs.attrs["deterministic"] == 0
        assert np.isnan(tb.label(runs).lyapunov_exponent).all()
    with pytest.raises(InputError, match="steps"):
        Lyapunov(100)
    with pytest.raises(InputError, match="sweep"):
        tb.scan(nn.Linear(2, 1), "half_mse", (x, y), horizon=20, observables=["lyapunov"])
    # it leaves the run's own weights where they were, and is saved and read
    net = nn.Linear(2, 1)
    before = [p.detach().clone() for p in net.parameters()]
    tb.sweep(net, "half_mse", (x, y), lr=[0.1], steps=4, observables=[Lyapunov(16, 0)])
    assert all(map(torch.equal, before, net.parameters()))
