"""After a scan, however it ended, everything the user owns is bit for bit as it was."""

import contextlib
import copy
import hashlib
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from trebuchet.problem.risk import Objective
from trebuchet.scans.door import scan


class Net(nn.Module):
    """Everything that training changes: BatchNorm statistics, dropout's random numbers, weights."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.2), nn.Linear(12, 3)
        )
        self.frozen = nn.Linear(3, 3)
        self.frozen.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.frozen(self.body(x))
        return out


class Owner:
    """A model in the middle of its training, with a loader and an optimizer that has state."""

    def __init__(self) -> None:
        torch.manual_seed(3)
        self.model = Net().double()
        self.model.body[3].eval()
        x = torch.randn(48, 6, dtype=torch.float64)
        self.generator = torch.Generator().manual_seed(4)
        self.loader = DataLoader(
            TensorDataset(x, torch.arange(48) % 3), batch_size=16, shuffle=True,
            generator=self.generator,
        )  # fmt: skip
        groups = [
            {"params": self.model.body[0].parameters(), "lr": 0.01},
            {"params": self.model.body[1:].parameters(), "lr": 0.02},
        ]
        self.optimizer = torch.optim.Adam(groups)
        for inputs, targets in self.loader:
            self.optimizer.zero_grad()
            torch.autograd.backward(nn.functional.cross_entropy(self.model(inputs), targets))
            self.optimizer.step()

    def fingerprint(self) -> str:
        """A hash of everything."""
        digest = hashlib.sha256()
        for name, tensor in self.model.state_dict(keep_vars=True).items():
            digest.update(name.encode() + tensor.detach().numpy().tobytes())
            digest.update(str((id(tensor), tensor.requires_grad)).encode())
            grad = None if tensor.grad is None else tensor.grad.numpy().tobytes()
            digest.update(str(grad).encode())
        digest.update(str([m.training for m in self.model.modules()]).encode())
        state: Any = self.optimizer.state_dict()
        digest.update(repr(state["param_groups"]).encode())
        for entry in state["state"].values():
            for key, value in entry.items():
                digest.update(key.encode() + value.numpy().tobytes())
        digest.update(self.generator.get_state().numpy().tobytes())
        digest.update(torch.get_rng_state().numpy().tobytes())
        digest.update(repr(random.getstate()).encode())
        digest.update(repr(np.random.get_state()).encode())  # noqa: NPY002
        return digest.hexdigest()


def _loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs, targets)


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("optimizer", ["own", "adam", "momentum"])
def test_nothing_changes_after_success(optimizer: str, stacked: bool) -> None:
    owner = Owner()
    before = owner.fingerprint()
    given: Any = owner.optimizer if optimizer == "own" else optimizer
    result = scan(owner.model, _loss, owner.loader, given, horizon=20, stacked=stacked)
    assert owner.fingerprint() == before
    assert result.settings["stacked"] is stacked
    assert result.cost["gradients"] <= 80


class Failing:
    """A loss that raises at its k-th call."""

    def __init__(self, k: int, error: Callable[[], BaseException]) -> None:
        self.left, self.error = k, error

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self.left -= 1
        if self.left == 0:
            raise self.error()
        return nn.functional.cross_entropy(outputs, targets)


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("k", [2, 30, 60])
@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_nothing_changes_after_an_exception(
    k: int, error: type[BaseException], stacked: bool
) -> None:
    owner = Owner()
    before = owner.fingerprint()
    loss = Failing(k, error)
    # Ctrl-C gives a partial scan once a step was made.
    with contextlib.suppress(error):
        partial = scan(
            owner.model, loss, owner.loader, owner.optimizer, horizon=20, curvature="none",
            stacked=stacked,
        )  # fmt: skip
        assert error is KeyboardInterrupt
        assert partial.settings["interrupted"]
    assert loss.left <= 0
    assert owner.fingerprint() == before


def test_fingerprint_sees_each_kind_of_change() -> None:
    owner = Owner()
    before = owner.fingerprint()
    seen = set()
    with torch.no_grad():
        owner.model.get_parameter("body.0.weight")[0, 0] += 1e-12
    seen.add(owner.fingerprint())
    owner.model.get_buffer("body.1.running_mean")[0] += 1e-12
    seen.add(owner.fingerprint())
    owner.model.body[0].weight.grad = None
    seen.add(owner.fingerprint())
    owner.model.body[3].train()
    seen.add(owner.fingerprint())
    next(iter(owner.optimizer.state.values()))["step"] += 1
    seen.add(owner.fingerprint())
    torch.rand(1)
    seen.add(owner.fingerprint())
    assert before not in seen
    assert len(seen) == 6


def _memory_of(samples: int, error: Exception) -> Callable[[Tensor, Tensor], Tensor]:
    """A loss that runs out of memory on more than so many samples."""

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        if outputs.requires_grad and len(outputs) > samples:
            raise error
        return nn.functional.cross_entropy(outputs, targets)

    return loss


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
    ],
)
def test_out_of_memory_halves_the_chunk_and_goes_on(error: Exception) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    data = (torch.randn(40, 6, dtype=torch.float64), torch.arange(40) % 3)
    before = copy.deepcopy(model.state_dict())
    settings: dict[str, Any] = {"horizon": 20, "curvature": "none"}
    free = scan(model, "cross_entropy", data, **settings)
    short = scan(model, _memory_of(12, error), data, **settings)
    assert any("out of memory" in note and "10 samples" in note for note in short.notes)
    # The gradient is the same sum in another order.
    np.testing.assert_allclose(short.table["loss"], free.table["loss"], rtol=1e-9)
    assert short.suggestion.rate == pytest.approx(free.suggestion.rate, rel=1e-6)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_out_of_memory_with_one_sample_is_raised_and_nothing_changes() -> None:
    owner = Owner()
    before = owner.fingerprint()
    with pytest.raises(torch.OutOfMemoryError):
        scan(owner.model, _memory_of(0, torch.OutOfMemoryError("out of memory")), owner.loader,
             owner.optimizer, horizon=20, curvature="none")  # fmt: skip
    assert owner.fingerprint() == before


def test_out_of_memory_redoes_the_gradient_on_the_same_statistics() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).double()
    calls = []

    def loss(z: Tensor, y: Tensor) -> Tensor:
        calls.append(int(model.get_buffer("1.num_batches_tracked")))
        if len(z) > 4:
            raise MemoryError
        return (z - y).square().mean()

    from trebuchet.problem.autocast import Autocast
    from trebuchet.problem.batches import as_batches

    x = torch.randn(8, 2, dtype=torch.float64)
    batches = as_batches((x, x[:, :1]), device=torch.device("cpu"))
    objective = Objective(model, loss, list(model.parameters()), Autocast(), 8)
    objective.gradient(batches)
    assert objective.chunk == 4
    # The failed attempt's update of the statistics was taken back before the two halves.
    assert calls[0] == 1
    assert calls[-2:] == [1, 2]
