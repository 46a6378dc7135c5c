"""What a scan trains and looks at are one loss, the training mode's; what it leaves alone."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import trebuchet as tb
from trebuchet.errors import InputError

torch.manual_seed(0)
X, Y = torch.randn(16, 3).double(), torch.randn(16, 1).double()
LABELS = (Y[:, 0] > 0).long()
RATES = [0.05, 0.2, 0.5]


def _net(outputs: int = 1) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, outputs)).double()


class Probabilities(nn.Module):
    """Logits in training, probabilities in evaluation, with cross-entropy."""

    def __init__(self) -> None:
        super().__init__()
        self.net = _net(2)

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.net(x)
        if not self.training:
            z = z.softmax(1)
        return z


class Penalised(nn.Module):
    """A model that says its own loss, with a penalty in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.net = _net()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        loss: Tensor = (self.net(x) - y).square().mean()
        if self.training:
            loss = loss + 0.5 * sum(p.square().sum() for p in self.parameters())
        return loss


class Followed(nn.Module):
    """A teacher that follows in training, in a plain dict: both modes agree at the start."""

    def __init__(self) -> None:
        super().__init__()
        self.net = _net()
        self.teacher = {k: v.detach().clone() for k, v in self.net.state_dict().items()}

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.net(x)
        if self.training:
            for name, value in self.net.state_dict().items():
                self.teacher[name] = 0.8 * self.teacher[name] + 0.2 * value
        followed = torch.func.functional_call(self.net, self.teacher, (x,))
        return z, followed.detach()


def _consistency(m: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    z, followed = m(batch[0])
    return F.mse_loss(z, batch[1]) + 3 * F.mse_loss(z, followed + 0.1)


Case = tuple[Callable[[], nn.Module], Any, tuple[Tensor, Tensor], Callable[[nn.Module], Tensor]]
CASES: dict[str, Case] = {
    "probabilities": (
        Probabilities, "cross_entropy", (X, LABELS), lambda m: F.cross_entropy(m(X), LABELS),
    ),
    "penalty": (Penalised, None, (X, Y), lambda m: m(X, Y)),
    "teacher": (Followed, _consistency, (X, Y), lambda m: _consistency(m, (X, Y))),
}  # fmt: skip


def _loop(make: Callable[[], nn.Module], loss: Callable[[nn.Module], Tensor], rate: float) -> Any:
    model, found = make().train(), []
    optimizer = torch.optim.SGD(model.parameters(), rate)
    for _ in range(13):
        optimizer.zero_grad()
        value = loss(model)
        found.append(float(value.detach()))
        torch.autograd.backward(value)
        optimizer.step()
    return found


@pytest.mark.parametrize("name", CASES)
def test_every_look_is_the_loss_of_a_plain_loop(name: str) -> None:
    make, loss, data, alone = CASES[name]
    result = tb.scan(make(), loss, data, "sgd", rates=RATES, horizon=12, curvature="none")
    seen = 0
    for rate, looks in result.traces.groupby("rate"):
        expected = _loop(make, alone, float(rate))  # type: ignore[arg-type]  # a float
        for step, value in zip(looks["step"], looks["loss"], strict=True):
            if math.isfinite(value) and abs(value) < 1e3:
                assert value == pytest.approx(expected[int(step)], rel=1e-9)
                seen += 1
    assert seen > 20


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_mini_batches_are_looked_at_as_they_are_trained(dropout: float) -> None:
    class Dropped(Probabilities):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(dropout)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(self.drop(x))

    model = Dropped()
    result = tb.scan(
        model, "cross_entropy", (X, LABELS), horizon=10, batch_size=8, curvature="none"
    )
    silent = float(F.cross_entropy(model.net(X), LABELS).detach())
    assert result.settings["loss_first"] == pytest.approx(silent, rel=1e-9)


def test_functional_noise_is_looked_at_without_it() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = _net()

        def forward(self, x: Tensor) -> Tensor:
            z: Tensor = self.net(F.dropout(x, 0.3, training=self.training))
            return z

    model = Noisy()
    result = tb.scan(model, "mse", (X, Y), horizon=10, curvature="none")
    silent = float(F.mse_loss(model.net(X), Y).detach())
    assert result.settings["loss_first"] == pytest.approx(silent, rel=1e-9)


class Rounded(nn.Module):
    """Rounds its outputs in training, with gradients straight through."""

    def __init__(self) -> None:
        super().__init__()
        self.net = _net()

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.net(x)
        return z + ((4 * z).round() / 4 - z).detach() if self.training else z


class Drawing(nn.Module):
    """Adds noise in training from a generator of its own, which is put back with all state."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.generator = _net(), torch.Generator().manual_seed(3)

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.net(x)
        if self.training:
            z = z + 0.1 * torch.randn(z.shape, generator=self.generator, dtype=z.dtype)
        return z


@pytest.mark.parametrize("make", [Rounded, Drawing])
def test_where_training_is_no_measure_evaluation_is(make: Callable[[], Any]) -> None:
    model = make()
    result = tb.scan(model, "mse", (X, Y), horizon=10, curvature="none")
    silent = float(F.mse_loss(model.net(X), Y).detach())
    assert result.settings["loss_first"] == pytest.approx(silent, rel=1e-9)


def test_the_optimizer_of_a_critic_starts_afresh_and_is_put_back() -> None:
    torch.manual_seed(3)
    critic = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1)).double()

    def closure(critic: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[..., Tensor]:
        def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
            z = model(batch[0])
            optimizer.zero_grad()
            torch.autograd.backward(critic(z.detach()).mean() - critic(batch[1]).mean())
            optimizer.step()
            value: Tensor = F.mse_loss(z, batch[1]) - critic(z).mean()
            return value

        return loss

    own = copy.deepcopy(critic)

    def alone() -> Callable[[nn.Module], Tensor]:
        mine = copy.deepcopy(own)
        loss = closure(mine, torch.optim.Adam(mine.parameters(), 0.05))
        return lambda model: loss(model, (X, Y))

    optimizer = torch.optim.Adam(critic.parameters(), 0.05)
    result = tb.scan(
        _net(), closure(critic, optimizer), (X, Y), rates=RATES, horizon=12, curvature="none"
    )
    for rate, looks in result.traces.groupby("rate"):
        if float(rate) < 0.3:  # type: ignore[arg-type]  # a float
            expected = _loop(_net, alone(), float(rate))  # type: ignore[arg-type]
            found = looks["loss"].to_numpy()
            assert found == pytest.approx([expected[int(s)] for s in looks["step"]], rel=1e-9)
    assert not optimizer.state


@pytest.mark.parametrize("door", [tb.scan, tb.forward_critical_rate])
def test_a_trial_of_what_a_loss_takes_leaves_a_teacher_in_a_dict_alone(door: Any) -> None:
    model = Followed()
    held = dict(model.teacher)
    before = copy.deepcopy(model.teacher)
    door(model, _consistency, (X, Y))
    assert all(model.teacher[k] is held[k] for k in held)
    assert all(torch.equal(model.teacher[k], before[k]) for k in before)


def test_a_rate_and_moments_that_are_held_elsewhere_stay_the_optimizers() -> None:
    model, rate = _net(), torch.tensor(0.01)
    optimizer = torch.optim.Adam(model.parameters(), rate, foreach=False)
    torch.autograd.backward(F.mse_loss(model(X), Y))
    optimizer.step()
    moments = {p: dict(state) for p, state in optimizer.state.items()}
    values = copy.deepcopy([list(state.values()) for state in moments.values()])
    tb.scan(model, "mse", (X, Y), optimizer, horizon=10, curvature="none")
    assert optimizer.param_groups[0]["lr"] is rate
    assert float(rate) == pytest.approx(0.01)
    for p, state in optimizer.state.items():
        assert all(state[k] is moments[p][k] for k in state)
    for state, saved in zip(moments.values(), values, strict=True):
        assert all(map(torch.equal, state.values(), saved))


def test_a_closure_that_steps_by_itself_is_told() -> None:
    model = _net()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)

    def step(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        optimizer.zero_grad()
        loss = F.mse_loss(model(batch[0]), batch[1])
        torch.autograd.backward(loss)
        optimizer.step()
        return loss

    weights = copy.deepcopy(model.state_dict())
    with pytest.raises(InputError, match=r"^loss: .*without calling backward"):
        tb.scan(model, step, (X, Y), horizon=10)
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())


def test_a_counter_that_drowns_the_first_steps_is_named() -> None:
    calls = [0]

    def loss(z: Tensor, y: Tensor) -> Tensor:
        calls[0] += 1
        return F.mse_loss(z, y) * (1 + 0.1 * calls[0])

    with pytest.raises(InputError, match=r"^loss: was .* state that it keeps between calls"):
        tb.scan(_net(), loss, (X, Y), horizon=10)


def test_a_model_without_values_is_told() -> None:
    with pytest.raises(InputError, match=r"^model: .*meta device"):
        tb.scan(_net().to("meta"), "mse", (X, Y), horizon=10)
