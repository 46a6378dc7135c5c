"""What a loss reaches beside the model is found, held still, and as it was afterwards."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import trebuchet as tb
from trebuchet.curvature import held_still
from trebuchet.problem.captured import captured, captured_modules

F64 = torch.float64


def make_critic() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 1)).double()


GLOBAL = make_critic()


def judged(critic: nn.Module, model: nn.Module, batch: Tensor) -> Tensor:
    value: Tensor = critic(model(batch)).square().mean()
    return value


def by_global(model: nn.Module, batch: Tensor) -> Tensor:
    return judged(GLOBAL, model, batch)


def through_a_helper(model: nn.Module, batch: Tensor) -> Tensor:
    return by_global(model, batch)


class Trainer:
    """Any object: what Lightning users have."""

    def __init__(self, critic: nn.Module) -> None:
        self.parts = {"critic": [critic]}

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        return judged(self.parts["critic"][0], model, batch)

    def __call__(self, model: nn.Module, batch: Tensor) -> Tensor:
        return self.loss(model, batch)


class Slotted:
    __slots__ = ("critic", "unfilled")

    def __init__(self, critic: nn.Module) -> None:
        self.critic = critic

    def __call__(self, model: nn.Module, batch: Tensor) -> Tensor:
        return judged(self.critic, model, batch)


def by_cell(critic: nn.Module) -> Callable[..., Tensor]:
    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return judged(critic, model, batch)

    return loss


def by_default(critic: nn.Module) -> Callable[..., Tensor]:
    def loss(model: nn.Module, batch: Tensor, *, other: nn.Module = critic) -> Tensor:
        return judged(other, model, batch)

    return loss


WAYS: dict[str, Callable[[nn.Module], Callable[..., Tensor]]] = {
    "closure cell": by_cell,
    "default argument": by_default,
    "partial": lambda critic: partial(judged, critic),
    "bound method": lambda critic: Trainer(critic).loss,
    "callable object": Trainer,
    "slots": Slotted,
    "nested partial of a method": lambda critic: partial(Trainer(critic).loss),
}


@pytest.mark.parametrize("way", [*WAYS, "global", "global of a helper"])
def test_a_critic_that_the_loss_reaches_is_held_still(way: str) -> None:
    critic = make_critic() if way in WAYS else GLOBAL
    if way in WAYS:
        loss = WAYS[way](critic)
    else:
        loss = by_global if way == "global" else through_a_helper
    assert captured_modules(loss) == [critic]
    torch.manual_seed(0)
    net, x = nn.Linear(2, 2).double(), torch.randn(6, 2, dtype=F64)
    critic(x).sum().backward()
    before = {k: v.clone() for k, v in critic.state_dict().items()}
    grads = [(p.grad, p.grad.clone()) for p in critic.parameters() if p.grad is not None]
    tb.top_eigen(net, tb.curvature.ModelLoss(loss), x, "hessian")
    assert all(torch.equal(v, before[k]) for k, v in critic.state_dict().items())
    after = [p.grad for p in critic.parameters()]
    for found, (grad, value) in zip(after, grads, strict=True):
        assert found is grad
        assert found is not None
        assert torch.equal(found, value)


class Taught(nn.Module):
    """A teacher hidden in a list, so that it is no parameter, moved by every forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(2, 1, dtype=F64)
        self.hidden = [nn.Linear(2, 1, dtype=F64)]
        self.queue = torch.zeros(4, dtype=F64)  # never registered

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            for p, t in zip(self.net.parameters(), self.hidden[0].parameters(), strict=True):
                t.lerp_(p, 0.1)
            self.queue.add_(1)
        z: Tensor = self.net(x)
        return z


def test_what_the_model_has_not_registered_is_restored() -> None:
    net, x = Taught(), torch.ones(3, 2, dtype=F64)
    teacher, queue = [p.detach().clone() for p in net.hidden[0].parameters()], net.queue.clone()
    assert captured_modules(net, apart_from=net) == net.hidden
    with held_still(net):
        net(x)
        assert not torch.equal(net.queue, queue)
    assert torch.equal(net.queue, queue)
    for p, q in zip(net.hidden[0].parameters(), teacher, strict=True):
        assert torch.equal(p, q)


def test_a_frozen_parameter_that_forward_moves_is_restored() -> None:
    class Bank(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(2, 1)
            self.bank = nn.Parameter(torch.zeros(3), requires_grad=False)

        def forward(self, x: Tensor) -> Any:
            self.bank.data += 1
            return self.net(x)

    net = Bank()
    with held_still(net):
        net(torch.ones(3, 2))
    assert net.bank.tolist() == [0, 0, 0]


def test_a_tensor_that_wants_a_gradient_keeps_its_own() -> None:
    temperature = torch.ones(1, dtype=F64, requires_grad=True)
    temperature.grad = torch.full((1,), 5.0, dtype=F64)
    net, x = nn.Linear(2, 1).double(), torch.ones(3, 2, dtype=F64)

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return (model(batch) * temperature).square().sum()

    assert captured(loss).tensors[0] is temperature
    with held_still(net, also=loss):
        loss(net, x).backward()  # type: ignore[no-untyped-call]  # untyped in torch
    assert temperature.grad.tolist() == [5]
    assert net.weight.grad is None


def test_the_model_and_its_parts_are_not_captured_by_their_own_loss() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Tanh())

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return model(batch).sum() + net[0].weight.sum()  # type: ignore[operator,no-any-return]

    assert captured_modules(loss, apart_from=net) == []
    assert captured(loss, apart_from=net).tensors == []


def test_a_million_samples_in_a_closure_are_not_searched() -> None:
    critic, samples = make_critic(), list(range(300)) * 1000

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return judged(critic, model, batch) + samples[0]

    assert captured_modules(loss) == [critic]


def test_a_module_that_lies_there_unused_does_no_harm() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's: lazy modules are new
        unused = nn.LazyLinear(3)

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return model(batch).square().mean() if batch.ndim else unused(batch)

    net, x = nn.Linear(2, 1).double(), torch.ones(3, 2, dtype=F64)
    assert tb.top_eigen(net, loss, x, "hessian").converged
