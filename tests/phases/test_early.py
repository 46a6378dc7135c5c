"""The published early-training constants: exact where they are known, directions where not."""

import copy
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from trebuchet.errors import InputError
from trebuchet.phases.early import EarlyConstants, early_constants


def _data() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(32, 8, generator=g, dtype=torch.float64)
    return x, torch.randn(32, 1, generator=g, dtype=torch.float64)


def _relu_net(width: int, depth: int, seed: int) -> nn.Module:
    """Bias-free, He-initialised, as in the publication."""
    torch.manual_seed(seed)
    sizes = [8] + [width] * depth + [1]
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(itertools.pairwise(sizes)):
        linear = nn.Linear(a, b, bias=False, dtype=torch.float64)
        last = i == len(sizes) - 2
        nn.init.normal_(linear.weight, std=math.sqrt((1 if last else 2) / a))
        layers += [linear] if last else [linear, nn.ReLU()]
    return nn.Sequential(*layers)


@pytest.fixture(scope="module")
def by_width() -> dict[int, list[EarlyConstants]]:
    return {
        width: [
            early_constants(_relu_net(width, 1, s), "mse", _data(), rtol=0.05) for s in range(4)
        ]
        for width in (8, 256)
    }


def _mean(found: list[EarlyConstants], name: str) -> float:
    return float(np.nanmean([getattr(f, name) for f in found]))


@pytest.mark.parametrize("name", ["c_loss", "c_max"])
def test_constants_fall_with_width(by_width: dict[int, list[EarlyConstants]], name: str) -> None:
    assert _mean(by_width[8], name) > _mean(by_width[256], name)


def test_wide_nets_come_near_two_and_four(by_width: dict[int, list[EarlyConstants]]) -> None:
    assert 1.95 < _mean(by_width[256], "c_loss") < 2.5
    assert 3.5 < _mean(by_width[256], "c_max") < 4.3


@pytest.mark.parametrize("width", [8, 256])
def test_sharpness_reduction_lies_between_c_loss_and_c_sharp(
    by_width: dict[int, list[EarlyConstants]], width: int
) -> None:
    found = by_width[width]
    assert _mean(found, "c_loss") < _mean(found, "c_sharp") < _mean(found, "c_max")


def test_quadratic_loss_has_both_edges_at_two() -> None:
    torch.manual_seed(1)
    net = nn.Linear(8, 1, dtype=torch.float64)
    found = early_constants(net, "half_mse", _data(), steps=20, delta=1e-9)
    assert found.c_max == pytest.approx(2, rel=0.05)
    assert found.c_loss == pytest.approx(2, rel=0.05)
    assert math.isnan(found.c_sharp)


def test_the_convention_of_the_loss_cancels() -> None:
    net = _relu_net(16, 1, 0)
    whole = early_constants(net, "mse", _data(), rtol=0.05, steps=2, train_steps=20)
    half = early_constants(net, "half_mse", _data(), rtol=0.05, steps=2, train_steps=20)
    assert half.sharpness == pytest.approx(whole.sharpness / 2, rel=1e-2)
    assert half.c_loss == pytest.approx(whole.c_loss, rel=1e-2)
    assert half.c_max == pytest.approx(whole.c_max, rel=1e-2)


def test_nothing_changes_and_bad_input_is_named() -> None:
    net = _relu_net(4, 1, 0)
    before = [p.detach().clone() for p in net.parameters()]
    early_constants(net, "mse", _data(), rtol=0.2, steps=2, train_steps=10)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    with pytest.raises(InputError, match="steps: expected from 1 to train_steps = 5"):
        early_constants(net, "mse", _data(), train_steps=5)
    nothing: Any = None
    with pytest.raises(InputError, match="loss: expected a loss"):
        early_constants(net, nothing, _data())
    flat = nn.Linear(8, 1, dtype=torch.float64)
    with pytest.raises(InputError, match="sharpness"):
        early_constants(flat, lambda z, y: (z - y).mean(), _data())


def _plain_losses(net: nn.Module, lr: float, steps: int) -> tuple[list[float], nn.Module]:
    """Gradient descent by hand; the losses, and the net where it ended."""
    x, y = _data()
    moved = copy.deepcopy(net)
    losses = []
    for _ in range(steps + 1):
        value = nn.functional.mse_loss(moved(x), y)
        losses.append(float(value.detach()))
        grads = torch.autograd.grad(value, list(moved.parameters()))
        if len(losses) <= steps:
            with torch.no_grad():
                for p, g in zip(moved.parameters(), grads, strict=True):
                    p.sub_(lr * g)
    return losses, moved


def test_both_sides_of_the_barrier_by_hand() -> None:
    x, y = _data()
    net = _relu_net(16, 2, 1)
    found = early_constants(net, "mse", (x, y), rtol=0.02, train_steps=40)
    assert found.c_loss < found.c_barrier < found.c_max

    def highest(c: float) -> float:
        losses, end = _plain_losses(net, c / found.sharpness, 40)
        between = copy.deepcopy(net)
        worst = 0.0
        for share in torch.linspace(0, 1, 22)[1:-1].tolist():
            with torch.no_grad():
                for p, a, b in zip(
                    between.parameters(), net.parameters(), end.parameters(), strict=True
                ):
                    p.copy_(a + share * (b - a))
                worst = max(worst, float(nn.functional.mse_loss(between(x), y)))
        return worst / losses[0]

    assert highest(0.97 * found.c_barrier) < 1.01 < highest(1.03 * found.c_barrier)


def test_several_seeds_are_medians_of_each() -> None:
    def make(seed: int) -> nn.Module:
        return _relu_net(12, 1, seed)

    found = early_constants(make, "mse", _data(), rtol=0.1, train_steps=20, seeds=3)
    assert len(found.by_seed) == 3
    assert found.c_loss == pytest.approx(np.median([one.c_loss for one in found.by_seed]))
    alone = early_constants(make(2), "mse", _data(), rtol=0.1, train_steps=20)
    assert alone == found.by_seed[2]
    with pytest.raises(InputError, match="seeds: expected one, since a module on all data"):
        early_constants(make(0), "mse", _data(), seeds=2)


def test_mini_batches_train_on_their_own_batches() -> None:
    """A batch as large as the data is the full batch; small ones rise elsewhere, seed by seed."""
    net = _relu_net(12, 1, 0)
    how: dict[str, Any] = {"rtol": 0.05, "train_steps": 20}
    whole = early_constants(net, "mse", _data(), **how)
    same = early_constants(net, "mse", _data(), batch_size=32, **how)
    assert same.c_loss == pytest.approx(whole.c_loss, rel=0.05)
    small = early_constants(net, "mse", _data(), batch_size=4, seeds=2, **how)
    assert small.sharpness == pytest.approx(whole.sharpness, rel=1e-2)  # on all of them, still
    assert small.by_seed[0] != small.by_seed[1]
    assert small.c_max < whole.c_max  # noise


@pytest.mark.parametrize("width", [16, 64])
def test_a_last_layer_of_zeros_rises_at_two(width: int) -> None:
    net = _relu_net(width, 3, 0)
    last = [m for m in net.modules() if isinstance(m, nn.Linear)][-1]
    nn.init.zeros_(last.weight)
    found = early_constants(net, "mse", _data(), steps=10, delta=1e-3, rtol=0.02, train_steps=30)
    assert 1.95 < found.c_loss < 2.3
