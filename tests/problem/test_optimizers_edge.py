"""The edge of every optimizer against the transition matrix of torch's own step on a quadratic."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.optimize import brentq
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, Adamax, AdamW, NAdam, Optimizer, RAdam, RMSprop

import trebuchet as tb
from trebuchet.errors import InputError

F64 = torch.float64
Make = Callable[..., Optimizer]

# Where each class keeps its velocity.
VELOCITY: dict[type[Optimizer], str] = {
    SGD: "momentum_buffer", RMSprop: "momentum_buffer", Adam: "exp_avg", AdamW: "exp_avg",
    NAdam: "exp_avg", RAdam: "exp_avg", Adamax: "exp_avg",
}  # fmt: skip
LATE = 10_000_000
SLOW = 1 - 1e-9  # β₂: a divisor that stands still for a step


def _prime(made: Optimizer, p: Tensor, velocity: float) -> None:
    """A state late in training, with a divisor that one step's tiny gradient does not move."""
    state, like = made.state[p], p.detach()
    if not isinstance(made, SGD):
        state["step"] = torch.tensor(float(LATE))
    state |= {"mu_product": torch.tensor(0.0)} if isinstance(made, NAdam) else {}
    second = torch.full_like(like, 0.09)
    for key in ("exp_avg_sq", "square_avg", "sum", "exp_inf"):
        state[key] = second.clone()
    state["grad_avg"] = torch.full_like(like, 0.1)
    if made.param_groups[0].get("amsgrad"):
        state["max_exp_avg_sq"] = 2 * second
    kept = VELOCITY.get(type(made))
    if kept is not None and made.param_groups[0].get("momentum", 1) > 0:
        state[kept] = torch.full_like(like, velocity)


def _transition(make: Make, curvature: float, rate: float) -> np.ndarray:
    """The matrix of one step in (position, velocity), read off torch's optimizer column by column.

    Tiny numbers, so that their squares are nothing beside the divisor's.
    """
    columns, tiny = [], 1e-100
    for position, velocity in ((tiny, 0.0), (0.0, tiny)):
        p = nn.Parameter(torch.full((1, 1), position, dtype=F64))
        made = make([p], lr=rate)
        _prime(made, p, velocity)
        p.grad = curvature * p.detach()
        made.step()
        key = VELOCITY.get(type(made), "")
        moved = made.state[p].get(key)
        columns.append([float(p.detach()), 0.0 if moved is None else float(moved)])
    return np.array(columns).T / tiny


def _numerical_edge(make: Make, curvature: float) -> float:
    """The rate at which an eigenvalue of the transition leaves through −1."""

    def at_minus_one(log_rate: float) -> float:
        matrix = _transition(make, curvature, math.exp(log_rate))
        return float(np.linalg.det(matrix + np.eye(2)))

    grid = np.linspace(math.log(1e-4), math.log(1e4), 200)
    values = [at_minus_one(x) for x in grid]
    k = next(i for i in range(199) if values[i] > 0 >= values[i + 1])
    found: float = brentq(at_minus_one, grid[k], grid[k + 1], xtol=1e-13)
    rate = math.exp(found)
    # It is the edge: stable just below, unstable just above.
    inside, outside = (
        float(np.abs(np.linalg.eigvals(_transition(make, curvature, f * rate))).max())
        for f in (0.999, 1.001)
    )
    assert inside < 1 < outside
    return rate


def _measured(make: Make, curvature: float) -> float:
    """``lr_crit`` of a net whose loss is ½ λ θ², at θ = tiny, by ``top_eigen``."""
    net = nn.Linear(1, 1, bias=False, dtype=F64)
    with torch.no_grad():
        net.weight.fill_(1e-100)
    made = make(net.parameters(), lr=0.1)
    _prime(made, net.weight, 1e-100)
    x = torch.full((1, 1), math.sqrt(curvature), dtype=F64)
    return tb.top_eigen(net, "half_mse", (x, torch.zeros_like(x)), optimizer=made).lr_crit


beta = st.floats(0.01, 0.98)
decay = st.floats(0.0, 3.0)
curved = st.floats(0.1, 30.0)
SETTINGS: dict[str, st.SearchStrategy[Make]] = {
    "sgd": st.builds(lambda w: partial(SGD, weight_decay=w), decay),
    "momentum": st.builds(
        lambda b, d, w: partial(SGD, momentum=b, dampening=d, weight_decay=w),
        beta, st.floats(-0.5, 0.9), decay,
    ),
    "nesterov": st.builds(
        lambda b, w: partial(SGD, momentum=b, nesterov=True, weight_decay=w), beta, decay
    ),
    "adam": st.builds(
        lambda b, w, d, a: partial(
            Adam, betas=(b, SLOW), weight_decay=w, decoupled_weight_decay=d, amsgrad=a, eps=1e-3
        ), beta, decay, st.booleans(), st.booleans(),
    ),
    "adamw": st.builds(lambda b, w: partial(AdamW, betas=(b, SLOW), weight_decay=w), beta, decay),
    "nadam": st.builds(
        lambda b, w, d, psi: partial(
            NAdam, betas=(b, SLOW), weight_decay=w, decoupled_weight_decay=d, momentum_decay=psi
        ), beta, decay, st.booleans(), st.sampled_from([0.0, 1.0]),
    ),
    "radam": st.builds(
        lambda b, w, d: partial(
            RAdam, betas=(b, SLOW), weight_decay=w, decoupled_weight_decay=d, eps=1e-3
        ), beta, decay, st.booleans(),
    ),
    "adamax": st.builds(
        lambda b, w: partial(Adamax, betas=(b, SLOW), weight_decay=w), beta, decay
    ),
    "rmsprop": st.builds(
        lambda b, w, c: partial(
            RMSprop, momentum=b, alpha=SLOW, weight_decay=w, centered=c, eps=1e-3
        ), st.just(0.0) | beta, decay, st.booleans(),
    ),
    "adagrad": st.builds(
        lambda w, d: partial(Adagrad, weight_decay=w, lr_decay=d), decay, st.floats(0, 1e-7)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
@settings(max_examples=8, deadline=None, derandomize=True)
@given(data=st.data(), curvature=curved)
def test_the_edge_is_that_of_torch_s_own_step(
    name: str, data: st.DataObject, curvature: float
) -> None:
    make = data.draw(SETTINGS[name])
    # A single step moves a divisor by 1e-9 of itself, and RAdam's correction by 1e-7.
    assert _measured(make, curvature) == pytest.approx(_numerical_edge(make, curvature), rel=1e-6)


def test_the_cases_from_the_field() -> None:
    torch.manual_seed(0)
    net = nn.Linear(3, 1, dtype=F64)
    data = (torch.randn(20, 3, dtype=F64), torch.randn(20, 1, dtype=F64))
    top = tb.top_eigen(net, "mse", data, rtol=1e-10).value
    for settings_of, product in (
        ({"weight_decay": 2.0}, 2 / (1 + 2 / top)),
        ({"momentum": 0.9, "dampening": 0.5}, 3.8 / 0.5),
        ({"momentum": 0.9, "dampening": 0.5, "weight_decay": 2.0}, 3.8 / 0.5 / (1 + 2 / top)),
        ({"dampening": 0.5}, 2.0),  # which torch dampens only with momentum
    ):
        made = SGD(net.parameters(), lr=0.1, **settings_of)  # type: ignore[arg-type]
        by_eigen = tb.top_eigen(net, "mse", data, rtol=1e-10, optimizer=made).lr_crit
        by_scan = tb.scan(net, "mse", data, made, horizon=20, seeds=1).lr_crit
        assert by_eigen == pytest.approx(product / top, rel=1e-8)
        assert by_scan == pytest.approx(by_eigen, rel=1e-8)


def _mixed(params: Sequence[nn.Parameter]) -> list[dict[str, Any]]:
    return [{"params": [p], "weight_decay": w} for p, w in zip(params, (0.0, 3.0), strict=True)]


@pytest.mark.parametrize("kind", [SGD, Adam, RMSprop])
def test_groups_that_differ_in_coupled_decay_have_it_on_the_diagonal(kind: type[Optimizer]) -> None:
    torch.manual_seed(1)
    net = nn.Linear(3, 1, dtype=F64)
    x, y = torch.randn(20, 3, dtype=F64), torch.randn(20, 1, dtype=F64)
    made = kind(_mixed(list(net.parameters())), lr=0.1)  # type: ignore[call-arg]
    ones = torch.cat([x, torch.ones(20, 1, dtype=F64)], dim=1)
    hessian = ones.T @ ones / 20
    shift = torch.tensor([0.0, 0.0, 0.0, 3.0], dtype=F64)
    whole, product = hessian + torch.diag(shift), 2.0
    if kind is not SGD:
        residual = (net(x) - y).detach()
        weights = torch.cat([p.detach().reshape(-1) for p in net.parameters()])
        g = (ones.T @ residual / 20).reshape(-1) + shift * weights
        p = g.abs() + 1e-8 if kind is Adam else 0.1 * g.abs() + 1e-8
        whole = p.rsqrt()[:, None] * whole * p.rsqrt()
        product = 38.0 if kind is Adam else 2.0
    truth = product / float(torch.linalg.eigvalsh(whole)[-1])
    for operator in ("ggn", "hessian"):
        top = tb.top_eigen(net, "half_mse", (x, y), operator, optimizer=made, rtol=1e-10)
        assert top.lr_crit == pytest.approx(truth, rel=1e-8)
    assert tb.scan(
        net, "half_mse", (x, y), made, horizon=20, seeds=1
    ).lr_crit == pytest.approx(truth, rel=1e-5)  # fmt: skip


@pytest.mark.parametrize(
    ("optimizer", "says"),
    [
        (partial(SGD, maximize=True), "the optimizer maximises"),
        (partial(SGD, momentum=1.0), "momentum of 1 never lets a velocity fade"),
        (partial(SGD, momentum=0.9, dampening=1.0), "dampening leaves nothing"),
        ("radam", "first steps of RAdam"),
        ("rprop", "no closed form for Rprop"),
    ],
)
def test_without_an_edge_the_reason_is_given(optimizer: Any, says: str) -> None:
    net = nn.Linear(2, 1)
    with pytest.raises(InputError, match=says):
        tb.top_eigen(net, "mse", (torch.ones(3, 2), torch.zeros(3, 1)), optimizer=optimizer)


def _first_rise(make: Make, shares: Sequence[tuple[float, float]], product: float) -> bool:
    """Whether Σ λ θ² rises above its start from rest, in 300 steps of torch's optimizer."""
    top = max(curvature for curvature, _ in shares)
    h = torch.tensor([c for c, _ in shares], dtype=F64)
    p = nn.Parameter(torch.tensor([s for _, s in shares], dtype=F64))
    made = make([p], lr=product / top)
    first = float((h * p.detach() ** 2).sum())
    for _ in range(300):
        p.grad = h * p.detach()
        made.step()
        if float((h * p.detach() ** 2).sum()) > first * (1 + 1e-9):
            return True
    return False


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.8, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("nesterov", [False, True])
def test_no_quadratic_rises_below_where_catapults_begin(momentum: float, nesterov: bool) -> None:
    if nesterov and momentum == 0:
        return
    make = partial(SGD, momentum=momentum, nesterov=nesterov)
    net = nn.Linear(1, 1, bias=False, dtype=F64)
    x = torch.ones(1, 1, dtype=F64)
    found = tb.scan(net, "half_mse", (x, 0 * x), make, horizon=20, seeds=1)
    begins = found.critical.lr_catapult  # λ₀ = 1
    assert begins <= found.lr_crit * (1 + 1e-12)
    assert _first_rise(make, [(1.0, 1.0)], 1.002 * begins)
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        draws = torch.rand(5, 2, generator=generator, dtype=F64).tolist()
        assert not _first_rise(make, [(1.0, draws[0][1]), *map(tuple, draws)], 0.998 * begins)


@pytest.mark.parametrize("optimizer", ["adam", "AdamW", "nadam", "rmsprop", "adagrad"])
def test_where_adaptive_optimizers_first_rise_is_not_known_from_curvature(optimizer: str) -> None:
    torch.manual_seed(0)
    net, x = nn.Linear(3, 1, dtype=F64), torch.randn(20, 3, dtype=F64)
    found = tb.scan(net, "mse", (x, x[:, :1]), optimizer, horizon=20, seeds=1)
    assert math.isnan(found.critical.lr_catapult)
    assert "where the loss first rises is not known from λ₀" in found.critical.convention
    assert math.isfinite(found.lr_crit)


def test_adam_on_one_weight_first_rises_at_two() -> None:
    # What the page on concepts derives: m̂ = g in the first step, so |1 − ηλ| > 1 from 2 on, and
    # with P held no later step leaves [−1, 1] below that.
    def held(params: list[nn.Parameter], lr: float) -> Optimizer:
        return Adam(params, lr=lr * 1e12, eps=1e12)

    for product, rises in ((1.99, False), (2.01, True)):
        assert _first_rise(held, [(1.0, 1.0)], product) is rises
