"""Scans as they were saved until schema version 2: one row a run, one row a look."""

import json
import math
from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np
import pandas as pd
import pytest
import xarray as xr

import trebuchet as tb
from trebuchet.results import manifest

NAN, INF = math.nan, math.inf
RATES = [0.01, 0.1, 0.1, 0.2, 0.4, 0.4 * (1 + 1e-15), 0.8]
"""Two bisections met at 0.4: the rate is there twice, to rounding."""
RUNS: dict[str, tuple[str, str, list[Any]]] = {
    "rate": ("learning rate η", "1", RATES),
    "seed": ("order of the batches", "1", [0, 0, 3, 0, 0, 0, 3]),
    "phase": (
        "phase", "1",
        ["unsettled", "lazy", "lazy", "catapult", "catapult", "unsettled", "divergent"],
    ),
    "steps": ("updates made", "steps", [4, 20, 20, 20, 20, 9, 9]),
    "status": (
        "why the run stopped; 'dropped' if the race left it behind", "1",
        ["dropped", "max_steps", "max_steps", "max_steps", "max_steps", "dropped", "blew_up"],
    ),
    "loss": ("loss at the last look", "loss", [1.9, 0.5, 0.75, 0.25, 1.0, 2.5, 4e9]),
    "loss_horizon": (
        "loss at the horizon, on the closing set", "loss", [NAN, 0.5, 0.75, 0.25, 1.0, NAN, INF],
    ),
    "peak_ratio": (
        "largest loss over the loss at the start", "1", [1.0, 1.0, 1.0, 1.5, 3.0, 2.0, 2e9],
    ),
    "recovery_step": (
        "first step after the last look above the start; NaN: never rose, or did not come back",
        "steps", [NAN, NAN, NAN, 10.0, 10.0, NAN, NAN],
    ),
    "lr_ratio_final": ("ηλ at the end", "1", [NAN, 0.5, 0.6, 1.0, 1.6, NAN, NAN]),
    "kernel_drift": ("|λ_T − λ₀| / λ₀", "1", [NAN, 0.0, 0.2, 0.0, 0.2, NAN, NAN]),
    "sparsity": (
        "fraction of ReLU pre-activations < 0 at the end", "1",
        [NAN, 0.5, 0.25, 0.5, 0.75, NAN, NAN],
    ),
    "grad_norm_first": ("|∇L| of the first step", "1", [3.0, 3.0, 2.0, 3.0, 3.0, 3.0, 2.0]),
    "grad_norm": ("|∇L| of the last step", "1", [2.0, 0.1, 0.2, 0.1, 0.3, 4.0, 1e5]),
    "weight_norm_first": ("|θ|² at the start", "1", [NAN, 4.0, 4.0, 4.0, 4.0, NAN, NAN]),
    "weight_norm": ("|θ|² at the horizon", "1", [NAN, 5.0, 5.5, 6.0, 7.0, NAN, NAN]),
}  # fmt: skip
LOOKS = [
    *[(0.01, 0, 0, 2.0), (0.01, 0, 4, 1.9)],
    *[(0.1, 0, 0, 2.0), (0.1, 0, 4, 1.0), (0.1, 0, 20, 0.5)],
    *[(0.1, 3, 0, 2.0), (0.1, 3, 9, 1.5), (0.1, 3, 20, 0.75)],
    *[(0.2, 0, 0, 2.0), (0.2, 0, 9, 3.0), (0.2, 0, 20, 0.25)],
    *[(RATES[4], 0, 0, 2.0), (RATES[4], 0, 9, 6.0), (RATES[4], 0, 20, 1.0)],
    *[(RATES[5], 0, 0, 2.0), (RATES[5], 0, 4, 4.0), (RATES[5], 0, 9, 2.5)],
    *[(0.8, 3, 0, 2.0), (0.8, 3, 9, 4e9)],
]
REST: dict[str, Any] = {
    "suggestion": {
        "rate": 0.2, "low": 0.1, "high": 0.4, "expected_loss": 0.25, "loss_ratio": 0.125,
        "margin": 4.0, "phase": "catapult", "reason": "lowest loss of 5 rates raced",
        "reliable": True, "noise": 0.0,
    },
    "critical": {
        "lr": 0.4, "top_eigenvalue": 5.0, "operator": "ggn", "convention": "Gauss–Newton; 2/λ₀",
        "lr_catapult": 0.4, "converged": True,
    },
    "lr_forward": {"low": 0.3, "high": 0.35},
    "lr_loss": {"low": 0.1, "high": 0.2},
    "lr_max": {"low": 0.4, "high": 0.8},
    "warmup": {"needed": False, "start": 0.35, "later": 0.4, "reason": "not needed"},
    "notes": ["one note"],
    "cost": {"gradients": 102.0, "forwards": 40.0, "products": 8.0, "seconds": 1.5},
    "settings": {
        "optimizer": "adam", "clip_grad_norm": None, "clip_grad_value": None, "schedule": "",
        "loss": "mse", "horizon": 20, "batch_size": 12, "accumulate": 1, "n_samples": 24,
        "compared_on": "all 24 samples", "n_parameters": 2, "seeds": [0, 3], "budget": 80,
        "stacked": False, "delta": 0.01, "noise": 0.005, "blowup": 1e8, "interrupted": False,
        "loss_first": 2.0, "dtype": "float64", "device": "cpu", "versions": "torch 2.0",
        "cpu": "a cpu", "cpu_capability": "AVX2", "blas": "mkl", "instructions": "own",
        "threads": 2,
    },
    "columns": ["rate", "seed", "step", "loss"],
}  # fmt: skip
TABLE = pd.DataFrame({
    "rate": [0.01, 0.1, 0.2, 0.4, 0.8],
    "phase": ["unsettled", "lazy", "catapult", "catapult", "divergent"],
    "phase_seed0": ["dropped", "lazy", "catapult", "catapult", ""],
    "phase_seed3": ["", "lazy", "", "", "divergent"],
    "n_seeds": [1, 2, 1, 1, 1],
    "loss": [1.9, 0.625, 0.25, 1.0, 4e9],
    "loss_horizon": [NAN, 0.625, 0.25, 1.0, INF],
    "peak_ratio": [1.0, 1.0, 1.5, 3.0, 2e9],
    "recovery_step": [NAN, NAN, 10.0, 10.0, NAN],
    "steps": [4, 20, 20, 20, 9],
    "status": ["dropped", "max_steps", "max_steps", "max_steps", "blew_up"],
    "lr_ratio_final": [NAN, 0.55, 1.0, 1.6, NAN],
    "kernel_drift": [NAN, 0.1, 0.0, 0.2, NAN],
    "sparsity": [NAN, 0.375, 0.5, 0.75, NAN],
    "grad_norm_first": [3.0, 2.5, 3.0, 3.0, 2.0],
    "grad_norm": [2.0, 0.15, 0.1, 0.3, 1e5],
    "weight_norm_first": [NAN, 4.0, 4.0, 4.0, NAN],
    "weight_norm": [NAN, 5.25, 6.0, 7.0, NAN],
})  # fmt: skip
"""What the trebuchet that saved it printed."""


def _file(path: Path, version: int) -> Path:
    """The folder as it was written: of version 1 without a manifest and without empty chunks."""
    runs = {
        name: ("run", np.array(values), {"long_name": long_name, "units": unit})
        for name, (long_name, unit, values) in RUNS.items()
    }
    looks = {
        f"trace_{name}": (
            "look",
            np.array(values),
            {"long_name": f"{name} of a look", "units": "1"},
        )
        for name, values in zip(REST["columns"], zip(*LOOKS, strict=True), strict=True)
    }
    ds = xr.Dataset({**runs, **looks}, attrs={"scan": json.dumps(REST)})
    if version == 1:
        ds.to_zarr(path, zarr_format=2, consolidated=True)
        return path
    ds = ds.assign_attrs(schema_version=version)
    ds.to_zarr(path, zarr_format=2, consolidated=True, write_empty_chunks=True)
    manifest.write(path, schema_version=version, kind="scan")
    return path


@pytest.fixture(params=[1, 2])
def old(request: pytest.FixtureRequest, tmp_path: Path) -> tb.Scan:
    """A scan of either version, loaded."""
    loaded: tb.Scan = tb.load(_file(tmp_path / "old.zarr", request.param))
    assert ("before results had checksums" in loaded.notes[-1]) == (request.param == 1)
    return loaded


def test_what_was_printed_is_printed(old: tb.Scan) -> None:
    assert old.suggestion.rate == 0.2
    assert old.suggestion.phase is tb.Phase.CATAPULT
    assert (old.lr_crit, old.top_eigenvalue) == (0.4, 5.0)
    assert (old.lr_loss.low, old.lr_max.high) == (0.1, 0.8)
    assert old.has_catapult
    pd.testing.assert_frame_equal(old.table, TABLE)
    assert old.settings == REST["settings"]
    lines = old.summary()
    assert lines[0] == "use 0.2 (about as good: 0.1 to 0.4): lowest loss of 5 rates raced."
    assert "note: one note." in lines
    assert not any("No catapult" in line for line in lines)
    assert lines[-1].startswith("cost: 102 gradients, 40 forward passes, 8 curvature products")


def test_every_run_is_there_once(old: tb.Scan) -> None:
    """Of two that are one rate to rounding, the one that went further."""
    kept = [0, 1, 2, 3, 4, 6]
    expected = pd.DataFrame({name: np.array(values)[kept] for name, (_, _, values) in RUNS.items()})
    expected = expected.assign(phase=expected.phase.tolist(), status=expected.status.tolist())
    pd.testing.assert_frame_equal(old.run_table, expected)
    looks = pd.DataFrame([look for look in LOOKS if look[0] != RATES[5]], columns=REST["columns"])
    pd.testing.assert_frame_equal(old.traces, looks)


def test_runs_are_a_sweeps(old: tb.Scan) -> None:
    runs = old.runs
    assert dict(runs.sizes) == {"lr": 5, "seed": 2, "step": 4, "layer": 1}
    assert runs.seed.values.tolist() == [0, 3]
    assert runs.step.values.tolist() == [0, 4, 9, 20]
    assert runs.status.values[0].tolist() == ["dropped", "not_run"]
    assert runs.phase.values[0].tolist() == ["unsettled", ""]
    again = tb.label(runs)
    for name in ("phase", "peak_ratio", "recovery_step"):
        xr.testing.assert_equal(again[name], runs[name])
    xr.testing.assert_allclose(again["kernel_drift"], runs["kernel_drift"], rtol=1e-14, atol=1e-14)
    assert tb.table(runs).phases.tolist() == ["o ·", "L L", "C ·", "C ·", "· D"]


def test_where_it_was_made_is_kept(old: tb.Scan) -> None:
    attrs = old.runs.attrs
    assert (attrs["versions"], attrs["cpu"], attrs["threads"]) == ("torch 2.0", "a cpu", 2)
    assert (attrs["optimizer"], attrs["batch_size"], attrs["max_steps"]) == ("adam", 12, 20)
    assert "created" not in attrs  # it did not say when


def test_it_draws_and_saves_as_new_ones_do(old: tb.Scan, tmp_path: Path) -> None:
    assert tb.load(tb.save(old, tmp_path / "new.zarr")) == old
    xr.testing.assert_identical(tb.load(tb.save(old.runs, tmp_path / "runs.zarr")), old.runs)
    old.plot(matplotlib.figure.Figure().add_subplot())
    tb.plots.phase_bar(old, ax=matplotlib.figure.Figure().add_subplot())
    tb.plots.traces(old, ax=matplotlib.figure.Figure().add_subplot())


def test_a_part_that_is_missing_is_damage(tmp_path: Path) -> None:
    path = _file(tmp_path / "old.zarr", 2)
    with xr.open_dataset(path, engine="zarr") as stored:
        ds = stored.load()
    for name in ("status", "trace_loss"):
        with pytest.raises(tb.errors.InputError, match=f"missing or is not .*{name}"):
            tb.Scan.from_dataset(ds.drop_vars(name))
