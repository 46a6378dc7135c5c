"""The lines that a page shows: they run, once the dots are filled in, and make the result again."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

import trebuchet as tb
from trebuchet.reports import code

from .. import specimens
from .synthetic import EVIL, over, runs as synthetic
from .test_page import written

X = torch.randn(24, 5, generator=torch.Generator().manual_seed(3))
Y = torch.randint(3, (24,), generator=torch.Generator().manual_seed(4))
COMMON: dict[str, Any] = {"lr": [1e-2, 1e-1], "seeds": 2, "steps": 6}


def net(seed: int, width: int = 4) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, width), nn.ReLU(), nn.Linear(width, 3))


def quick(seed: int, width: int = 4) -> nn.Module:
    return tb.MLP.draw(1, width, generator=seed)


def problem(make: Any = net, optimizer: Any = "momentum", **fields: Any) -> tb.Problem:
    return tb.Problem(make, "cross_entropy", (X, Y), optimizer, batch_size=8, **fields)


def theory(**fields: Any) -> tb.Problem:
    return tb.Problem(quick, "half_mse", ([[1.0], [0.5]], [0.0, 1.0]), **fields)


def shown(result: Any, folder: Path) -> str:
    """The lines on its page."""
    return written(folder, result).text("code")


def filled(lines: str, folder: Path, monkeypatch: pytest.MonkeyPatch, **own: Any) -> Any:
    """Run them as a reader would who fills in what no result holds."""
    monkeypatch.chdir(folder)
    for name in own:
        lines = re.sub(rf"^{name} = ….*$", f"{name} = OWN['{name}']", lines, flags=re.M)
    lines = re.sub(r"return ….*", "return OWN['make'](**locals())", lines)
    lines = re.sub(r"'never': …, 'hard': …", "'never': None, 'hard': 0.1", lines)
    lines = lines.replace("test=…", "test=OWN['data']")
    assert "…" not in lines
    space: dict[str, Any] = {"OWN": own}
    exec(compile(lines, "shown", "exec"), space)
    assert (folder / "report.html").stat().st_size > 10_000
    return space


AXES: dict[str, tuple[tb.Problem, dict[str, Any]]] = {
    "none": (problem(), {}),
    "a width and a setting": (problem(), {"width": [4, 8], "optimizer.momentum": [0.0, 0.9]}),
    "fields": (problem(), {"batch_size": [4, 8], "clip_grad_norm": [None, 1.0]}),
    "by names": (problem(), {"clip_grad_norm": {"never": None, "hard": 0.1}}),
    "losses and optimizers": (
        problem(), {"loss": ["cross_entropy", "huber"], "optimizer": ["sgd", "adam"]},
    ),
    "clipped, accumulated": (problem(clip_grad_norm=0.5, accumulate=2), {"width": [4, 8]}),
    "tested": (problem(test=(X, Y)), {}),
    "the theory's": (theory(), {"width": [4, 8], "optimizer.momentum": [0.0, 0.5]}),
    "weight decay": (
        theory(optimizer=tb.GradientDescent(weight_decay=0.1)), {"optimizer.momentum": [0.0, 0.5]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", list(AXES))
def test_lines_of_a_sweep_make_it_again(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, axes = AXES[kind]
    if "loss" in axes:  # of any outputs
        made = dataclasses.replace(made, data=(X, torch.nn.functional.one_hot(Y).float()))
    runs = tb.label(tb.sweep(made, **COMMON, axes=axes or None))
    own = {"data": made.data, "make": made.model}
    again = filled(shown(runs, tmp_path), tmp_path, monkeypatch, **own)["runs"]
    assert dict(again.sizes) == dict(runs.sizes)
    for name in ("loss", "phase", "learning_rate"):
        np.testing.assert_array_equal(again[name].values, runs[name].values)
    assert set(again.data_vars) == set(runs.data_vars)


def test_axes_whose_names_are_none_of_python() -> None:
    ds = over(over(synthetic(rates=3), EVIL, [EVIL, "b"]), "class", [1, 2])
    ds = over(over(ds, "optimizer.momentum", [0.0, 0.9]), "depth", [2, 3])
    lines = code.of_sweep(ds)
    assert "def make(seed, depth, **others):" in lines
    compile(lines.replace("…", "None"), "shown", "exec")


def test_lines_of_scans_know_rates_edges_and_curvature(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {
        "horizon": 10, "rates": [0.01, 0.1], "edge_rtol": 0.2, "curvature": "none", "seeds": 1,
    }  # fmt: skip
    torch.manual_seed(0)
    model = net(0)
    scan = tb.scan(model, "cross_entropy", (X, Y), "momentum", batch_size=8, **asked)
    for name in ("rates", "edge_rtol", "curvature"):
        assert scan.settings[name] == asked[name]
    kept = tb.Scan.load(scan.save(tmp_path / "scan.zarr"))
    assert kept == scan
    lines = shown(kept, tmp_path)
    told = filled(lines, tmp_path, monkeypatch, model=model, data=(X, Y))["scan"]
    assert told.suggestion == scan.suggestion
    assert told.lr_max == scan.lr_max
    xr.testing.assert_equal(told.runs, scan.runs)
    page = (tmp_path / "report.html").read_text()
    assert "searched for, from 0.01, 0.1 on" in page
    assert "bisected to 20 %" in page
    numbered = tb.scan(model, "cross_entropy", (X, Y), horizon=10, budget=40, curvature="none")
    assert "budget=40" in shown(numbered, tmp_path)  # not "fast", which has the edges on top


def test_an_older_scan_that_does_not_know_them_says_so_with_dots(tmp_path: Path) -> None:
    scan = specimens.scan()
    new = {"rates", "edge_rtol", "curvature", "budget_name"}
    settings = {name: value for name, value in scan.settings.items() if name not in new}
    cost = {**scan.cost, "gradients": 100.0}
    old = dataclasses.replace(scan, settings=settings, cost=cost)
    kept = tb.Scan.load(old.save(tmp_path / "scan.zarr"))
    assert 'budget="fast",\n    edge_rtol=…,' in shown(kept, tmp_path)
    assert "searched for" in kept.report(tmp_path / "kept.html").read_text()


def test_lines_of_other_results_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = specimens.figure()
    made = filled(shown(figure, tmp_path), tmp_path, monkeypatch)["figure"]
    np.testing.assert_array_equal(made.runs.phase, figure.runs.phase)
    (tmp_path / "report.html").unlink()
    top = specimens.top()
    own = {"model": specimens.net(), "loss": "mse", "data": specimens.data()}
    again = filled(shown(top, tmp_path), tmp_path, monkeypatch, **own)["top"]
    assert again.value == pytest.approx(top.value)
