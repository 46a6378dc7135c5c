"""λ₀ and the critical rate of a scan: exact where that is cheap, closed forms by optimizer."""

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adadelta, Adam, AdamW, NAdam, Optimizer, RMSprop
from torch.utils.data import DataLoader, TensorDataset

import trebuchet as tb
from trebuchet.curvature import TopEigen, half_mse, top_eigen
from trebuchet.errors import InputError
from trebuchet.problem.autocast import Autocast
from trebuchet.problem.losses import resolve
from trebuchet.problem.optimizer_edge import edge_of
from trebuchet.problem.risk import Objective
from trebuchet.problem.stream import make_stream
from trebuchet.scans.critical import critical_rate
from trebuchet.scans.door import Scan, scan

EIGENVALUES = (7.0, 2.0, 0.3, 0.1)
DEVICE = torch.device("cpu")


class Bowl(nn.Module):
    """z = x·(θ, φ): on inputs √(Dλ) along the axes, the half-MSE to 0 is ½ Σ λ θ²."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.theta = nn.Parameter(torch.randn(2, dtype=torch.float64))
        self.phi = nn.Parameter(torch.randn(2, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        """(D, 4) to (D, 1)."""
        return (x @ torch.cat([self.theta, self.phi]))[:, None]


def _bowl() -> tuple[Tensor, Tensor]:
    values = torch.tensor(EIGENVALUES, dtype=torch.float64)
    return torch.diag((len(values) * values).sqrt()), torch.zeros(4, 1, dtype=torch.float64)


def _scanned(optimizer: Any, **more: Any) -> Scan:
    return scan(Bowl(), "half_mse", _bowl(), optimizer, horizon=20, seeds=1, **more)


def _adam_top(eps: float = 1e-8, squares: Tensor | None = None) -> float:
    """λ_max(P⁻¹H) of the bowl; P = |g| + ε with the first gradient g, or √v̂ + ε."""
    model = Bowl()
    h = np.array(EIGENVALUES)
    g = np.abs(h * np.concatenate([model.theta.detach().numpy(), model.phi.detach().numpy()]))
    if squares is not None:
        g = np.sqrt(squares.numpy())
    return float((h / (g + eps)).max())


def _grouped(params: Sequence[nn.Parameter], *settings: dict[str, Any]) -> list[dict[str, Any]]:
    """A group for each parameter, with its own settings."""
    return [{"params": [p], **own} for p, own in zip(params, settings, strict=True)]


def _two_groups(params: Sequence[nn.Parameter], rate: float) -> Optimizer:
    return SGD(_grouped(params, {}, {"lr": rate / 10}), lr=rate)


def _equal_groups(params: Sequence[nn.Parameter], rate: float) -> Optimizer:
    return SGD(_grouped(params, {}, {}), lr=rate, momentum=0.5)


def _only_phi(params: Sequence[nn.Parameter], rate: float) -> Optimizer:
    return SGD(list(params)[1:], lr=rate)


TOP = EIGENVALUES[0]
ADAM = 2 * 1.9 / 0.1
CLOSED: dict[str, tuple[Any, float]] = {
    "sgd": ("sgd", 2 / TOP),
    "momentum": ("momentum", 2 * 1.9 / TOP),
    "nesterov": ("nesterov", 2 * 1.9 / 2.8 / TOP),
    "adam": ("adam", ADAM / _adam_top()),
    # Decoupled decay w: η = 2(1+β₁)/((1−β₁)λ + (1+β₁)w).
    "adamw": ("adamw", 3.8 / (0.1 * _adam_top() + 1.9 * 0.01)),
    "class SGD": (SGD, 2 / TOP),
    "partial momentum": (partial(SGD, momentum=0.5), 2 * 1.5 / TOP),
    "partial nesterov": (partial(SGD, momentum=0.5, nesterov=True), 2 * 1.5 / 2 / TOP),
    "function momentum": (lambda p, rate: SGD(p, rate, momentum=0.8), 2 * 1.8 / TOP),
    "dampening": (partial(SGD, momentum=0.5, dampening=0.5), 2 * 1.5 / (0.5 * TOP)),
    "weight decay": (partial(SGD, weight_decay=3.0), 2 / (TOP + 3)),
    "class Adam": (Adam, ADAM / _adam_top()),
    "partial AdamW": (
        partial(AdamW, betas=(0.5, 0.99), weight_decay=0.4),
        3 / (0.5 * _adam_top() + 1.5 * 0.4),
    ),
    # Its first divisor is √(1 − α) |g|, a tenth of the gradient.
    "class RMSprop": (RMSprop, 2 / (10 * _adam_top(1e-7))),
    # μ = β₁/2 to begin with, but for a few thousandths.
    "NAdam": (partial(NAdam, momentum_decay=0.0), 3.8 / ((1.9 - 0.81) * _adam_top())),
    "large epsilon": (partial(Adam, eps=1e20), ADAM * 1e20 / TOP),
    "equal groups": (_equal_groups, 2 * 1.5 / TOP),
    "only some parameters": (_only_phi, 2 / EIGENVALUES[2]),
}


@pytest.mark.parametrize("name", CLOSED)
def test_critical_rate_is_the_closed_form(name: str) -> None:
    optimizer, truth = CLOSED[name]
    # The bowl is four samples: the matrix is formed whole, and only rounding is left.
    assert _scanned(optimizer).lr_crit == pytest.approx(truth, rel=1e-9)


@pytest.mark.parametrize(
    ("make", "product"),
    [(partial(SGD, momentum=0.8), 2 * 1.8), (partial(SGD, momentum=0.8, nesterov=True),
     2 * 1.8 / 2.6), (partial(SGD, momentum=0.5, dampening=0.5), 6.0),
     (partial(SGD, weight_decay=3.0), 2 / (TOP + 3) * TOP), (partial(Adam, eps=1e20), 38e20)],
)  # fmt: skip
@pytest.mark.parametrize("side", [0.98, 1.02])
def test_optimizers_stay_below_the_closed_form_and_leave_above(
    make: Any, product: float, side: float
) -> None:
    # The truth the table above is held against: 4000 steps of torch's own optimizer.
    model, (x, y) = Bowl(), _bowl()
    steps = make(model.parameters(), lr=side * product / TOP)
    first = half_mse(model(x), y).item()
    for _ in range(4000):
        steps.zero_grad()
        torch.autograd.backward(half_mse(model(x), y))
        steps.step()
    last = half_mse(model(x), y).item()
    assert last < 1e-3 * first if side < 1 else not last < 1e3 * first


@pytest.mark.parametrize(
    ("optimizer", "reason"),
    [
        (Adadelta, "there is no closed form for Adadelta"),
        ("RAdam", "the first steps of RAdam are not divided by anything"),
        (_two_groups, "the parameter groups have different rates"),
        (partial(SGD, momentum=0.9, dampening=1.0), "dampening leaves nothing"),
    ],
)
def test_without_a_closed_form_there_is_the_eigenvalue_and_the_reason(
    optimizer: Any, reason: str
) -> None:
    result = _scanned(optimizer)
    assert math.isnan(result.lr_crit)
    assert result.top_eigenvalue == pytest.approx(TOP, rel=1e-9)
    assert reason in result.critical.convention
    assert any(reason in note for note in result.notes)


@pytest.mark.parametrize(
    ("optimizer", "reason"),
    [
        (partial(SGD, maximize=True), "the optimizer maximises"),
        (lambda p, r: Adam(_grouped(p, {"betas": (0.8, 0.9)}, {}), lr=r),
         "the parameter groups differ in betas"),
        (lambda p, r: SGD(_grouped(p, {"momentum": 0.3}, {}), lr=r),
         "the parameter groups differ in momentum"),
        (lambda _, r: SGD([torch.zeros(1, requires_grad=True)], lr=r),
         "the optimizer holds none of the model's parameters"),
    ],
)  # fmt: skip
def test_settings_that_the_closed_forms_do_not_cover(optimizer: Any, reason: str) -> None:
    edge = edge_of(optimizer, list(Bowl().parameters()))
    assert edge.missing == reason
    assert edge.seen is None


def test_subclasses_may_step_as_they_like() -> None:
    class Backwards(SGD):
        """Not gradient descent."""

    assert edge_of(Backwards, list(Bowl().parameters())).missing.endswith("Backwards")


@pytest.mark.parametrize(
    ("optimizer", "phrases"),
    [
        ("sgd", ["Gauss–Newton of half_mse as given, a mean over all samples; 2/λ₀"]),
        ("momentum", ["; 2(1+β)/λ₀, β = 0.9; from rest the loss may rise from 1.13/λ₀ on"]),
        ("adamw", ["in Adam's coordinates after its first step", "β₁ = 0.9",
                   "weight decay w = 0.01"]),
        ("adam", ["((1−β₁)λ₀), β₁ = 0.9; where the loss first rises is not known"]),
        (partial(SGD, weight_decay=3.0), ["2/(λ₀+w), weight decay w = 3"]),
        (partial(Adam, weight_decay=0.1), ["weight decay in λ₀"]),
        (lambda p, r: AdamW(_grouped(p, {"weight_decay": 0.0}, {}), lr=r),
         ["weight decay of 0 and 0.01 left out"]),
        (partial(SGD, momentum=0.5, dampening=0.25), ["dampening d = 0.25"]),
        (_only_phi, ["in the parameters that the optimizer holds"]),
    ],
)  # fmt: skip
def test_convention_names_what_is_in_the_formula_and_what_is_not(
    optimizer: Any, phrases: list[str]
) -> None:
    convention = _scanned(optimizer).critical.convention
    assert all(phrase in convention for phrase in phrases), convention
    assert ("left out" in convention) == any("left out" in phrase for phrase in phrases)


def test_an_adam_with_state_is_seen_in_the_coordinates_of_its_state() -> None:
    model, (x, y) = Bowl(), _bowl()
    optimizer = Adam(model.parameters(), lr=1e-12)  # v moves, the weights hardly
    for scale in (1.0, 5.0, 0.2):
        optimizer.zero_grad()
        torch.autograd.backward(scale * half_mse(model(x), y))
        optimizer.step()
    state = [optimizer.state[p] for p in model.parameters()]
    squares = torch.cat([s["exp_avg_sq"] for s in state]) / (1 - 0.999**3)
    result = scan(model, "half_mse", (x, y), optimizer, horizon=20, seeds=1)
    assert result.lr_crit == pytest.approx(ADAM / _adam_top(squares=squares), rel=1e-9)
    assert result.lr_crit != pytest.approx(ADAM / _adam_top(), rel=0.5)
    assert "in Adam's coordinates of its state" in result.critical.convention
    assert float(state[0]["step"]) == 3.0


def _net(sizes: Sequence[int], dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(8)
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).to(dtype)


def _data(n: int, d: int, k: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(3)
    x = torch.randn(n, d, generator=g, dtype=torch.float64)
    return x, torch.arange(n) % k if k > 1 else torch.sin(x[:, :1])


def _measured(
    model: nn.Module, loss: Any, data: Any, *, batch_size: int | None = None, at_most: int = 50
) -> tuple[float, Objective]:
    resolved = resolve(loss)
    assert resolved is not None
    stream = make_stream(
        data, device=DEVICE, batch_size=batch_size, accumulate=1, horizon=200,
        closure=hasattr(resolved, "fn"),
    )  # fmt: skip
    objective = Objective(
        model, resolved, list(model.parameters()), Autocast.ambient(DEVICE), stream.samples_per_step
    )
    found = critical_rate(objective, stream, "sgd", loss, at_most=at_most)
    assert found.lr == pytest.approx(2 / found.top_eigenvalue, rel=1e-14)
    return found.top_eigenvalue, objective


SMALL = {
    "one output": ((5, 24, 1), 32),
    "128 samples": ((10, 64, 1), 128),
    "two hidden layers": ((10, 64, 64, 1), 200),
    "three classes": ((4, 16, 3), 40),
    "ten classes": ((8, 32, 10), 16),
    "wide": ((50, 400, 1), 100),
}


@pytest.mark.parametrize("name", SMALL)
def test_small_nets_on_all_samples_are_exact_and_within_the_allowance(name: str) -> None:
    sizes, n = SMALL[name]
    model, data = _net(sizes), _data(n, sizes[0], sizes[-1])
    loss = "cross_entropy" if sizes[-1] > 1 else "mse"
    found, objective = _measured(model, loss, data)
    # Dense, all of it: products with the identity, and LAPACK.
    jacobian = _jacobian(model, data[0])
    z = model(data[0]).detach()
    kind: Any = nn.functional.cross_entropy if loss == "cross_entropy" else nn.functional.mse_loss
    slope = torch.func.grad(lambda v: kind(v.view(z.shape), data[1]))
    whole = torch.func.jacrev(slope)(z.reshape(-1))
    assert found == pytest.approx(_top(jacobian, whole), rel=1e-10)
    assert objective.cost.products == 0
    assert 0 < objective.cost.gradients <= 50
    assert objective.notes == []


def _jacobian(model: nn.Module, x: Tensor) -> Tensor:
    params = {n: p.detach() for n, p in model.named_parameters()}
    rows = torch.func.jacrev(lambda p: torch.func.functional_call(model, p, (x,)).reshape(-1))
    parts = rows(params).values()
    return torch.cat([p.flatten(1) for p in parts], dim=1)


def _top(jacobian: Tensor, weights: Tensor) -> float:
    """λ_max(Jᵀ M J) for M ⪰ 0, on the side of the outputs."""
    values, vectors = torch.linalg.eigh(weights)
    half = (vectors * values.clamp_min(0).sqrt()).T @ jacobian
    return float(torch.linalg.eigvalsh(half @ half.T)[-1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_where_the_exact_form_is_too_dear_lanczos_is_as_good(dtype: torch.dtype) -> None:
    # 120 samples of 10 classes: a matrix of 1080 rows against 5 thousand parameters.
    x, y = _data(120, 16, 10)
    model = _net((16, 64, 64, 10), dtype)
    found, objective = _measured(model, "cross_entropy", (x.to(dtype), y))
    assert 0 < objective.cost.products <= 25
    assert objective.cost.gradients == 2 * objective.cost.products
    truth = top_eigen(model.double(), "cross_entropy", (x, y), method="dense").value
    assert found == pytest.approx(truth, rel=1e-10 if dtype == torch.float64 else 1e-6)
    assert objective.notes == []


def test_a_smaller_allowance_takes_lanczos_and_says_how_far_it_came() -> None:
    x, y = _data(120, 16, 10)
    found, objective = _measured(_net((16, 64, 64, 10)), "cross_entropy", (x, y), at_most=10)
    assert objective.cost.products == 8
    truth = top_eigen(_net((16, 64, 64, 10)), "cross_entropy", (x, y), method="dense").value
    assert found < truth
    assert objective.notes == [f"λ₀ had not converged after 8 products; it is at least {found:.4g}"]


class Mixed(nn.Module):
    """Samples see each other, through the mean of what the first layer makes of them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(9)
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 1)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        """(D, 4) to (D, 1)."""
        h = torch.tanh(self.first(x))
        return self.last(h - 2 * h.mean(0))  # type: ignore[no-any-return]


def test_layers_are_not_trusted_where_samples_mix() -> None:
    model, (x, y) = Mixed(), _data(40, 4, 1)
    found, objective = _measured(model, "half_mse", (x, y))
    jacobian = _jacobian(model, x)
    weights = torch.eye(40, dtype=torch.float64) / 40
    assert found == pytest.approx(_top(jacobian, weights), rel=1e-10)
    assert 0 < objective.cost.products <= 25


def test_losses_of_ones_own_go_without_the_short_cut() -> None:
    # Not known to be convex, and coupled over samples: neither the rule nor the matrix.
    def coupled(z: Tensor, y: Tensor) -> Tensor:
        return 0.5 * (z - y).square().mean() + 0.1 * z.mean().square()

    model, (x, y) = _net((5, 12, 1)), _data(30, 5, 1)
    found, _ = _measured(model, coupled, (x, y))
    jacobian = _jacobian(model, x)
    weights = torch.eye(30, dtype=torch.float64) / 30 + 0.2 / 900
    assert found == pytest.approx(_top(jacobian, weights), rel=1e-9)


def test_minibatches_are_measured_on_two_batches_which_the_convention_says() -> None:
    model, data = _net((5, 24, 1)), _data(200, 5, 1)
    result = scan(model, "mse", data, batch_size=16, horizon=128, seeds=1)
    assert "a mean over 32 of 200 samples" in result.critical.convention
    whole = top_eigen(model, "mse", data, method="dense").value
    assert result.top_eigenvalue == pytest.approx(whole, rel=0.5)
    assert result.top_eigenvalue != pytest.approx(whole, rel=1e-6)


def test_loaders_that_keep_their_batches_are_measured_on_rows_spread_over_them() -> None:
    model, data = _net((5, 24, 1)), _data(64, 5, 1)
    loader = DataLoader(TensorDataset(*data), batch_size=16)
    result = scan(model, "mse", loader, horizon=128, seeds=1)
    spread = (data[0][1::2], data[1][1::2])  # as many as two batches hold, evenly over all four
    truth = top_eigen(model, "mse", spread, method="dense").value
    assert result.top_eigenvalue == pytest.approx(truth, rel=1e-4)


def test_closures_have_a_hessian() -> None:
    def closure(model: nn.Module, batch: Any) -> Tensor:
        return half_mse(model(batch[0]), batch[1])

    found, _ = _measured(Bowl(), tb.curvature.ModelLoss(closure), _bowl())
    assert found == pytest.approx(TOP, rel=1e-9)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_final_eigenvalues_are_measured_as_the_first_one(optimizer: str) -> None:
    model, data = _net((4, 12, 1)), _data(20, 4, 1)
    result = scan(model, "mse", data, optimizer, horizon=30, seeds=1, curvature="final")
    whole = result.table[result.table["status"] == "max_steps"]
    row = whole[whole["phase"] == "lazy"].iloc[-1]
    kind = {"sgd": SGD, "adam": Adam}[optimizer]
    steps = kind(model.parameters(), lr=float(row["rate"]))
    for _ in range(30):
        steps.zero_grad()
        torch.autograd.backward(nn.functional.mse_loss(model(data[0]), data[1]))
        steps.step()
    truth = top_eigen(model, "mse", data, optimizer=steps, method="dense").value
    assert row["lr_ratio_final"] == pytest.approx(row["rate"] * truth, rel=1e-6)
    assert result.cost["gradients"] <= 120


def test_an_end_without_curvature_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def failing(*args: Any, **settings: Any) -> TopEigen:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise InputError("model: its derivatives are NaN or infinite")
        return top_eigen(*args, **settings)

    monkeypatch.setattr("trebuchet.scans.critical.top_eigen", failing)
    model, data = _net((4, 12, 1)), _data(20, 4, 1)
    result = scan(
        model, "mse", data, horizon=30, seeds=1, curvature="final", rates=[0.01, 0.05],
        edge_rtol=0.05,
    )  # fmt: skip
    whole = result.table[result.table["status"] == "max_steps"]
    assert whole["lr_ratio_final"].isna().sum() == 1
    assert len(whole) > 1
    assert sum("no λ at the end" in note for note in result.notes) == 1


@pytest.mark.parametrize("outputs", [1, 10])
def test_two_hundred_steps_stay_within_eight_hundred_gradients(outputs: int) -> None:
    model, data = _net((8, 32, outputs)), _data(80, 8, outputs)
    loss = "cross_entropy" if outputs > 1 else "mse"
    result = scan(model, loss, data, horizon=200, seeds=1)
    assert result.cost["gradients"] <= 800
    assert result.lr_crit == pytest.approx(
        2 / top_eigen(model, loss, data, method="dense").value, rel=1e-9
    )


def test_the_root_offers_the_early_constants_and_the_forward_rate() -> None:
    from trebuchet.phases.early import early_constants
    from trebuchet.phases.forward_rate import forward_critical_rate

    assert tb.early_constants is early_constants
    assert tb.forward_critical_rate is forward_critical_rate
    assert {"early_constants", "forward_critical_rate"} <= set(tb.__all__)
