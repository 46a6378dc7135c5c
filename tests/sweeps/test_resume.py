"""Stopped anywhere by anything, a resumed sweep equals the uninterrupted one bit for bit."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

import trebuchet
from tests.sweeps.interrupting import STOPPER, Watched, differing
from tests.zoo import F64, biased, inputs, mlp, pure, sequential
from trebuchet.engine.recording import Recording
from trebuchet.errors import InputError
from trebuchet.problem.problem import Problem
from trebuchet.sweeps.sweep import sweep

ALL = ["top_eigenvalue", "sparsity", "test_loss"]


def problem(kind: str, dtype: torch.dtype = F64) -> Problem:
    """A problem of each kind of kernel, with test data."""
    makers: dict[str, Callable[[int], nn.Module]] = {
        "pure": lambda s: pure(seed=s),
        "biased": lambda s: biased(seed=s),
        "relu": lambda s: mlp(hidden=2, seed=s),
        "leaky": lambda s: mlp(slopes=(1, 0.5), seed=s),
        "net": lambda s: sequential(),
        "samples": lambda s: mlp(hidden=1, seed=s),
        "classes": lambda s: sequential(outputs=3),
        "norm": lambda s: nn.Sequential(sequential(outputs=4), nn.BatchNorm1d(4), nn.Linear(4, 1)),
    }
    width = 2 if kind in ("pure", "biased") else 5
    samples = 70 if kind == "samples" else 4  # so many that λ is found from where it was last
    x, y = inputs(samples, width), inputs(samples, 1, seed=3)[:, 0]
    test = inputs(3, width, seed=5), inputs(3, 1, seed=6)[:, 0]
    loss: Any = "half_mse"
    if kind == "classes":
        y, test = torch.tensor([0, 1, 2, 0]), (test[0], torch.tensor([0, 1, 2]))
        loss = nn.CrossEntropyLoss()
    if kind == "norm":
        torch.manual_seed(0)
    return Problem(lambda s: makers[kind](s).to(dtype), loss, (x, y), test=test)


# One a kernel, and among them every part of a state: runs that leave the stack early (8.0), the
# law's prediction, velocity, tolerance, sparse rows, seeds mixed and not, chunks and workers.
CASES: dict[str, tuple[str, torch.dtype, dict[str, Any]]] = {
    "law, several seeds in a stack": ("relu", F64, {"seeds": 3}),
    "λ from the last eigenvector": ("samples", torch.float32, {"seeds": 2, "chunk": 3}),
    "float32, tolerance": ("relu", torch.float32, {"tolerance": 1e-3, "seeds": 2}),
    "heavy ball": ("leaky", F64, {"optimizer": Watched(0.8), "chunk": 2, "workers": 2}),
    "weight decay, a run a chunk": ("pure", F64, {"optimizer": Watched(0, 0.05), "chunk": 1}),
    "sparse rows": ("biased", torch.float32, {"record": Recording(every=7), "tolerance": 1e-6}),
    "any module, stacked": ("net", F64, {"engine": "batched", "chunk": 3, "tolerance": 1e-4}),
    "any loss": ("classes", torch.float32, {"engine": "batched"}),
    "one by one": (
        "net",
        torch.float32,
        {
            "engine": "sequential",
            "optimizer": Watched(0.5, 0.01),
            "lr_ratio": [0.4, 8.0],
        },
    ),
    "batch norm": ("norm", F64, {"engine": "sequential", "chunk": 2}),
    "half precision": ("relu", torch.bfloat16, {"span": False, "optimizer": Watched(0.9)}),
}


@pytest.mark.parametrize("every", [0.0, 5.0], ids=["saved often", "saved when stopped"])
@pytest.mark.parametrize("case", CASES)
def test_ctrl_c_at_any_step_and_again(case: str, every: float, tmp_path: Path) -> None:
    kind, dtype, changes = CASES[case]
    arguments: dict[str, Any] = {
        "lr_ratio": [0.4, 1.1, 2.3, 8.0], "steps": 16, "observables": ALL, "chunk": 4,
        "optimizer": Watched(), "workers": 1, **changes,
    }  # fmt: skip
    whole = sweep(problem(kind, dtype), **arguments)
    held = {**arguments, "checkpoint": tmp_path, "checkpoint_seconds": every}
    rng = np.random.default_rng(sum(case.encode()))
    for step in rng.integers(1, 6, size=2).tolist():
        part = sweep(problem(kind, dtype), **held, progress=STOPPER.at(step))
        assert part.attrs["interrupted"] == 1
        began = np.isfinite(part.loss_first.values)
        assert began.any()
        # What the caller gets is one state a run: the loss and the weights are of the same step.
        assert np.isfinite(part.weight_norm_final.values[began]).all()
        stopped = (part.status.values == "interrupted") & began
        rows = part.steps.values[stopped]
        if "record" not in changes and stopped.any():
            last = part.loss.values[stopped][np.arange(rows.size), rows]
            np.testing.assert_array_equal(last, part.loss_final.values[stopped])
    STOPPER.at(-1)
    resumed = sweep(problem(kind, dtype), **held)
    assert differing(whole, resumed) == []
    assert whole.attrs["top_eigenvalue_proofs"] == resumed.attrs["top_eigenvalue_proofs"]


def test_what_was_finished_before_an_interrupt_is_in_the_next_partial_result(
    tmp_path: Path,
) -> None:
    arguments: dict[str, Any] = {
        "lr_ratio": [0.5, 1.0, 1.5, 2.0], "steps": 20, "chunk": 1, "workers": 1,
        "optimizer": Watched(), "checkpoint": tmp_path,
    }  # fmt: skip
    first = sweep(problem("relu"), **arguments, progress=STOPPER.at(50))
    assert first.status.values[:, 0].tolist() == [
        "max_steps", "max_steps", "interrupted", "interrupted",
    ]  # fmt: skip

    def at_once(done: int, total: int) -> None:
        raise KeyboardInterrupt

    STOPPER.at(-1)
    again = sweep(problem("relu"), **arguments, progress=at_once)
    assert again.status.values[:2, 0].tolist() == ["max_steps", "max_steps"]
    assert again.steps.values[2, 0] >= first.steps.values[2, 0]


def test_a_chunk_size_that_was_measured_is_kept_and_another_is_refused(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"lr_ratio": [0.5, 1.5, 2.5], "steps": 8}
    runs = sweep(problem("relu"), **arguments, checkpoint=tmp_path)
    chunk = runs.attrs["chunk"]
    assert sweep(problem("relu"), **arguments, checkpoint=tmp_path).attrs["chunk"] == chunk
    with pytest.raises(InputError, match=rf"chunk: .* begun with chunk={chunk}, got {chunk + 1}"):
        sweep(problem("relu"), **arguments, checkpoint=tmp_path, chunk=chunk + 1)


def test_a_second_ctrl_c_changes_nothing(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """It comes while the chunk is still in its step; the chunk ends it, and is saved."""
    ignored = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, ignored))
    calls = 0

    def slow(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 5:
            inside.set()
            time.sleep(0.5)
        return (z - y).square().mean() / 2

    inside, sent = threading.Event(), list[int]()

    def twice(done: int, total: int) -> None:
        if inside.is_set() and not sent:
            sent.append(done)
            threading.Timer(0.1, signal.raise_signal, [signal.SIGINT]).start()
            raise KeyboardInterrupt

    p = problem("relu")
    p = Problem(p.model, slow, (p.x, p.y))
    arguments: dict[str, Any] = {"lr_ratio": [0.5], "steps": 2000, "chunk": 1}
    part = sweep(p, **arguments, checkpoint=tmp_path, progress=twice)
    assert part.status.item() == "interrupted"
    assert not [t.name for t in threading.enumerate() if t.name.startswith("chunks")]
    assert sweep(p, **arguments, checkpoint=tmp_path).attrs["interrupted"] == 0


def test_an_error_in_the_progress_function_loses_nothing(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {
        "lr_ratio": [0.5, 1.5, 2.5], "steps": 200, "chunk": 1, "workers": 2,
        "optimizer": Watched(), "record": Recording(dense=10),
    }  # fmt: skip

    def broken(done: int, total: int) -> None:
        if STOPPER.reached.is_set():
            STOPPER.raised.set()
            raise ZeroDivisionError

    STOPPER.at(70)
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError):
        sweep(problem("relu"), **arguments, checkpoint=tmp_path, progress=broken)
    assert threading.active_count() == before
    STOPPER.at(-1)
    resumed = sweep(problem("relu"), **arguments, checkpoint=tmp_path)
    assert differing(sweep(problem("relu"), **arguments), resumed) == []


def test_progress_of_a_resumed_sweep_goes_on_where_it_was(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {
        "lr_ratio": [0.5, 8.0], "steps": 50, "chunk": 2, "optimizer": Watched(),
    }  # fmt: skip
    sweep(problem("leaky"), **arguments, checkpoint=tmp_path, progress=STOPPER.at(40))
    seen: list[int] = []
    STOPPER.at(-1)
    sweep(problem("leaky"), **arguments, checkpoint=tmp_path, progress=lambda d, t: seen.append(d))
    assert seen[-2:] == [100, 100]


def test_strides_of_the_weights_are_part_of_the_state(tmp_path: Path) -> None:
    """A transposed weight multiplies in another order: resumed as a plain one, it rounds apart."""
    net = sequential(d=40, width=40)
    first = net[0]
    assert isinstance(first, nn.Linear)
    first.weight = nn.Parameter(first.weight.detach().T.contiguous().T)
    assert not first.weight.is_contiguous()
    p = Problem(net, "half_mse", (inputs(30, 40), inputs(30, 1)))
    arguments: dict[str, Any] = {
        "lr_ratio": [0.9], "steps": 40, "optimizer": Watched(), "engine": "batched",
    }  # fmt: skip
    whole = sweep(p, **arguments)
    sweep(p, **arguments, checkpoint=tmp_path, progress=STOPPER.at(20))
    STOPPER.at(-1)
    assert differing(whole, sweep(p, **arguments, checkpoint=tmp_path)) == []


def test_digits_do_not_depend_on_the_number_of_threads() -> None:
    """Neither λ₀ nor a run, so that a sweep may be resumed under another number of them."""
    p = Problem(
        lambda s: mlp(d=30, width=64, seed=s), "half_mse", (inputs(200, 30), inputs(200, 1))
    )
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(sweep(p, lr_ratio=[0.7], seeds=4, steps=1, chunk=1))
    finally:
        torch.set_num_threads(before)
    assert differing(*results) == []


def test_two_sweeps_at_a_time_leave_the_threads_as_they_were() -> None:
    """One ends while the other runs on: its products are still made by one thread each."""
    before, seen = torch.get_num_threads(), []

    def watch(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        seen.append(torch.get_num_threads())
        return (z - y).square().mean() / 2

    p = problem("relu")
    slow = Problem(p.model, watch, (p.x, p.y))
    torch.set_num_threads(2)
    try:
        long = threading.Thread(target=lambda: sweep(slow, lr_ratio=[0.5], steps=300, chunk=1))
        long.start()
        for _ in range(5):
            sweep(p, lr_ratio=[0.5], steps=2)
        long.join()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {1}


def test_a_model_that_is_no_function_of_its_weights_is_refused() -> None:
    net = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.Linear(8, 1)).to(F64)
    problem = Problem(net, "half_mse", (inputs(4, 5), inputs(4, 1)))
    with pytest.raises(InputError, match=r"model: .*dropout.*eval\(\)"):
        sweep(problem, lr=[0.1], steps=3, engine="sequential")
    noisy = [sweep(problem, lr=[0.1], steps=3) for _ in range(2)]
    assert differing(*noisy) == []  # on the module itself: one mask a step, whoever asks
    net.eval()
    sweep(problem, lr=[0.1], steps=3, engine="batched")


def test_state_that_forward_moves_is_no_part_of_a_run() -> None:
    """A normed net alone, beside others, and after others; and the caller's averages are kept."""
    p = problem("norm")
    net = p.initial(0)
    kept = {name: b.clone() for name, b in net.named_buffers()}
    p = Problem(net, "half_mse", (p.x, p.y))
    both = sweep(p, lr_ratio=[0.5, 1.5], steps=15)
    alone = sweep(p, lr_ratio=[1.5], steps=15)
    assert differing(both.sel(lr=[1.5]), alone) == []
    assert all(torch.equal(b, kept[name]) for name, b in net.named_buffers())


STOPPED = """
    import sys
    import torch
    from tests.sweeps.test_resume import long_sweep
    torch.set_num_threads(1)
    runs = long_sweep(sys.argv[1])
    print("interrupted" if runs.attrs["interrupted"] else "whole")
"""


def long_sweep(folder: str | None) -> xr.Dataset:
    """More seconds of work than it is interrupted for in all, checkpointed often."""
    return sweep(
        problem("relu"),
        lr_ratio=[0.3, 0.9, 2.2],
        steps=8000,
        chunk=1,
        record=Recording(dense=10),
        checkpoint=folder,
        checkpoint_seconds=0.05,
    )


def test_signals_at_random_moments(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    here = Path(__file__).parents[2], Path(trebuchet.__file__).parents[1]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, here))}
    command = [sys.executable, "-c", textwrap.dedent(STOPPED), str(tmp_path)]
    for number in (signal.SIGKILL, signal.SIGINT, signal.SIGTERM):
        # Of one that was killed; a new one says that this process has begun. A signal that came
        # while torch is imported could be lost.
        (tmp_path / ".owner.json").unlink(missing_ok=True)
        process = subprocess.Popen(command, env=env)
        deadline = time.monotonic() + 60
        while not (tmp_path / ".owner.json").exists() or not begun(tmp_path):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(rng.uniform(0.05, 0.4))
        process.send_signal(number)
        process.wait()
    assert begun(tmp_path)
    whole = long_sweep(None)
    assert differing(whole, long_sweep(str(tmp_path))) == []
    assert differing(whole, trebuchet.load(tmp_path)) == []
    assert not list(tmp_path.rglob("*.part*"))


def begun(folder: Path) -> list[Path]:
    """The files of chunks that are under way."""
    return list((folder / ".sweep").glob("chunk-*"))


def test_pressed_twice_in_a_sweep_of_modules_is_pressed_once(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """In the middle of a pass, and again while what was made is being put together."""
    ignored = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, ignored))
    net, passes, pressed = nn.Linear(5, 1), 0, list[str]()

    def press(*_: object) -> None:
        nonlocal passes
        passes += 1
        if passes == 60:
            pressed.append("in a pass")
            signal.raise_signal(signal.SIGINT)

    def again(done: int, total: int) -> None:
        if len(pressed) == 1:
            pressed.append("again")
            signal.raise_signal(signal.SIGINT)

    net.register_forward_hook(press)
    data = torch.ones(4, 5), torch.ones(4, 1)
    given: dict[str, Any] = {"lr": [1e-3, 1e-2, 1e-1], "steps": 40, "checkpoint": tmp_path}
    part = sweep(net, "mse", data, "adam", **given, progress=again)
    assert pressed == ["in a pass", "again"]
    assert part.attrs["interrupted"] == 1
    ended = (part.status == "max_steps").values
    assert 0 < ended.sum() < 3
    np.testing.assert_array_equal((trebuchet.load(tmp_path).status == "max_steps").values, ended)
