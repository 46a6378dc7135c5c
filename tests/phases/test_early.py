"""The published early-training constants: exact where they are known, directions where not."""

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
