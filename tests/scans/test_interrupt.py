"""Ctrl-C: a partial scan comes back, and the model is whole."""

import copy
import signal
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import trebuchet as tb
from trebuchet.problem.interrupts import Interrupts

X = torch.randn(64, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y = torch.sin(2 * X[:, :1])


@pytest.fixture(autouse=True)
def _interruptible() -> Iterator[None]:
    """A process started in the background may ignore Ctrl-C altogether."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Pressed:
    """A loss in which Ctrl-C is pressed at one of its calls."""

    def __init__(self, at: int) -> None:
        self.calls, self.at = 0, at

    def __call__(self, z: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.at:
            signal.raise_signal(signal.SIGINT)
        return (z - y).square().mean()


def _net() -> nn.Module:
    torch.manual_seed(1)
    layers = [nn.Linear(3, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 1)]
    return nn.Sequential(*layers).double()


def _calls_of_a_whole_scan(**settings: Any) -> int:
    loss = Pressed(-1)
    tb.scan(_net(), loss, (X, Y), curvature="none", **settings)
    return loss.calls


@pytest.mark.parametrize("fraction", [0.3, 0.6, 0.9, 0.99])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_partial_scan_comes_back(fraction: float, optimizer: str) -> None:
    settings: dict[str, Any] = {"horizon": 30, "batch_size": 16, "optimizer": optimizer}
    model = _net()
    before = copy.deepcopy(model.state_dict())
    loss = Pressed(int(fraction * _calls_of_a_whole_scan(**settings)))
    partial = tb.scan(model, loss, (X, Y), curvature="none", **settings)
    assert partial.settings["interrupted"]
    assert partial.notes[0].startswith("interrupted after ")
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(p.grad is None for p in model.parameters())
    assert model.training
    whole = tb.scan(model, Pressed(-1), (X, Y), curvature="none", **settings)
    assert len(partial.run_table) <= len(whole.run_table)
    # What was finished is what the whole scan has; nothing half-made has a loss at the horizon.
    both = partial.run_table.merge(whole.run_table, on=["rate", "seed"], suffixes=("", "_whole"))
    done = both[both["loss_horizon"].notna() & (both["status"] == "max_steps")]
    np.testing.assert_array_equal(done["loss_horizon"], done["loss_horizon_whole"])
    halves = partial.run_table[partial.run_table["status"] == "interrupted"]
    assert halves["loss_horizon"].isna().all()
    assert set(halves["phase"]) <= {"unsettled"}
    if not (partial.run_table["steps"] == 30).any():
        assert not partial.suggestion.reliable
    text = str(partial)
    assert "interrupted after" in text
    assert partial.plot() is not None


def test_before_the_first_step_it_is_an_interrupt() -> None:
    with pytest.raises(KeyboardInterrupt):
        tb.scan(_net(), Pressed(2), (X, Y), horizon=20, curvature="none")


def test_a_partial_scan_is_saved_and_read(tmp_path: Any) -> None:
    loss = Pressed(150)
    partial = tb.scan(_net(), loss, (X, Y), horizon=30, batch_size=16, curvature="none")
    again = tb.Scan.load(partial.save(tmp_path / "scan"))
    assert again.settings["interrupted"]
    assert again.notes == partial.notes


class Interrupted(nn.Module):
    """A model whose forward is Ctrl-C at one of its calls, counted over all of its copies."""

    calls, at = 0, -1

    def __init__(self) -> None:
        super().__init__()
        self.net = _net()

    def forward(self, x: Tensor) -> Tensor:
        Interrupted.calls += 1
        if Interrupted.calls == Interrupted.at:
            raise KeyboardInterrupt
        out: Tensor = self.net(x)
        return out


def _interrupted_at(call: int, **settings: Any) -> tb.Scan | None:
    """A scan in whose n-th forward pass Ctrl-C comes; None where it raises. All is as before."""
    model = Interrupted()
    Interrupted.calls, Interrupted.at = 0, call
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    told: list[tuple[int, int]] = []
    try:
        found = tb.scan(
            model, "mse", (X, Y), "adam", horizon=20,
            progress=lambda done, total: told.append((done, total)), **settings,
        )  # fmt: skip
    except KeyboardInterrupt:
        found = None
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(m.training for m in model.modules())
    assert not told or told[-1][0] == told[-1][1]
    return found


@pytest.mark.parametrize(
    "settings",
    [
        {"batch_size": 16, "curvature": "final"},
        {"edge_rtol": 0.5, "curvature": "final"},
        {"batch_size": 16, "stacked": True},
    ],
)
def test_wherever_it_comes_nothing_is_lost(settings: dict[str, Any]) -> None:
    """In the first look, λ₀, the search, the edges, the advice, λ at the end, the last check."""
    whole = _interrupted_at(-1, **settings)
    assert whole is not None
    assert not whole.settings["interrupted"]
    calls = Interrupted.calls
    places = sorted({1, 2, 3, *range(5, calls, max(1, calls // 25)), *range(calls - 4, calls + 1)})
    found = [_interrupted_at(call, **settings) for call in places]
    begun = [scan is not None for scan in found]
    assert begun == sorted(begun)  # once a step was made there is always a scan
    assert not begun[0]
    assert all(begun[-5:])
    for scan in found:
        if scan is not None:
            assert scan.settings["interrupted"]
            assert "interrupted after" in str(scan)
            assert len(scan.run_table) <= len(whole.run_table)
    assert len(found[-1].run_table) == len(whole.run_table)  # type: ignore[union-attr]


class Counted(nn.Module):
    """A module that presses Ctrl-C whenever a buffer of it is written back."""

    armed = False

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "training" and Counted.armed:
            signal.raise_signal(signal.SIGINT)


def test_a_second_interrupt_loses_nothing_that_is_being_put_back() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 4), Counted(), nn.Linear(4, 1)).double()
    model[1].forward = lambda x: x
    before = copy.deepcopy(model.state_dict())

    class Loss(Pressed):
        def __call__(self, z: Tensor, y: Tensor) -> Tensor:
            if self.calls + 1 == self.at:
                Counted.armed = True  # from now on, when modes are put back
            return super().__call__(z, y)

    try:
        result = tb.scan(model, Loss(200), (X, Y), horizon=30, batch_size=16, curvature="none")
    finally:
        Counted.armed = False
    assert result.settings["interrupted"]
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(m.training for m in model.modules())
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_handler_of_the_users_own_is_called_and_comes_back() -> None:
    pressed = []
    mine = signal.signal(signal.SIGINT, lambda number, frame: pressed.append(number))
    try:
        result = tb.scan(_net(), Pressed(100), (X, Y), horizon=20, curvature="none")
        assert not result.settings["interrupted"]
        assert pressed == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, mine)


def test_other_threads_scan_without_handlers() -> None:
    found: list[bool] = []
    thread = threading.Thread(
        target=lambda: found.append(
            tb.scan(_net(), "mse", (X, Y), horizon=20, curvature="none").suggestion.reliable
        )
    )
    thread.start()
    thread.join()
    assert found == [True]


def _pressed_while_held_back(done: list[int]) -> None:
    with Interrupts() as interrupts:
        with interrupts.held_back():
            pass
        signal.raise_signal(signal.SIGINT)
        done.append(1)


def test_interrupts_wait_for_the_end_of_the_context() -> None:
    done: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        _pressed_while_held_back(done)
    assert done == [1]
