"""Plots of runs without λ, of a scan, and beside observables of the user's own."""

import numpy as np
import pytest
import torch
import xarray as xr
from matplotlib.figure import Figure
from torch import nn

import trebuchet as tb

X = torch.linspace(-1, 1, 120).reshape(40, 3)
PROBLEM = tb.Problem(
    lambda seed: _net(seed), "cross_entropy", (X, (X[:, 0] > 0).long()), "adamw", batch_size=10
)


def _net(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))


class Norms(tb.Observable):
    name = "norms"
    dim = "tensor"
    size = 4

    def measure(self, model: nn.Module, problem: tb.Problem) -> list[float]:
        return [float(p.detach().norm()) for p in model.parameters()]


@pytest.fixture(scope="module")
def runs() -> xr.Dataset:
    swept = tb.sweep(PROBLEM, lr=[1e-3, 1e-2, 1e-1], seeds=2, steps=8, observables=[Norms()])
    return tb.label(swept)


@pytest.fixture(scope="module")
def scan() -> tb.Scan:
    return tb.scan(PROBLEM, horizon=20)


def test_rates_without_a_ratio_are_rates_by_factors(runs: xr.Dataset) -> None:
    assert "lr_ratio" not in runs
    ax = tb.plots.against_rate(runs, "loss_final", ax=Figure().add_subplot())
    assert ax.get_xlabel() == "learning rate η"
    assert ax.get_xscale() == "log"
    np.testing.assert_allclose(ax.get_xlim(), [10**-3.5, 10**-0.5])
    traced = tb.plots.traces(runs, ax=Figure().add_subplot())
    names = {str(line.get_label()) for line in traced.lines}
    assert {"η = 0.001", "η = 0.1"} <= names


def test_the_page_says_how_runs_were_trained(runs: xr.Dataset) -> None:
    page = tb.plots.sweep_overview(runs, None, "a title")
    said = " ".join(text.get_text() for text in page.texts)
    assert "adamw, batches of 10, on cross_entropy" in said
    assert "gradient descent" not in said
    assert "λ" not in said
    page.savefig("/dev/null", format="png")


def test_of_a_scan_only_what_ran_has_a_vote(scan: tb.Scan) -> None:
    ran = scan.runs.status.values != "not_run"
    assert not ran.all()
    phases, share = tb.plots.majority_phase(scan.runs)
    alone = ran.sum(axis=1) == 1
    assert alone.any()
    assert (share[alone] == 1).all()
    assert list(phases[alone]) == [
        p
        for row, p in zip(ran, scan.runs.phase.values, strict=True)
        if row.sum() == 1
        for p in p[row]
    ]
    bar = tb.plots.phase_bar(scan.runs, ax=Figure().add_subplot())
    width = sum(patch.get_width() for patch in bar.patches)  # type: ignore[attr-defined]
    left, right = bar.get_xlim()
    assert width < ran.shape[1] * (right - left)  # where nothing ran, nothing is drawn
    assert tb.plots.against_rate(scan.runs, "loss_max", ax=Figure().add_subplot()).lines


def test_a_dropped_run_ends_where_it_was_dropped(scan: tb.Scan) -> None:
    every = range(scan.runs.sizes["lr"])
    ax = tb.plots.traces(scan.runs, ax=Figure().add_subplot(), rates=every)
    dropped = scan.runs.status.values == "dropped"
    whole = (scan.runs.status.values == "max_steps").any(axis=1)
    for rate in np.flatnonzero(dropped.any(axis=1) & ~whole).tolist():
        y = np.asarray(ax.lines[rate].get_ydata(), dtype=np.float64)
        last = scan.runs.step.values[np.flatnonzero(np.isfinite(y))[-1]]
        assert last <= scan.runs.steps.values[rate].max()
