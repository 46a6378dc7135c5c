"""Every run starts from everything as it was: a run does not depend on those before it."""

import copy
from collections import deque
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import trebuchet as tb

X = torch.randn(24, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y = torch.sin(2 * X[:, :1])


class Teacher(nn.Module):
    """A target network in parameters without gradients that follows the student in `forward`."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 1))
        self.teacher = copy.deepcopy(self.net).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():  # whatever the mode: looks move it too
            for t, p in zip(self.teacher.parameters(), self.net.parameters(), strict=True):
                t.mul_(0.9).add_(p, alpha=-0.5)
        out: Tensor = self.net(x) + 0.5 * self.teacher(x)
        return out


class Bank(nn.Module):
    """A queue in a plain attribute, replaced; a counter; a list that grows; what is made late."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(5, 1)
        self.queue = torch.zeros(4, 1, dtype=torch.float64)
        self.count = 0
        self.seen: deque[float] = deque(maxlen=3)

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.net(x)
        self.count += 1
        self.seen.append(float(z.detach().mean()))
        if not hasattr(self, "late"):
            self.late = torch.zeros(1, dtype=torch.float64)
        self.late += 0.01 * z.detach().mean()
        self.queue = torch.cat([z.detach()[:1], self.queue[:3]])
        return z + self.queue.mean() / self.count + sum(self.seen) + self.late


class Codebook(nn.Module):
    """A frozen parameter moved through ``.data``, and one tied to it by another name."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(5, 1)
        self.code = nn.Parameter(torch.zeros(1), requires_grad=False)
        self.same = self.code

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.net(x)
        self.code.data = 0.8 * self.code.data + 0.3 * z.detach().mean()
        return z + self.same


class Generator(nn.Module):
    """Noise from a generator of the model's own."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.generator = nn.Linear(5, 1), torch.Generator().manual_seed(3)

    def forward(self, x: Tensor) -> Tensor:
        noise = torch.randn(len(x), 1, dtype=x.dtype, generator=self.generator)
        out: Tensor = self.net(x) + 0.3 * noise
        return out


class MaxNorm(nn.Module):
    """A trained weight that the forward pass itself shortens."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(5, 1)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.net.weight.mul_(0.98)
        out: Tensor = self.net(x)
        return out


def _everything(model: nn.Module) -> str:
    def plain(value: Any) -> Any:
        return value.tolist() if isinstance(value, Tensor) else value

    state = {name: plain(tensor) for name, tensor in model.state_dict().items()}
    kinds = (int, Tensor, deque)
    attributes = [
        [(name, plain(v)) for name, v in sorted(vars(m).items()) if isinstance(v, kinds)]
        for m in model.modules()
    ]
    return repr((state, attributes))


def _plain_loop(model: nn.Module, rate: float, steps: int) -> float:
    """A fresh run, by hand, and its loss at the end."""
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (model(X) - Y).square().mean()
        torch.autograd.backward(loss)
        optimizer.step()
    with torch.no_grad():
        return float((copy.deepcopy(model)(X) - Y).square().mean())


@pytest.mark.parametrize("kind", [Teacher, Bank, Codebook, MaxNorm])
@pytest.mark.parametrize("stacked", [False, True])
def test_each_run_is_a_fresh_one(kind: type[nn.Module], stacked: bool) -> None:
    torch.manual_seed(1)
    model = kind().double()
    before = _everything(model)
    result = tb.scan(
        model, "mse", (X, Y), horizon=20, rates=[0.002, 0.02, 0.05], stacked=stacked,
        curvature="none", edge_rtol=0.2,
    )  # fmt: skip
    assert _everything(model) == before
    whole = result.run_table[result.run_table["status"] == "max_steps"]
    assert len(whole) > 2
    for row in whole.to_dict("records"):
        expected = _plain_loop(model, row["rate"], 20)
        assert row["loss_horizon"] == pytest.approx(expected, rel=1e-9)
    assert not any("independent" in note for note in result.notes)


def test_a_generator_of_the_models_own_starts_anew() -> None:
    torch.manual_seed(1)
    model = Generator().double()
    state = model.generator.get_state()
    runs = [
        tb.scan(model, "mse", (X, Y), horizon=20, rates=rates, seeds=1, curvature="none").run_table
        for rates in ([0.05], [0.2, 0.1, 0.05])
    ]
    assert torch.equal(model.generator.get_state(), state)
    whole = [r[(r["status"] == "max_steps")].set_index("rate")["loss_horizon"] for r in runs]
    shared = [rate for rate in whole[0].index if rate in whole[1].index]
    for rate in shared:
        assert whole[0][rate] == whole[1][rate]


class Momentum(nn.Module):
    """A loss with a running centre, as in self-distillation: state of the loss, not the model."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(1, dtype=torch.float64))

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        centre = self.get_buffer("centre")
        value = (z - y - centre).square().mean()
        with torch.no_grad():
            centre.add_(0.1 * z.detach().mean())
        return value


def test_state_of_the_loss_starts_anew() -> None:
    torch.manual_seed(1)
    model, loss = nn.Linear(5, 1).double(), Momentum()
    result = tb.scan(model, loss, (X, Y), horizon=20, rates=[0.01, 0.1], curvature="none")
    assert float(loss.get_buffer("centre")) == 0
    for row in result.run_table[result.run_table["status"] == "max_steps"].to_dict("records"):
        net, centre = copy.deepcopy(model), 0.0
        optimizer = torch.optim.SGD(net.parameters(), lr=row["rate"])
        for _ in range(20):
            z = net(X)
            optimizer.zero_grad()
            torch.autograd.backward((z - Y - centre).square().mean())
            centre += 0.1 * float(z.detach().mean())
            optimizer.step()
        expected = float((net(X) - Y - centre).detach().square().mean())
        assert row["loss_horizon"] == pytest.approx(expected, rel=1e-9)


class Hidden:
    """State where nobody can find it: not on a module."""

    drift = 0.0


def test_state_that_cannot_be_put_back_is_told() -> None:
    torch.manual_seed(1)
    model = nn.Linear(5, 1).double()

    def loss(z: Tensor, y: Tensor) -> Tensor:
        Hidden.drift += 1e-4
        return (z - y).square().mean() * (1 + Hidden.drift)

    result = tb.scan(model, loss, (X, Y), horizon=20, batch_size=8, curvature="none")
    assert any("not independent" in note for note in result.notes)


def test_the_forward_rate_leaves_a_teacher_where_it_was() -> None:
    torch.manual_seed(1)
    model = Teacher().double()
    before = _everything(model)
    rates = [tb.forward_critical_rate(model, "mse", (X, Y)).value for _ in range(2)]
    assert _everything(model) == before
    assert rates[0] == rates[1]


def _critic() -> nn.Sequential:
    torch.manual_seed(5)
    layers = [nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1)]
    return nn.Sequential(*layers).double()


def _snapshot(module: nn.Module) -> Any:
    grads = [None if p.grad is None else p.grad.clone() for p in module.parameters()]
    return copy.deepcopy(module.state_dict()), grads


def test_a_critic_in_a_closure_is_held_still_and_starts_anew() -> None:
    torch.manual_seed(1)
    generator, critic = nn.Linear(5, 3).double(), _critic()
    critic.get_parameter("3.bias").grad = torch.ones(1, dtype=torch.float64)
    state, grads = _snapshot(critic)

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        # One that depends on the critic's running mean, which its own training mode moves.
        scale = 1 + critic.get_buffer("1.running_mean").abs().sum().detach()
        return scale * nn.functional.softplus(-critic(model(batch[0]))).mean()

    result = tb.scan(generator, loss, (X, Y), horizon=20, rates=[0.01, 0.3], curvature="none")
    after, now = _snapshot(critic)
    assert all(torch.equal(after[name], state[name]) for name in state)
    assert now[:-1] == grads[:-1] == [None] * (len(grads) - 1)
    assert torch.equal(now[-1], torch.ones(1, dtype=torch.float64))
    for row in result.run_table[result.run_table["status"] == "max_steps"].to_dict("records"):
        critic.load_state_dict(state)
        model = copy.deepcopy(generator)
        optimizer = torch.optim.SGD(model.parameters(), lr=row["rate"])
        for _ in range(20):
            optimizer.zero_grad()
            torch.autograd.backward(loss(model, (X, Y)))
            optimizer.step()
        expected = float(loss(model, (X, Y)).detach())
        assert row["loss_horizon"] == pytest.approx(expected, rel=1e-9)


def test_a_leaf_in_a_closure_keeps_its_gradient() -> None:
    torch.manual_seed(1)
    model = nn.Linear(5, 1).double()
    scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    result = tb.scan(
        model, lambda z, y: scale * (z - y).square().mean(), (X, Y), horizon=20, curvature="none"
    )
    assert scale.grad is None
    assert float(scale.detach()) == 2.0
    assert result.suggestion.reliable


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_reentrant_checkpoints_still_train() -> None:
    from torch.utils.checkpoint import checkpoint

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(5, 8), nn.Linear(8, 1)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.tanh(self.first(x))
            out: Tensor = self.second(checkpoint(torch.tanh, h, use_reentrant=True))
            return out

    torch.manual_seed(1)
    model = Net().double()
    result = tb.scan(model, "mse", (X, Y), horizon=20, rates=[0.05], curvature="none")
    row = result.run_table[result.run_table["status"] == "max_steps"].to_dict("records")[0]
    assert row["loss_horizon"] == pytest.approx(_plain_loop(model, row["rate"], 20), rel=1e-9)
