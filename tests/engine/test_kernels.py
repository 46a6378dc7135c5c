"""Every kernel against plain autograd on the module it stacks.

Tolerances: the same sums in another order, of n < 100 float64 terms of order 1 to 10, differ by
n·u, 10⁻¹⁴ to 10⁻¹³ of the largest; a step or two more multiply that by η times the curvature,
under ten.
"""

import copy

import pytest
import torch
from torch import Tensor, nn

from tests.zoo import F64, MODELS, inputs, mlp, sequential, width_of_inputs
from trebuchet.engine.kernels import make_kernel
from trebuchet.engine.kernels.functional import FunctionalKernel, SequentialKernel
from trebuchet.engine.kernels.mlp import MLPKernel
from trebuchet.engine.kernels.quadratic import QuadraticKernel
from trebuchet.errors import InputError


def gradient_step(model: nn.Module, x: Tensor, dz: Tensor) -> nn.Module:
    """θ + Jᵀdz by autograd."""
    other = copy.deepcopy(model)
    params = list(other.parameters())
    with torch.enable_grad():
        gradients = torch.autograd.grad(other(x), params, dz)
    with torch.no_grad():
        for p, g in zip(params, gradients, strict=True):
            p.add_(g)
    return other


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("engine", ["auto", "sequential"])
def test_outputs_and_pullback_are_autograd_s(name: str, engine: str) -> None:
    model = MODELS[name]()
    x, other = inputs(4, width_of_inputs(model)), inputs(6, width_of_inputs(model), seed=9)
    kernel = make_kernel([model] * 3, x, engine=engine)  # type: ignore[arg-type]
    with torch.no_grad():
        z = kernel.forward()
        torch.testing.assert_close(z[1], model(x), rtol=1e-12, atol=1e-12)
        dz = torch.stack([c * torch.ones_like(z[0]) for c in (0.0, 0.3, -0.2)])
        dz[:, 0] *= 2
        kernel.add_vjp_(kernel.params, dz)
        for run in range(3):
            moved = gradient_step(model, x, dz[run])
            torch.testing.assert_close(kernel.forward()[run], moved(x), rtol=1e-11, atol=1e-11)
            torch.testing.assert_close(
                kernel.outputs(other)[run], moved(other), rtol=1e-11, atol=1e-11
            )
            norm = sum(p.detach().square().sum().item() for p in moved.parameters())
            assert float(kernel.weight_norm()[run]) == pytest.approx(norm, rel=1e-12)


def test_each_model_gets_the_kernel_made_for_it() -> None:
    x = inputs(3, 5)
    assert isinstance(make_kernel([mlp()], x), MLPKernel)
    assert isinstance(make_kernel([MODELS["pure"]()], inputs(3, 2)), QuadraticKernel)
    kernel = make_kernel([sequential()], x)
    assert isinstance(kernel, FunctionalKernel)
    assert not isinstance(kernel, SequentialKernel)


class Branching(nn.Module):
    """Control flow that depends on data: what vmap refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(2, dtype=F64))

    def forward(self, x: Tensor) -> Tensor:
        z = x @ self.w
        return z if float(z.detach().sum()) > 0 else -z


def test_what_vmap_refuses_runs_one_by_one_or_says_so() -> None:
    x = torch.ones(3, 2, dtype=F64)
    assert isinstance(make_kernel([Branching()], x), SequentialKernel)
    with pytest.raises(InputError, match="cannot be batched"):
        make_kernel([Branching()], x, engine="batched")
    with pytest.raises(InputError, match="engine"):
        make_kernel([Branching()], x, engine="fast")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["pure", "pure tanh", "biased", "mlp (1.0, 0.0) 2h 1o"])
def test_a_subset_is_those_runs(name: str) -> None:
    model = MODELS[name]()
    x = inputs(4, width_of_inputs(model))
    kernel = make_kernel([model] * 3, x)
    with torch.no_grad():
        z = kernel.forward()
        kernel.add_vjp_(kernel.params, z * torch.tensor([[0.1], [0.2], [0.3]], dtype=F64))
        whole = kernel.forward()
        part = kernel.subset([2, 0])
        torch.testing.assert_close(part.forward(), whole[[2, 0]], rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(part.gram(), kernel.gram()[[2, 0]], rtol=1e-12, atol=1e-12)
        part.params[0].zero_()  # a subset owns its parameters
        torch.testing.assert_close(kernel.forward(), whole, rtol=0, atol=0)


@pytest.mark.parametrize("samples", [1, 3])
def test_span_compression_changes_nothing_but_the_size(samples: int) -> None:
    """Wide inputs, few samples; the weights leave the span and come back in test outputs."""
    model = mlp(d=11, hidden=2)
    x, other = inputs(samples, 11), inputs(5, 11, seed=4)
    small, full = make_kernel([model], x), make_kernel([model], x, span=False)
    assert small.params[0].shape[1] == samples
    assert full.params[0].shape[1] == 11
    with torch.no_grad():
        for _ in range(5):
            for kernel in (small, full):
                z = kernel.forward()
                kernel.add_vjp_(kernel.params, -0.3 * z)
        torch.testing.assert_close(small.forward(), full.forward(), rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(small.gram(), full.gram(), rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(
            small.outputs(other), full.outputs(other), rtol=1e-11, atol=1e-12
        )
        torch.testing.assert_close(small.weight_norm(), full.weight_norm(), rtol=1e-12, atol=0)


def test_sparsity_is_the_share_of_negative_preactivations() -> None:
    model = mlp(hidden=2)
    x = inputs(4, 5)
    kernel = make_kernel([model], x)
    with torch.no_grad():
        kernel.forward(sparsity=True)
        h1 = x @ model.weights[0].T
        h2 = h1.relu() @ model.weights[1].T
    assert kernel.sparsity is not None
    expected = [float((h < 0).double().mean()) for h in (h1, h2)]
    assert kernel.sparsity[0].tolist() == pytest.approx(expected, abs=0)


def test_buffers_are_shared_and_left_alone() -> None:
    net = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).to(F64).eval()
    x = inputs(6, 5)
    before = copy.deepcopy(net.state_dict())
    kernel = make_kernel([net] * 2, x)
    with torch.no_grad():
        torch.testing.assert_close(kernel.forward()[1], net(x)[:, 0])
    after = net.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
