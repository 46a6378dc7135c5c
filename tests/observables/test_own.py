"""Observables of the user's own: recorded at every step, saved, and with a column of the table."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import trebuchet as tb

X = torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(8, 3)
Y = torch.arange(8) % 2


def net(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


class LargestWeight(tb.Observable):
    name = "largest_weight"

    def measure(self, model: nn.Module, problem: tb.Problem) -> Any:
        return max(float(p.detach().abs().max()) for p in model.parameters())


class TensorNorms(tb.Observable):
    name = "tensor_norms"
    dim = "tensor"
    size: int | None = 4

    def measure(self, model: nn.Module, problem: tb.Problem) -> Any:
        return torch.stack([p.norm() for p in model.parameters()])  # with a graph, on purpose


def swept(*observables: Any) -> Any:
    return tb.sweep(
        net, "cross_entropy", (X, Y), lr=[0.1, 0.5], seeds=2, steps=3, observables=observables
    )


def test_what_is_recorded_is_what_a_plain_loop_has(tmp_path: Path) -> None:
    runs = swept(LargestWeight(), TensorNorms())
    for i, lr in enumerate(runs.lr.values):
        for seed in (0, 1):
            model = net(seed)
            for step in range(4):
                tensors = [p.detach().numpy() for p in model.parameters()]
                largest = max(np.abs(t).max() for t in tensors)
                norms = [np.sqrt((t**2).sum()) for t in tensors]
                at = dict(lr=i, seed=seed, step=step)
                assert float(runs.largest_weight.isel(at)) == pytest.approx(largest, rel=1e-12)
                np.testing.assert_allclose(runs.tensor_norms.isel(at), norms, rtol=1e-12)
                loss = nn.functional.cross_entropy(model(X), Y)
                for p, g in zip(
                    model.parameters(),
                    torch.autograd.grad(loss, list(model.parameters())),
                    strict=True,
                ):
                    p.data -= float(lr) * g
    assert tb.load(tb.save(runs, tmp_path / "runs.zarr")).identical(runs)
    table = tb.table(tb.label(runs))
    medians = runs.largest_weight_final.median("seed").values
    np.testing.assert_array_equal(table["largest_weight_final"], medians)
    assert "tensor_norms_final" not in table  # a row a run has no column
