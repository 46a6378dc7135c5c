"""Measurements that start from the last one, or only ask whether λ is above a number."""

import copy
import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import trebuchet as tb
from trebuchet.curvature.result import WarmState
from trebuchet.curvature.top import top_eigen
from trebuchet.errors import InputError

F64 = torch.float64
P = 80


def problem(values: Sequence[float], dtype: torch.dtype = F64) -> tuple[nn.Module, Tensor, Tensor]:
    """A linear net whose Hessian is diagonal, of these eigenvalues and small ones."""
    rest = torch.linspace(0.0, 0.3, P - len(values), dtype=F64)
    h = torch.cat([torch.tensor(values, dtype=F64), rest])
    x = torch.diag((P * h).sqrt()).to(dtype)
    torch.manual_seed(0)
    return nn.Linear(P, 1, bias=False).to(dtype), x, torch.zeros(P, 1, dtype=dtype)


def measured(values: Sequence[float], dtype: torch.dtype = F64, **given: object) -> tb.TopEigen:
    net, x, y = problem(values, dtype)
    return top_eigen(net, "half_mse", (x, y), "hessian", method="lanczos", **given)  # type: ignore[arg-type]  # any keyword


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_swap_of_the_top_two_between_two_steps_is_seen(dtype: torch.dtype) -> None:
    """The last eigenvector is an exact one of the next step's, but no longer of the top."""
    last = measured([2.0, 1.9], dtype, seed=0)
    for seed in range(20):
        now = measured([1.9, 2.0], dtype, warm=last, seed=seed)
        assert now.converged
        assert now.value == pytest.approx(2.0, rel=1e-3)
        asked = measured([1.9, 2.0], dtype, warm=last, seed=seed, above=1.95)
        assert asked.value > 1.95


def test_a_new_direction_is_seen_though_the_last_random_numbers_would_miss_it() -> None:
    """A start ŵ + τĝ with the ĝ of the first measurement has nothing of the top eigenvector."""
    first = measured([2.0, 1.9], seed=0)
    g = torch.rand(P, generator=torch.Generator().manual_seed(0), dtype=F64) - 0.5
    sideways = 0.1 * float(g[0]) / float(g.norm())
    w = torch.zeros(1, P, dtype=F64)
    w[0, 0], w[0, 1] = -sideways, math.sqrt(1 - sideways**2)
    now = measured([2.0, 1.9], seed=0, warm=replace(first, warm=WarmState("parameters", w)))
    assert now.converged
    assert now.value == pytest.approx(2.0, rel=1e-3)


def test_a_chain_of_measurements_is_the_same_when_it_is_saved_on_its_way(tmp_path: Path) -> None:
    chain = [[2.0, 1.9], [1.95, 1.96], [1.9, 2.1], [1.0, 2.2], [0.5, 2.2]]
    through, resumed = None, None
    for values in chain:
        through = measured(values, warm=through)
        resumed = measured(values, warm=resumed)
        assert resumed.value == through.value
        assert resumed.products == through.products
        tb.save(resumed, tmp_path / "top.zarr", overwrite=True)
        resumed = tb.load(tmp_path / "top.zarr")


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("operator", ["hessian", "ggn"])
def test_asked_whether_it_is_above(operator: str, dtype: torch.dtype) -> None:
    """Right on either side of λ = 2, by a value that is above or an upper bound that is not."""
    full, tops = measured([2.0, 1.7], dtype), [measured([2.0, 1.7], dtype)]
    for share in (0.3, 0.9, 0.99, 0.9985, 1.0, 1.0015, 1.01, 1.5, 4.0):
        for warm in (None, tops[-1]):
            net, x, y = problem([2.0, 1.7], dtype)
            top = top_eigen(
                net, "half_mse", (x, y), operator, method="lanczos", warm=warm, above=2 * share,  # type: ignore[arg-type]  # a str of three
            )  # fmt: skip
            assert top.value <= 2 * (1 + 1e-6) <= top.upper * (1 + 2e-6)
            if share < 0.999:
                assert top.value > 2 * share
            elif share > 1:
                assert top.upper <= 2 * share * (1 + 1e-3)
                assert top.value <= 2 * share
            # A fortiori where it converged as well.
            assert not top.converged or top.value == pytest.approx(2.0, rel=1e-3)
    near = measured([2.0, 1.7], dtype, above=1.9, warm=full)
    far = measured([2.0, 1.7], dtype, above=3.0)
    assert near.products <= 2
    assert far.products < full.products
    assert "above 1.9: it is" in str(near)
    assert "above 3: it is not" in str(far)


def test_asked_of_an_operator_that_is_zero_or_negative() -> None:
    """Of a net that has died in the meantime too: the first product tells."""
    last = measured([2.0])
    nothing = torch.zeros(P, P, dtype=F64)
    net = problem([1.0])[0]
    for warm, above in itertools.product((None, last), (None, 0.1)):
        dead = top_eigen(
            net, "half_mse", (nothing, nothing[:, :1]), "hessian", method="lanczos", warm=warm,
            above=above,
        )  # fmt: skip
        assert dead.value == dead.upper == 0
        assert dead.converged
        assert dead.products == 1
    below = top_eigen(
        net, lambda z, y: -((z - y) ** 2).mean(), (torch.eye(P, dtype=F64), nothing[:, :1]),
        "hessian", method="lanczos", above=0.0,
    )  # fmt: skip
    assert below.value < 0
    assert below.upper <= 1e-12


def test_it_is_asked_of_one_eigenvalue() -> None:
    with pytest.raises(InputError, match=r"^above: .* k = 2"):
        measured([2.0], k=2, above=1.0)


def test_edge_of_stability_is_asked_along_a_training() -> None:
    """The answers are those of whole measurements, at fewer products."""
    torch.manual_seed(0)
    x, y = torch.randn(60, 6), torch.randn(60, 2)
    net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 2))
    sgd = torch.optim.SGD(net.parameters(), lr=0.3)
    nets, full = [], []
    for _ in range(12):
        nets.append(copy.deepcopy(net))
        full.append(top_eigen(net, "mse", (x, y), "hessian"))
        sgd.zero_grad()
        torch.autograd.backward(nn.functional.mse_loss(net(x), y))
        sgd.step()
    low, high = sorted(top.value for top in full)[5:7]
    edge, asked, last = (low + high) / 2, 0, None
    for net, top in zip(nets, full, strict=True):
        last = top_eigen(net, "mse", (x, y), "hessian", above=edge, warm=last)
        asked += last.products
        if abs(top.value / edge - 1) > 2e-3:
            assert (last.value > edge) == (top.value > edge)
    assert asked < 0.8 * sum(top.products for top in full)
