"""Real targets of shape (D,) against outputs (D, 1): a loss of D pairs at every door, not D²."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import trebuchet as tb

X = torch.linspace(-1, 2, 36, dtype=torch.float64).reshape(12, 3).sin()
Y = (X.sum(1) * 1.7).cos()  # (12,)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()


def quartic(z: Tensor, y: Tensor) -> Tensor:
    return (z - y).pow(4).mean()


def sharpness(loss: Callable[[Tensor, Tensor], Tensor]) -> float:
    """Of the loss of pairs, by a dense Hessian."""
    model = net()
    named = {name: p.detach() for name, p in model.named_parameters()}
    sizes = [p.numel() for p in named.values()]

    def of(flat: Tensor) -> Tensor:
        parts = {
            n: v.reshape(p.shape)
            for (n, p), v in zip(named.items(), torch.split(flat, sizes), strict=True)
        }
        return loss(torch.func.functional_call(model, parts, (X,))[:, 0], Y)

    flat = torch.cat([p.flatten() for p in named.values()])
    hessian: Any = torch.autograd.functional.hessian(of, flat)  # type: ignore[no-untyped-call]
    return float(torch.linalg.eigvalsh(hessian)[-1])


@pytest.mark.parametrize("loss", [F.mse_loss, F.huber_loss, quartic])
def test_curvature_is_of_the_loss_of_pairs(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    """It was of all D² pairs: 3.461 instead of 3.476 for a mean square error."""
    true = sharpness(loss)

    def spread(z: Tensor, y: Tensor) -> Tensor:
        return loss(z.expand(12, 12), y.reshape(1, 12).expand(12, 12))

    broadcast = tb.top_eigen(net(), spread, (X, Y), "hessian")
    assert abs(broadcast.value - true) > 1e-3 * true  # they differ, so that the next line can fail
    top = tb.top_eigen(net(), loss, (X, Y), "hessian", rtol=1e-6)
    assert top.value == pytest.approx(true, rel=1e-6)
    assert any("given the outputs' shape (12, 1)" in remark for remark in top.remarks)
    assert tb.top_eigen(net(), loss, (X, Y[:, None]), "hessian").remarks == ()


@pytest.mark.parametrize("loss", [F.mse_loss, quartic])
def test_a_sweep_records_the_sharpness_of_the_loss_it_trains(
    loss: Callable[[Tensor, Tensor], Tensor],
) -> None:
    runs = tb.sweep(net(), loss, (X, Y), lr=[0.01], steps=1, observables=["sharpness"])
    assert float(runs.sharpness[0, 0, 0]) == pytest.approx(sharpness(loss), rel=2e-3)
    assert float(runs.loss[0, 0, 0]) == pytest.approx(float(loss(net()(X)[:, 0], Y).detach()))
    assert "given the outputs' shape" in runs.attrs["notes"]


def test_batches_of_a_list_are_weighed_by_their_pairs() -> None:
    """A mean over D² would weigh 8 and 4 samples as 64 to 16."""
    batches = [(X[:8], Y[:8]), (X[8:], Y[8:])]
    top = tb.top_eigen(net(), F.mse_loss, batches, "hessian", rtol=1e-6)
    assert top.value == pytest.approx(sharpness(F.mse_loss), rel=1e-6)
