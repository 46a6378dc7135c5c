"""Two gloo ranks under torchrun, each with its shard, give the single process's answer."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

from tests.curvature.ranks import measure, problem

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
def test_two_ranks_agree_with_one() -> None:
    run = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
            "-m", "tests.curvature.ranks",
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    lines = [line.split(": ")[1] for line in run.stdout.splitlines() if line.startswith("rank ")]
    assert len(lines) == 2
    assert lines[0] == lines[1]  # the ranks agree to the last bit
    alone = measure(*problem(), group=False)
    assert [float(v) for v in lines[0].split()] == pytest.approx(alone, rel=1e-8, nan_ok=True)
