"""Input that cannot be scanned: one clear sentence, and nothing changed."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from trebuchet.errors import InputError
from trebuchet.phases.forward_rate import forward_critical_rate
from trebuchet.phases.scan import scan
from trebuchet.phases.scanning.stream import make_stream

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
    assert set(other.runs["seed"]) == {1, 3}


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
