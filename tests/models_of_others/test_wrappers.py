"""Compilers, process groups and autocast around a model: the same numbers as without."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

import trebuchet as tb
from tests.models_of_others.case import differences, snapshot


def plain() -> tuple[nn.Module, tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(41)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    return net, (torch.randn(12, 4).double(), torch.randn(12, 2).double())


def test_compiled() -> None:
    net, data = plain()
    compiled: Any = torch.compile(copy.deepcopy(net), backend="eager")
    compiled(data[0])
    before = snapshot(compiled)
    for operator in ("ggn", "hessian", "ntk"):
        one, other = (tb.top_eigen(m, "mse", data, operator) for m in (net, compiled))
        assert one.value == pytest.approx(other.value, rel=1e-12)
    one_scan, other_scan = (tb.scan(m, "mse", data, horizon=20) for m in (net, compiled))
    assert float(one_scan.suggestion) == pytest.approx(float(other_scan.suggestion), rel=1e-9)
    assert differences(before, snapshot(compiled)) == []


def test_one_process_of_distributed_data_parallel(tmp_path: Path) -> None:
    net, data = plain()
    store = dist.FileStore(str(tmp_path / "store"), 1)  # type: ignore[attr-defined]  # not in its __all__
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(copy.deepcopy(net))
        before = snapshot(wrapped)
        one, other = (tb.top_eigen(m, "mse", data, "ggn") for m in (net, wrapped))
        assert one.value == pytest.approx(other.value, rel=1e-12)
        one_scan, other_scan = (tb.scan(m, "mse", data, horizon=20) for m in (net, wrapped))
        assert float(one_scan.suggestion) == pytest.approx(float(other_scan.suggestion), rel=1e-9)
        assert differences(before, snapshot(wrapped)) == []
    finally:
        dist.destroy_process_group()


def test_autocast() -> None:
    net, data = plain()
    net, data = net.float(), (data[0].float(), data[1].float())
    wide = tb.scan(net, "mse", data, horizon=40)
    narrow = tb.scan(net, "mse", data, horizon=40, autocast=torch.bfloat16)
    # bfloat16 has 8 bits: a product's 0.4 %, and a choice between half octaves can go either way.
    assert narrow.suggestion.reliable
    assert 0.5 < float(narrow.suggestion) / float(wide.suggestion) < 2
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ambient = tb.scan(net, "mse", data, horizon=40)
    assert float(ambient.suggestion) == float(narrow.suggestion)
