"""Kill a sweep of 300 runs by SIGKILL at random moments, resume it, and count what was lost.

    python bench/killed.py sweep [--runs 300] [--kills 100] [--backend threads|loky|dask] [--seed 0]

The process that sweeps is killed at a random moment of the first seven tenths of what an
undisturbed sweep takes, its start included, and started again on the same checkpoint, until it
ends; then another sweep is begun, until there were so many kills. Where other processes make the
runs, one of those is killed too, in every third of its lives: the sweep is to go on. After each
kill `trebuchet show` says how many runs have ended: never fewer than before it; and within seconds
no process of the killed sweep is left. Each sweep that ended is compared, bit for bit, with the
undisturbed one. The row of a backend in bench/results/killed.json is replaced.

Processes are forks of this one, which has imported everything and has one thread: else a hundred
kills were a hundred imports of torch.
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import platform
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

import trebuchet as tb
from trebuchet.cli import main as trebuchet_command

OUT = Path(__file__).parent / "results" / "killed.json"
WITHIN = 0.7
"""Of the seconds that an undisturbed sweep takes: a kill comes in the first so many."""
LONGEST = 20.0
"""Seconds that processes of a killed sweep may take to go."""
SEEDS, CHUNK = 10, 3


def problem() -> tb.Problem:
    """Two-layer ReLU nets on noise, in stacks of a few runs."""
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(16, 8, generator=g), torch.randn(16, 1, generator=g)
    return tb.Problem(lambda seed: tb.MLP.draw(8, 32, generator=seed), "half_mse", (x, y))


def swept(options: argparse.Namespace, checkpoint: Path | None) -> xr.Dataset:
    """The sweep, a thread a product, as in other processes."""
    backend: Any = options.backend
    return tb.sweep(
        problem(), lr_ratio=np.geomspace(0.3, 12, options.runs // SEEDS), seeds=SEEDS,
        steps=options.steps, chunk=CHUNK, record=tb.Recording(every=options.steps // 50),
        backend=backend, workers=None if backend == "dask" else 2, checkpoint=checkpoint,
        checkpoint_seconds=0.1, progress=False,
    )  # fmt: skip


def sweep(options: argparse.Namespace, checkpoint: Path | None, result: Path) -> None:
    """What a killed process was at: the sweep, saved when it has ended."""
    with contextlib.ExitStack() as stack:
        if options.backend == "dask":
            from distributed import Client, LocalCluster

            made: Any = LocalCluster  # untyped, as the next
            cluster = made(n_workers=2, threads_per_worker=1, dashboard_address=None)
            client: Any = Client
            stack.enter_context(client(stack.enter_context(cluster)))
        tb.save(swept(options, checkpoint), result, overwrite=True)


def forked(task: Callable[..., object], *arguments: Any, said: Path | None = None) -> int:
    """Do it in a fork of this process, which is left clean of threads.

    Args:
        task: What.
        *arguments: Its arguments.
        said: Where what it prints goes; nowhere, if None.

    Returns:
        The process id.
    """
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        with (said or Path(os.devnull)).open("w") as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
            task(*arguments)
            code = 0
    except BaseException:  # a fork, whose end is its own: told, not raised
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ended_at(folder: Path, runs: int) -> int:
    """Runs of a checkpoint that have ended, as `trebuchet show` has it."""
    with tempfile.NamedTemporaryFile("r") as told:
        os.waitpid(forked(_show, folder, said=Path(told.name)), 0)
        text = told.read()
    if found := re.search(rf"(\d+) of {runs} runs have ended", text):
        return int(found.group(1))
    if found := re.search(r"^phases +(.*)$", text, re.MULTILINE):  # killed when it was the result
        return sum(int(n) for n in re.findall(r"(\d+) (?!not run)", found.group(1)))
    if "there is nothing at" in text or "holds no result" in text:
        return 0
    msg = f"trebuchet show: {text}"
    raise RuntimeError(msg)


def _show(folder: Path) -> None:
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):
        trebuchet_command(["show", str(folder)])
    print(said.getvalue())


def differing(whole: Path, broken: Path, told: Path) -> None:
    """Write down what is not the same to the last bit."""
    a, b = tb.load(whole), tb.load(broken)
    names = set(a.variables) ^ set(b.variables)
    for name in set(a.variables) & set(b.variables):
        u, v = a[name].values, b[name].values
        if u.dtype != v.dtype or u.shape != v.shape or u.tobytes() != v.tobytes():
            names.add(name)
    told.write_text(json.dumps(sorted(map(str, names))))


def family(pid: int) -> list[int]:
    """All processes under one."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, task.read_text().split()):
                found += [child, *family(child)]
    return found


def alive(pid: int) -> bool:
    """Whether there is such a process, and it has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def is_worker(pid: int) -> bool:
    """Whether it makes runs, rather than keeping track of others."""
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_text()
        return "resource_tracker" not in words and "forkserver" not in words
    return False


@dataclass
class Count:
    """What was seen."""

    kills: int = 0
    kills_of_workers: int = 0
    lost: int = 0
    sweeps: int = 0
    different: int = 0
    failed: int = 0
    orphans: int = 0
    seconds_to_go: list[float] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def say(self, backend: str) -> str:
        """In a line."""
        slowest = max(self.seconds_to_go, default=0.0)
        return (
            f"{backend:8} {self.kills:4} kills of the process, {self.kills_of_workers} of workers: "
            f"{self.lost} runs lost, {self.sweeps - self.different - self.failed} of {self.sweeps} "
            f"sweeps equal bit for bit, {self.orphans} orphans (gone after {slowest:.1f} s)"
        )


def gone(processes: list[int], count: Count) -> None:
    """Wait for what a killed process started; end what does not."""
    asked = time.monotonic()
    while any(map(alive, processes)) and time.monotonic() - asked < LONGEST:
        time.sleep(0.05)
    count.seconds_to_go.append(time.monotonic() - asked)
    for pid in filter(alive, processes):
        count.orphans += 1
        os.kill(pid, signal.SIGKILL)


def through(pid: int, seconds: float) -> int | None:
    """Wait so long for a process; its exit code, if it has ended."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found, code = os.waitpid(pid, os.WNOHANG)
        if found:
            return code
        time.sleep(0.01)
    return None


def one_sweep(
    options: argparse.Namespace, folder: Path, within: float, rng: Any, count: Count
) -> None:
    """Kill and resume one sweep until it has ended."""
    checkpoint, result, log = folder / "checkpoint", folder / "runs.zarr", folder / "log"
    before = 0
    while True:
        pid = forked(sweep, options, checkpoint, result, said=log)
        code = None
        if count.kills < options.kills:
            code = through(pid, float(rng.uniform(0, within)))
            workers = [child for child in family(pid) if is_worker(child)]
            if code is None and workers and rng.uniform() < 1 / 3:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(rng.choice(workers)), signal.SIGKILL)
                    count.kills_of_workers += 1
                code = through(pid, float(rng.uniform(0, within)))
        else:
            _, code = os.waitpid(pid, 0)
        if code is not None:
            break
        others = family(pid)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        count.kills += 1
        gone(others, count)
        now = ended_at(checkpoint, options.runs)
        count.lost += max(0, before - now)
        before = now
        print(f"kill {count.kills}: {now} of {options.runs} runs have ended", flush=True)
        record(options, count)
    count.sweeps += 1
    if code:
        count.failed += 1
        print(f"the sweep failed:\n{log.read_text()}", flush=True)
        return
    told = folder / "differ.json"
    os.waitpid(forked(differing, folder.parent / "whole.zarr", result, told), 0)
    differ = json.loads(told.read_text())
    count.different += bool(differ)
    print("every bit is the same" if not differ else f"these differ: {differ}", flush=True)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--backend", choices=["threads", "loky", "dask"], default="threads")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT)


def run(options: argparse.Namespace) -> bool:
    """Kill, count, and write down.

    Args:
        options: As `add_options` has them.

    Returns:
        Whether anything was wrong.
    """
    warnings.simplefilter("ignore")  # trackers of shared memory tell what they clean up
    multiprocessing.set_start_method("spawn")
    rng, count = np.random.default_rng(options.seed), Count()
    torch.set_num_threads(1)
    tb.sweep(problem(), lr=[1e-3], steps=1, progress=False)  # imports what is imported late
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        whole = place / "whole.zarr"
        log = place / "log"
        pid = forked(sweep, options, None, whole, said=log)
        if os.waitpid(pid, 0)[1]:
            raise SystemExit(log.read_text())
        within = WITHIN * (time.monotonic() - count.started)
        print(f"undisturbed: {within / WITHIN:.1f} s", flush=True)
        while count.kills < options.kills:
            folder = place / f"sweep-{count.sweeps}"
            folder.mkdir()
            one_sweep(options, folder, within, rng, count)
            shutil.rmtree(folder)
    print(count.say(options.backend))
    record(options, count)
    return bool(count.lost or count.different or count.failed or count.orphans)


def record(options: argparse.Namespace, count: Count) -> None:
    """Put the backend's row into the table of all."""
    rows = json.loads(options.out.read_text())["rows"] if options.out.exists() else []
    row = {
        "backend": options.backend, "runs": options.runs, "chunk": CHUNK, "steps": options.steps,
        "kills": count.kills, "kills_of_workers": count.kills_of_workers, "runs_lost": count.lost,
        "sweeps": count.sweeps, "sweeps_different": count.different,
        "sweeps_failed": count.failed, "orphans": count.orphans,
        "slowest_to_go_seconds": round(max(count.seconds_to_go, default=0.0), 1),
        "seconds": round(time.monotonic() - count.started),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "torch": torch.__version__, "platform": platform.platform(),
        "command": "python bench/killed.py " + " ".join(sys.argv[1:]),
    }  # fmt: skip
    rows = [other for other in rows if other["backend"] != options.backend] + [row]
    options.out.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
