"""The same names at every door; schedules as torch makes them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

import trebuchet as tb
from trebuchet.cli import main
from trebuchet.errors import InputError
from trebuchet.models import PureQuadratic

F64 = torch.float64


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).double()


def _data() -> tuple[Tensor, Tensor]:
    x = torch.randn(24, 4, generator=torch.Generator().manual_seed(1), dtype=F64)
    return x, x[:, :1] * x[:, 1:2]


CLASSES: dict[str, Any] = {
    "SGD": SGD, "Momentum": partial(SGD, momentum=0.9), "heavy-ball": partial(SGD, momentum=0.9),
    "NESTEROV": partial(SGD, momentum=0.9, nesterov=True), "AdamW": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop, "RMS_Prop": torch.optim.RMSprop, "nadam": torch.optim.NAdam,
    "adagrad": torch.optim.Adagrad, "Adamax": torch.optim.Adamax,
}  # fmt: skip


@pytest.mark.parametrize("name", CLASSES)
def test_a_name_is_its_class_at_every_door(name: str) -> None:
    net, data = _net(), _data()
    by_name, by_class = (
        tb.scan(net, "mse", data, o, horizon=20, seeds=1) for o in (name, CLASSES[name])
    )
    assert by_name.suggestion.rate == by_class.suggestion.rate
    assert by_name.lr_crit == by_class.lr_crit
    top = tb.top_eigen(net, "mse", data, optimizer=name, rtol=1e-8)
    assert top.lr_crit == tb.top_eigen(net, "mse", data, optimizer=CLASSES[name], rtol=1e-8).lr_crit
    assert top.lr_crit == pytest.approx(by_name.lr_crit, rel=1e-4)
    forward = [tb.forward_critical_rate(net, "mse", data, o).value for o in (name, CLASSES[name])]
    assert forward[0] == forward[1]


def test_names_that_are_none_are_told_with_their_neighbour() -> None:
    net, data = _net(), _data()
    problem = tb.Problem(net, "half_mse", data)
    for door in (
        lambda o: tb.scan(net, "mse", data, o),
        lambda o: tb.top_eigen(net, "mse", data, optimizer=o),
        lambda o: tb.forward_critical_rate(net, "mse", data, o),
        lambda o: tb.sweep(problem, lr=[0.1], optimizer=o),
    ):
        with pytest.raises(InputError, match=r"^optimizer: .* got 'adma'; did you mean 'adam'\?"):
            door("adma")
        with pytest.raises(InputError, match=r"^optimizer: .* got 'zzz'$"):
            door("zzz")
    with pytest.raises(InputError, match="did you mean 'nesterov'"):
        tb.stability.critical_lr("nestrov", 1.0)  # type: ignore[arg-type]


SWEPT: dict[str, tuple[Any, tb.GradientDescent]] = {
    "sgd": ("sgd", tb.GradientDescent()),
    "SGD": (SGD, tb.GradientDescent()),
    "momentum": ("Momentum", tb.GradientDescent(0.9)),
    "partial": (partial(SGD, momentum=0.5, weight_decay=0.1), tb.GradientDescent(0.5, 0.1)),
    "factory": (lambda p, lr: SGD(p, lr, weight_decay=0.1), tb.GradientDescent(0.0, 0.1)),
}


@pytest.mark.parametrize("case", SWEPT)
def test_sweeps_take_the_same_names(case: str) -> None:
    given, meant = SWEPT[case]
    problem = tb.Problem(
        lambda s: PureQuadratic.draw(20, generator=s), "half_mse", ([[1.0]], [0.5])
    )
    found, truth = (
        tb.sweep(problem, lr_ratio=[0.5, 2.5], steps=20, optimizer=o, chunk=2)
        for o in (given, meant)
    )
    assert found.attrs["optimizer"] == repr(meant)
    np.testing.assert_array_equal(found.loss.values, truth.loss.values)


TRAINED: dict[str, tuple[Any, Callable[..., Optimizer]]] = {
    "AdamW": ("AdamW", AdamW),
    "nesterov": ("nesterov", partial(SGD, momentum=0.9, nesterov=True)),
    "dampening": (partial(SGD, momentum=0.9, dampening=0.5),) * 2,
    "Adam": (Adam, Adam),
}


@pytest.mark.parametrize("case", TRAINED)
def test_sweeps_train_by_what_scans_train_by(case: str) -> None:
    """Each against a plain loop over torch's own."""
    given, made = TRAINED[case]
    x, y = _data()
    runs = tb.sweep(_net(), "mse", (x, y), lr=[0.01, 0.1], steps=12, optimizer=given)
    assert runs.step.values.tolist() == list(range(13))
    for lr in (0.01, 0.1):
        net = _net()
        optimizer = made(net.parameters(), lr=lr)
        for step in range(13):
            loss = F.mse_loss(net(x), y)
            assert runs.loss.sel(lr=lr, step=step).item() == pytest.approx(loss.item(), rel=1e-9)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()


@pytest.mark.parametrize("optimizer", [lambda: None, 3])
def test_sweeps_refuse_what_makes_no_optimizer(optimizer: Any) -> None:
    problem = tb.Problem(
        lambda s: PureQuadratic.draw(20, generator=s), "half_mse", ([[1.0]], [0.5])
    )
    with pytest.raises(InputError, match=r"^optimizer: "):
        tb.sweep(problem, lr_ratio=[0.5], steps=2, optimizer=optimizer)


@pytest.mark.parametrize("command", ["scan", "curvature"])
def test_the_command_line_names_them_all(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for name in ("sgd", "momentum (β = 0.9)", "adamw", "rmsprop", "nadam", "adagrad"):
        assert name in text
    # The curvature of one that has no edge implies no rate.
    assert ("rprop" in text) == (command == "scan")


SCHEDULERS: dict[str, Any] = {
    "steps": partial(StepLR, step_size=4, gamma=0.5),
    "class": LinearLR,
    "one cycle": lambda o: OneCycleLR(o, o.param_groups[0]["lr"], total_steps=20),
    "warm-up and cosine": lambda o: SequentialLR(
        o, [LinearLR(o, 0.1, total_iters=5), CosineAnnealingLR(o, 15)], [5]
    ),
}


@pytest.mark.parametrize("optimizer", ["momentum", "instance"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_are_those_of_a_plain_loop(name: str, optimizer: str) -> None:
    schedule, net, (x, y) = SCHEDULERS[name], _net(), _data()
    made: Any = "momentum"
    halves: list[dict[str, Any]] = [{"params": net[0].parameters()}]
    halves.append({"params": net[2].parameters(), "lr": 0.5})
    if optimizer == "instance":
        made = SGD(halves, lr=1.0, momentum=0.9)
        StepLR(made, 1)  # what belongs to the instance itself is not the runs'
    found = tb.scan(
        net, "mse", (x, y), made, horizon=20, seeds=1, curvature="none", schedule=schedule
    )
    assert found.settings["schedule"]
    steps = found.traces["step"].to_numpy()
    rate = float(found.traces["rate"].to_numpy()[steps.argmax()])
    seen = found.traces[found.traces["rate"] == rate].set_index("step")["loss"]
    groups: list[dict[str, Any]] = [
        {"params": net[0].parameters()},
        {"params": net[2].parameters()},
    ]
    if optimizer == "instance":
        groups[1]["lr"] = rate / 2
    own = SGD(groups, lr=rate, momentum=0.9)
    scheduler = schedule(own)
    for t in range(1, 21):
        net.zero_grad()
        torch.autograd.backward(nn.functional.mse_loss(net(x), y))
        own.step()
        if t < 20:
            scheduler.step()
        if t in seen.index:
            loss = float(nn.functional.mse_loss(net(x), y).detach())
            assert seen[t] == pytest.approx(loss, rel=1e-7)
    assert len(seen) > 10


def test_a_scheduler_and_a_function_of_the_step_are_the_same_scan() -> None:
    net, data = _net(), _data()

    def factor(t: int) -> float:
        return 1 / (1 + t / 5)

    one, other = (
        tb.scan(net, "mse", data, "adam", horizon=20, seeds=1, curvature="none", schedule=s)
        for s in (factor, lambda o: LambdaLR(o, factor))
    )
    assert one.suggestion.rate == pytest.approx(other.suggestion.rate, rel=1e-9)
    np.testing.assert_allclose(one.traces["loss"], other.traces["loss"], rtol=1e-9)


def _bound() -> LRScheduler:
    return StepLR(SGD([nn.Parameter(torch.zeros(1))], lr=0.1), 3)


class _Odd(LRScheduler):
    def get_lr(self) -> list[float]:  # type: ignore[override]
        return [float("nan")]


@pytest.mark.parametrize(
    ("schedule", "says"),
    [
        (_bound, r"got a StepLR that belongs to one optimizer; give what makes it, such as lambda"),
        (lambda: partial(ReduceLROnPlateau, patience=1), "waits for a validation loss"),
        (lambda: lambda o: ReduceLROnPlateau(o), "waits for a validation loss"),
        (lambda: lambda o: OneCycleLR(o, 0.1, total_steps=20), "not heed the optimizer's rate"),
        (lambda: lambda o: OneCycleLR(o, o.param_groups[0]["lr"], total_steps=5),
         r"got ValueError: Tried to step .* at step"),
        (lambda: partial(LambdaLR, lr_lambda=lambda t: 0.0), "got 0 at all 20"),
        (lambda: StepLR, r"got TypeError: .*step_size"),
        (lambda: _Odd, "expected finite rates >= 0, got nan at step 0"),
        (lambda: 3, "got 3; give a function"),
        (lambda: lambda t: "half", "got 'half' at t = 0"),
    ],
)  # fmt: skip
def test_schedules_that_are_none(schedule: Any, says: str) -> None:
    made: Any = Adam
    with pytest.raises(InputError, match=rf"^schedule: .*{says}"):
        tb.scan(_net(), "mse", _data(), made, horizon=20, curvature="none", schedule=schedule())


def test_a_cycle_needs_a_momentum_which_the_scan_says_in_a_sentence() -> None:
    def cycle(o: Optimizer) -> LRScheduler:
        return OneCycleLR(o, o.param_groups[0]["lr"], total_steps=20)

    with pytest.raises(InputError, match=r"^schedule: .*ValueError: optimizer must support"):
        tb.scan(_net(), "mse", _data(), "adagrad", horizon=20, schedule=cycle)
