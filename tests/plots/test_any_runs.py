"""Plots of runs without λ, beside observables of the user's own."""

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

import trebuchet as tb

X = torch.linspace(-1, 1, 120).reshape(40, 3)


def _net(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))


class Norms(tb.Observable):
    name = "norms"
    dim = "tensor"
    size = 4

    def measure(self, model: nn.Module, problem: tb.Problem) -> list[float]:
        return [float(p.detach().norm()) for p in model.parameters()]


def test_rates_without_a_ratio_are_rates_by_factors() -> None:
    problem = tb.Problem(_net, "cross_entropy", (X, (X[:, 0] > 0).long()), "adamw", batch_size=10)
    swept = tb.sweep(problem, lr=[1e-3, 1e-2, 1e-1], seeds=2, steps=8, observables=[Norms()])
    runs = tb.label(swept)
    assert "lr_ratio" not in runs
    ax = tb.plots.against_rate(runs, "loss_final", ax=Figure().add_subplot())
    assert ax.get_xlabel() == "learning rate η"
    assert ax.get_xscale() == "log"
    np.testing.assert_allclose(ax.get_xlim(), [10**-3.5, 10**-0.5])
    traced = tb.plots.traces(runs, ax=Figure().add_subplot())
    names = {str(line.get_label()) for line in traced.lines}
    assert {"η = 0.001", "η = 0.1"} <= names
