"""The first layer by its dual coordinates, against the same training on the weights themselves."""

import numpy as np
import pytest
import torch
from torch import Tensor

import trebuchet as tb
from tests.zoo import F64, inputs
from trebuchet.engine.kernels import make_kernel
from trebuchet.engine.kernels.dual import DualMLPKernel
from trebuchet.models import MLP

WIDE = inputs(6, 20)
LABELS = inputs(6, 1, seed=3)[:, 0]
TEST = (inputs(9, 20, seed=4), inputs(9, 1, seed=5)[:, 0])


def net(seed: int, hidden: int = 1, slopes: tuple[float, float] = (1.0, 0.0)) -> MLP:
    return MLP.draw(20, 24, hidden=hidden, slopes=slopes, generator=seed)


@pytest.mark.parametrize(
    ("optimizer", "hidden", "slopes"),
    [
        (tb.GradientDescent(), 1, (1.0, 0.0)),
        (tb.GradientDescent(), 2, (2.0, 0.5)),
        (tb.GradientDescent(momentum=0.8), 1, (2.0, 2.0)),
        (tb.GradientDescent(weight_decay=0.05), 2, (1.0, 0.0)),
        (tb.GradientDescent(momentum=0.6, weight_decay=0.03), 1, (1.0, 0.25)),
    ],
)
def test_every_number_of_a_sweep_is_that_of_the_weights(
    optimizer: tb.GradientDescent, hidden: int, slopes: tuple[float, float]
) -> None:
    """With every observable, the weight-norm law and the test loss; runs leave the stack midway."""
    problem = tb.Problem(
        lambda seed: net(seed, hidden, slopes), "half_mse", (WIDE, LABELS), test=TEST
    )
    found, wanted = (
        tb.sweep(
            problem, lr_ratio=[0.5, 0.9, 40.0], seeds=[0, 1], steps=40, optimizer=optimizer,
            observables=["weight_norm", "sparsity", "top_eigenvalue", "test_loss", "gradient_norm"],
            blowup=1e3, span=span, progress=False,
        )
        for span in (True, False)
    )  # fmt: skip
    assert np.array_equal(found.status, wanted.status)
    assert np.array_equal(found.steps, wanted.steps)
    assert float(found.law_residual.max()) < 1e-13
    for name, numbers in found.data_vars.items():
        if (
            numbers.dtype.kind == "f"
            and "lr" in numbers.dims
            and name not in ("law_residual", "top_eigenvalue_proofs")
        ):
            # A run that fails amplifies its rounding by as much as its loss grows.
            for ratio, rtol in ((0.5, 1e-11), (0.9, 1e-11), (40.0, 1e-6)):
                a, b = (each[name].sel(lr=ratio).values for each in (found, wanted))
                np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-13, err_msg=str(name))


def test_the_step_of_the_weights_is_told_by_marks() -> None:
    """|θ − θ′|² and θ·u, which the law needs, against modules."""
    kernel = make_kernel([net(0, 2)], WIDE)
    assert isinstance(kernel, DualMLPKernel)
    with torch.no_grad():
        z = kernel.forward()
        before, mark = weights(kernel), kernel.mark([])
        velocity = [torch.zeros_like(p) for p in kernel.params]
        kernel.add_vjp_(velocity, 0.1 * z)
        velocity[-1].fill_(0.2)
        for p, u in zip(kernel.params, velocity, strict=True):
            p.add_(u)
        kernel.forward()
        after = weights(kernel)
        step = after - before
        law: object = None
        moved = kernel.moved(law, mark)  # type: ignore[arg-type]  # it has its own products
        assert moved[0] == pytest.approx(float(step @ step), rel=1e-12)
        along = kernel.along(law, velocity)  # type: ignore[arg-type]  # and here
        assert along[0] == pytest.approx(float(after @ step), rel=1e-12)
        assert float(kernel.weight_norm()[0]) == pytest.approx(float(after @ after), rel=1e-13)


def weights(kernel: DualMLPKernel) -> Tensor:
    return torch.cat([p.detach().flatten() for p in kernel.model_of(0).parameters()])


def test_in_float32_it_is_nearer_to_float64() -> None:
    """A starts at zero, so that XXᵀA adds few digits of rounding to XU₀."""
    x = inputs(32, 200).float()
    y = torch.linspace(-1, 1, 32)
    error = {}
    for span in (True, False):
        outputs = []
        for dtype in (torch.float32, F64):
            model = MLP.draw(200, 256, generator=0, dtype=dtype)
            kernel = make_kernel([model], x.to(dtype), span=span)
            with torch.no_grad():
                for _ in range(200):
                    z = kernel.forward()
                    kernel.add_vjp_(kernel.params, -0.02 * (z - y))
                outputs.append(kernel.forward().double())
        error[span] = float((outputs[0] - outputs[1]).norm())
    assert error[True] < error[False]


@pytest.mark.parametrize("kind", ["repeated", "nearly repeated", "narrow"])
def test_data_that_do_not_span_as_many_dimensions_are_trained_on_weights(kind: str) -> None:
    """Coordinates that move no weight could grow for ever, and rounding in XXᵀA with them."""
    x = WIDE.clone()
    if kind == "repeated":
        x[5] = x[0]
    elif kind == "nearly repeated":
        x[5] = x[0] + 1e-5 * x[1]
    else:
        x = inputs(30, 20)
    kernel = make_kernel([net(0)], x)
    assert not isinstance(kernel, DualMLPKernel)
    plain = make_kernel([net(0)], x, span=False)
    with torch.no_grad():
        for each in (kernel, plain):
            for _ in range(3):
                each.add_vjp_(each.params, -0.1 * each.forward())
        torch.testing.assert_close(kernel.forward(), plain.forward(), rtol=1e-9, atol=1e-11)


def test_a_stack_s_products_are_those_of_its_runs() -> None:
    """Of one output and of several, which a stack multiplies in rows."""
    for outputs in (1, 3):
        models = [MLP.draw(20, 24, outputs=outputs, generator=seed) for seed in (0, 1, 2)]
        stack = make_kernel(models, WIDE)
        with torch.no_grad():
            stack.add_vjp_(stack.params, -0.1 * stack.forward())
            z = stack.forward()
            for run, model in enumerate(models):
                alone = make_kernel([model], WIDE)
                alone.add_vjp_(alone.params, -0.1 * alone.forward())
                torch.testing.assert_close(alone.forward()[0], z[run], rtol=1e-12, atol=1e-13)
