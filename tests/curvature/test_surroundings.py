"""TorchScript, hooks, default dtypes and devices, threads: the numbers do not change."""

import threading
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import trebuchet as tb
from tests.curvature.reference import close, spectrum

F64 = torch.float64
OPERATORS = ("ggn", "ntk", "hessian")


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 2)
    ).double()  # fmt: skip


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(16, 3, generator=generator, dtype=F64)
    return x, torch.randn(16, 2, generator=generator, dtype=F64)


def truth(operator: str) -> Tensor:
    return spectrum(net(), F.mse_loss, *data(), operator)[0]


@pytest.fixture
def defaults() -> Iterator[None]:
    """Whatever a test sets is taken back."""
    dtype = torch.get_default_dtype()
    yield
    torch.set_default_dtype(dtype)
    torch.set_default_device(None)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("way", ["script", "trace", "compile"])
def test_compiled_modules(way: str, operator: Any) -> None:
    x, y = data()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, and still in use
        made: Any = {
            "script": lambda: torch.jit.script(net()),
            "trace": lambda: torch.jit.trace(net(), x),  # type: ignore[no-untyped-call]
            "compile": lambda: torch.compile(net(), backend="eager"),
        }[way]()
        before = {k: v.clone() for k, v in made.state_dict().items()}
        top = tb.top_eigen(made, "mse", (x, y), operator, rtol=1e-8)
    assert top.converged
    assert close(top.value, truth(operator), 1e-7)
    assert all(torch.equal(v, before[k]) for k, v in made.state_dict().items())


@pytest.mark.parametrize("operator", OPERATORS)
def test_hooks_belong_to_the_model(operator: Any) -> None:
    x, y = data()
    hooked = net()
    hooked[0].register_forward_hook(lambda module, args, out: 2 * out)
    hooked[3].register_full_backward_hook(lambda module, into, outof: None)

    class Twice(nn.Module):
        """The same net, its parameters as they are."""

        def __init__(self) -> None:
            super().__init__()
            self.layers = net()

        def forward(self, u: Tensor) -> Tensor:
            a, norm, f, b = self.layers
            z: Tensor = b(f(norm(2 * a(u))))
            return z

    want = spectrum(Twice(), F.mse_loss, x, y, operator)[0]
    assert close(tb.top_eigen(hooked, "mse", (x, y), operator, rtol=1e-8).value, want, 1e-7)


@pytest.mark.usefixtures("defaults")
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("method", ["auto", "lanczos", "dense"])
def test_defaults_of_dtype_and_device(method: Any, operator: Any) -> None:
    (x, y), want, made = data(), truth(operator), net()
    torch.set_default_dtype(F64)
    torch.set_default_device("meta")  # whatever is made without a device is useless
    top = tb.top_eigen(made, "mse", (x, y), operator, method=method, rtol=1e-8)
    assert close(top.value, want, 1e-7)
    single = tb.top_eigen(made.float(), "mse", (x.float(), y.float()), operator, method=method)
    assert close(single.value, want, 1e-3)


@pytest.mark.usefixtures("defaults")
def test_defaults_where_derivatives_are_by_differences() -> None:
    torch.manual_seed(0)
    made = nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 2)
    ).double()
    x, y = data()
    plain = tb.top_eigen(made, "mse", (x, y), "hessian", rtol=1e-8)
    torch.set_default_device("meta")
    assert tb.top_eigen(made, "mse", (x, y), "hessian", rtol=1e-8).value == plain.value


def test_threads_take_turns_at_one_model() -> None:
    made, (x, y), found = net(), data(), []

    def measure(operator: Any) -> None:
        with torch.no_grad():
            found.append((operator, tb.top_eigen(made, "mse", (x, y), operator, rtol=1e-8).value))

    threads = [threading.Thread(target=measure, args=(op,)) for op in OPERATORS for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 9
    for operator, value in found:
        assert close(value, truth(operator), 1e-7)
    assert not made[1].num_batches_tracked
