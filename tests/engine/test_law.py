"""The weight-norm law as the engine checks it: on nets with biases, whatever the loss."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import trebuchet as tb
from tests.nets import NETS, Functional, plain
from trebuchet.engine import law
from trebuchet.errors import LawViolationError
from trebuchet.models.scaling import scaling

F64 = torch.float64


def _targets(z: Tensor, loss: str) -> Tensor:
    if loss == "cross_entropy":
        return torch.arange(len(z)) % z.shape[1]
    return torch.linspace(-1, 1, z.numel(), dtype=z.dtype).reshape(z.shape)


def _case(name: str, loss: str) -> tuple[Callable[[int], nn.Module], tuple[Tensor, Tensor]]:
    net, x = NETS[name](0)
    return lambda seed: NETS[name](seed)[0], (x, _targets(net(x), loss))


def _rows(net: nn.Module, count: int = 24, dtype: torch.dtype = F64) -> tuple[Tensor, Tensor]:
    x = torch.randn(count, 5, generator=torch.Generator().manual_seed(1)).to(dtype)
    return x, _targets(net(x).detach(), "half_mse")


@pytest.mark.parametrize("loss", ["half_mse", "cross_entropy"])
@pytest.mark.parametrize("name", NETS)
def test_every_recorded_step_obeys_the_law(name: str, loss: str) -> None:
    make, data = _case(name, loss)
    runs = tb.sweep(make, loss, data, lr=[0.01, 3.0], steps=10, observables=[])
    violation = runs.law_residual.values
    assert np.nanmax(violation) <= 1e-14
    assert (np.isfinite(violation).sum(-1) >= runs.steps.values).all()
    assert runs.attrs["weight_norm_law"] == "checked"
    assert runs.attrs["weight_norm_degree"] == scaling(make(0)).degree


@pytest.mark.parametrize("loss", ["half_mse", "cross_entropy"])
@pytest.mark.parametrize("name", ["4 layers", "vgg", "residual", "functional", "dictionary"])
def test_the_law_is_that_of_a_plain_loop(name: str, loss: str) -> None:
    """W and what moves it by autograd, in a loop written out."""
    net, x = NETS[name](3)
    y = _targets(net(x).detach(), loss)
    found, named = scaling(net), dict(net.named_parameters())
    criterion = {
        "half_mse": lambda z: (z - y).square().sum(1).mean() / 2,
        "cross_entropy": lambda z: nn.functional.cross_entropy(z, y),
    }[loss]

    def weighted() -> float:
        return sum(found.weights[n] * float(p.detach().square().sum()) for n, p in named.items())

    for _ in range(5):
        net.zero_grad()
        z = net(x)
        z.retain_grad()
        torch.autograd.backward(criterion(z))  # type: ignore[no-untyped-call]
        assert z.grad is not None
        euler = found.degree * float((z.detach() * z.grad).sum())
        gradients = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in named.items()}
        square = sum(found.weights[n] * float(g.square().sum()) for n, g in gradients.items())
        before, eta = weighted(), 0.2
        with torch.no_grad():
            for n, p in named.items():
                p.sub_(eta * gradients[n])
        size = before + 2 * eta * abs(euler) + eta**2 * square
        assert abs(weighted() - (before - 2 * eta * euler + eta**2 * square)) <= 1e-14 * size


SGD = torch.optim.SGD
OPTIMIZERS: dict[str, Any] = {
    "decay": tb.GradientDescent(weight_decay=0.05),
    "heavy ball": tb.GradientDescent(momentum=0.9, weight_decay=0.01),
    "Nesterov": lambda p, lr: SGD(p, lr=lr, momentum=0.8, nesterov=True, weight_decay=0.01),
    "damped": lambda p, lr: SGD(p, lr=lr, momentum=0.8, dampening=0.3),
    "groups": lambda p, lr: SGD(
        [{"params": list(p)[:1], "lr": 3 * lr, "weight_decay": 0.1}, {"params": list(p)[1:3]}],
        lr=lr, momentum=0.5,
    ),
}  # fmt: skip


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_momentum_and_weight_decay(optimizer: str) -> None:
    make, data = _case("3 layers", "half_mse")
    runs = tb.sweep(
        make, "half_mse", data, lr=[0.01, 3.0], steps=12, observables=[],
        optimizer=OPTIMIZERS[optimizer],
    )  # fmt: skip
    assert np.nanmax(runs.law_residual) <= 1e-14
    assert runs.attrs["weight_norm_law"] == "checked"


@pytest.mark.parametrize(
    "how",
    [
        {"batch_size": 8},
        {"batch_size": 8, "accumulate": 2},
        {"micro_batch": 5},
        {"clip_grad_norm": 0.1, "optimizer": tb.GradientDescent(momentum=0.5)},
        {"schedule": lambda step: 1 / (1 + step)},
        {"schedule": lambda opt: torch.optim.lr_scheduler.StepLR(opt, 3)},
    ],
    ids=["batches", "accumulated", "in pieces", "clipped", "schedule", "scheduler"],
)
def test_batches_clipping_and_schedules(how: dict[str, Any]) -> None:
    net = plain(3).to(F64)
    problem = tb.Problem(net, "half_mse", _rows(net), **how)
    runs = tb.sweep(problem, lr=[0.01, 0.3], steps=25)
    assert np.nanmax(runs.law_residual) <= 1e-14
    assert (np.isfinite(runs.law_residual).sum("step") == runs.step.size - 1).all()


@pytest.mark.parametrize("optimizer", [None, "decay", "heavy ball"])
@pytest.mark.parametrize("engine", ["batched", "sequential", "module"])
@pytest.mark.parametrize("observables", [None, []])
def test_every_kernel(engine: Any, optimizer: str | None, observables: Any) -> None:
    net = plain(3).to(F64)
    runs = tb.sweep(
        net, "half_mse", _rows(net), lr=[0.01, 3.0], steps=8, engine=engine,
        observables=observables, optimizer=OPTIMIZERS.get(optimizer or ""),
    )  # fmt: skip
    assert np.nanmax(runs.law_residual) <= 1e-14
    assert (np.isfinite(runs.law_residual).sum("step") >= runs.steps).all()


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("optimizer", ["sgd", "momentum"])
def test_scans_are_checked_too(stacked: bool, optimizer: str) -> None:
    torch.manual_seed(0)
    net = Functional().to(F64)
    for how in ({"batch_size": 8, "accumulate": 2}, {"clip_grad_norm": 0.2}):
        problem = tb.Problem(net, "half_mse", _rows(net), optimizer=optimizer, **how)
        runs = tb.scan(problem, horizon=10, stacked=stacked, check_law=True).runs
        assert np.nanmax(runs.law_residual) <= 1e-14
        assert runs.attrs["weight_norm_law"] == "checked"
    runs = tb.scan(net, "half_mse", _rows(net), horizon=10).runs  # its gradients are for the search
    assert runs.attrs["weight_norm_law"] == "not checked: a scan does, with check_law=True"


def test_the_quadratic_model_with_bias() -> None:
    """Its linear part counts twice: so do figures 6 and 7."""
    for samples in (1, 4, 16):
        x = torch.randn(samples, 3, generator=torch.Generator().manual_seed(samples), dtype=F64)
        y = torch.linspace(-1, 1, samples, dtype=F64)
        runs = tb.sweep(
            lambda seed: tb.QuadraticWithBias.draw(20, 4, 3, generator=seed), "half_mse", (x, y),
            lr_ratio=[0.5, 2.5, 5.0], seeds=3, steps=40,
        )  # fmt: skip
        assert np.nanmax(runs.law_residual) <= 1e-12
        assert (np.isfinite(runs.law_residual).sum("step") >= runs.steps).all()
    fig = tb.paper.figure(6, quick=True)
    assert float(fig.runs.law_residual.max()) < 1e-6  # float32
    assert int(np.isfinite(fig.runs.law_residual).sum()) >= int(fig.runs.steps.sum())


def test_below_the_ceiling_the_weighted_norm_does_not_rise() -> None:
    """y = 0 and ηλ(H_α) < 2k: over 100 steps of nets with biases, none rises."""
    steps = 0
    for name in ("2 layers", "3 layers", "leaky"):
        for seed in range(3):
            net, x = NETS[name](seed)
            found, params = scaling(net), dict(net.named_parameters())
            roots = {n: found.weights[n] ** 0.5 for n in params}
            for _ in range(12):
                z = net(x)
                rows = []
                for o in z.flatten():
                    each = torch.autograd.grad(o, list(params.values()), retain_graph=True)
                    scaled = zip(params, each, strict=True)
                    rows.append(torch.cat([roots[n] * g.flatten() for n, g in scaled]))
                jacobian = torch.stack(rows)
                h = jacobian @ jacobian.T / len(x)
                eta = 0.99 * 2 * found.degree / float(torch.linalg.eigvalsh(h)[-1])
                gradient = torch.autograd.grad((z**2).sum() / (2 * len(x)), list(params.values()))
                before = sum(
                    found.weights[n] * float(p.detach().square().sum()) for n, p in params.items()
                )
                with torch.no_grad():
                    for p, g in zip(params.values(), gradient, strict=True):
                        p.sub_(eta * g)
                after = sum(
                    found.weights[n] * float(p.detach().square().sum()) for n, p in params.items()
                )
                assert after <= before * (1 + 1e-15)  # the sums' own rounding, once z is tiny
                steps += 1
    assert steps > 100


# What is wrong is loud.


class _Hides(nn.Module):
    """Says that it is homogeneous, and is not by one part in a million."""

    degree = 2

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 8, bias=False), nn.Linear(8, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.b(torch.relu(self.a(x)))
        return z + 1e-6 * z**2


@pytest.mark.parametrize("engine", ["batched", "module"])
@pytest.mark.parametrize("loss", ["half_mse", "cross_entropy"])
def test_a_hidden_millionth_is_found(engine: Any, loss: str) -> None:
    torch.manual_seed(0)
    net = _Hides().to(F64)
    x, y = _rows(net)
    y = y if loss == "half_mse" else torch.arange(len(x)) % 3
    with pytest.raises(LawViolationError, match="not homogeneous of the degree"):
        tb.sweep(net, loss, (x, y), lr=[0.1], steps=3, engine=engine, observables=[])


@pytest.mark.parametrize("kind", ["plain", "momentum", "stack"])
def test_an_optimizer_that_lies_by_a_millionth_is_found(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = SGD.step

    def longer(self: SGD, closure: None = None) -> None:
        for group in self.param_groups:
            group["lr"] *= 1 + 1e-6
        step(self, closure)
        for group in self.param_groups:
            group["lr"] /= 1 + 1e-6

    monkeypatch.setattr(SGD, "step", longer)
    net = plain(3).to(F64)
    problem = tb.Problem(
        net, "half_mse", _rows(net), optimizer="momentum" if kind == "momentum" else "sgd"
    )
    train: Any = tb.scan if kind == "stack" else tb.sweep
    how = (
        {"horizon": 10, "stacked": True, "check_law": True}
        if kind == "stack"
        else {"lr": [0.3], "steps": 5}
    )
    with pytest.raises(LawViolationError, match="was not the gradient step"):
        train(problem, **how)


def test_a_gradient_that_is_wrong_by_a_millionth_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from trebuchet.problem.risk import Objective

    gradient = Objective.gradient

    def wrong(self: Objective, *args: Any, **kwargs: Any) -> float:
        value = gradient(self, *args, **kwargs)
        for p in self.params:
            assert p.grad is not None
            p.grad *= 1 + 1e-6
        return value

    monkeypatch.setattr(Objective, "gradient", wrong)
    net = plain(3).to(F64)
    with pytest.raises(LawViolationError):
        tb.sweep(net, "half_mse", _rows(net), lr=[0.3], steps=5)


# What is right is never called wrong.


def _penalised(net: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda z, y: (
        (z - y).square().mean()
        + 1e-3 * sum((p.square().sum() for p in net.parameters()), start=torch.zeros((), dtype=F64))
    )


def _hooked_gradient(net: nn.Sequential) -> nn.Sequential:
    weight: Any = net[0].weight
    weight.register_hook(lambda g: 2 * g)
    return net


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda net: {"optimizer": "adam"}, "Adam is not gradient descent"),
        (lambda net: {"clip_grad_value": 0.1}, "entry by entry"),
        (lambda net: {"loss": _penalised(net)}, "sees the weights in another way"),
        (lambda net: {"loss": lambda z, y: z.sub_(y).square().mean()}, "writes over the outputs"),
        (lambda net: {"loss": lambda m, b: (m(b[0]) - b[1]).square().mean()}, "a closure"),
        (lambda net: {"model": _hooked_gradient(net)}, "have hooks"),
        (lambda net: {"model": nn.Sequential(net, nn.Tanh())}, "it is not known to be homogeneous"),
        (lambda net: {"model": nn.Sequential(net, nn.Dropout(0.2))}, "it is random"),
    ],
)  # fmt: skip
def test_not_checked_with_the_reason(
    change: Callable[[nn.Sequential], dict[str, Any]], reason: str
) -> None:
    net = plain(3).to(F64)
    data = _rows(net)
    problem = tb.Problem(**{"model": net, "loss": "half_mse", "data": data, **change(net)})
    runs = tb.sweep(problem, lr=[0.01], steps=4, observables=[])
    assert reason in runs.attrs["weight_norm_law"]
    assert "law_residual" not in runs


def test_autocast_is_not_checked() -> None:
    net = plain(3)
    data = _rows(net, dtype=torch.float32)
    runs = tb.sweep(tb.Problem(net, "half_mse", data, autocast=torch.bfloat16), lr=[0.01], steps=4)
    assert "autocast" in runs.attrs["weight_norm_law"]
    torch.set_float32_matmul_precision("high")
    try:
        runs = tb.sweep(net, "half_mse", data, lr=[0.01], steps=4)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert "fewer digits" in runs.attrs["weight_norm_law"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_few_digits_are_no_violation(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(5, 500), nn.ReLU(), nn.Linear(500, 500), nn.ReLU(), nn.Linear(500, 3)
    ).to(dtype)
    x, y = _rows(net, dtype=dtype)
    runs = tb.sweep(net, "half_mse", (10 * x, y), lr=[1e-3, 0.1, 10.0], steps=15, observables=[])
    # A step is rounded to a unit or so of the weights, whatever their number.
    assert np.nanmax(runs.law_residual) < 8 * torch.finfo(dtype).eps


def test_frozen_and_unused_parameters_and_numbers_that_are_not_finite() -> None:
    net = plain(3).to(F64)
    net[0].requires_grad_(False)
    assert np.nanmax(tb.sweep(net, "half_mse", _rows(net), lr=[0.3], steps=9).law_residual) < 1e-14
    net[2].bias.requires_grad_(False)
    assert np.nanmax(tb.sweep(net, "half_mse", _rows(net), lr=[0.3], steps=9).law_residual) < 1e-14
    free = plain(3).to(F64)
    runs = tb.sweep(free, "half_mse", _rows(free), lr=[1e5, 1e80, 1e150], steps=20, observables=[])
    assert (runs.status != "max_steps").all()
    single = plain(3)
    data = _rows(single, dtype=torch.float32)
    tb.sweep(single, "half_mse", data, lr=[1e5, 1e20, 1e37], steps=20, observables=[])


def test_the_bound_grows_with_sums_and_layers() -> None:
    few = law.Law.of(2, [1.0], [torch.zeros(10, dtype=F64)], 10)
    many = law.Law.of(5, [1.0], [torch.zeros(1000, dtype=F64)], 10)
    assert many.allowed == pytest.approx(20 * few.allowed)
    assert few.allowed < 1e-13


# Models and habits of others.


class _Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 6), nn.Linear(6, 3)
        self.steps = 0


class _ChangesItsForm(_Two):
    def forward(self, x: Tensor) -> Tensor:
        self.steps += self.training
        h = self.a(x)
        z: Tensor = self.b(torch.tanh(h) if self.steps > 30 else torch.relu(h))
        return z


class _Polynomial(_Two):
    degree = 3  # of something else

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.b(torch.relu(self.a(x**3)))
        return z


class _ItsParameter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.z = nn.Parameter(torch.ones(24, 3))

    def forward(self, x: Tensor) -> Tensor:
        del x
        return self.z


def _padded() -> nn.Module:
    table = nn.Embedding(7, 4, padding_idx=0)
    nn.init.normal_(table.weight)
    return nn.Sequential(table, nn.Flatten(), nn.Linear(20, 3))


@pytest.mark.parametrize("engine", ["auto", "module"])
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_ChangesItsForm, "at every step: by its gradients"),
        (_Polynomial, "not checked: by its gradients"),
        (_ItsParameter, ""),
        (_padded, "padding row"),
    ],
)
def test_honest_models_are_not_accused(
    make: Callable[[], nn.Module], reason: str, engine: Any
) -> None:
    torch.manual_seed(0)
    net = make().to(F64)
    x = torch.randn(24, 5, dtype=F64)
    x = x if make is not _padded else torch.arange(120).reshape(24, 5) % 7
    y = torch.linspace(-1, 1, 72, dtype=F64).reshape(24, 3)
    runs = tb.sweep(net, "half_mse", (x, y), lr=[0.01], steps=60, engine=engine)
    assert reason in runs.attrs["weight_norm_law"]
    assert not any(p._backward_hooks for p in net.parameters())


def test_a_loss_that_begins_to_see_the_weights() -> None:
    net, calls = plain(3).to(F64), 0

    def loss(z: Tensor, y: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        value = (z - y).square().mean()
        weight: Any = net[0].weight
        return value + weight.square().sum() if calls > 40 else value

    runs = tb.sweep(tb.Problem(net, loss, _rows(net)), lr=[0.01], steps=60)
    assert "sees the weights in another way" in runs.attrs["weight_norm_law"]


def test_a_step_of_its_own_is_made_beside_clipping() -> None:
    """An optimizer whose factory gave it another step keeps it, with clipping before it."""

    def held(params: Any, lr: float) -> torch.optim.Optimizer:
        params = list(params)
        made: Any = SGD(params, lr=lr)
        step = made.step

        def bounded(closure: None = None) -> None:
            step(closure)
            with torch.no_grad():
                for p in params:
                    p.clamp_(-0.1, 0.1)

        made.step = bounded
        optimizer: torch.optim.Optimizer = made
        return optimizer

    net = plain(3).to(F64)
    problem = tb.Problem(net, "half_mse", _rows(net), held, clip_grad_norm=1.0)
    runs = tb.sweep(problem, lr=[0.01], steps=5, observables=["weight_norm"])
    assert "step of its own" in runs.attrs["weight_norm_law"]
    assert float(runs.weight_norm[0, 0, 1]) <= 0.01 * sum(p.numel() for p in net.parameters())
