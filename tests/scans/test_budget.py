"""What a larger budget buys: whole runs near the choice, and other initialisations there."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import trebuchet as tb
from trebuchet.errors import InputError
from trebuchet.problem.problem import Problem
from trebuchet.scans.door import scan
from trebuchet.scans.result import Scan

HORIZON = 20


def _net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, 1)).double()


def _data() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(80, 6, generator=g, dtype=torch.float64)
    return x, x[:, :1] * x[:, 1:2] + 0.3 * x[:, 2:3]


def _scan(model: nn.Module | Callable[[int], nn.Module], budget: str | int | None) -> Scan:
    torch.manual_seed(5)  # of the caller: whatever the scan draws is its own affair
    return scan(model, "mse", _data(), horizon=HORIZON, batch_size=16, budget=budget)  # type: ignore[arg-type]


@pytest.mark.parametrize(("word", "horizons"), [("fast", 4), ("default", 8), ("careful", 16)])
def test_a_word_is_a_number_of_horizons(word: str, horizons: int) -> None:
    found, same = _scan(_net(), word), _scan(_net(), horizons * HORIZON)
    assert found.cost["gradients"] <= horizons * HORIZON
    assert found.settings["budget"] == horizons * HORIZON
    assert found.suggestion.rate == same.suggestion.rate
    assert found.cost["gradients"] == same.cost["gradients"]


def test_without_a_budget_it_is_fast() -> None:
    found = _scan(_net(), None)
    assert found.settings["budget"] == 4 * HORIZON
    assert found.suggestion.rate == _scan(_net(), "fast").suggestion.rate


def test_an_unknown_word_names_the_others() -> None:
    with pytest.raises(InputError, match="'fast', 'default' or 'careful', got 'carefull'; did you"):
        _scan(_net(), "carefull")


@pytest.mark.parametrize("made", ["module", "function"])
def test_other_initialisations_are_tried_and_said(made: str) -> None:
    model = _net()
    before = copy.deepcopy(model.state_dict())
    found = _scan(model if made == "module" else _net, "careful")
    fresh = list(found.runs.attrs["fresh_seeds"])
    assert fresh
    assert set(fresh).isdisjoint(found.settings["seeds"])
    assert any("other initialisations" in note for note in found.notes)
    runs = found.runs.sel(seed=fresh)
    ran = runs.status != "not_run"
    assert int(ran.sum()) >= 2
    # Their losses start elsewhere than those of the model's own weights, each seed's at one value.
    own = float(found.settings["loss_first"])
    for seed in fresh:
        first = runs.loss_first.sel(seed=seed).values
        first = first[np.isfinite(first)]
        assert np.ptp(first) == 0
        assert first[0] != own
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    phases = tb.label(found.runs).phase
    assert phases.dims == ("lr", "seed")


def test_a_fresh_run_is_a_plain_loop_from_the_function_s_own_weights() -> None:
    found = scan(Problem(_net, "mse", _data()), horizon=HORIZON, budget="careful", curvature="none")
    (seed, *_) = found.runs.attrs["fresh_seeds"]
    runs = found.runs.sel(seed=seed)
    rate = float(runs.lr[int(np.flatnonzero(runs.status == "max_steps")[0])])
    model, (x, y) = _net(seed), _data()
    losses = []
    for step in range(HORIZON + 1):
        loss = (model(x) - y).square().mean()
        losses.append(loss.item())
        grads = torch.autograd.grad(loss, list(model.parameters()))
        if step < HORIZON:
            with torch.no_grad():
                for p, g in zip(model.parameters(), grads, strict=True):
                    p.sub_(g, alpha=rate)
    np.testing.assert_allclose(runs.loss.sel(lr=rate).values, losses, rtol=1e-9)


def test_why_there_is_no_other_initialisation_is_said() -> None:
    torch.manual_seed(0)
    first = nn.Linear(6, 24)
    nn.init.normal_(first.weight)
    model = nn.Sequential(first, nn.Tanh(), nn.Linear(24, 1)).double()
    found = _scan(model, "careful")
    assert not found.runs.attrs["fresh_seeds"]
    said = [note for note in found.notes if "no other initialisation" in note]
    assert len(said) == 1
    assert "0.weight is not as its layer would initialise it" in said[0]


def test_a_model_that_was_trained_is_not_started_afresh() -> None:
    model, (x, y) = _net(), _data()
    steps = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(60):
        steps.zero_grad()
        torch.autograd.backward((model(x) - y).square().mean())
        steps.step()
    found = _scan(model, "careful")
    assert not found.runs.attrs["fresh_seeds"]


def _penalised(net: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    def loss(z: Tensor, y: Tensor) -> Tensor:
        return (z - y).square().mean() + 0.01 * sum(p.square().sum() for p in net.parameters())

    return loss


class _Trainer(nn.Module):
    """Holds the model that it trains."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        """A penalised loss."""
        return (z - y).square().mean() + 0.01 * next(self.net.parameters()).square().sum()


def _layer(net: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    return _penalised(next(net.children()))


def _weight(net: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    weight = next(net.parameters())
    return lambda z, y: (z - y).square().mean() + 0.01 * weight.square().sum()


@pytest.mark.parametrize("make", [_penalised, _Trainer, _layer, _weight])
def test_a_loss_that_uses_these_weights_is_not_given_others(
    make: Callable[[nn.Module], Callable[[Tensor, Tensor], Tensor]],
) -> None:
    net = _net()
    found = scan(net, make(net), _data(), horizon=HORIZON, batch_size=16, budget="careful")
    assert not found.runs.attrs["fresh_seeds"]
    assert any("the loss reaches the model's own weights" in note for note in found.notes)
