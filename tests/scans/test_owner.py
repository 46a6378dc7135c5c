"""Ctrl-C in the middle of a stacked forward pass leaves no batched tensor in the model."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils._named_member_accessor import NamedMemberAccessor

from trebuchet.scans.door import scan


@pytest.mark.parametrize("call", [9, 10, 11, 12])
def test_ctrl_c_while_parameters_are_swapped(call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch swaps parameters in and out of the module around every call of functional_call."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, track_running_stats=False), nn.Tanh())
    net = net.append(nn.Linear(8, 1)).double()
    x, y = torch.randn(32, 4, dtype=torch.float64), torch.randn(32, 1, dtype=torch.float64)
    before, out = dict(net.named_parameters()), net(x).detach()
    swap, calls = NamedMemberAccessor.swap_tensors_dict, 0

    def interrupted(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise KeyboardInterrupt
        return swap(*args, **options)

    monkeypatch.setattr(NamedMemberAccessor, "swap_tensors_dict", interrupted)
    try:
        partial = scan(net, "mse", (x, y), horizon=100, batch_size=8, stacked=True)
    except KeyboardInterrupt:  # before any step was made
        partial = None
    monkeypatch.undo()
    assert calls >= call
    assert partial is None or partial.settings["interrupted"]
    assert torch.equal(net(x), out)
    after = dict(net.named_parameters())
    assert list(after) == list(before)
    assert all(after[name] is p for name, p in before.items())
