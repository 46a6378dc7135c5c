"""Losses, models and budgets that are unusual, but right: the scan must not be fooled."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from trebuchet.errors import InputError
from trebuchet.scans.door import scan


def _net(outputs: int = 1) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, outputs))


def _data(n: int = 40) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(n, 5)
    return x, x[:, :1] * x[:, 1:2]


def _mse(z: Tensor, y: Tensor) -> Tensor:
    return (z - y).square().mean()


@pytest.mark.parametrize("below", [5.0, 1.0])
def test_a_loss_that_starts_negative_is_the_same_problem(below: float) -> None:
    plain = scan(_net(), _mse, _data(), horizon=40, curvature="none")
    # L₀ = 0.99: what is left of it after the shift is negative from the start.
    moved = scan(_net(), lambda z, y: _mse(z, y) - below, _data(), horizon=40, curvature="none")
    assert moved.settings["loss_first"] < 0
    assert moved.suggestion.reliable
    # What counts as equally good depends on where zero is; both rates must train well.
    ends = [_final(_net, found.suggestion.rate, 40) for found in (plain, moved)]
    assert ends[1] < 1.1 * ends[0]
    assert moved.suggestion.expected_loss + below == pytest.approx(ends[1], rel=0.1)
    assert moved.plot(Figure().add_subplot()).get_xscale() == "log"


class Saturating(nn.Module):
    """z = tanh(w·x): however long the first step, the loss is below its start."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.w = nn.Parameter(torch.randn(5, 1) / 3)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 5) to (N, 1)."""
        return torch.tanh(x @ self.w)


def _final(make: Callable[[], nn.Module], rate: float, horizon: int) -> float:
    model, (x, y) = make(), _data()
    steps = torch.optim.SGD(model.parameters(), lr=rate)
    for _ in range(horizon):
        steps.zero_grad()
        torch.autograd.backward(_mse(model(x), y))
        steps.step()
    return _mse(model(x), y).item()


@pytest.mark.parametrize("curvature", ["initial", "none"])
@pytest.mark.parametrize("seed", [0, 1])
def test_an_unbounded_forward_rate_does_not_start_the_race_far_away(
    seed: int, curvature: Any
) -> None:
    result = scan(Saturating(seed), "mse", _data(), horizon=100, curvature=curvature)
    assert math.isinf(result.lr_forward.high)
    grid = [_final(lambda: Saturating(seed), float(r), 100) for r in 2.0 ** np.arange(-6, 8)]
    found = _final(lambda: Saturating(seed), result.suggestion.rate, 100)
    assert found < 1.05 * min(grid)


@pytest.mark.parametrize(
    "settings",
    [
        {"horizon": 10, "batch_size": 1},
        {"horizon": 20, "batch_size": 1},
        {"horizon": 10, "batch_size": 4, "budget": 20},
        {"horizon": 50, "batch_size": 1},
        {"horizon": 10},
    ],
)
def test_small_batches_and_budgets_leave_enough_for_the_race(settings: dict[str, Any]) -> None:
    result = scan(_net(), "mse", _data(400), **settings)
    assert result.cost["gradients"] <= settings.get("budget", 4 * settings["horizon"])
    assert (result.run_table["steps"] == settings["horizon"]).any()


def test_given_rates_are_the_ones_that_run() -> None:
    given = [0.01, 0.03, 0.1, 0.3]
    result = scan(_net(), "mse", _data(), horizon=50, rates=given, curvature="none")
    for rate in given:
        assert any(math.isclose(rate, r, rel_tol=1e-12) for r in result.table["rate"])
    assert result.suggestion.reliable
    assert result.suggestion.expected_loss < 0.5 * result.settings["loss_first"]


def test_the_callers_random_state_does_not_matter_with_dropout() -> None:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(5, 16), nn.Dropout(0.2), nn.Linear(16, 1))
    data = _data()
    first = scan(model, "mse", data, horizon=20)
    torch.rand(3)
    assert scan(model, "mse", data, horizon=20).suggestion == first.suggestion


def test_dropout_at_the_end_leaves_a_direction_to_go() -> None:
    model = nn.Sequential(_net(), nn.Dropout(0.5))
    result = scan(model, "mse", _data(), horizon=50, curvature="none")
    assert result.lr_forward.low > 0
    assert result.suggestion.reliable


@pytest.mark.parametrize("good", [2, 8])
def test_a_loss_that_turns_nan_before_the_first_run_is_named(good: int) -> None:
    calls = 0

    def failing(z: Tensor, y: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return _mse(z, y) * (math.nan if calls > good else 1.0)

    with pytest.raises(InputError, match="loss"):
        scan(_net(), failing, _data(), horizon=20)
