"""Input that cannot be scanned: one clear sentence, and nothing changed."""

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from trebuchet._checks import progress
from trebuchet.errors import InputError
from trebuchet.phases.forward_rate import forward_critical_rate
from trebuchet.problem.optimizers import make_factory
from trebuchet.problem.stream import make_stream
from trebuchet.scans.door import scan

CPU = torch.device("cpu")


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()


def _data(n: int = 12) -> tuple[Tensor, Tensor]:
    x = torch.randn(n, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x, x[:, :1]


class Broken(nn.Module):
    """A model that outputs NaN at once."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1).double()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x) * torch.nan
        return out


class Pair(nn.Module):
    """A model that outputs a pair."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1).double()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z: Tensor = self.layer(x)
        return z, z


class Scaled(nn.Module):
    """A loss with a parameter of its own, a fixed one, and one of the model's if it is given."""

    def __init__(self, trained: bool, shared: nn.Parameter | None = None) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64), requires_grad=trained)
        if shared is not None:
            self.shared = shared

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        value: Tensor = self.scale * (z - y).square().mean()
        return value


def _normalised(layer: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), layer, nn.Tanh(), nn.Linear(4, 1)).double()


def _closure(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    value: Tensor = model(batch["inputs"]).square().mean()
    return value


def _ignoring(params: Any, rate: float) -> torch.optim.Optimizer:
    del rate
    return torch.optim.SGD(params, lr=0.1)


CASES: dict[str, tuple[dict[str, Any], str]] = {
    "NaN at once": ({"model": Broken()}, "model: its loss is nan at the initialisation"),
    "constant loss": (
        {"loss": lambda z, y: 0 * z.sum() + 1},
        "loss: its gradient is exactly zero at the initialisation",
    ),
    "no gradient": (
        {"loss": lambda z, y: (z.detach() - y).square().mean()},
        "loss: has no gradient in any trainable parameter",
    ),
    "batch larger than the data": (
        {"batch_size": 13},
        "batch_size: expected at most the number of samples, 12, got 13",
    ),
    "no batch": ({"batch_size": 0}, "batch_size: expected a positive number"),
    "factory ignores the rate": (
        {"optimizer": _ignoring},
        "optimizer: the factory ignores the rate",
    ),
    "factory makes none": (
        {"optimizer": lambda params, rate: rate},
        "optimizer: the factory must return a torch.optim.Optimizer, got a float",
    ),
    "unknown optimizer": ({"optimizer": "sdg"}, "optimizer: expected 'sgd', 'momentum'"),
    "no optimizer": ({"optimizer": 3}, "optimizer: expected a name, an optimizer, or a factory"),
    "vector loss": (
        {"loss": lambda z, y: (z - y).square()[:, 0]},
        r"loss: expected a tensor with one number, got shape \(12,\)",
    ),
    "unknown loss": ({"loss": "mee"}, "loss: expected one of"),
    "no loss": ({"loss": None}, "loss: expected a loss, got None"),
    "shapes do not fit": (
        {"data": (torch.randn(12, 5).double(), torch.zeros(12, 1).double())},
        "model: cannot be evaluated with this loss on this data",
    ),
    "class out of range": (
        {"loss": "cross_entropy", "data": (_data()[0], torch.full((12,), 2))},
        r"model: cannot be evaluated .* \(IndexError: Target 2 is out of bounds.\); check that",
    ),
    "pair of outputs": (
        {"model": Pair()},
        r"model: cannot be evaluated .* \(AttributeError: .*; check that loss\(model\(inputs\), ",
    ),
    "closure without its key": (
        {"loss": _closure, "data": {"x": _data()[0]}},
        r"model: cannot be evaluated .* \(KeyError: 'inputs'\); check that loss\(model, batch\)",
    ),
    "batch of one for BatchNorm": (
        {"model": _normalised(nn.BatchNorm1d(4)), "batch_size": 1},
        "batch_size: expected enough samples for the model's batch statistics, got 1 at a time",
    ),
    "batch of one without running statistics": (
        {"model": _normalised(nn.BatchNorm1d(4, track_running_stats=False)), "batch_size": 1},
        "batch_size: expected enough samples for the model's batch statistics, got 1 at a time",
    ),
    "one sample for BatchNorm": (
        {"model": _normalised(nn.BatchNorm1d(4)), "data": _data(1)},
        "batch_size: expected enough samples for the model's batch statistics, got 1 at a time",
    ),
    "micro-batch of one for BatchNorm": (
        {"model": _normalised(nn.BatchNorm1d(4)), "micro_batch": 1},
        "micro_batch: expected enough samples for the model's batch statistics, got 1 at a time",
    ),
    "micro-batches that leave one": (
        {"model": _normalised(nn.BatchNorm1d(4)), "micro_batch": 11},
        "micro_batch: .* got 11 at a time of 12 .*; give a number that leaves no single sample",
    ),
    "last batch of one": (
        {
            "model": _normalised(nn.BatchNorm1d(4)),
            "data": DataLoader(TensorDataset(*_data(13)), batch_size=4),
        },
        "batch_size: expected enough samples .* got 1 at a time .* a loader drop_last=True",
    ),
    "loss to be trained": (
        {"loss": Scaled(trained=True)},
        "loss: expected no trainable parameters of its own, got scale",
    ),
    "sparse gradients": (
        {
            "model": nn.Sequential(nn.Embedding(5, 1, sparse=True), nn.Flatten()).double(),
            "data": (torch.arange(4)[:, None], torch.zeros(4, 1).double()),
        },
        "model: has sparse gradients, of its Embedding '0'",
    ),
    "short horizon": ({"horizon": 5}, "horizon: expected at least 10 steps, got 5"),
    "small budget": ({"budget": 30}, "budget: expected at least two horizons, 40"),
    "no seeds": ({"seeds": 0}, "seeds: expected a positive number"),
    "same seeds": ({"seeds": [1, 1]}, "seeds: expected a positive number, or different numbers"),
    "negative rate": ({"rates": [0.1, -0.1]}, "rates: expected positive finite numbers"),
    "no rates": ({"rates": []}, "rates: expected positive finite numbers"),
    "edge_rtol": ({"edge_rtol": 2.0}, "edge_rtol: expected a number from 1e-4 to 1"),
    "curvature": ({"curvature": "all"}, "curvature: expected 'initial', 'final' or 'none'"),
    "delta": ({"delta": -1.0}, "delta: expected a finite number >= 0"),
    "blowup": ({"blowup": 0.5}, "blowup: expected a factor above 1"),
    "accumulate": ({"accumulate": 0}, "accumulate: expected a positive number"),
    **{
        f"{name}={value!r}": ({name: value}, f"{name}: expected a whole number, .*; give an int")
        for name in ("horizon", "batch_size", "budget", "accumulate", "micro_batch")
        for value in (50.0, "50", True, math.nan, np.arange(60))
    },
    **{
        f"seeds={value!r}": ({"seeds": value}, "seeds: expected a positive number, or different")
        for value in (None, 2.0, "ab", True, [0, 1.5], [True], np.array([[1]]), -1)
    },
    **{
        f"micro_batch={n}": ({"micro_batch": n}, f"micro_batch: expected a positive .* got {n}")
        for n in (0, -1)
    },
    "budget=inf": ({"budget": math.inf}, "budget: expected a whole number"),
    "one rate": ({"rates": 0.1}, "rates: expected positive finite numbers, got 0.1; give a list"),
    "rates in words": ({"rates": ["a"]}, "rates: expected positive finite numbers"),
    "infinite rate": ({"rates": [0.1, math.inf]}, "rates: expected positive finite numbers"),
    "empty generator": ({"rates": iter([])}, "rates: expected positive finite numbers"),
    "edge_rtol in words": ({"edge_rtol": "a"}, "edge_rtol: expected a number from 1e-4 to 1"),
    "blowup in words": ({"blowup": "a"}, "blowup: expected a factor above 1, got 'a'"),
    "no blowup": ({"blowup": None}, "blowup: expected a factor above 1, got None"),
    "delta in words": ({"delta": "a"}, "delta: expected a finite number >= 0, got 'a'"),
    "curvature array": ({"curvature": np.zeros(2)}, "curvature: expected 'initial'"),
    "stacked": ({"stacked": 1}, "stacked: expected True, False or None, got 1"),
    "autocast": ({"autocast": True}, "autocast: expected a floating dtype"),
    "integer autocast": ({"autocast": torch.int8}, "autocast: expected a floating .* torch.int8"),
    "no schedule": ({"schedule": 0.5}, "schedule: expected a function of the step t"),
    "schedule of no number": (
        {"schedule": lambda t: None},
        "schedule: expected finite multipliers >= 0 of the rate, got None at t = 0",
    ),
    "negative schedule": (
        {"schedule": lambda t: 1 - t / 10},
        "schedule: expected finite multipliers >= 0 .* at t = 11",
    ),
    "infinite schedule": (
        {"schedule": lambda t: math.inf},
        "schedule: expected finite multipliers >= 0 of the rate, got inf",
    ),
    "zero schedule": (
        {"schedule": lambda t: 0},
        "schedule: expected a multiplier above 0 at some step, got 0 at all 20",
    ),
    "schedule that ends early": (
        {"schedule": lambda t: [1.0, 0.5][t]},
        "schedule: .* got IndexError: list index out of range at t = 2",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_one_clear_sentence_and_nothing_changed(case: str) -> None:
    changes, message = CASES[case]
    settings: dict[str, Any] = {"loss": "mse", "horizon": 20} | changes
    model = settings.pop("model", None) or _model()
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    with pytest.raises(InputError, match=message) as caught:
        scan(
            model, settings.pop("loss"), settings.pop("data", _data()),
            settings.pop("optimizer", "sgd"), **settings,
        )  # fmt: skip
    assert "\n" not in str(caught.value)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(random, torch.get_rng_state())


def test_numbers_of_other_kinds_are_the_same_numbers() -> None:
    settings: dict[str, Any] = {"curvature": "none", "stacked": False}
    plain = scan(
        _model(), "mse", _data(), horizon=20, batch_size=4, seeds=[3, 1], budget=100,
        rates=[0.1, 0.2], edge_rtol=0.5, delta=0.5, blowup=100.0,
        schedule=lambda t: 1.0 if t < 10 else 0.0, **settings,
    )  # fmt: skip
    rates = (r for r in (np.float32(0.1), torch.tensor(0.2, dtype=torch.float64)))
    settings |= {
        "horizon": np.int64(20), "batch_size": np.int32(4), "seeds": np.array([3, 1]),
        "budget": np.int64(100), "rates": rates, "edge_rtol": np.float64(0.5),
        "delta": np.float64(0.5), "blowup": 100, "stacked": np.False_,
        "schedule": lambda t: torch.tensor(t < 10, dtype=torch.int64),
    }  # fmt: skip
    other = scan(_model(), "mse", _data(), **settings)
    np.testing.assert_allclose(other.table["loss"], plain.table["loss"], rtol=1e-5)
    assert other.cost["gradients"] == plain.cost["gradients"]
    assert set(other.run_table["seed"]) == {1, 3}


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(4), nn.BatchNorm1d(4, affine=False)])
def test_two_samples_are_enough_for_batch_statistics(layer: nn.Module) -> None:
    result = scan(_normalised(layer), "mse", _data(), horizon=20, batch_size=2, curvature="none")
    assert result.cost["gradients"] <= 80


def test_a_loss_may_have_fixed_parameters_and_the_models_own() -> None:
    model = _model()
    loss = Scaled(trained=False, shared=model.get_parameter("0.weight"))
    result = scan(model, loss, _data(), horizon=20, curvature="none")
    plain = scan(model, "mse", _data(), horizon=20, curvature="none")
    assert result.suggestion.rate == plain.suggestion.rate


def test_a_fixed_embedding_may_be_sparse() -> None:
    torch.manual_seed(0)
    table = nn.Embedding(5, 3, sparse=True).requires_grad_(False)
    model = nn.Sequential(table, nn.Flatten(), nn.Linear(3, 1)).double()
    data = (torch.arange(5)[:, None], torch.arange(5).double()[:, None])
    assert scan(model, "mse", data, horizon=20).lr_max.low > 0


def test_the_users_exception_is_chained() -> None:
    data = (_data()[0], torch.full((12,), 2))
    with pytest.raises(InputError) as caught:
        scan(_model(), "cross_entropy", data, horizon=20)
    assert isinstance(caught.value.__cause__, IndexError)


@pytest.mark.parametrize("k", [1, 2])
def test_only_the_first_evaluation_is_about_the_arguments(k: int) -> None:
    calls = 0

    def loss(z: Tensor, y: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == k:
            raise KeyError(calls)
        return (z - y).square().mean()

    with pytest.raises(InputError if k == 1 else KeyError):
        scan(_model(), loss, _data(), horizon=20, batch_size=4)
    # Where evaluation mode fails, training mode is tried, and evaluation mode once more.
    assert calls == (3 if k == 1 else 2)


def test_progress_is_a_bar_or_a_function() -> None:
    assert progress("progress", None) is None
    assert progress("progress", True) is True
    assert progress("progress", print) is print
    with pytest.raises(InputError, match=r"progress: expected True, False, None or .* got 'x'"):
        scan(_model(), "mse", _data(), progress="x")  # type: ignore[arg-type]


def test_a_model_is_needed() -> None:
    not_a_model: Any = torch.zeros(3)
    with pytest.raises(InputError, match=r"model: expected a torch\.nn\.Module"):
        scan(not_a_model, "mse", _data())


def test_one_sample_is_scanned_and_said() -> None:
    result = scan(_model(), "half_mse", _data(1), horizon=30)
    assert any("only one sample" in note for note in result.notes)
    assert result.suggestion.expected_loss < result.settings["loss_first"]


def test_optimizer_without_a_rate_in_its_first_group() -> None:
    model = _model()
    with pytest.raises(InputError, match="its first group has lr 0"):
        scan(model, "mse", _data(), torch.optim.SGD(model.parameters(), lr=0.0), horizon=20)


class Sharpness(torch.optim.SGD):
    """An optimizer that says only in its step that it needs a closure, as SAM does."""

    def step(self, closure: Any = None) -> Any:
        assert closure is not None, "requires closure, but it was not provided"


class WithoutRate(torch.optim.Optimizer):
    """An optimizer whose groups have no lr."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"step_size": lr})


def _no_arguments() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.zeros(1)])


def _with_more(model: nn.Module, rate: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD([*model.parameters(), *nn.Linear(2, 2).parameters()], lr=rate)


def _two_groups(model: nn.Module, **settings: Any) -> torch.optim.Optimizer:
    first, *rest = model.parameters()
    groups: list[dict[str, Any]] = [{"params": [first]}, {"params": rest, **settings}]
    return torch.optim.SGD(groups, lr=0.1)


CLOSURE = r"optimizer: its step needs a closure \({}\), which a scan cannot give; choose"
MADE = r"optimizer: could not be made for this model \({}.*\); expected a name or a factory"
STEP = r"optimizer: Adam cannot make a step on this model \({}.*\); change its settings, or"
OPTIMIZERS: dict[str, tuple[Callable[[nn.Module], Any], str]] = {
    "LBFGS": (lambda m: torch.optim.LBFGS, CLOSURE.format("LBFGS")),
    "an LBFGS": (lambda m: torch.optim.LBFGS(m.parameters()), CLOSURE.format("LBFGS")),
    "sharpness-aware": (lambda m: Sharpness, CLOSURE.format("Sharpness")),
    "raises": (lambda m: lambda params, rate: 1 / 0, MADE.format("ZeroDivisionError: division")),
    "no arguments": (lambda m: _no_arguments, MADE.format("TypeError: _no_arguments")),
    "Muon on biases": (lambda m: torch.optim.Muon, MADE.format("ValueError: Muon only supports")),
    "differentiable": (
        lambda m: partial(torch.optim.Adam, differentiable=True),
        STEP.format("RuntimeError: a leaf Variable that requires grad"),
    ),
    "a differentiable one": (
        lambda m: torch.optim.Adam(m.parameters(), differentiable=True),
        STEP.format("RuntimeError: a leaf Variable that requires grad"),
    ),
    "capturable on a CPU": (
        lambda m: partial(torch.optim.Adam, capturable=True),
        STEP.format("AssertionError: If capturable=True"),
    ),
    "without lr": (lambda m: WithoutRate, "optimizer: the factory ignores the rate"),
    "maximises": (
        lambda m: partial(torch.optim.SGD, maximize=True),
        "optimizer: expected .* got maximize=True; scan minus the loss with maximize=False",
    ),
    "one group maximises": (
        lambda m: _two_groups(m, maximize=True),
        "optimizer: expected .* got maximize=True; scan minus the loss with maximize=False",
    ),
    "another model's": (
        lambda m: torch.optim.SGD(copy.deepcopy(m).parameters()),
        "optimizer: holds none of the model's parameters; make it for this model's",
    ),
    "always another model's": (
        lambda m: lambda params, rate: torch.optim.SGD(_model().parameters(), lr=rate),
        "optimizer: holds none of the model's parameters; make it for this model's",
    ),
    "more than the model's": (_with_more, "optimizer: holds 2 parameters that are not the model's"),
    "factory for more": (
        lambda m: lambda params, rate: _with_more(m, rate),
        "optimizer: holds 2 parameters that are not the model's",
    ),
    "rates that are no numbers": (
        lambda m: _two_groups(m, lr=math.inf),
        "optimizer: its first group has lr 0.1, so .* give the groups finite rates",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", OPTIMIZERS)
def test_optimizers_that_a_scan_cannot_use(case: str) -> None:
    make, message = OPTIMIZERS[case]
    model = _model()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InputError, match=message) as caught:
        scan(model, "mse", _data(), make(model), horizon=20)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_the_step_that_is_tried_leaves_nothing() -> None:
    model = _model()
    params = list(model.parameters())
    for p in params[:2]:
        p.grad = torch.ones_like(p)
    before = copy.deepcopy(model.state_dict())
    grads = [p.grad for p in params]
    # Decay moves weights without any gradient.
    own = torch.optim.AdamW(params, lr=0.1, weight_decay=0.5)
    own.step()
    state = copy.deepcopy(own.state_dict())
    model.load_state_dict(before)
    for optimizer in (own, partial(torch.optim.AdamW, weight_decay=0.5)):
        factory = make_factory(optimizer, params)
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
        assert all(p.grad is grad for p, grad in zip(params, grads, strict=True))
        assert factory(params, 0.5).param_groups[0]["lr"] == 0.5
    assert repr(own.state_dict()) == repr(state)


def test_what_was_checked_before_is_only_made() -> None:
    params = list(_model().parameters())
    factory = make_factory(partial(torch.optim.SGD, maximize=True), params, check=False)
    assert factory(params, 0.25).param_groups[0]["lr"] == 0.25


def test_an_optimizer_may_hold_frozen_parameters_and_miss_others() -> None:
    model = _model()
    model.get_submodule("0").requires_grad_(False)
    for optimizer in (
        torch.optim.SGD(model.parameters(), lr=0.1),
        torch.optim.SGD([model.get_parameter("2.bias")], lr=0.1),
    ):
        assert scan(model, "mse", _data(), optimizer, horizon=20).lr_max.low > 0


def test_loader_sets_its_own_batches() -> None:
    loader = DataLoader(TensorDataset(*_data()), batch_size=4)
    with pytest.raises(InputError, match="the loader makes its own batches"):
        make_stream(loader, device=CPU, batch_size=3, accumulate=1, horizon=10)


def test_forward_rate_needs_a_finite_loss_and_a_loss() -> None:
    with pytest.raises(InputError, match="is nan at the initialisation"):
        forward_critical_rate(Broken(), "mse", _data())
    nothing: Any = None
    with pytest.raises(InputError, match="loss: expected a loss"):
        forward_critical_rate(_model(), nothing, _data())
