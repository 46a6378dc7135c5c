"""The experiments beyond the paper at full size: sparsity, the weight-norm ceiling, the edge.

    python bench/beyond.py [--data-root DIR] [--out bench/results/beyond.json] [EXPERIMENT ...]

Each experiment is a minute or a few on two cores, and is written when it is done; the others in the
file are kept. docs/paper.md draws its pictures from this file.
"""

import argparse
import json
import math
import platform
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from trebuchet.paper.beyond import divergence_edge, norm_ceiling, sparsity_over_widths

EXPERIMENTS: dict[str, Callable[[Path | None], xr.Dataset]] = {
    "sparsity_digits": lambda root: sparsity_over_widths(),
    "sparsity_mnist": lambda root: sparsity_over_widths(
        widths=(128, 512, 2048), seeds=3, steps=300, data="mnist", data_root=root
    ),
    "ceiling": lambda root: norm_ceiling(),
    "edge": lambda root: divergence_edge(),
    "edge_wide": lambda root: divergence_edge(
        activations=["relu"], hidden=[1], widths=[128, 512, 2048, 4096], steps=500, stop=100.0
    ),
}


def to_json(ds: xr.Dataset) -> dict[str, Any]:
    """A dataset as plain JSON: dims, coordinates, and every variable with its meaning."""
    return {
        "attrs": {key: value for key, value in ds.attrs.items()},
        "dims": list(ds.sizes),
        "coords": {str(name): ds[name].values.tolist() for name in ds.coords},
        "variables": {
            str(name): {
                "dims": list(variable.dims),
                "long_name": variable.attrs.get("long_name", ""),
                "values": _plain(variable.values),
            }
            for name, variable in ds.data_vars.items()
        },
    }


def _plain(values: np.ndarray) -> Any:
    """Nested lists; numbers to six digits; JSON has no NaN: null."""
    if values.ndim:
        return [_plain(part) for part in values]
    value = values.item()
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def main() -> None:
    """Run, time, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("experiments", nargs="*", default=list(EXPERIMENTS))
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--out", type=Path, default=Path("bench/results/beyond.json"))
    arguments = parser.parse_args()
    for name in arguments.experiments:
        if name not in EXPERIMENTS:
            parser.error(f"expected any of {', '.join(EXPERIMENTS)}, got {name!r}")
        wall, cpu = time.perf_counter(), time.process_time()
        ds = EXPERIMENTS[name](arguments.data_root)
        result = to_json(ds)
        result["seconds"] = round(time.perf_counter() - wall, 1)
        result["process_seconds"] = round(time.process_time() - cpu, 1)
        result["environment"] = {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "machine": platform.machine(),
            "threads": torch.get_num_threads(),
        }
        written = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
        written[name] = result
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(written, ensure_ascii=False) + "\n")
        print(f"{name}: {result['seconds']} s, {result['process_seconds']} s of process time")


if __name__ == "__main__":
    main()
