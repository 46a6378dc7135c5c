"""What a scan must not misread: gradients in losses, no evaluation mode, NaN, noise."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import trebuchet as tb
from trebuchet.errors import InputError

X = torch.randn(64, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y = torch.sin(2 * X[:, :1])


def _net(seed: int = 1, inputs: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(inputs, 16), nn.Tanh(), nn.Linear(16, 1)).double()


# Gradients inside the loss or the forward pass


def _residual(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """u' = u: a physics-informed loss."""
    x = batch[0][:, :1].clone().requires_grad_()
    u = model(x)
    (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    at_zero = model(torch.zeros(1, 1, dtype=x.dtype)) - 1
    value: Tensor = (slope - u).square().mean() + at_zero.square().mean()
    return value


def test_a_physics_informed_loss_is_scanned() -> None:
    result = tb.scan(_net(inputs=1), _residual, (X, Y), "adam", horizon=40)
    assert result.suggestion.reliable
    assert result.suggestion.loss_ratio < 0.5
    assert result.lr_crit > 0


def test_its_forward_rate_and_early_constants_are_known() -> None:
    net = _net(inputs=1)
    found = tb.forward_critical_rate(net, _residual, (X, Y))
    loss = _residual(net, (X, Y))
    grads = torch.autograd.grad(loss, list(net.parameters()))

    def after(rate: float) -> float:
        moved = _net(inputs=1)
        with torch.no_grad():
            for p, g in zip(moved.parameters(), grads, strict=True):
                p.sub_(rate * g)
        return float(_residual(moved, (X, Y)).detach())

    assert after(found.low) < float(loss.detach()) <= after(found.high)
    constants = tb.early_constants(net, _residual, (X, Y), steps=3, train_steps=5, rtol=0.3)
    assert constants.c_loss > 0


class Forces(nn.Module):
    """Outputs that are the gradient of an energy."""

    def __init__(self) -> None:
        super().__init__()
        self.energy = _net(2)

    def forward(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        (out,) = torch.autograd.grad(self.energy(x).sum(), x, create_graph=True)
        return -out


def test_a_model_of_forces_is_scanned() -> None:
    result = tb.scan(Forces(), "mse", (X, X), horizon=40, batch_size=16)
    assert result.suggestion.reliable


def _only_with_gradients(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """A penalty that is left out where gradients are off: nothing fails, the number is another."""
    value: Tensor = (model(batch[0]) - batch[1]).square().mean()
    if torch.is_grad_enabled():
        value = value + 10 * sum(p.square().sum() for p in model.parameters())
    return value


def test_a_term_that_needs_gradients_is_seen_by_looks() -> None:
    net = _net()
    result = tb.scan(net, _only_with_gradients, (X, Y), horizon=20, rates=[1e-3])
    whole = result.run_table[result.run_table["status"] == "max_steps"].to_dict("records")[0]
    model = _net()
    for _ in range(20):
        grads = torch.autograd.grad(_only_with_gradients(model, (X, Y)), list(model.parameters()))
        with torch.no_grad():
            for p, g in zip(model.parameters(), grads, strict=True):
                p.sub_(whole["rate"] * g)
    final = float(_only_with_gradients(model, (X, Y)).detach())
    assert whole["loss_horizon"] == pytest.approx(final, rel=1e-9)


# A loss only in training mode


class Detector(nn.Module):
    """Losses in training mode, predictions in evaluation mode."""

    def __init__(self, *, norm: bool) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3) if norm else nn.Identity()
        self.net = _net()

    def forward(self, x: Tensor, y: Tensor) -> Any:
        z = self.net(self.norm(x))
        return {"box": (z - y).square().mean(), "size": z.abs().mean()} if self.training else [z]


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("stacked", [False, True])
def test_a_detector_is_looked_at_in_training_mode(norm: bool, stacked: bool) -> None:
    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return torch.stack(list(model(*batch).values())).sum()

    torch.manual_seed(0)
    model = Detector(norm=norm).double()
    result = tb.scan(
        model, loss, [(X[:32], Y[:32]), (X[32:], Y[32:])], horizon=20, curvature="none",
        stacked=stacked,
    )  # fmt: skip
    assert result.suggestion.reliable
    assert any("in evaluation mode there is no loss" in note for note in result.notes)


# Samples that are not finite


def _bad(row: int, *, target: bool, n: int = 400) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, 3, dtype=torch.float64, generator=g)
    y = torch.sin(2 * x[:, :1])
    (y if target else x)[row, 0] = math.nan
    return x, y


@pytest.mark.parametrize("target", [False, True])
def test_a_nan_sample_is_named_before_anything_is_trained(target: bool) -> None:
    with pytest.raises(InputError, match=r"data: sample 333, .* holds NaN .*mend or remove it"):
        tb.scan(_net(), "mse", _bad(333, target=target), horizon=20, batch_size=4)


def test_a_mask_for_nan_targets_is_no_fault() -> None:
    def masked(z: Tensor, y: Tensor) -> Tensor:
        return torch.where(y.isnan(), 0 * z, z - y.nan_to_num()).square().mean()

    result = tb.scan(_net(), masked, _bad(333, target=True), horizon=20, batch_size=8)
    assert result.suggestion.reliable


@pytest.mark.parametrize("copies", [3, 50])  # with 50 it is not among the samples of the looks
def test_a_sample_whose_loss_is_infinite_is_named(copies: int) -> None:
    x, y = X.repeat(copies, 1), Y.repeat(copies, 1).abs() + 0.1
    y[111] = 0.0  # finite, but its logarithm is not

    def loss(z: Tensor, y: Tensor) -> Tensor:
        return (z - y.log()).square().mean()

    said = r"data: sample 111, .* has no finite loss at the start" + r" \(met at step \d+\)" * (
        copies > 3
    )
    with pytest.raises(InputError, match=said):
        tb.scan(_net(), loss, (x, y), horizon=100, batch_size=64)


def test_a_bad_batch_of_a_loader_is_named() -> None:
    batches = [(X[i : i + 8], Y[i : i + 8].clone()) for i in range(0, 64, 8)]
    batches = [*batches, (X[:4], Y[:4].clone())]  # ragged: batches stay as they are
    batches[6][1][3] = math.inf
    with pytest.raises(InputError, match=r"data: sample 3 of batch 6, .* holds"):
        tb.scan(_net(), "mse", batches, horizon=20)


def test_a_rate_that_diverges_is_not_blamed_on_the_data() -> None:
    result = tb.scan(_net(), "mse", (X, Y), horizon=20, rates=[1e200, 0.1], batch_size=8)
    assert "non_finite" in set(result.run_table["status"])


# Noise


class Variational(nn.Module):
    """Noise in the forward pass, in both modes."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(3, 4), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        mean, log_scale = self.encode(x).chunk(2, 1)
        out: Tensor = self.decode(mean + log_scale.exp() * torch.randn_like(mean))
        return out


def _numpy_noise(z: Tensor, y: Tensor) -> Tensor:
    import numpy as np

    drawn = torch.from_numpy(np.random.normal(size=tuple(y.shape)))  # noqa: NPY002 - as users do
    return (z - y - 0.5 * drawn).square().mean()


@pytest.mark.parametrize(
    ("make", "loss"),
    [
        (Variational, "mse"),
        (lambda: nn.Linear(3, 3), _numpy_noise),
        (lambda: nn.Linear(3, 3), lambda z, y: (nn.functional.dropout(z) - y).square().mean()),
    ],
)
def test_the_forward_rate_of_a_noisy_model_is_nobodys_luck(make: Any, loss: Any) -> None:
    torch.manual_seed(0)
    model = make().double()
    found = []
    for seed in range(3):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        found.append(tb.forward_critical_rate(model, loss, (X, X)))
        assert torch.equal(torch.get_rng_state(), before)
    assert found[0].value == found[1].value == found[2].value
    # One fixed draw of the noise makes it an ordinary loss, whose first step helps up to some rate
    # of the order of 2/λ.
    assert 0.05 < found[0].value < 50
    result = tb.scan(model, loss, (X, X), horizon=20, batch_size=16, curvature="none")
    assert 0.05 < result.lr_forward.value < 50
    assert result.lr_loss.high > 0.02


def test_a_rise_within_the_noise_of_a_look_is_none() -> None:
    g = torch.Generator().manual_seed(2)
    x = torch.randn(2000, 3, dtype=torch.float64, generator=g)
    y = torch.randn(2000, 1, dtype=torch.float64, generator=g) ** 3  # heavy tails: noisy batches
    settings = {"horizon": 40, "batch_size": 8, "curvature": "none"}
    result = tb.scan(_net(), "mse", (x, y), **settings)  # type: ignore[arg-type]  # of many types
    noise, delta = result.settings["noise"], result.settings["delta"]
    per_sample = (_net()(x) - y).detach().square()
    # Eight batches of eight tell the standard error of 256 samples to a factor of a few.
    exact = float(per_sample.std() / per_sample.mean() / 16)
    assert exact / 5 < noise < 3 * exact
    assert delta == max(0.01, 2 * noise)
    risen = result.run_table[result.run_table["phase"] == "catapult"]
    assert (risen["peak_ratio"] > 1 + delta).all()
    own = tb.scan(_net(), "mse", (x, y), delta=0.03, **settings)  # type: ignore[arg-type]
    assert own.settings["delta"] == 0.03


# Start and end on the same samples


def test_a_trained_model_is_judged_on_the_samples_it_started_on() -> None:
    g = torch.Generator().manual_seed(4)
    x = torch.randn(6000, 3, dtype=torch.float64, generator=g)
    y = torch.sin(2 * x[:, :1]) + 0.3 * torch.randn(6000, 1, dtype=torch.float64, generator=g)
    # Harder samples outside the set of looks would make every end look worse than its start.
    model = _net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(300):
        rows = torch.arange(64) + 64 * (step % 90)
        optimizer.zero_grad()
        torch.autograd.backward(nn.functional.mse_loss(model(x[rows]), y[rows]))
        optimizer.step()
    result = tb.scan(model, "mse", (x, y), "adam", horizon=60, batch_size=64, curvature="none")
    s = result.suggestion
    with torch.no_grad():
        start = float(nn.functional.mse_loss(model(x), y))
    assert s.expected_loss / s.loss_ratio == pytest.approx(start, rel=0.05)
    assert s.reliable
    assert s.loss_ratio < 1
    assert not any("do not rely" in note for note in result.notes)
