"""What takes an argument's place: values of every kind, and some that are nearly right."""

import copy
import itertools
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import trebuchet as tb

from .specimens import ax, data, net, problem, runs, tensor, top


class Planted(Exception):
    """Raised by junk that is called or iterated."""


def _raise(*args: object, **settings: object) -> Any:
    raise Planted(len(args))


def _raising() -> Iterator[int]:
    yield 1
    raise Planted


class Odd:
    """An object whose very repr fails, and which no number, string or container resembles."""

    def __repr__(self) -> str:
        raise Planted


class Wide(nn.Module):
    """A module that takes no data of three columns."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(7, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(x)
        return out


class Returns(nn.Module):
    """A net whose output is made into something else."""

    def __init__(self, wrap: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.net, self.wrap = net(), wrap

    def forward(self, x: torch.Tensor) -> Any:
        return self.wrap(self.net(x))


def _changed(change: Callable[[nn.Module], Any]) -> nn.Module:
    model = net()
    change(model)
    return model


def _filled(value: float) -> nn.Module:
    return _changed(lambda m: [p.data.fill_(value) for p in m.parameters()])


def _bare() -> xr.Dataset:
    return xr.Dataset({"loss": (("a", "b"), np.zeros((2, 2)))})


JUNK: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "True": lambda: True,
    "False": lambda: False,
    "-1": lambda: -1,
    "0": lambda: 0,
    "-1.5": lambda: -1.5,
    "1.5": lambda: 1.5,
    "2**63": lambda: 2**63,
    "10**18": lambda: 10**18,
    "10**400": lambda: 10**400,
    "10**5000": lambda: 10**5000,
    "1e300": lambda: 1e300,
    "1e-320": lambda: 1e-320,
    "nan": lambda: float("nan"),
    "inf": lambda: float("inf"),
    "-inf": lambda: float("-inf"),
    "1j": lambda: 1j,
    "Decimal": lambda: Decimal("0.1"),
    "Fraction": lambda: Fraction(1, 3),
    "np.int8": lambda: np.int8(-3),
    "np.float32": lambda: np.float32("nan"),
    "np.bool": lambda: np.True_,
    "0-d": lambda: np.array(0.5),
    "0-d tensor": lambda: torch.tensor(0.5),
    "word": lambda: "word",
    "empty": lambda: "",
    "digits": lambda: "12",
    "two lines": lambda: "a\nb",
    "bytes": lambda: b"ab",
    "NUL": lambda: "a\0b",
    "long": lambda: "x" * 5000,
    "object": object,
    "odd": Odd,
    "type": lambda: int,
    "module class": lambda: nn.Linear,
    "module": lambda: nn.Linear(2, 2),
    "no parameters": nn.ReLU,
    "wide": Wide,
    "list": list,
    "tuple": tuple,
    "dict": dict,
    "set": set,
    "[0]": lambda: [0],
    "[None]": lambda: [None],
    "[nan]": lambda: [float("nan")],
    "['a']": lambda: ["a"],
    "['1']": lambda: ["1", "2"],
    "[-1]": lambda: [-1],
    "[True]": lambda: [True],
    "[1, 1]": lambda: [1, 1],
    "nested": lambda: [[1.0, 2.0], [3.0, 4.0]],
    "ragged": lambda: [[1.0], [2.0, 3.0]],
    "deep": lambda: [[[[1]]]],
    "{'a': 1}": lambda: {"a": 1},
    "{1: None}": lambda: {1: None},
    "objects": lambda: np.array([None, object()]),
    "strings": lambda: np.array(["1", "2"]),
    "complex": lambda: np.ones((2, 2), complex),
    "no rows": lambda: np.zeros((0, 3)),
    "cube": lambda: np.ones((2, 2, 2)),
    "dates": lambda: np.array(["2020-01-01"], dtype="datetime64[D]"),
    "tensor": lambda: torch.full((2, 5), 0.5),
    "ints": lambda: torch.arange(3),
    "meta": lambda: torch.ones(2, device="meta"),
    "sparse": lambda: _eye_sparse(),
    "NaNs": lambda: torch.full((6, 3), float("nan")),
    "pair": lambda: (tensor(6, 5), tensor(6, 1)),
    "uneven pair": lambda: (tensor(6, 3), tensor(5, 1)),
    "generator": lambda: iter([1, 2]),
    "raising generator": _raising,
    "endless": lambda: itertools.count(1),
    "raises": lambda: _raise,
    "lambda": lambda: lambda: None,
    "print": lambda: print,
    "partial": lambda: partial(_raise, 1),
    "path": lambda: Path("here"),
    "folder": lambda: Path("."),
    "null device": lambda: "/dev/null/a",
    "frame": lambda: pd.DataFrame({"a": [1, 2]}),
    "dataset": _bare,
    "no variables": xr.Dataset,
    "array": lambda: xr.DataArray([1.0]),
    "phases only": lambda: runs()[["phase"]],
    "one seed": lambda: runs().isel(seed=0),
    "no rates": lambda: runs().isel(lr=slice(0, 0)),
    "other phases": lambda: runs().assign(phase=runs().phase.where(runs().lr < 2, "none")),
    "dtype": lambda: torch.int32,
    "half": lambda: torch.float16,
    "device": lambda: torch.device("cuda:9"),
    "no device": lambda: "gpu",
    "optimizer": lambda: torch.optim.SGD([tensor(1).requires_grad_()], 0.1),
    "optimizer class": lambda: torch.optim.LBFGS,
    "problem": problem,
    "axes": ax,
    "figure": matplotlib.figure.Figure,
    "edge": lambda: tb.theory.edges.critical(1.0),
    "slice": lambda: slice(2),
    "range": lambda: range(3),
    "ellipsis": lambda: ...,
    "exception": lambda: ValueError("a"),
    "loader": lambda: DataLoader([1, 2]),  # type: ignore[arg-type]
    "top": lambda: top(),
    "runs": lambda: runs(),
}
"""What takes an argument's place; some of it is right for some arguments."""

MODELS: dict[str, Callable[[], Any]] = {
    "frozen": lambda: _changed(lambda m: m.requires_grad_(False)),
    "NaN weights": lambda: _filled(float("nan")),
    "huge weights": lambda: _filled(1e300),
    "zero weights": lambda: _filled(0.0),
    "float32 net": lambda: net().float(),
    "half net": lambda: net().half(),
    "complex net": lambda: nn.Linear(3, 1, dtype=torch.complex64),
    "on meta": lambda: net().to("meta"),
    "lazy": lambda: nn.LazyLinear(1),
    "nothing in it": nn.Sequential,
    "modules": lambda: nn.ModuleList([net()]),
    "raising forward": lambda: Returns(_raise),
    "returns None": lambda: Returns(lambda z: None),
    "returns a pair": lambda: Returns(lambda z: (z, z)),
    "detached": lambda: Returns(lambda z: z.detach()),
    "whole outputs": lambda: Returns(lambda z: z.long()),
    "NaN outputs": lambda: Returns(lambda z: z * torch.nan),
    "scalar outputs": lambda: Returns(lambda z: z.sum()),
    "as numpy": lambda: Returns(lambda z: z.detach().numpy()),
    "no samples": lambda: Returns(lambda z: z[:0]),
    "factory": lambda: lambda seed: net(),
    "raising factory": lambda: _raise,
    "factory of None": lambda: lambda seed: None,
    "factory without argument": lambda: lambda: net(),
    "state": lambda: net().state_dict(),
    "parameters": lambda: net().parameters(),
    "embedding": lambda: nn.Embedding(3, 2),
    "recurrent": lambda: nn.LSTM(3, 2).double(),
    "MLP of one": lambda: tb.MLP.draw(1, 4, generator=0),
}
LOSSES: dict[str, Callable[[], Any]] = {
    "MSE": lambda: "MSE",
    "loss class": lambda: nn.MSELoss,
    "vector loss": lambda: lambda z, y: z - y,
    "loss of one": lambda: lambda z: z.sum(),
    "loss of none": lambda: lambda: 0.0,
    "loss of three": lambda: lambda z, y, w: z.sum(),
    "returns a float": lambda: lambda z, y: 1.0,
    "constant": lambda: lambda z, y: torch.tensor(1.0),
    "raising loss": lambda: lambda z, y: _raise(),
    "unreduced": lambda: nn.MSELoss(reduction="none"),
    "classes": nn.CrossEntropyLoss,
    "nll": lambda: "nll",
    "bce": lambda: nn.BCELoss(),
    "NaN loss": lambda: lambda z, y: z.sum() * torch.nan,
    "raising closure": lambda: lambda model, batch: _raise(),
    "closure": lambda: lambda model, batch: None,
    "trained": lambda: nn.Linear(1, 1),
    "functional": lambda: nn.functional.mse_loss,
    "max": lambda: max,
}
DATA: dict[str, Callable[[], Any]] = {
    "inputs alone": lambda: data()[0],
    "float32": lambda: tuple(t.float() for t in data()),
    "wide data": lambda: (tensor(6, 5), tensor(6, 1)),
    "flat data": lambda: (tensor(6), tensor(6)),
    "classes": lambda: (data()[0], torch.zeros(6, dtype=torch.long)),
    "NaN data": lambda: (tensor(6, 3) * torch.nan, tensor(6, 1)),
    "empty data": lambda: (tensor(0, 3), tensor(0, 1)),
    "arrays": lambda: tuple(t.numpy() for t in data()),
    "lists": lambda: ([[1.0]], [1.0]),
    "three": lambda: (*data(), 3),
    "of None": lambda: (None, None),
    "of words": lambda: ("a", "b"),
    "batches of numbers": lambda: [1, 2],
    "empty loader": lambda: DataLoader([]),  # type: ignore[arg-type]
    "dict of inputs": lambda: {"x": data()[0]},
    "dict of None": lambda: {"x": None, "y": None},
    "raising data": lambda: Unreadable(),
    "dataset of pairs": lambda: TensorDataset(*data()),
    "wide loader": lambda: DataLoader(TensorDataset(tensor(6, 5), tensor(6, 1)), 2),
    "other batches": lambda: [data(), (tensor(6, 5), tensor(6, 1))],
    "data on meta": lambda: tuple(t.to("meta") for t in data()),
    "complex data": lambda: (data()[0] + 1j, data()[1]),
    "labels wide": lambda: (data()[0], tensor(6, 2)),
    "nested": lambda: [[data()]],
}
NUMBERS: dict[str, Callable[[], Any]] = {
    name: partial(copy.copy, value)
    for name, value in {
        "1": 1,
        "2": 2,
        "3": 3,
        "7": 7,
        "0.5": 0.5,
        "1e-12": 1e-12,
        "1e-300": 1e-300,
        "1e30": 1e30,
        "10**300": 10**300,
        "-0.0": -0.0,
        "[1e300]": [1e300],
        "[1e-320]": [1e-320],
        "[1.0]": [1.0],
        "[1, 2]": [1, 2],
        "[10**300]": [10**300],
        "[1e-12, 1e12]": [1e-12, 1e12],
        "(0, 0)": (0, 0),
        "(2.0, 1.0)": (2.0, 1.0),
        "(1e300, 1e300)": (1e300, 1e300),
        "[2**62]": [2**62],
        "[2**63]": [2**63],
    }.items()
}
BEYOND: dict[str, Callable[[], Any]] = {
    name: partial(copy.copy, value)
    for name, value in {
        "-10**5000": -(10**5000),
        "2**70": 2**70,
        "-2**70": -(2**70),
        "-1e300": -1e300,
        "long double": np.longdouble("1e4000"),
        "2**64 - 1": np.uint64(2**64 - 1),
        "Decimal of 1e5000": Decimal("1e5000"),
        "Decimal of NaN": Decimal("nan"),
        "signalling NaN": Decimal("sNaN"),
        "Fraction of 10**5000": Fraction(10**5000),
        "Fraction of 10**-5000": Fraction(1, 10**5000),
        "0-d NaN": torch.tensor(float("nan")),
        "[10**5000]": [10**5000],
        "[-10**5000]": [-(10**5000)],
        "(10**5000, 10**5000)": (10**5000, 10**5000),
        "[inf]": [float("inf")],
        "[1e300, nan]": [1e300, float("nan")],
        "[10**30]": np.array([10**30]),
        "matrix of 1e300": np.eye(2) * 1e300,
        "matrix of NaN": np.full((2, 2), np.nan),
        "tensor of 1e300": torch.full((2,), 1e300, dtype=torch.float64),
        "{'a': 10**5000}": {"a": 10**5000},
        "slice of 10**5000": slice(10**5000),
    }.items()
}
"""Numbers that 64 bits do not hold, or that nothing can be made with."""

ENDS = (
    *("2**63", "10**18", "10**400", "10**5000", "1e300", "1e-320", "nan", "inf", "-inf", "-0.0"),
    *("10**300", "np.float32", "[nan]", "[1e300]", "[1e-320]", "[10**300]", "[2**63]", "NaNs"),
    *BEYOND,
)
"""The ends of the numbers, of those above and of these: every argument meets them all."""


def _observable(**parts: Any) -> list[Any]:
    kind = type("Mine", (tb.Observable,), {"measure": lambda *_: 1.0, **parts})
    return [kind()]


OBSERVABLES: dict[str, Callable[[], Any]] = {
    "all of them": lambda: sorted(tb.observables.OBSERVABLES),
    "one of them": lambda: "accuracy",
    "misspelt": lambda: ["acuracy"],
    "class of one": lambda: [tb.Observable],
    "of their own": lambda: _observable(name="mine"),
    "without a name": _observable,
    "name of a number": lambda: _observable(name=3),
    "name in two words": lambda: _observable(name="two words"),
    "name of the loss": lambda: _observable(name="loss"),
    "name of a coordinate": lambda: _observable(name="step"),
    "name of ours": lambda: _observable(name="accuracy"),
    "name of an end": lambda: _observable(name="accuracy_final"),
    "two of a name": lambda: _observable(name="mine") + _observable(name="mine"),
    "dim without size": lambda: _observable(name="mine", dim="part"),
    "dim of ours": lambda: _observable(name="mine", dim="seed", size=2),
    "no measure": lambda: _observable(name="mine", measure=None),
    "raising measure": lambda: _observable(name="mine", measure=_raise),
    "measures None": lambda: _observable(name="mine", measure=lambda *_: None),
    "measures a word": lambda: _observable(name="mine", measure=lambda *_: "1.0"),
    "measures a complex": lambda: _observable(name="mine", measure=lambda *_: 1j),
    "measures a row": lambda: _observable(name="mine", measure=lambda *_: [1.0, 2.0]),
    "short row": lambda: _observable(name="mine", dim="part", size=2),
    "of of nothing": lambda: _observable(name="mine", of=lambda self, runs: None),
    "of of one": lambda: _observable(name="mine", of=lambda self, runs: np.ones(1)),
}

JUNK |= OBSERVABLES | MODELS | LOSSES | DATA | NUMBERS | BEYOND
NEAR = {
    "model": MODELS,
    "loss": LOSSES,
    "data": DATA,
    "observables": OBSERVABLES,
    "loader": DATA,
    "x": DATA,
    "y": DATA,
    "fn": LOSSES,
}
"""What is nearly right for some arguments; numbers for the others."""


class Unreadable:
    """An iterable that cannot be read."""

    def __iter__(self) -> Iterator[int]:
        raise Planted

    def __len__(self) -> int:
        raise Planted


def _eye_sparse() -> torch.Tensor:
    return torch.eye(3).to_sparse()
