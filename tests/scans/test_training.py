"""When a run stops, and what a model's randomness is taken for."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import trebuchet as tb
from trebuchet._types import Phase, Status
from trebuchet.engine.advance import Engine, Run
from trebuchet.engine.kernels.host import Host
from trebuchet.engine.looks import schedule
from trebuchet.engine.runner import Plan
from trebuchet.engine.stopping import StopRule
from trebuchet.problem.bound import bound
from trebuchet.scans.door import scan
from trebuchet.scans.rates import Rates

HORIZON = 400


class Dying(nn.Module):
    """z = relu(θ x), which has no gradient once θ is negative."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([[1.0]], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x @ self.theta)


def _run(optimizer: str, rate: float, at_once: int = 1) -> tuple[Run, Rates]:
    x, y = torch.ones(1, 1, dtype=torch.float64), torch.full((1, 1), 0.5, dtype=torch.float64)
    model = Dying()
    problem = tb.Problem(model, "half_mse", (x, y), optimizer)
    with bound(problem, model, steps=HORIZON) as trained:
        host = Host(trained)
        plan = Plan(StopRule(HORIZON), schedule(HORIZON, free=True), check_law=False)
        rates = Rates(Engine(host, plan, at_once=at_once), rate, [0], smoothing=0.3)
        rates.advance([0, 1], HORIZON)
        run = rates.run(0)
    assert run is not None
    return run, rates


def _collapsed(run: Run) -> bool:
    return run.status is Status.GRADIENT_ZERO and run.number("output_spread") == 0


@pytest.mark.parametrize("at_once", [1, 2])
def test_descent_stops_where_the_gradient_is_zero_and_has_collapsed(at_once: int) -> None:
    # One step of 3 · (1 − 0.5) takes θ from 1 to −0.5: z = 0 from then on, with 1/8 of loss left.
    run, rates = _run("sgd", 3.0, at_once)
    assert run.status is Status.GRADIENT_ZERO
    assert run.steps == 1
    assert run.loss_horizon == pytest.approx(0.125)
    assert _collapsed(run)
    healthy = rates.engine.start(0.5, 0)
    rates.engine.advance([healthy], HORIZON)
    rates.extra.append(healthy)
    assert rates.phase(run) is Phase.COLLAPSED
    assert rates.phase(healthy) is Phase.LAZY


@pytest.mark.parametrize("at_once", [1, 2])
def test_momentum_goes_on_without_a_gradient_until_it_stands_still(at_once: int) -> None:
    run, _ = _run("momentum", 3.0, at_once)
    assert run.status is Status.GRADIENT_ZERO
    # The velocity 0.5 · 0.9^t moves θ until it is below half a unit in the last place of it:
    # 0.5 · 0.9^t · 3 < 2^−52 · 8 or so, after some 330 steps.
    assert 200 < run.steps < HORIZON
    assert run.kernel is not None
    assert run.kernel.state_ is not None
    # θ = 1 − 3 · 0.5 · (1 + 0.9 + 0.81 + …) = 1 − 15
    assert float(run.kernel.state_.weights[0]) == pytest.approx(-14.0)


def test_an_exact_minimum_is_no_collapse() -> None:
    run, rates = _run("sgd", 1.0)  # one step to θ = 0.5, where z = y
    assert run.status is Status.GRADIENT_ZERO
    assert run.loss_horizon == 0
    assert not _collapsed(run)
    assert rates.phase(run) is Phase.LAZY


class Functional(nn.Module):
    """Dropout, or noise, or nothing, in the forward pass."""

    def __init__(self, change: Callable[[Tensor, bool], Tensor]) -> None:
        super().__init__()
        self.change, self.net = change, nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(self.change(x, self.training))
        return out


@pytest.mark.parametrize(
    ("change", "seeds"),
    [
        (lambda x, training: nn.functional.dropout(x, 0.2, training), [0, 1]),
        (lambda x, training: x + 0.1 * torch.randn_like(x) if training else x, [0, 1]),
        (lambda x, training: 2 * x if training else x, [0]),
        (lambda x, training: x, [0]),
    ],
)
def test_randomness_is_found_in_the_forward_pass(
    change: Callable[[Tensor, bool], Tensor], seeds: list[int]
) -> None:
    torch.manual_seed(0)
    x, model = torch.randn(30, 4), Functional(change)
    state = torch.get_rng_state()
    result = scan(model, "mse", (x, x[:, :1]), horizon=20, curvature="none")
    # Without randomness the full batch has one order, and its training loss is the loss.
    assert result.settings["seeds"] == seeds
    assert torch.equal(torch.get_rng_state(), state)
