"""An eigenvalue that did not converge is a bound, and is printed as one."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import trebuchet as tb
from tests.curvature.reference import spectrum


def problem() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 30), nn.Tanh(), nn.Linear(30, 5)).double()
    return net, torch.randn(50, 8).double(), torch.randn(50, 5).double()


@pytest.mark.parametrize("operator", ["ggn", "hessian"])
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("products", [1, 3, 5])
def test_what_is_printed_of_it(operator: Any, k: int, products: int) -> None:
    net, x, y = problem()
    top = tb.top_eigen(
        net, "mse", (x, y), operator, method="lanczos", max_products=products, k=k, rtol=1e-8
    )
    truth = float(spectrum(net, nn.functional.mse_loss, x, y, operator)[0])
    assert not top.converged
    low, high = top.bounds
    assert low <= truth * (1 + 1e-12)
    assert truth <= high * (1 + 1e-12)
    least, most = top.lr_crit_bounds
    assert least <= 2 / truth * (1 + 1e-12)
    assert 2 / truth <= most * (1 + 1e-12)
    assert most == top.lr_crit
    text = str(top)
    assert f"at least {top.value:.6g}" in text
    assert f"critical rate (sgd): at most {top.lr_crit:.6g}, λ not converged" in text


@pytest.mark.parametrize("k", [1, 2])
def test_what_is_printed_of_one_that_did(k: int) -> None:
    net, x, y = problem()
    top = tb.top_eigen(net, "mse", (x, y), k=k)
    assert top.converged
    assert "at least" not in str(top)
    assert f"critical rate (sgd): {top.lr_crit:.6g}   " in str(top)
    least, most = top.lr_crit_bounds
    assert least <= top.lr_crit <= most
    assert most / least < 1.01


def test_no_positive_curvature_and_no_loss() -> None:
    single = nn.Linear(2, 1, bias=False).double()
    x = torch.ones(3, 2, dtype=torch.float64)
    down = tb.top_eigen(single, lambda model, batch: -model(batch).square().mean(), x, "hessian")
    assert down.lr_crit == math.inf
    net, x, _ = problem()
    ntk = tb.top_eigen(net, "cross_entropy", (x, torch.arange(50) % 5), "ntk")
    assert all(math.isnan(rate) for rate in ntk.lr_crit_bounds)
    assert "the NTK knows no loss" in str(ntk)


def test_a_scan_says_so_too() -> None:
    """λ₀ of a wide spectrum, with the few products that a short scan can afford."""
    torch.manual_seed(0)
    net = nn.Linear(60, 1, bias=False).double()
    x = (
        torch.linalg.qr(torch.randn(60, 60).double())[0]
        * torch.linspace(5, 6, 60).double()[:, None]
    )
    y = torch.randn(60, 1).double()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return (model(batch[0]) - batch[1]).square().mean()  # type: ignore[no-any-return]

    truth = float(torch.linalg.eigvalsh(2 * x.T @ x / 60)[-1])
    scan = tb.scan(net, loss, (x, y), horizon=20, seeds=[0], budget=256)
    assert not scan.critical.converged
    assert 0.5 * truth < scan.top_eigenvalue < truth
    assert 2 / truth < scan.lr_crit
    text = str(scan)
    assert f"critical rate at most {scan.lr_crit:.3g}, λ₀ not converged, at least " in text
    assert "forward-only rate: " in text
    assert "lr_crit=≤" in repr(scan)
    again = tb.scan(net, loss, (x, y), horizon=20, seeds=[0], curvature="none")
    assert "critical rate" not in str(again).replace("forward-only rate", "")


def test_a_scan_that_knows() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 30), nn.Tanh(), nn.Linear(30, 1)).double()
    x, y = torch.randn(50, 8).double(), torch.randn(50, 1).double()
    scan = tb.scan(net, "mse", (x, y), horizon=50, seeds=[0])
    truth = float(spectrum(net, nn.functional.mse_loss, x, y, "ggn")[0])
    assert scan.critical.converged
    assert scan.lr_crit == pytest.approx(2 / truth, rel=1e-5)
    assert f"critical rate {scan.lr_crit:.3g}, λ₀ = {scan.top_eigenvalue:.4g}" in str(scan)
