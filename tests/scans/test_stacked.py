"""Stacked runs are the runs that one after the other would have been."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from trebuchet.engine.kernels.vmap import Stack
from trebuchet.scans.door import Scan, scan

F = nn.functional
CLASSES = 3


def _data(n: int = 60) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    y = torch.arange(n) % CLASSES
    return torch.randn(n, 6, generator=g, dtype=torch.float64) + 2 * F.one_hot(y, 6), y


def _mlp(*between: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), *between, nn.Linear(16, CLASSES))


class Noisy(nn.Module):
    """Dropout that is no module."""

    def __init__(self) -> None:
        super().__init__()
        self.net = _mlp(nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(F.dropout(x, 0.1, self.training))
        return out


class Attending(nn.Module):
    """Attention over the six inputs."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.embed, self.out = nn.Linear(1, 8), nn.Linear(8, CLASSES)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=dropout, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(self.block(self.embed(x[:, :, None])).mean(1))
        return out


class Branching(nn.Module):
    """Control flow that depends on the data, which vmap refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.net = _mlp(nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out if float(out.detach().sum()) > -1e9 else -out


class Recurrent(nn.Module):
    """A kernel without a batching rule."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = nn.GRU(1, 8, batch_first=True), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(self.cell(x[:, :, None])[0][:, -1])
        return out


def _closure(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def _one_group_a_layer(params: Any, rate: float) -> torch.optim.Optimizer:
    first, *others = params
    return torch.optim.RMSprop([{"params": [first], "lr": rate}, {"params": others, "lr": rate}])


CASES: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "mini-batches": (lambda: _mlp(nn.ReLU()), {"optimizer": "adam", "batch_size": 20}),
    "full batch": (lambda: _mlp(nn.ReLU()), {"optimizer": "momentum"}),
    "dropout": (lambda: _mlp(nn.Tanh(), nn.Dropout(0.1)), {"batch_size": 20}),
    "functional dropout": (Noisy, {"optimizer": "adamw"}),
    "BatchNorm": (lambda: _mlp(nn.BatchNorm1d(16), nn.ReLU()), {"batch_size": 20}),
    "attention": (Attending, {"optimizer": "adam", "batch_size": 15}),
    "closure": (lambda: _mlp(nn.Tanh()), {"loss": _closure, "curvature": "none"}),
    "accumulated": (lambda: _mlp(nn.Tanh()), {"batch_size": 15, "accumulate": 2}),
    "schedule": (lambda: _mlp(nn.Tanh()), {"schedule": lambda t: 1 / (1 + 0.1 * t)}),
    "groups": (lambda: _mlp(nn.Tanh()), {"optimizer": _one_group_a_layer, "batch_size": 20}),
}


def _scan(make: Callable[[], nn.Module], stacked: bool, **settings: Any) -> Scan:
    torch.manual_seed(0)
    loss = settings.pop("loss", "cross_entropy")
    # More than either spends: the trial of the stack costs three gradients.
    return scan(
        make().double(), loss, _data(), horizon=20, budget=4000, stacked=stacked, **settings
    )


def _same(a: Scan, b: Scan) -> None:
    assert list(a.run_table["steps"]) == list(b.run_table["steps"])
    assert list(a.run_table["status"]) == list(b.run_table["status"])
    # Sums in another order; the largest rates amplify what that leaves.
    np.testing.assert_allclose(b.run_table["loss"], a.run_table["loss"], rtol=1e-7)
    for name in ("loss_horizon", "grad_norm_first", "weight_norm", "sparsity"):
        np.testing.assert_allclose(b.run_table[name], a.run_table[name], rtol=1e-7)
    np.testing.assert_allclose(b.traces["loss"], a.traces["loss"], rtol=1e-7)
    assert b.suggestion.rate == pytest.approx(a.suggestion.rate, rel=1e-7)


@pytest.mark.parametrize("case", CASES)
def test_stacked_runs_are_the_same_runs(case: str) -> None:
    make, settings = CASES[case]
    alone, together = _scan(make, False, **settings), _scan(make, True, **settings)
    assert together.settings["stacked"]
    assert not alone.settings["stacked"]
    _same(alone, together)
    assert 0 < together.cost["gradients"] - alone.cost["gradients"] <= 3


# The mask of a stacked attention layer is drawn in another order: those runs would be others.
@pytest.mark.parametrize("make", [Branching, Recurrent, lambda: Attending(0.1)])
def test_what_vmap_refuses_or_changes_goes_one_by_one(make: Callable[[], nn.Module]) -> None:
    settings: dict[str, Any] = {"batch_size": 20, "curvature": "none"}
    alone, together = _scan(make, False, **settings), _scan(make, True, **settings)
    assert not together.settings["stacked"]
    _same(alone, together)


@pytest.mark.parametrize(("room", "said"), [(2, "one run at a time"), (4, "3 runs at a time")])
def test_out_of_memory_halves_the_stack_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, room: int, said: str
) -> None:
    settings: dict[str, Any] = {"optimizer": "adam", "batch_size": 20, "curvature": "none"}
    settings["rates"] = list(0.3 / 2.0 ** np.arange(7))  # seven in the first stack
    make, _ = CASES["mini-batches"]
    free = _scan(make, True, **settings)
    whole, most = Stack.gradients, []

    def short(self: Stack, batches: Any, seen: Any = None) -> Any:
        if len(batches) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        most.append(len(batches))
        return whole(self, batches, seen)

    monkeypatch.setattr(Stack, "gradients", short)
    result = _scan(make, True, **settings)
    assert any(said in note for note in result.notes)
    assert 1 < max(most) <= room
    _same(free, result)


def test_by_default_nothing_is_stacked_on_a_cpu() -> None:
    make, settings = CASES["mini-batches"]
    torch.manual_seed(0)
    result = scan(make().double(), "cross_entropy", _data(), horizon=20, **settings)
    assert not result.settings["stacked"]
