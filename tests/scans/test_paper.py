"""Scans of the paper's models, against numbers that the authors' own code printed, and theorems."""

import copy
import math
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.paper.authors import needs_reference, reference, top_eigenvalue
from trebuchet.curvature import half_mse
from trebuchet.models import MLP
from trebuchet.models.mlp import LINEAR, RELU, Slopes
from trebuchet.paper.problems import paper_problem
from trebuchet.paper.settings import FIGURES
from trebuchet.phases.edges import edges
from trebuchet.problem.problem import Problem
from trebuchet.scans.door import Scan, scan

HORIZON = 100
WIDTH = 0.01
NUMBERS = [1, 2, 6]


def last_converging(number: int) -> float:
    """The largest ηλ₀ of the grid up to which every run converged; above it none did."""
    diverged = {float(r): math.isinf(float(run["loss_max"])) for r, run in _runs(number)}
    last = max(r for r, away in diverged.items() if not away)
    assert all(away == (r > last) for r, away in diverged.items())  # no islands
    return last


def _runs(number: int) -> Any:
    return reference(number)["runs"].items()


@cache
def scanned(number: int) -> Scan:
    """The scan of one figure's model, in float32 as the authors had it."""
    problem = paper_problem(FIGURES[number])
    return _scan(problem)


def _scan(problem: Problem) -> Scan:
    assert isinstance(problem.model, nn.Module)
    return scan(
        problem.model, "half_mse", (problem.x, problem.y), horizon=HORIZON, seeds=1,
        edge_rtol=WIDTH,
    )  # fmt: skip


@needs_reference
@pytest.mark.parametrize("number", [1, 2, 6])
def test_critical_rate_is_two_over_the_authors_eigenvalue(number: int) -> None:
    top = top_eigenvalue(number)
    assert scanned(number).top_eigenvalue == pytest.approx(top, rel=1e-5)
    assert scanned(number).lr_crit == pytest.approx(2 / top, rel=1e-5)
    assert "had not converged" not in " ".join(scanned(number).notes)


@needs_reference
@pytest.mark.parametrize("number", NUMBERS)
def test_lr_max_lies_between_the_last_rate_that_converged_and_the_next(number: int) -> None:
    top, edge = top_eigenvalue(number), scanned(number).lr_max
    last = last_converging(number)
    step = 0.1  # of the authors' grid
    assert edge.closed
    assert edge.high <= (1 + 1.1 * WIDTH) * edge.low
    assert last <= edge.high * top
    assert edge.low * top <= last + step


@needs_reference
@pytest.mark.parametrize("number", NUMBERS)
def test_every_whole_run_is_what_the_authors_found_at_its_rate(number: int) -> None:
    result, top = scanned(number), top_eigenvalue(number)
    last = last_converging(number)
    table = result.table[result.table["status"] != "dropped"]
    ratio = table["rate"] * top
    assert set(table["phase"][ratio < 1.99]) == {"lazy"}
    between = (ratio > 2.05) & (ratio < last)
    assert set(table["phase"][between]) == {"catapult"}
    assert set(table["phase"][ratio > last + 0.1]) == {"divergent"}


@needs_reference
@pytest.mark.parametrize("number", [1, 2, 6])
def test_the_loss_first_rises_at_two(number: int) -> None:
    result = scanned(number)
    assert result.has_catapult
    assert result.lr_loss.value * top_eigenvalue(number) == pytest.approx(2, rel=0.01)


def _point(x: float, y: float) -> tuple[Tensor, Tensor]:
    return torch.tensor([[x]], dtype=torch.float64), torch.tensor([y], dtype=torch.float64)


def _cloud() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(4, 3, generator=g, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)


@pytest.mark.parametrize(
    ("slopes", "data"),
    [(LINEAR, "point"), (LINEAR, "cloud"), ((1.0, 0.5), "point"), ((1.0, 0.5), "cloud")],
)
def test_lr_max_is_not_below_the_proven_edge(slopes: Slopes, data: str) -> None:
    x, y = _point(1.0, 0.0) if data == "point" else _cloud()
    problem = Problem(MLP.draw(x.shape[1], 256, slopes=slopes, generator=7), "half_mse", (x, y))
    known, result = edges(problem), _scan(problem)
    assert result.lr_crit == pytest.approx(known["critical"].lr, rel=1e-12)
    assert result.has_catapult
    assert result.lr_max.high >= known["upper"].lr
    # All runs inside the proven window train, whatever the scan made of them.
    inside = result.table[result.table["rate"] < known["upper"].lr]
    assert set(inside["phase"][inside["status"] != "dropped"]) <= {"lazy", "catapult"}


def test_the_linear_net_of_one_sample_ends_at_four() -> None:
    x, y = _point(1.0, 0.0)
    result = _scan(Problem(MLP.draw(1, 1024, slopes=LINEAR, generator=7), "half_mse", (x, y)))
    # The two-variable map's edge is 4 as u₀ → 0, which is as 1/width.
    assert result.lr_max.value * result.top_eigenvalue == pytest.approx(4, rel=0.01)


def test_a_relu_net_of_one_sample_collapses_past_four() -> None:
    x, y = _point(4.0, 2.0)
    problem = Problem(MLP.draw(1, 1024, slopes=RELU, generator=0), "half_mse", (x, y))
    known, result = edges(problem), _scan(problem)
    assert known["upper"].lr_ratio == pytest.approx(4)
    assert result.lr_max.high >= known["upper"].lr
    whole = result.table[result.table["status"] != "dropped"]
    beyond = whole[whole["rate"] > 1.02 * result.lr_max.high]
    assert len(beyond) > 0
    assert set(beyond["phase"]) == {"collapsed"}
    # Between 4 and there, windows of collapse and of training alternate: each run by itself.
    assert isinstance(problem.model, nn.Module)
    for rate, phase in zip(whole["rate"], whole["phase"], strict=True):
        dead = _dies(problem.model, x, y, float(rate))
        assert dead == (phase == "collapsed"), rate * result.top_eigenvalue


def _dies(model: nn.Module, x: Tensor, y: Tensor, rate: float) -> bool:
    """Whether plain gradient descent ends with an output of zero for this sample."""
    model = copy.deepcopy(model)
    steps = torch.optim.SGD(model.parameters(), lr=rate)
    for _ in range(HORIZON):
        steps.zero_grad()
        torch.autograd.backward(half_mse(model(x), y))
        steps.step()
    return not bool(model(x).any())
