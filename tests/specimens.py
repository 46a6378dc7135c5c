"""Small models, data and results, made afresh or once a process, for calls that work."""

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np
import torch
import xarray as xr
from torch import nn

import trebuchet as tb


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1)).double()


def data() -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x, x[:, :1]


def problem(width: int = 4) -> tb.Problem:
    return tb.Problem(
        lambda s: tb.MLP.draw(1, width, generator=s), "half_mse", ([[1.0], [0.5]], [0.0, 0.0])
    )


@cache
def runs() -> xr.Dataset:
    return tb.label(tb.sweep(problem(), lr_ratio=[1.0, 2.5, 9.0], seeds=2, steps=5, chunk=3))


def wide() -> tb.Problem:
    return tb.Problem(
        lambda seed, width: tb.MLP.draw(1, width, generator=seed), "half_mse", ([[1.0]], [0.0])
    )


@cache
def grid_of_runs() -> xr.Dataset:
    return tb.label(tb.sweep(wide(), lr_ratio=[1.0, 9.0], steps=5, axes={"width": [4, 8]}))


@cache
def directed() -> xr.Dataset:
    return tb.label(
        tb.sweep(problem(), lr_ratio=[1.0], seeds=1, steps=3, observables=["loss_directions"])
    )


@cache
def scan() -> tb.Scan:
    return tb.scan(net(), "mse", data(), horizon=10)


@cache
def top() -> tb.TopEigen:
    return tb.top_eigen(net(), "mse", data(), vectors=True)


@cache
def figure() -> Any:
    return tb.paper.figure(6, quick=True)


@cache
def saved(what: str) -> Path:
    folder = Path(tempfile.mkdtemp()) / what
    return tb.save(runs(), folder) if what == "runs" else scan().save(folder)


@cache
def images() -> Path:
    folder = Path(tempfile.mkdtemp())
    x, y = np.zeros((8, 28, 28), np.uint8), np.tile(np.array([-1, 1], np.int8), 4)
    np.savez(folder / "mnist01.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    return folder


def ax() -> Any:
    return matplotlib.figure.Figure().add_subplot()


def edges() -> dict[str, Any]:
    return {"critical": 2.0, "upper": 4.0}


def eye(n: int = 2) -> np.ndarray:
    return np.eye(n)


def tensor(*shape: int) -> torch.Tensor:
    return torch.ones(*shape, dtype=torch.float64)
