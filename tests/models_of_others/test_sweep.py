"""Sweeps of other people's models: the very runs of a scan, and all put back."""

import numpy as np
import pytest
import torch

import trebuchet as tb
from tests.models_of_others import CASES
from tests.models_of_others.case import differences, snapshot

RATES = [0.003, 0.05, 0.3]


@pytest.mark.parametrize("name", CASES)
def test_a_sweep_s_runs_are_a_scan_s(name: str) -> None:
    case = CASES[name]()
    settings = {"horizon": 12, **case.scan}
    horizon = settings.pop("horizon")
    torch.manual_seed(123)
    before = snapshot(case.model, *case.others)
    problem = tb.Problem(case.model, case.loss, case.data, **settings)
    runs = tb.label(tb.sweep(problem, lr=RATES, seeds=[0], steps=horizon, observables=[]))
    assert differences(before, snapshot(case.model, *case.others)) == []
    case = CASES[name]()  # a graph or a cache that a pass leaves behind is then no matter
    scan = tb.scan(
        case.model, case.loss, case.data, horizon=horizon, rates=RATES, seeds=[0], budget=2000,
        curvature="none", edge_rtol=0.5, delta=runs.attrs["delta"], **settings,
    ).runs  # fmt: skip
    compared = 0
    for rate in RATES:
        mine, its = runs.sel(lr=rate, seed=0), scan.sel(lr=rate, seed=0)
        both = ~np.isnan(its.loss.values)
        np.testing.assert_array_equal(its.loss.values[both], mine.loss.values[both])
        if str(its.status.values) not in ("dropped", "not_run"):
            for number in ("phase", "recovery_step", "loss_final", "steps", "gradient_norm_final"):
                np.testing.assert_array_equal(its[number].values, mine[number].values)
        compared += both.sum() > 1
    assert compared >= 2
