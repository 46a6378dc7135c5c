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
