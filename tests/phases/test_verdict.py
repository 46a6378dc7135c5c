"""One verdict: the same run gets the same phase from a scan and from a labelled sweep."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import trebuchet as tb
from trebuchet.models import MLP, PureQuadratic
from trebuchet.phases.verdict import Evidence, peak_ratios, phases, recovery_steps

HORIZON = 40


def _data(samples: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 4, dtype=torch.float64, generator=g)
    return x, torch.randn(samples, generator=g, dtype=torch.float64)


def _relu(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1)).double()


def _dying(seed: int) -> nn.Module:
    torch.manual_seed(seed + 20)
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1, bias=False)).double()


CASES: dict[str, Any] = {
    "homogeneous net": (lambda s: MLP.draw(4, 64, generator=s).double(), 12),
    "ReLU net": (_relu, 12),
    "nets that die": (_dying, 1),
}


@pytest.mark.parametrize("name", [*CASES, "quadratic model"])
@pytest.mark.parametrize("seed", [0, 1])
def test_scan_and_sweep_agree_run_by_run(name: str, seed: int) -> None:
    if name == "quadratic model":
        model: nn.Module = PureQuadratic.draw(50, generator=seed).double()
        x, y = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    else:
        make, samples = CASES[name]
        model, (x, y) = make(seed), _data(samples, seed)
    targets = y[:, None] if model(x).ndim == 2 else y
    scan = tb.scan(
        model, "half_mse", (x, targets), horizon=HORIZON, edge_rtol=1e-3, curvature="none"
    )  # the bisections crowd the runs around both edges
    runs = scan.run_table[scan.run_table["status"] != "dropped"]
    assert len(runs) > 10
    swept = tb.sweep(
        tb.Problem(model, "half_mse", (x, y)),
        lr=runs["rate"].to_numpy(),
        steps=HORIZON,
        observables=(),
    )
    labelled = tb.label(swept).isel(seed=0)
    assert runs["phase"].tolist() == labelled.phase.values.tolist()
    np.testing.assert_array_equal(runs["recovery_step"], labelled.recovery_step)
    # Sums in another order, amplified along the way.
    np.testing.assert_allclose(runs["peak_ratio"], labelled.peak_ratio, rtol=1e-6)
    whole = np.isfinite(runs["loss_horizon"].to_numpy())
    assert whole.sum() > 5
    np.testing.assert_allclose(
        runs["loss_horizon"][whole], labelled.loss_final.values[whole], rtol=1e-6, atol=1e-20
    )


class _OneWeight(nn.Module):
    """z = θ²/2: under the rate η and the label 1 its residual is the quadratic map with a = η."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([0.9], dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.theta**2 / 2 * x[:, 0]


def test_cycles_of_a_scan_and_a_sweep_in_either_recording(tmp_path: Any) -> None:
    data = torch.ones(1, 1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    rates, wanted = [0.9, 1.1, 1.25], [math.nan, 2, 4]
    phases_ = ["lazy", "periodic", "periodic"]
    scan = tb.scan(
        _OneWeight(), "half_mse", data, rates=[1.1], horizon=200, curvature="none", edge_rtol=0.02
    )  # it bisects an edge above 1, by whole runs
    table = scan.run_table
    whole = table[(table["status"] == "max_steps") & (table["phase"] == "periodic")]
    assert len(whole) > 1
    found = whole["rate"].to_numpy()
    again = tb.label(tb.sweep(_OneWeight(), "half_mse", data, lr=found, steps=200, engine="module"))
    assert set(again.phase.values.ravel()) == {"periodic"}
    ours = scan.runs.sel(lr=found).period
    np.testing.assert_array_equal(ours.values, again.period.values)
    assert set(ours.values.ravel()) <= {2, 4, 8}
    for record in (None, tb.Recording(every=200, tail=100), tb.Recording(dense=10, tail=150)):
        runs = tb.label(
            tb.sweep(
                _OneWeight(),
                "half_mse",
                data,
                lr=rates,
                steps=200,
                record=record,
                engine="batched",
                observables=(),
            )
        )
        assert runs.phase.values[:, 0].tolist() == phases_
        np.testing.assert_array_equal(runs.period.values[:, 0], wanted)
    # what was not recorded is not guessed
    for record in (tb.Recording(every=2), tb.Recording(dense=50), tb.Recording(every=200, tail=20)):
        runs = tb.label(
            tb.sweep(
                _OneWeight(),
                "half_mse",
                data,
                lr=[1.1],
                steps=200,
                record=record,
                engine="batched",
                observables=(),
            )
        )
        assert runs.phase.values.ravel().tolist() == ["lazy"]
        assert np.isnan(runs.period).all()
    kept = tb.label(tb.load(tb.save(runs, tmp_path / "runs.zarr")))
    assert kept.phase.values.ravel().tolist() == ["lazy"]


def test_a_swing_to_and_fro_past_the_edge_of_a_valley_is_a_cycle() -> None:
    """L = log cosh-like valleys bound the sharpness: past 2/λ runs settle on a cycle of two.

    Across a symmetric valley both sides have one loss, which then stands: not a cycle of the loss.
    """

    class Valley(nn.Module):
        def __init__(self, tilt: float) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor([0.8], dtype=torch.float64))
            self.tilt = tilt

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            w = self.w
            return (torch.sqrt(1 + w * w) + self.tilt * torch.sin(w) ** 3) * x[:, 0]

    def height(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (outputs - targets).mean()

    data = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    found: dict[float, tuple[str, float]] = {}
    lr = 2.3  # λ = 1 at the bottom: the edge is 2
    for tilt in (0.0, 0.05):
        runs = tb.label(tb.sweep(Valley(tilt), height, data, lr=[lr], steps=2000))
        found[tilt] = str(runs.phase.values[0, 0]), float(runs.period[0, 0])
        w, seen = 0.8, []
        for _ in range(4000):
            w -= lr * (w / math.sqrt(1 + w * w) + 3 * tilt * math.sin(w) ** 2 * math.cos(w))
            seen.append(w)
        assert abs(seen[-1] - seen[-3]) < 1e-12
        assert abs(seen[-1] - seen[-2]) > 0.5  # a cycle of two in w
    assert [phase for phase, _ in found.values()] == ["lazy", "periodic"]
    np.testing.assert_array_equal([period for _, period in found.values()], [math.nan, 2])


def test_the_edge_of_stability_is_neither_periodic_nor_chaotic() -> None:
    """A net that fits noise swings for thousands of steps at ηλ ≈ 2 while its loss still falls."""
    g = torch.Generator().manual_seed(0)
    x = torch.linspace(-1, 1, 12, dtype=torch.float64)[:, None]
    y = torch.randn(12, 1, dtype=torch.float64, generator=g)

    def net(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1)).double()

    runs = tb.label(
        tb.sweep(
            net, "half_mse", (x, y), lr=[0.27, 0.36, 0.4, 0.5, 0.6], steps=1500,
            engine="batched", observables=[tb.observables.Lyapunov(128, 32)],
        )
    )  # fmt: skip
    assert set(runs.phase.values.ravel()) <= {"lazy", "catapult", "unsettled", "divergent"}
    assert np.isnan(runs.period).all()
    assert np.isfinite(runs.lyapunov_exponent).any()
    rises = np.diff(runs.loss.isel(step=slice(-500, None)).values, axis=-1) > 0
    assert ((rises.mean(-1) > 0.02) & (rises.mean(-1) < 0.98)).sum() >= 2  # it does swing


def _one(**numbers: Any) -> str:
    given: dict[str, Any] = {
        "first": 1.0, "peak": 1.0, "final": 0.5, "last_above": -1, "steps": 100,
        "status": "max_steps", **numbers,
    }  # fmt: skip
    return str(phases(Evidence(**given), delta=1e-3, blowup=1e8))


@pytest.mark.parametrize(
    ("numbers", "phase"),
    [
        ({}, "lazy"),
        ({"peak": 2.0, "last_above": 89}, "catapult"),
        ({"peak": 2.0, "last_above": 90}, "unsettled"),  # still swinging in the last tenth
        ({"peak": 2.0, "last_above": 90, "status": "converged"}, "catapult"),
        ({"final": 1.0}, "unsettled"),
        ({"peak": 1.001, "last_above": -1}, "lazy"),
        ({"peak": 0.9e8, "last_above": 5}, "catapult"),
        ({"peak": 1.1e8, "last_above": 5}, "divergent"),
        ({"status": "non_finite", "final": math.nan}, "divergent"),
        ({"status": "gradient_zero", "output_spread": 0.0}, "collapsed"),
        ({"status": "gradient_zero", "output_spread": 0.0, "final": 0.0}, "lazy"),
        ({"status": "gradient_zero", "output_spread": 0.1}, "lazy"),
        ({"first": -1.0, "peak": -1.0, "final": -2.0}, "lazy"),
        ({"first": -1.0, "peak": -0.5, "final": -2.0, "last_above": 3}, "catapult"),
        ({"status": "dropped"}, "unsettled"),
        ({"status": "interrupted"}, "unsettled"),
        ({"first": 0.0, "peak": 0.0, "final": 0.0}, "lazy"),
        ({"final_start": 0.4}, "unsettled"),  # below L₀, but not on the same samples
        ({"period": 2}, "periodic"),
        ({"period": 2, "peak": 9.0, "final": 3.0, "last_above": 100}, "periodic"),
        ({"period": 2, "status": "interrupted"}, "unsettled"),
        ({"period": 2, "status": "converged"}, "lazy"),
        ({"period": 2, "peak": 1.1e8}, "divergent"),
        ({"period": 2, "steady": True, "exponent": 0.5, "exponent_error": 0.01}, "periodic"),
        ({"steady": True, "exponent": 0.5, "exponent_error": 0.01}, "chaotic"),
        ({"steady": True, "exponent": 0.5, "exponent_error": 0.2}, "lazy"),  # within its error
        ({"steady": True, "exponent": 5e-3, "exponent_error": 1e-6}, "lazy"),
        ({"steady": False, "exponent": 0.5, "exponent_error": 0.01}, "lazy"),
        ({"steady": True, "exponent": 0.5}, "lazy"),  # of no known error
        (
            {"steady": True, "exponent": 0.5, "exponent_error": 0.01, "status": "dropped"},
            "unsettled",
        ),
    ],
)
def test_each_phase_from_its_numbers(numbers: dict[str, Any], phase: str) -> None:
    assert _one(**numbers) == phase


def test_numbers_beside_the_phase() -> None:
    runs = Evidence(
        [1, 1, 1, 0], [3, 3, 3, 1], [0.5, 1.5, math.nan, 0], [7, 7, 7, -1], [9, 9, 9, 9],
        ["max_steps", "max_steps", "non_finite", "max_steps"],
    )  # fmt: skip
    found = phases(runs, delta=1e-3, blowup=1e8)
    np.testing.assert_array_equal(recovery_steps(runs, found), [8, math.nan, math.nan, math.nan])
    np.testing.assert_array_equal(peak_ratios(runs), [3, 3, math.inf, math.nan])
