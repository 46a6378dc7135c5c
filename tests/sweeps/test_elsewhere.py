"""Chunks in other processes: the same numbers, saved by one writer, whoever dies."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Lock
from typing import Any

import joblib
import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

import trebuchet as tb
from trebuchet.engine.kernels.module import ModuleKernel
from trebuchet.errors import InputError

RATES, STEPS = [1e-3, 1e-2, 1e-1], 12


def net(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))


def problem(make: Any = net) -> tb.Problem:
    g = torch.Generator().manual_seed(3)
    x, y = torch.randn(24, 5, generator=g), torch.randint(3, (24,), generator=g)
    return tb.Problem(make, "cross_entropy", (x, y), "adamw", batch_size=8)


def same(a: xr.Dataset, b: xr.Dataset) -> None:
    assert set(a.data_vars) == set(b.data_vars)
    for name in a.data_vars:
        np.testing.assert_array_equal(a[name].values, b[name].values, err_msg=str(name))
    assert a.attrs["config_hash"] == b.attrs["config_hash"]


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Products are made by one thread here, as they are in a worker."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def here(one_thread: None) -> xr.Dataset:
    return tb.sweep(problem(), lr=RATES, seeds=2, steps=STEPS, backend="threads")


def test_processes_give_the_runs_of_this_one(here: xr.Dataset) -> None:
    same(here, tb.sweep(problem(), lr=RATES, seeds=2, steps=STEPS, backend="loky", workers=2))
    with joblib.parallel_config(backend="loky", n_jobs=2):
        same(here, tb.sweep(problem(), lr=RATES, seeds=2, steps=STEPS))


def test_stacks_give_the_same_there() -> None:
    make = tb.Problem(
        lambda seed: tb.PureQuadratic.draw(30, generator=seed), "half_mse", ([[1.0]], [0.0])
    )
    execution = tb.Execution(chunk=2, backend="threads")
    a = tb.sweep(make, lr_ratio=[1.0, 2.5, 3.5], seeds=2, steps=20, execution=execution)
    b = tb.sweep(make, lr_ratio=[1.0, 2.5, 3.5], seeds=2, steps=20, chunk=2, backend="loky")
    same(a, b)


def test_what_was_made_is_saved_and_not_made_again(
    here: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "sweep"
    first = tb.sweep(
        problem(), lr=RATES, seeds=2, steps=STEPS, backend="loky", workers=2, checkpoint=folder
    )
    same(here, first)
    same(here, tb.load(folder))
    step_ = ModuleKernel.step_
    made: list[int] = []

    def counted(self: ModuleKernel, step: int) -> object:
        made.append(step)
        return step_(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(ModuleKernel, "step_", counted)
        same(here, tb.sweep(problem(), lr=RATES, seeds=2, steps=STEPS, checkpoint=folder))
    assert made == []


class DiesOnce(nn.Module):
    """In a worker, and for the first one that comes to it, the end of the process."""

    def __init__(self, mark: str, parent: int) -> None:
        super().__init__()
        self.mark, self.parent, self.inner = mark, parent, net(0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if os.getpid() != self.parent and not Path(self.mark).exists():
            Path(self.mark).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        found: torch.Tensor = self.inner(x)
        return found


def test_a_worker_that_is_killed_costs_nothing_but_time(one_thread: None, tmp_path: Path) -> None:
    mark, parent = str(tmp_path / "died"), os.getpid()
    dying = problem(lambda seed: DiesOnce(mark, parent))
    here = tb.sweep(dying, lr=RATES, steps=STEPS, backend="threads")
    there = tb.sweep(dying, lr=RATES, steps=STEPS, backend="loky", workers=2)
    assert Path(mark).exists()
    same(here, there)


class Signs(nn.Module):
    """Leaves a file named by the process that it runs in."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder, self.inner = folder, net(0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        Path(self.folder, str(os.getpid())).touch()
        found: torch.Tensor = self.inner(x)
        return found


KILLED = """
    import sys
    import trebuchet as tb
    from tests.sweeps.test_elsewhere import RATES, Signs, problem
    if __name__ == "__main__":
        signing = problem(lambda seed: Signs(sys.argv[1]))
        tb.sweep(signing, lr=RATES, seeds=2, steps=10**6, backend="loky", workers=2)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")
def test_workers_go_where_their_caller_is_killed(tmp_path: Path) -> None:
    here = Path(__file__).parents[2], Path(tb.__file__).parents[1]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, here))}
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path)]
    with subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL) as process:

        def workers() -> set[int]:
            return {int(p.name) for p in tmp_path.iterdir()} - {process.pid}

        wait_for(lambda: len(workers()) == 2)
        process.kill()
    wait_for(lambda: not any(map(alive, workers())))


def alive(pid: int) -> bool:
    """Whether there is such a process, and it has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Look again and again; other work may have the machine."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_weights_that_depend_on_the_process_are_refused() -> None:
    parent = os.getpid()
    other = problem(lambda seed: net(seed + (os.getpid() != parent)))
    with pytest.raises(InputError, match="other weights or data than here"):
        tb.sweep(other, lr=RATES, steps=STEPS, backend="loky", workers=2)


def test_what_cannot_be_sent_is_refused_in_a_sentence() -> None:
    held = Lock()  # no lock can be pickled

    def make(seed: int) -> nn.Module:
        with held:
            return net(seed)

    with pytest.raises(InputError, match="cannot be sent to other processes"):
        tb.sweep(problem(make), lr=RATES, steps=STEPS, backend="loky")


def test_errors_of_a_run_come_back_as_they_are() -> None:
    parent = os.getpid()

    class Fails(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if os.getpid() != parent and torch.is_grad_enabled():
                msg = "no more"
                raise ZeroDivisionError(msg)
            return super().forward(x)

    with pytest.raises((ZeroDivisionError, InputError), match="no more"):
        tb.sweep(problem(lambda seed: Fails(5, 3)), lr=RATES, steps=STEPS, backend="loky")


def test_dask_without_a_client_says_how_to_make_one() -> None:
    pytest.importorskip("distributed", reason="needs dask[distributed]")
    with pytest.raises(InputError, match=r"backend: 'dask' has no workers yet.*Client\("):
        tb.sweep(problem(), lr=RATES, steps=STEPS, backend="dask")


def test_dask_and_the_death_of_a_worker(here: xr.Dataset, tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed", reason="needs dask[distributed]")
    mark, parent = str(tmp_path / "died"), os.getpid()
    dying = problem(lambda seed: DiesOnce(mark, parent))
    threads = tb.sweep(dying, lr=RATES, seeds=2, steps=STEPS, backend="threads")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster),
    ):
        same(here, tb.sweep(problem(), lr=RATES, seeds=2, steps=STEPS, backend="dask"))
        # One of the two is killed at its first chunk; its chunks are made again.
        assert not Path(mark).exists()
        same(threads, tb.sweep(dying, lr=RATES, seeds=2, steps=STEPS, backend="dask"))
        assert Path(mark).exists()


def test_ray(here: xr.Dataset) -> None:
    ray = pytest.importorskip("ray", reason="needs ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        runs = tb.sweep(problem(), lr=RATES, seeds=2, steps=STEPS, backend="ray", workers=2)
    finally:
        ray.shutdown()
    same(here, runs)
