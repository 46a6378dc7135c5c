"""Results say which CPU, instruction set and threads their rounding is owed to."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
import xarray as xr

import trebuchet as tb
from trebuchet._environment import FACTS, SWITCHES


def small() -> tb.Problem:
    return tb.Problem(
        lambda seed: tb.PureQuadratic.draw(6, generator=seed),
        "half_mse",
        ([[1.0]], [0.0]),
        name="small",
    )


def test_a_sweep_holds_them_and_its_hash_does_not(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(tb.sweep(small(), lr_ratio=[0.5, 1.0], steps=5))
    finally:
        torch.set_num_threads(threads)
    assert [runs.attrs["threads"] for runs in found] == [1, 2]
    assert found[0].attrs["config_hash"] == found[1].attrs["config_hash"]
    attrs = found[0].attrs
    assert attrs["cpu_capability"] == torch.backends.cpu.get_cpu_capability()
    assert f"torch {torch.__version__}" in attrs["versions"]
    assert "numpy " + np.__version__ in attrs["versions"]
    assert attrs["device"] == "cpu"
    tb.save(found[0], tmp_path / "runs.zarr")
    read = tb.load(tmp_path / "runs.zarr")
    assert isinstance(read, xr.Dataset)
    assert {name: read.attrs[name] for name in FACTS} == {name: attrs[name] for name in FACTS}


def test_a_scan_and_a_curvature_hold_the_same() -> None:
    net = torch.nn.Linear(2, 1).double()
    data = torch.eye(2).double(), torch.ones(2, 1).double()
    settings = tb.scan(net, "mse", data, horizon=10, seeds=1).settings
    environment = tb.top_eigen(net, "mse", data).environment
    assert {name: settings[name] for name in FACTS} == environment
    assert json.loads(json.dumps(environment)) == environment


def test_a_choice_of_kernels_is_told() -> None:
    code = (
        "import json; from trebuchet._environment import environment as e; print(json.dumps(e()))"
    )
    told = []
    for own in ({}, {"ATEN_CPU_CAPABILITY": "default", "OMP_NUM_THREADS": "1"}):
        variables = {k: v for k, v in os.environ.items() if k not in {*SWITCHES, "OMP_NUM_THREADS"}}
        said = subprocess.run(
            [sys.executable, "-c", code], env=variables | own, capture_output=True, check=True
        ).stdout
        told.append(json.loads(said))
    plain, chosen = told
    assert plain["instructions"] == "the libraries' own choice"
    assert chosen["instructions"] == "ATEN_CPU_CAPABILITY=default"
    assert chosen["cpu_capability"] == "DEFAULT"
    assert chosen["threads"] == 1
    assert chosen["cpu"] == plain["cpu"]
