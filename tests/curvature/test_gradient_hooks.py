"""Hooks that change a parameter's gradient are no part of the loss, nor of its curvature."""

import pytest
import torch
from torch import Tensor, nn

import trebuchet as tb
from tests.problem.reference import draws, net
from trebuchet.curvature.measurement import OperatorName
from trebuchet.curvature.settings import Method

METHODS: list[Method] = ["lanczos", "dense"]
OPERATORS: list[OperatorName] = ["ggn", "hessian", "ntk"]


def _gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    weight = model.get_parameter("0.weight")
    return torch.autograd.grad(nn.functional.mse_loss(model(x), y), weight)[0]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("operator", OPERATORS)
def test_a_hook_on_a_gradient_is_named_and_leaves_curvature_as_it_is(
    operator: OperatorName, method: Method
) -> None:
    x, y = draws((12, 3), (12, 2))
    plain = tb.top_eigen(net(3, 2), "mse", (x, y), operator, method=method, rtol=1e-8)
    model = net(3, 2)
    weight = model.get_parameter("0.weight")
    seen = []

    def shrunk(g: Tensor) -> Tensor:
        seen.append(1)
        return 0.1 * g

    handle = weight.register_hook(shrunk)  # type: ignore[no-untyped-call]
    found = tb.top_eigen(model, "mse", (x, y), operator, method=method, rtol=1e-8)
    assert found.value == pytest.approx(plain.value, rel=1e-7)
    assert any("hooks on parameters (0.weight)" in remark for remark in found.remarks)
    assert not any("wrong" in remark for remark in found.remarks)
    assert not seen
    # The hook is there afterwards, and can be taken off.
    hooked = _gradient(model, x, y)
    assert len(seen) == 1
    handle.remove()
    torch.testing.assert_close(hooked, 0.1 * _gradient(model, x, y))
    assert len(seen) == 1


def test_a_scan_says_that_its_critical_rate_does_not_know_of_the_hook() -> None:
    x, y = draws((12, 3), (12, 1))
    model = net()
    weight = model.get_parameter("0.weight")
    weight.register_hook(lambda g: 0.1 * g)  # type: ignore[no-untyped-call]
    found = tb.scan(model, "mse", (x, y), horizon=30)
    assert any("hooks on parameters (0.weight)" in note for note in found.notes)
