"""A graph as a sparse buffer: the same numbers as of a dense one, and kept as it is."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import trebuchet as tb

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "coo": lambda a: a.to_sparse(),
    "csr": lambda a: a.to_sparse_csr(),
}


class Graph(nn.Module):
    """One round of messages over a fixed graph of six nodes."""

    def __init__(self, laid: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 1)
        self.double()
        ring = torch.eye(6, dtype=torch.float64) + torch.eye(6, dtype=torch.float64).roll(1, 0)
        self.register_buffer("adjacency", laid(ring / 2))

    def forward(self, x: Tensor) -> Tensor:
        """(6, 3) to (6, 1)."""
        out: Tensor = self.last(torch.tanh(torch.mm(self.get_buffer("adjacency"), self.first(x))))
        return out


def _data() -> tuple[Tensor, Tensor]:
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x, x.sum(1, keepdim=True)


def _top(model: nn.Module) -> Any:
    return [tb.top_eigen(model, "mse", _data(), operator).value for operator in ("ggn", "hessian")]


def _scan(model: nn.Module) -> Any:
    found = tb.scan(model, "mse", _data(), horizon=10, stacked=False)
    return np.append(np.ravel(found.runs["loss"]), found.lr_crit)


def _early(model: nn.Module) -> Any:
    found = tb.early_constants(model, "mse", _data(), steps=1, train_steps=2, rtol=0.5)
    return [found.sharpness, found.c_loss, found.c_max]


def _forward(model: nn.Module) -> Any:
    return tb.forward_critical_rate(model, "mse", _data()).low


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")  # torch's own
@pytest.mark.parametrize("door", [_top, _scan, _early, _forward])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_sparse_buffer_is_as_good_as_a_dense_one(
    layout: str, door: Callable[[nn.Module], Any]
) -> None:
    model = Graph(LAYOUTS[layout])
    before = model.get_buffer("adjacency").to_dense()
    assert door(model) == pytest.approx(door(Graph(lambda a: a)), rel=1e-9, nan_ok=True)
    assert model.get_buffer("adjacency").layout is not torch.strided
    assert torch.equal(model.get_buffer("adjacency").to_dense(), before)


class Stirred(Graph):
    """Its graph is scaled by every forward pass."""

    def forward(self, x: Tensor) -> Tensor:
        """(6, 3) to (6, 1)."""
        self.get_buffer("adjacency").mul_(0.9)
        return super().forward(x)


def test_a_sparse_buffer_that_moves_is_put_back() -> None:
    model = Stirred(LAYOUTS["coo"])
    before = model.get_buffer("adjacency").to_dense()
    tb.scan(model, "mse", _data(), horizon=10, stacked=False, curvature="none")
    assert torch.equal(model.get_buffer("adjacency").to_dense(), before)
