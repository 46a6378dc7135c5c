"""What a sweep of a hundred thousand runs costs beside its steps: planned, saved, opened.

    python bench/many_runs.py [--rates 1000] [--seeds 100] [--steps 20] [--out FILE]

Runs of a quadratic model, stacked; one thread. Every part is timed by the clock, in one process.
"""

import argparse
import json
import platform
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

import trebuchet as tb

OUT = Path(__file__).parent / "results" / "many_runs.json"


def main() -> None:
    """Time every part, and write them down."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rates", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    problem = tb.Problem(
        lambda seed: tb.PureQuadratic.draw(20, generator=seed), "half_mse", ([[1.0]], [0.0])
    )
    asked: dict[str, Any] = {
        "lr_ratio": np.linspace(0.1, 5, options.rates), "seeds": options.seeds,
        "steps": options.steps, "chunk": 1000, "workers": 1,
    }  # fmt: skip
    tb.sweep(problem, lr_ratio=[1.0], steps=2)  # what is imported at the first call
    seconds: dict[str, float] = {}

    def timed(name: str, work: Any) -> Any:
        start = time.perf_counter()
        found = work()
        seconds[name] = round(time.perf_counter() - start, 2)
        print(f"{seconds[name]:8.2f} s  {name}", flush=True)
        return found

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "runs.zarr"
        timed("swept, nothing saved", lambda: tb.sweep(problem, **asked))
        timed("swept into a Zarr", lambda: tb.sweep(problem, **asked, checkpoint=folder))
        opened = timed("opened without being read", lambda: tb.load(folder, lazy=True))
        timed("one trace read", lambda: opened.loss.isel(lr=0, seed=0).values)
        runs = timed("read, every checksum compared", lambda: tb.load(folder))
        timed("taken up again, all ended", lambda: tb.sweep(problem, **asked, checkpoint=folder))
        timed("labelled", lambda: tb.label(runs))
        found = [path for path in folder.rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in found)
    told = {
        "runs": options.rates * options.seeds, "steps": options.steps, "seconds": seconds,
        "files": len(found), "megabytes": round(size / 1e6, 1),
        "created": datetime.now(UTC).isoformat(timespec="seconds"), "torch": torch.__version__,
        "platform": platform.platform(), "command": "python bench/many_runs.py",
    }  # fmt: skip
    options.out.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
