"""The edges a scan finds: closed forms on quadratics, dense grids on nets."""

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from trebuchet.curvature import half_mse, top_eigen
from trebuchet.phases.forward_rate import forward_critical_rate
from trebuchet.scans.door import Scan, scan

BETA = 0.9


class Quadratic(nn.Module):
    """z = θ, so that the half-MSE to targets of zero, with inputs √λ, is ½ Σ λ θ² / D."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.ones(n, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        """(D, n) to (D, 1)."""
        return (x @ self.theta)[:, None]


def _bowl(top: float, others: tuple[float, ...] = (0.3, 0.1)) -> tuple[nn.Module, Any]:
    """A quadratic loss whose Hessian has these eigenvalues."""
    values = torch.tensor([top, *others], dtype=torch.float64)
    x = torch.diag((len(values) * values).sqrt())
    return Quadratic(len(values)), (x, torch.zeros(len(values), 1, dtype=torch.float64))


EDGES: dict[str, tuple[Any, float]] = {
    "sgd": ("sgd", 2.0),
    "momentum": ("momentum", 2 * (1 + BETA)),
    "nesterov": ("nesterov", 2 * (1 + BETA) / (1 + 2 * BETA)),
    # With ε far above the gradients Adam's preconditioner is the constant ε, whose edge is known.
    "adam": (partial(torch.optim.Adam, eps=1e20), 1e20 * 2 * (1 + BETA) / (1 - BETA)),
}


@pytest.mark.parametrize(
    ("name", "top", "horizon"),
    [("sgd", 1.0, 200), ("sgd", 7.0, 200), ("momentum", 7.0, 200), ("nesterov", 7.0, 200),
     ("adam", 7.0, 800)],
)  # fmt: skip
def test_divergence_edge_on_a_quadratic_is_the_closed_form_to_two_percent(
    name: str, top: float, horizon: int
) -> None:
    optimizer, product = EDGES[name]
    model, data = _bowl(top)
    # Adam's bias correction makes its first steps ten times longer: just below the edge the weights
    # grow 1e16-fold and are back after 760 steps, which is no divergence, but needs the patience.
    result = scan(
        model, "half_mse", data, optimizer, horizon=horizon, seeds=1, edge_rtol=0.02,
        curvature="none", blowup=1e80,
    )  # fmt: skip
    truth = product / top
    assert result.lr_max.closed
    assert result.lr_max.value == pytest.approx(truth, rel=0.02)


def test_adam_with_its_small_epsilon_is_not_the_frozen_edge() -> None:
    # On a quadratic Adam's v grows with the gradient: it oscillates and does not diverge, and the
    # frozen-preconditioner edge 38/λ says nothing about it. What the test above uses ε for.
    model, data = _bowl(1.0)
    result = scan(model, "half_mse", data, "adam", horizon=100, seeds=1, curvature="none")
    assert not (result.table["phase"] == "divergent").any()


@pytest.mark.parametrize("loss", ["half_mse", "mse"])
def test_critical_rate_is_two_over_the_top_eigenvalue_of_the_loss_as_given(loss: str) -> None:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, 1)).double()
    x = torch.randn(20, 4, dtype=torch.float64)
    data = (x, x[:, :1] * x[:, 1:2])
    result = scan(net, loss, data, horizon=40, seeds=1)
    exact = top_eigen(net, loss, data, method="dense")
    assert result.lr_crit == pytest.approx(2 / exact.value, rel=2e-3)
    assert result.lr_crit == pytest.approx(2 / result.top_eigenvalue, rel=1e-12)
    assert "Gauss–Newton" in result.critical.convention
    assert loss in result.critical.convention


def _net(width: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, width), nn.ReLU(), nn.Linear(width, 1)).double()


def _regression() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(2)
    x = torch.randn(32, 5, generator=g, dtype=torch.float64)
    return x, torch.sin(x[:, :1]) + 0.5 * x[:, 1:2]


def _trains(width: int, seed: int, rate: float, horizon: int) -> bool:
    model, (x, y) = _net(width, seed), _regression()
    steps = torch.optim.SGD(model.parameters(), lr=rate)
    first = half_mse(model(x), y).item()
    for _ in range(horizon):
        steps.zero_grad()
        torch.autograd.backward(half_mse(model(x), y))
        steps.step()
    last = half_mse(model(x), y).item()
    return math.isfinite(last) and last < first


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_lr_max_is_between_a_rate_that_trains_and_one_that_does_not(seed: int) -> None:
    # Above 1.3 some rates of the last two nets train and some between them do not.
    result = scan(
        _net(24, seed), "half_mse", _regression(), horizon=80, seeds=1, edge_rtol=0.03,
        curvature="none",
    )  # fmt: skip
    assert result.lr_max.high <= 1.03 * result.lr_max.low
    assert _trains(24, seed, result.lr_max.low, 80)
    assert not _trains(24, seed, result.lr_max.high, 80)


def test_lr_max_agrees_with_a_dense_grid() -> None:
    horizon, seed = 80, 0
    result = scan(
        _net(24, seed), "half_mse", _regression(), horizon=horizon, seeds=1, edge_rtol=0.03,
        curvature="none",
    )  # fmt: skip
    grid = result.lr_max.value * 1.03 ** np.arange(-12, 13)
    trains = np.array([_trains(24, seed, float(r), horizon) for r in grid])
    # The edge a grid sees: the largest rate up to which training is not yet lost for good.
    edge = grid[trains].max()
    assert not trains.all()
    assert trains.any()
    assert result.lr_max.value == pytest.approx(edge, rel=0.1)


def test_lr_loss_is_the_rate_at_which_the_loss_first_rises() -> None:
    # On a quadratic with one direction the loss rises exactly above 2/λ.
    model, data = _bowl(4.0, ())
    result = scan(model, "half_mse", data, horizon=60, seeds=1, edge_rtol=0.005, delta=1e-6)
    assert result.lr_loss.value == pytest.approx(0.5, rel=0.006)
    assert result.lr_forward.value == pytest.approx(0.5, rel=0.02)
    assert not result.has_catapult
    assert "No catapult exists here" in str(result)


def test_edges_have_both_sides_in_the_table() -> None:
    model, data = _bowl(1.0)
    result = scan(model, "half_mse", data, horizon=100, seeds=1, edge_rtol=0.02)
    whole = result.table[result.table["status"] != "dropped"]
    below = whole[whole["rate"] <= result.lr_max.low]
    above = whole[whole["rate"] >= result.lr_max.high]
    assert set(below["phase"]) <= {"lazy", "catapult"}
    assert set(above["phase"]) <= {"divergent", "unsettled"}
    assert len(below) > 0
    assert len(above) > 0


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
def test_forward_rate_is_where_the_first_step_stops_helping(optimizer: str) -> None:
    found = forward_critical_rate(_net(16, 3), "half_mse", _regression(), optimizer, delta=1e-3)
    x, y = _regression()
    makers: dict[str, Any] = {
        "sgd": torch.optim.SGD, "momentum": partial(torch.optim.SGD, momentum=0.9),
        "adam": torch.optim.Adam,
    }  # fmt: skip

    def after(rate: float) -> float:
        model = _net(16, 3)
        step = makers[optimizer](model.parameters(), lr=rate)
        torch.autograd.backward(half_mse(model(x), y))
        step.step()
        return half_mse(model(x), y).item()

    first = half_mse(_net(16, 3)(x), y).item()
    assert after(found.low) < first <= after(found.high) <= (1 + 1e-3) * first
    assert found.gradients == 1
    assert found.forwards < 40


def test_forward_rate_of_a_loss_that_always_falls_is_unbounded() -> None:
    model = nn.Linear(1, 1, bias=False).double()
    x = torch.ones(4, 1, dtype=torch.float64)
    found = forward_critical_rate(model, lambda z, y: (y - z).mean(), (x, x))
    assert math.isinf(found.high)


def _catapulting() -> tuple[nn.Module, Any]:
    """A wide net whose weights are N(0, 1): it catapults between 2/λ₀ and 4/λ₀."""

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(5)
            self.u = nn.Parameter(torch.randn(1, 256, dtype=torch.float64))
            self.v = nn.Parameter(torch.randn(256, 1, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.u @ self.v / 16

    x = torch.ones(1, 1, dtype=torch.float64)
    return Wide(), (x, 0 * x)


def test_a_linear_net_catapults_between_its_two_edges() -> None:
    model, data = _catapulting()
    result = scan(model, "half_mse", data, horizon=150, seeds=1, edge_rtol=0.03)
    ratio = result.table["rate"] * result.top_eigenvalue
    phase = result.table["phase"]
    assert result.has_catapult
    assert ratio[phase == "catapult"].between(1.9, 4.1).all()
    assert result.lr_crit * result.top_eigenvalue == pytest.approx(2)
    assert result.lr_max.value * result.top_eigenvalue == pytest.approx(4, rel=0.05)
    assert (ratio[phase == "divergent"] > 3.8).all()
    landed = result.table[phase == "catapult"]
    assert (landed["recovery_step"] > 0).all()
    assert (landed["peak_ratio"] > 1).all()


def test_result_type() -> None:
    model, data = _bowl(1.0)
    assert isinstance(scan(model, "half_mse", data, horizon=20, seeds=1), Scan)


def test_no_catapult_is_claimed_to_exist_only_where_none_was_cut_short() -> None:
    result = scan(
        _net(24, 0), "half_mse", _regression(), horizon=20, batch_size=8, seeds=2, budget=60
    )
    rose = result.run_table["peak_ratio"] > 1 + result.settings["delta"]
    cut = int((rose & (result.run_table["status"] == "dropped")).sum())
    assert cut  # of a short search some are
    assert not result.has_catapult
    assert f"No catapult was seen: no run rose above its start and came back, but {cut} of" in str(
        result
    )
