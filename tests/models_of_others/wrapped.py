"""Nets inside something: normalised weights, checkpoints, compilers, other precisions."""

import copy
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from tests.models_of_others.case import Case


def _regression(model: nn.Module, seed: int, inputs: int = 4) -> Case:
    torch.manual_seed(100 + seed)  # not the weights' own numbers again
    x, y = torch.randn(9, inputs).double(), torch.randn(9, 2).double()
    return Case(
        model, nn.MSELoss(), (x, y), lambda: F.mse_loss(model(x), y), lambda: model(x),
        lambda z: F.mse_loss(z, y.view(-1)), 9,
    )  # fmt: skip


def weight_norm() -> Case:
    """Directions and lengths; torch's own double backward is wrong for some of these."""
    torch.manual_seed(31)
    first = parametrizations.weight_norm(nn.Linear(4, 5).double())
    return _regression(nn.Sequential(first, nn.Tanh(), nn.Linear(5, 2).double()), 31)


def spectral_norm() -> Case:
    """Buffers that move at every training pass."""
    torch.manual_seed(32)
    first = parametrizations.spectral_norm(nn.Linear(4, 5).double())
    model = nn.Sequential(first, nn.Tanh(), nn.Linear(5, 2).double())
    case = _regression(model, 32)
    case.outputs = case.at_outputs = None
    case.moves = True
    return case


class Checkpointed(nn.Module):
    """Recomputes its middle in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 2)
        self.middle = nn.Sequential(nn.Linear(5, 5), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        h = checkpoint(self.middle, h, use_reentrant=False)
        out: Tensor = self.last(h)
        return out


def checkpointed() -> Case:
    """Saves memory, and is the same function."""
    torch.manual_seed(33)
    return _regression(Checkpointed().double(), 33)


def scripted() -> Case:
    """A ScriptModule."""
    torch.manual_seed(34)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # old, and still out there
        traced = torch.jit.trace(net, torch.randn(9, 4).double())  # type: ignore[no-untyped-call]  # untyped in torch
    return _regression(traced, 34)


def distance() -> Case:
    """Radial units: ``cdist`` has no double backward."""

    class Radial(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.centres, self.head = nn.Parameter(torch.randn(5, 4)), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(torch.exp(-torch.cdist(x, self.centres) / 2))
            return out

    torch.manual_seed(35)
    return _regression(Radial().double(), 35)


def _plain() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))


def half(dtype: torch.dtype) -> tuple[nn.Module, Any, Any, Case]:
    """A net in half precision, and the same weights in float64 to compare with."""
    torch.manual_seed(36)
    net = _plain().to(dtype)
    twin = copy.deepcopy(net).double()
    x, y = torch.randn(16, 4).to(dtype), torch.randn(16, 2).to(dtype)
    wide = Case(
        twin, nn.MSELoss(), (x.double(), y.double()),
        lambda: F.mse_loss(twin(x.double()), y.double()), lambda: twin(x.double()),
        lambda z: F.mse_loss(z, y.double().view(-1)), 16,
    )  # fmt: skip
    return net, nn.MSELoss(), (x, y), wide
