"""Each observable against what it is defined as, on both kinds of kernels; and one of one's own."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev

import trebuchet as tb
from trebuchet.errors import InputError
from trebuchet.observables import LossDirections, TopEigenvalues
from trebuchet.observables.accuracy import share

F64 = torch.float64
G = torch.Generator().manual_seed(0)
X = torch.randn(7, 4, dtype=F64, generator=G)
Y = torch.randn(7, dtype=F64, generator=G)
CLASSES = torch.arange(7) % 3
STEPS, RATE = 5, 0.4


def _net(outputs: int = 1) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, outputs)).double()


def _mlp() -> nn.Module:
    return tb.MLP.draw(4, 8, generator=0)


def _trained(net: nn.Module, loss: Any, y: Tensor) -> list[nn.Module]:
    """The net at steps 0, 1, …, by torch's own optimizer."""
    found = [copy.deepcopy(net)]
    net = copy.deepcopy(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE)
    for _ in range(STEPS):
        optimizer.zero_grad()
        torch.autograd.backward(loss(net(X), y))
        optimizer.step()
        found.append(copy.deepcopy(net))
    return found


def _jacobian(net: nn.Module) -> Tensor:
    params = {n: p.detach() for n, p in net.named_parameters()}
    rows = jacrev(lambda p: functional_call(net, p, (X,)).flatten())(params)
    return torch.cat([j.flatten(1) for j in rows.values()], 1)


def _half(z: Tensor, y: Tensor) -> Tensor:
    return (z.flatten() - y).square().sum() / 14


@pytest.mark.parametrize("make", [_net, _mlp])
def test_kernels_of_both_kinds_by_dense_autograd(make: Any) -> None:
    net = make()
    names = ["top_eigenvalue", "top_eigenvalues", "loss_directions", "eigenvector_overlap"]
    runs = tb.sweep(
        tb.Problem(net, "half_mse", (X, Y)), lr=[RATE], steps=STEPS,
        observables=[*names, "gradient_norm"],
    ).isel(lr=0, seed=0)  # fmt: skip
    assert runs.top_eigenvalues.dims == ("step", "direction")
    first = None
    for t, at in enumerate(_trained(net, _half, Y)):
        jacobian = _jacobian(at)
        values, vectors = torch.linalg.eigh(jacobian @ jacobian.T / 7)
        residual = at(X).flatten().detach() - Y
        directions = (vectors.T @ residual).square() / 14
        first = vectors[:, -1] if first is None else first
        here = runs.isel(step=t)
        np.testing.assert_allclose(here.top_eigenvalue, values[-1], rtol=1e-9)
        np.testing.assert_allclose(here.top_eigenvalues, values.flip(0)[:5], rtol=1e-8, atol=1e-12)
        np.testing.assert_allclose(
            here.loss_directions, directions.flip(0)[:5], rtol=1e-6, atol=1e-10
        )
        np.testing.assert_allclose(here.eigenvector_overlap, abs(first @ vectors[:, -1]), rtol=1e-8)
        slope = jacobian.T @ residual / 7
        np.testing.assert_allclose(here.gradient_norm, slope.norm(), rtol=1e-9)


@pytest.mark.parametrize("make", [_net, _mlp])
def test_directions_of_the_start_by_dense_autograd(make: Any) -> None:
    net = make()
    chosen = [LossDirections(3, of_start=True), TopEigenvalues(3, of_start=True)]
    runs = tb.sweep(
        tb.Problem(net, "half_mse", (X, Y)), lr=[RATE], steps=STEPS, observables=chosen
    ).isel(lr=0, seed=0)
    assert "at the start" in runs.loss_directions.attrs["long_name"]
    for t, at in enumerate(_trained(net, _half, Y)):
        jacobian = _jacobian(at)
        gram = jacobian @ jacobian.T / 7
        if t == 0:
            first = torch.linalg.eigh(gram)[1].flip(1)[:, :3]
        residual = at(X).flatten().detach() - Y
        here = runs.isel(step=t)
        np.testing.assert_allclose(
            here.loss_directions, (first.T @ residual).square() / 14, rtol=1e-6, atol=1e-10
        )
        along = torch.diagonal(first.T @ gram @ first)
        np.testing.assert_allclose(here.top_eigenvalues, along, rtol=1e-7)


def test_all_directions_together_are_the_loss() -> None:
    runs = tb.sweep(
        tb.Problem(_net(), "half_mse", (X, Y)), lr=[0.1], steps=3, observables=[LossDirections(7)]
    )
    np.testing.assert_allclose(runs.loss_directions.sum("direction"), runs.loss, rtol=1e-10)


def test_the_top_eigenvalue_of_another_loss_is_gauss_newton_s() -> None:
    """2/λ is then where descent becomes unstable, whatever the loss divides by."""
    for net in (_net(), _mlp()):
        target = Y[:, None] if net(X).ndim == 2 else Y
        runs = tb.sweep(
            tb.Problem(net, "mse", (X, target)), lr=[RATE], steps=2, observables=["top_eigenvalue"]
        )
        jacobian = _jacobian(net)
        wanted = 2 * torch.linalg.eigvalsh(jacobian @ jacobian.T / 7)[-1]
        np.testing.assert_allclose(runs.top_eigenvalue_init, wanted, rtol=2e-4)
        np.testing.assert_allclose(runs.top_eigenvalue[0, 0, 0], wanted, rtol=2e-4)
        assert tb.sweep(
            tb.Problem(net, "mse", (X, target)), lr_ratio=[1.0], steps=2
        ).learning_rate.item() == pytest.approx(1 / float(wanted), rel=2e-4)


@pytest.mark.parametrize("make", [_net, _mlp])
def test_sharpness_is_the_dense_hessian_s(make: Any) -> None:
    net = make()
    problem = tb.Problem(net, "half_mse", (X, Y))
    runs = tb.sweep(problem, lr=[RATE], steps=2, observables=["sharpness"])
    flat = torch.cat([p.detach().flatten() for p in net.parameters()])
    names, shapes = zip(*[(n, p.shape) for n, p in net.named_parameters()], strict=True)

    def loss(theta: Tensor) -> Tensor:
        parts = torch.split(theta, [int(np.prod(s)) for s in shapes])
        named = {n: p.view(s) for n, p, s in zip(names, parts, shapes, strict=True)}
        return _half(functional_call(net, named, (X,)), Y)

    hessian = torch.autograd.functional.hessian(loss, flat)  # type: ignore[no-untyped-call]  # torch
    top = torch.linalg.eigvalsh(hessian)[-1]
    np.testing.assert_allclose(runs.sharpness[0, 0, 0], top, rtol=1e-3)


def test_accuracy_of_nets_that_train() -> None:
    net = _net(3)
    runs = tb.sweep(
        tb.Problem(net, "cross_entropy", (X, CLASSES)), lr=[RATE], steps=STEPS,
        observables=["accuracy"],
    ).isel(lr=0, seed=0)  # fmt: skip
    for t, at in enumerate(_trained(net, nn.functional.cross_entropy, CLASSES)):
        right = (at(X).argmax(-1) == CLASSES).double().mean()
        assert runs.accuracy.values[t] == pytest.approx(float(right))


@pytest.mark.parametrize(
    ("z", "y", "right"),
    [
        ([[2.0, 1.0], [0.0, 3.0]], torch.tensor([0, 0]), 0.5),
        ([[2.0, 1.0], [0.0, 3.0]], torch.tensor([[1.0, 0.0], [0.0, 1.0]]), 1.0),
        ([[0.2], [-3.0]], torch.tensor([1.0, -1.0]), 1.0),
        ([0.2, -3.0], torch.tensor([-1.0, -1.0]), 0.5),
        ([0.2, 0.7], torch.tensor([0.0, 1.0]), 1.0),  # numbers towards 0 and 1
        ([0.2, 0.7], torch.tensor([0, 1]), 0.5),  # logits
    ],
)
def test_what_counts_as_right(z: Any, y: Tensor, right: float) -> None:
    assert share(torch.tensor(z), y) == right


class LargestWeight(tb.Observable):
    """As anybody would write one."""

    name = "largest_weight"
    long_name = "largest weight"

    def measure(self, model: nn.Module, problem: tb.Problem) -> float:
        return max(float(p.abs().max()) for p in model.parameters())


@pytest.mark.parametrize("make", [_net, _mlp])
def test_one_s_own_is_a_class_with_one_method(make: Any) -> None:
    net = make()
    runs = tb.sweep(
        tb.Problem(net, "half_mse", (X, Y)), lr=[RATE], steps=STEPS,
        observables=[LargestWeight(), "accuracy"],
    ).isel(lr=0, seed=0)  # fmt: skip
    for t, at in enumerate(_trained(net, _half, Y)):
        wanted = max(float(p.detach().abs().max()) for p in at.parameters())
        assert runs.largest_weight.values[t] == pytest.approx(wanted, rel=1e-12)
    assert runs.largest_weight_final.item() == runs.largest_weight.values[-1]
    assert runs.largest_weight.attrs == {"units": "1", "long_name": "largest weight"}
    # Real targets are no classes: NaN, with the reason.
    assert np.isnan(runs.accuracy).all()
    assert "no classes" in runs.accuracy.attrs["missing"]


def test_what_a_run_cannot_give_is_missing_with_the_reason() -> None:
    problem = tb.Problem(_net(), "mse", (X, Y[:, None]), batch_size=3)
    runs = tb.sweep(problem, lr=[0.1], steps=3, observables=["top_eigenvalues", "test_loss"])
    assert "not one full batch" in runs.top_eigenvalues.attrs["missing"]
    assert "no test data" in runs.test_loss.attrs["missing"]


@pytest.mark.parametrize("given", ["acuracy", ["acuracy"], [3], 3, [LargestWeight]])
def test_what_is_no_observable_is_refused(given: Any) -> None:
    with pytest.raises(InputError, match=r"observables: expected a list of any of .*accuracy"):
        tb.sweep(tb.Problem(_net(), "half_mse", (X, Y)), lr=[0.1], steps=2, observables=given)
