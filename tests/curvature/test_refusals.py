"""Bad input: one clear sentence each, and nothing changed."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from trebuchet.curvature import half_mse, top_eigen
from trebuchet.errors import InputError

X, Y = torch.randn(6, 2, generator=torch.Generator().manual_seed(0)), torch.zeros(6, 1)


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))


class Returns(nn.Module):
    """A net that returns what it is told to."""

    def __init__(self, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.net, self.wrap = net(), wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(self.net(x))


class Integer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = net()
        self.count = nn.Parameter(torch.ones(2, dtype=torch.int64), requires_grad=False)

    def forward(self, x: Tensor) -> Any:
        return self.net(x)


class Nan(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(2, 1)
        self.extra = nn.Parameter(torch.zeros(6, 1))

    def forward(self, x: Tensor) -> Any:
        return self.net(x) + self.extra.abs().sqrt()  # infinite slope at 0


class Writes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, x: Tensor) -> Any:
        with torch.no_grad():
            next(self.net.parameters()).mul_(1.0)
        return self.net(x)


def frozen() -> nn.Module:
    model = net()
    model.requires_grad_(False)
    return model


def meta() -> nn.Module:
    return net().to("meta")


def two_devices() -> nn.Module:
    model = net()
    model[2].to("meta")  # type: ignore[index]
    return model


def complex_net() -> nn.Module:
    return nn.Linear(2, 1, dtype=torch.complex64)


def infinite(z: Tensor, y: Tensor) -> Tensor:
    return (z - y).square().mean() / 0


CASES: dict[str, tuple[Any, Any, Any, dict[str, Any], str]] = {
    "integer parameter": (Integer(), half_mse, (X, Y), {}, "integer type"),
    "complex weights": (complex_net(), half_mse, (X, Y), {}, "complex"),
    "no trainable parameter": (frozen(), half_mse, (X, Y), {}, "no trainable parameter"),
    "nothing selected": (net(), half_mse, (X, Y), {"params": lambda n, p: False}, "no trainable"),
    "unknown name": (net(), half_mse, (X, Y), {"params": ["9.weight"]}, "no parameter '9.weight'"),
    "foreign parameter": (net(), half_mse, (X, Y), {"params": [nn.Parameter(Y)]}, "are no param"),
    "empty loader": (net(), half_mse, [], {}, "loader is empty"),
    "empty data set": (
        net(), half_mse, DataLoader(TensorDataset(X[:0], Y[:0])), {}, "loader is empty"
    ),
    "empty batch": (net(), half_mse, (X[:0], Y[:0]), {}, "one or more rows"),
    "iterator": (net(), half_mse, iter([(X, Y)]), {}, "used? up"),
    "no data": (net(), half_mse, None, {}, "data: expected"),
    "a number as data": (net(), half_mse, 3, {}, "data: expected"),
    "strings as data": (net(), half_mse, ["a"], {}, "data: expected"),
    "NaN loss": (net(), lambda z, y: (z * float("nan")).sum(), (X, Y), {}, "loss: is nan"),
    "infinite loss": (net(), infinite, (X, Y), {}, "loss: is inf"),
    "NaN inputs": (net(), half_mse, (X * float("nan"), Y), {}, "nan|NaN"),
    "NaN derivatives": (Nan(), half_mse, (X, Y), {}, "NaN or infinite"),
    "vector loss": (net(), lambda z, y: (z - y).square(), (X, Y), {}, "expected a scalar"),
    "reduction none": (net(), nn.MSELoss(reduction="none"), (X, Y), {}, "reduction='none'"),
    "loss returns a float": (net(), lambda z, y: 1.0, (X, Y), {}, "expected a scalar tensor"),
    "loss of another name": (net(), "hinge", (X, Y), {}, "expected one of"),
    "loss is a number": (net(), 3, (X, Y), {}, "expected a name or a callable"),
    "no loss": (net(), None, (X, Y), {}, "only the NTK"),
    "tuple outputs": (Returns(lambda z: (z, z)), half_mse, (X, Y), {}, "expected one tensor"),
    "dict outputs": (Returns(lambda z: {"z": z}), half_mse, (X, Y), {}, "expected one tensor"),
    "detached outputs": (Returns(lambda z: z.detach()), half_mse, (X, Y), {}, "do not depend"),
    "mismatched devices": (net(), half_mse, (X.to("meta"), Y), {}, "on meta"),
    "split model": (two_devices(), half_mse, (X, Y), {}, "one device"),
    "k too large": (net(), half_mse, (X, Y), {"k": 14}, "13 parameters"),
    "k too large for the NTK": (net(), None, (X, Y), {"k": 7, "operator": "ntk"}, "6 outputs"),
    "k = 0": (net(), half_mse, (X, Y), {"k": 0}, "positive integer"),
    "rtol = 0": (net(), half_mse, (X, Y), {"rtol": 0.0}, "rtol"),
    "failure = 1": (net(), half_mse, (X, Y), {"failure": 1.0}, "failure"),
    "unknown operator": (net(), half_mse, (X, Y), {"operator": "fisher"}, "operator"),
    "unknown mode": (net(), half_mse, (X, Y), {"mode": "test"}, "mode"),
    "unknown method": (net(), half_mse, (X, Y), {"method": "power"}, "method"),
    "micro_batch = 0": (net(), half_mse, (X, Y), {"micro_batch": 0}, "micro_batch"),
    "closure as GGN": (net(), lambda model, b: model(b).sum(), X, {}, "use 'hessian'"),
    "no group": (net(), half_mse, (X, Y), {"group": True}, "not initialised"),
    "not a model": (lambda x: x, half_mse, (X, Y), {}, "torch.nn.Module"),
    "unknown optimizer": (net(), half_mse, (X, Y), {"optimizer": "lion"}, "optimizer"),
    "writes its parameters": (Writes(), half_mse, (X, Y), {}, "writes to its parameters"),
    "median": (
        net(), lambda z, y: (z - y).square().median(), (X, Y), {"micro_batch": 3}, "neither a mean"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", list(CASES))
def test_one_clear_sentence(case: str) -> None:
    model, loss, data, options, says = CASES[case]
    is_module = isinstance(model, nn.Module)
    flags = [m.training for m in model.modules()] if is_module else []
    state = torch.get_rng_state()
    with pytest.raises(InputError, match=says) as caught:
        top_eigen(model, loss, data, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert ": " in message
    assert torch.equal(torch.get_rng_state(), state)
    if is_module:
        assert flags == [m.training for m in model.modules()]
        assert all(p.grad is None for p in model.parameters())


def test_optimizers_that_have_no_one_edge() -> None:
    model = net()
    a, b = model.parameters(), net().parameters()
    for optimizer, says in (
        (torch.optim.Adadelta(model.parameters()), "no one stability edge"),
        (torch.optim.SGD(b, lr=0.1), "does not hold"),
        (
            torch.optim.SGD([{"params": [next(a)], "momentum": 0.5}, {"params": list(a)}], lr=0.1),  # type: ignore[arg-type]
            "differ in momentum",
        ),
    ):
        with pytest.raises(InputError, match=says):
            top_eigen(model, half_mse, (X, Y), optimizer=optimizer)


def test_warm_start_of_another_model() -> None:
    first = top_eigen(net(), half_mse, (X, Y))
    with pytest.raises(InputError, match="13 parameters"):
        top_eigen(nn.Linear(2, 1), half_mse, (X, Y), warm=first)
