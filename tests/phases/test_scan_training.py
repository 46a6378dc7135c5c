"""When a run stops, and what a model's randomness is taken for."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from trebuchet._types import Phase, Status
from trebuchet.phases.scan import scan
from trebuchet.phases.scanning.field import Rates
from trebuchet.phases.scanning.runs import Run
from trebuchet.phases.scanning.training import Trainer
from trebuchet.problem.autocast import Autocast
from trebuchet.problem.losses import half_mse
from trebuchet.problem.optimizers import make_factory
from trebuchet.problem.risk import Objective
from trebuchet.problem.stream import make_stream

HORIZON = 400


class Dying(nn.Module):
    """z = relu(θ x), which has no gradient once θ is negative."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([[1.0]], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x @ self.theta)


def _trainer(model: nn.Module, optimizer: str, at_once: int = 1) -> Trainer:
    x, y = torch.ones(1, 1, dtype=torch.float64), torch.full((1, 1), 0.5, dtype=torch.float64)
    params = list(model.parameters())
    stream = make_stream(
        (x, y), device=x.device, batch_size=None, accumulate=1, horizon=HORIZON
    )  # fmt: skip
    objective = Objective(model, half_mse, params, Autocast(), 1)
    fixed = stream.fixed(1)
    return Trainer(
        objective, stream, make_factory(optimizer, params), horizon=HORIZON, fixed=fixed,
        closing=fixed, at_once=at_once,
    )  # fmt: skip


def _run(optimizer: str, rate: float, at_once: int = 1) -> tuple[Run, Rates]:
    trainer = _trainer(Dying(), optimizer, at_once)
    rates = Rates(trainer, rate, [0], delta=1e-3, smoothing=0.3)
    rates.advance([0, 1], HORIZON)
    run = rates.run(0)
    assert run is not None
    return run, rates


@pytest.mark.parametrize("at_once", [1, 2])
def test_descent_stops_where_the_gradient_is_zero_and_has_collapsed(at_once: int) -> None:
    # One step of 3 · (1 − 0.5) takes θ from 1 to −0.5: z = 0 from then on, with 1/8 of loss left.
    run, rates = _run("sgd", 3.0, at_once)
    assert run.status is Status.GRADIENT_ZERO
    assert run.steps == 1
    assert run.loss_final == pytest.approx(0.125)
    assert run.collapsed
    healthy = rates.trainer.start(0.5, 0)
    rates.trainer.advance([healthy], HORIZON)
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
    assert run.state is not None
    # θ = 1 − 3 · 0.5 · (1 + 0.9 + 0.81 + …) = 1 − 15
    assert float(run.state.weights[0]) == pytest.approx(-14.0)


def test_an_exact_minimum_is_no_collapse() -> None:
    run, rates = _run("sgd", 1.0)  # one step to θ = 0.5, where z = y
    assert run.status is Status.GRADIENT_ZERO
    assert run.loss_final == 0
    assert not run.collapsed
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
