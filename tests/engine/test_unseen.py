"""A parameter that the loss does not see is left alone, decay and all, by whoever steps."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import trebuchet as tb


class Spare(nn.Module):
    """A net with a parameter that its output does not depend on."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 1)
        self.spare = nn.Parameter(torch.full((5,), 3.0))
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.tanh(self.first(x)))
        return out


X = torch.randn(12, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
DATA = (X, X[:, :1] * X[:, 1:2])


def _plain(optimizer: Any, lr: float, steps: int) -> float:
    """|θ|² after a loop of torch's own."""
    net = Spare()
    opt = optimizer(list(net.parameters()), lr=lr)
    for _ in range(steps):
        opt.zero_grad()
        torch.autograd.backward(nn.functional.mse_loss(net(DATA[0]), DATA[1]))
        opt.step()
    return float(sum(p.detach().square().sum() for p in net.parameters()))


DECAYED = partial(torch.optim.SGD, weight_decay=0.3)


@pytest.mark.parametrize("engine", ["module", "batched", "sequential"])
@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_in_a_sweep(engine: Any, momentum: float) -> None:
    optimizer = partial(DECAYED, momentum=momentum)
    runs = tb.sweep(Spare(), "mse", DATA, optimizer, lr=[0.05, 0.1], steps=6, engine=engine)
    wanted = [_plain(optimizer, lr, 6) for lr in (0.05, 0.1)]
    np.testing.assert_allclose(runs.weight_norm_final.values.ravel(), wanted, rtol=1e-12)


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("optimizer", [DECAYED, partial(torch.optim.AdamW, weight_decay=0.3)])
def test_in_a_scan(stacked: bool, optimizer: Any) -> None:
    found = tb.scan(Spare(), "mse", DATA, optimizer, horizon=12, stacked=stacked)
    assert found.settings["stacked"] is stacked
    whole = found.runs.weight_norm_final.stack(run=("lr", "seed")).dropna("run")
    assert whole.size
    for one in whole:
        wanted = _plain(optimizer, float(one.lr), 12)
        assert float(one) == pytest.approx(wanted, rel=1e-9)
