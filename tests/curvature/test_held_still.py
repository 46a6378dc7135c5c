"""Whatever happens while a model is held still, its owner finds it as it was."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trebuchet.curvature import half_mse, held_still, top_eigen
from trebuchet.errors import InputError

F64 = torch.float64


class Registering(nn.Module):
    """Forward registers a buffer, a buffer that is not saved, a parameter and a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2, dtype=F64))
        self.register_buffer("mean", torch.zeros(2, dtype=F64))

    def forward(self, x: Tensor) -> Tensor:
        self.register_buffer("seen", x.detach().mean(0))
        self.register_buffer("mean", x.detach().mean(0), persistent=False)
        if not hasattr(self, "shift"):
            self.shift = nn.Parameter(torch.zeros(2, dtype=F64))
            self.layer = nn.Identity()
        self.scale.data += 1
        return x * self.scale


class Weighted(nn.Module):
    """A loss with a parameter and a buffer of its own."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([3.0], dtype=F64))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self.calls += 1
        return (self.weight * (outputs - targets)).square().mean()


def test_what_forward_registers_is_gone_and_what_it_replaces_is_back() -> None:
    net = Registering()
    scale, mean = net.scale, net.mean
    with held_still(net, parameters_too=True):
        net(torch.ones(3, 2, dtype=F64))
        assert set(net.state_dict()) == {"scale", "shift", "seen"}
    assert net.scale is scale
    assert net.mean is mean
    assert list(net.state_dict()) == ["scale", "mean"]  # saved again, in the same order
    assert not hasattr(net, "seen")
    assert not hasattr(net, "shift")
    assert not hasattr(net, "layer")
    assert scale.tolist() == [1, 1]
    assert isinstance(mean, Tensor)
    assert mean.tolist() == [0, 0]


def test_parameters_swapped_for_tensors_are_back_under_every_name() -> None:
    """As after Ctrl-C inside functional_call; tied names too."""
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[1].weight = net[0].weight
    before = dict(net.named_parameters(remove_duplicate=False))

    def interrupted() -> None:
        with held_still(net):
            for layer in net:
                registry: dict[str, Any] = layer._parameters
                registry.update(weight=torch.zeros(2, 2), bias=None)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    after = dict(net.named_parameters(remove_duplicate=False))
    assert list(after) == list(before)
    assert all(after[name] is p for name, p in before.items())


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_the_loss_and_what_else_the_optimizer_steps_are_restored(
    error: type[BaseException] | None,
) -> None:
    net, loss = nn.Linear(2, 1).double(), Weighted()
    frozen = nn.Parameter(torch.tensor([5.0], dtype=F64), requires_grad=False)
    temperature = nn.Parameter(torch.tensor([2.0], dtype=F64))
    parameters = [*net.parameters(), loss.weight, temperature, frozen]
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    x, y = torch.ones(4, 2, dtype=F64), torch.zeros(4, 1, dtype=F64)
    (loss(net(x), y) * temperature).sum().backward()
    held = [*parameters, loss.calls]
    values = [p.detach().clone() for p in held]
    wants = [p.requires_grad for p in held]
    grads = [(p.grad, None if p.grad is None else p.grad.clone()) for p in held]
    group = optimizer.param_groups[0]

    def train() -> None:
        with held_still(net, mode="as_is", optimizer=optimizer, parameters_too=True, also=loss):
            frozen.requires_grad_()
            temperature.requires_grad_(False)
            optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})
            (loss(net(x), y) * frozen).sum().backward()
            temperature.grad = torch.ones(1, dtype=F64)
            optimizer.step()
            assert all(not torch.equal(p, v) for p, v in zip(held, values, strict=True))
            if error is not None:
                raise error

    if error is None:
        train()
    else:
        with pytest.raises(error):
            train()
    assert all(torch.equal(p, v) for p, v in zip(held, values, strict=True))
    assert [p.requires_grad for p in held] == wants
    for p, (grad, value) in zip(held, grads, strict=True):
        assert p.grad is grad
        assert grad is None or (value is not None and torch.equal(grad, value))
    assert len(optimizer.param_groups) == 1
    assert optimizer.param_groups[0] is group
    assert all(a is b for a, b in zip(group["params"], parameters, strict=True))
    assert not optimizer.state


def test_a_graph_that_the_owner_holds_survives() -> None:
    """Buffers that nothing wrote to are not written to on the way out either."""
    net = nn.BatchNorm1d(2).double().eval()
    out = net(torch.ones(3, 2, dtype=F64))
    with held_still(net):
        net(torch.ones(3, 2, dtype=F64))
    out.sum().backward()
    assert net.weight.grad is not None


@pytest.mark.parametrize("owner", ["model", "loss"])
def test_parameters_without_a_shape_are_named(owner: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's: lazy modules are new
        lazy, made = nn.Sequential(nn.LazyLinear(3), nn.LazyBatchNorm1d()), nn.Linear(2, 1)
    net, also = (lazy, made) if owner == "model" else (made, lazy)
    with (
        pytest.raises(
            InputError, match=rf"{owner}: has parameters without a shape.*0\.weight.*batch"
        ),
        held_still(net, also=also),
    ):
        pass
    lazy(torch.ones(4, 2))
    with held_still(net, also=also):
        pass


def test_inference_mode_around_a_measurement_changes_nothing() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    data = torch.randn(4, 2, dtype=F64), torch.randn(4, 1, dtype=F64)
    outside = top_eigen(net, half_mse, data).value
    with torch.inference_mode():
        assert top_eigen(net, half_mse, data).value == outside
        assert torch.is_inference_mode_enabled()
        assert not torch.is_grad_enabled()


@pytest.mark.parametrize("owner", ["model", "loss", "optimizer"])
def test_tensors_made_in_inference_mode_are_named(owner: str) -> None:
    net, also = nn.Linear(2, 2), nn.Linear(2, 2)
    with torch.inference_mode():
        made = nn.Linear(2, 2)
    options: dict[str, Any] = {"also": also}
    if owner == "model":
        net = made
    elif owner == "loss":
        options["also"] = made
    else:
        options["optimizer"] = torch.optim.SGD(made.parameters())
    name = "#0" if owner == "optimizer" else "weight"
    with (
        pytest.raises(InputError, match=f"{owner}: .*inference_mode.*{name}"),
        held_still(net, **options),
    ):
        pass


@pytest.mark.parametrize(
    "compiled",
    [torch.jit.script, lambda net: torch.jit.trace(net, torch.ones(3, 2))],  # type: ignore[no-untyped-call]
)
def test_a_compiled_module_can_be_held(compiled: Callable[[nn.Module], Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, and still in use
        net = compiled(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with held_still(net, mode="train", parameters_too=True):
        net(torch.randn(3, 2))
        with torch.no_grad():
            for p in net.parameters():
                p += 1
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name
