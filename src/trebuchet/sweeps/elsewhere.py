"""Chunks of runs in other processes, by joblib: loky, Dask, Ray, or what the caller has set up.

A worker gets the problem once, as bytes, binds it as the caller did, and makes chunks; it touches
no file. Whoever called takes finished chunks in whatever order they come, and saves them. A worker
that dies costs the chunks it was at: they are made again.
"""

import atexit
import os
import queue
import sys
import time
import uuid
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from threading import Lock, Thread
from typing import Any, TypeVar

import cloudpickle
import joblib
import numpy as np
import torch
from joblib.externals.loky.process_executor import BrokenProcessPool
from joblib.parallel import get_active_backend
from numpy.typing import NDArray

from trebuchet._checks import one_line
from trebuchet.engine.history import History
from trebuchet.engine.kernels.choose import Engine
from trebuchet.engine.runner import Plan, Runner
from trebuchet.engine.threads import one_thread
from trebuchet.errors import InputError
from trebuchet.problem.problem import Problem
from trebuchet.sweeps.binding import Binding
from trebuchet.sweeps.choose import binding

Result = TypeVar("Result")
AT_A_TIME = 4
"""Chunks a worker, where a backend gives back no chunk before the last of those it was given."""
DEATHS = 3
"""Times in a row that workers may die without a chunk made in between."""
ORPHANED = 0.5
"""Seconds between two looks of a worker whether its caller is still there."""


@dataclass(frozen=True, slots=True)
class Errand:
    """What a worker must know to make any chunk of a sweep.

    Attributes:
        problem: The problem.
        seeds: The seeds.
        device: As for ``Execution``.
        engine: As for ``Execution``.
        span: As for ``Execution``.
        plan: What all runs have in common.
        learning_rate: η, shape ``(lr, seed)``.
        chunks: Positions in it of the runs of each chunk.
        fingerprint: Of the weights and data of the caller, which a worker must find again.
    """

    problem: Problem
    seeds: Sequence[int]
    device: str | torch.device | None
    engine: Engine
    span: bool
    plan: Plan
    learning_rate: NDArray[np.float64]
    chunks: Sequence[Sequence[tuple[int, int]]]
    fingerprint: str


def set_by_caller() -> bool:
    """Whether the caller is inside of a ``joblib.parallel_config`` that is not of threads."""
    (first, workers), (second, _) = get_active_backend(), get_active_backend()
    # Outside of one every question makes a new backend, inside of one it is that one.
    configured = first is second or workers is not None
    return configured and not getattr(first, "supports_sharedmem", False)


def made(
    errand: Errand, indices: Sequence[int], backend: str | None, workers: int | None
) -> Generator[tuple[int, History], None, None]:
    """Make chunks in other processes.

    Args:
        errand: The sweep.
        indices: Which chunks.
        backend: ``"loky"``, ``"dask"`` or ``"ray"``; None for what the caller has set up.
        workers: How many; as many as the backend has, if None.

    Yields:
        The position of a chunk, and its history, as they come.

    Raises:
        InputError: If the problem cannot be sent, the backend is not there, or workers go on dying.
    """
    try:
        blob = np.frombuffer(cloudpickle.dumps(errand), np.uint8)
    except Exception as error:  # what cannot be pickled raises whatever it likes
        msg = (
            f"problem: it cannot be sent to other processes ({one_line(error)}); give a function "
            "that makes the model, or use backend='threads'"
        )
        raise InputError(msg) from error
    key, left, deaths = uuid.uuid4().hex, dict.fromkeys(indices), 0
    while left:
        before = len(left)
        try:
            with _configured(backend, workers, blob):
                for index, history in _as_they_come(key, blob, list(left)):
                    yield index, history
                    del left[index]
        except _deaths() as error:
            deaths = deaths + 1 if len(left) == before else 1
            if deaths >= DEATHS:
                msg = (
                    f"workers: their processes died {deaths} times in a row ({one_line(error)}), "
                    "perhaps for want of memory; use fewer, or a smaller chunk. What was saved is "
                    "whole"
                )
                raise InputError(msg) from error


def _deaths() -> tuple[type[BaseException], ...]:
    """What is raised where workers died, by loky, and by Dask where that is in use."""
    if (dask := sys.modules.get("distributed")) is None:
        return (BrokenProcessPool,)
    # A chunk is cancelled where what was sent to workers is lost with the last that had it.
    return BrokenProcessPool, dask.KilledWorker, dask.client.FutureCancelledError


def _as_they_come(
    key: str, blob: NDArray[np.uint8], indices: list[int]
) -> Generator[tuple[int, History], None, None]:
    calls = [joblib.delayed(_chunk)(key, blob, index) for index in indices]
    try:
        pool = joblib.Parallel(return_as="generator_unordered", batch_size=1)
    except ValueError:  # Ray's gives lists only: some at a time, so that few are lost in a crash
        few = AT_A_TIME * max(1, joblib.effective_n_jobs())
        with joblib.Parallel(batch_size=1) as pool:
            for first in range(0, len(calls), few):
                yield from pool(calls[first : first + few])
    else:
        yield from pool(calls)


def _configured(
    backend: str | None, workers: int | None, blob: NDArray[np.uint8]
) -> AbstractContextManager[Any]:
    if backend is None:
        return nullcontext() if workers is None else joblib.parallel_config(n_jobs=workers)
    if backend == "ray":
        try:
            from ray.util.joblib import register_ray
        except ImportError as error:
            msg = "backend: 'ray' needs Ray, which is not installed; pip install 'trebuchet[ray]'"
            raise InputError(msg) from error
        register_ray()  # type: ignore[no-untyped-call]
    more: dict[str, Any] = {}
    if backend == "loky":  # other workers know by themselves when to end
        more = {"initializer": end_with, "initargs": (os.getpid(),)}
    elif backend == "dask":  # to every worker: it is lost with none of them
        more = {"scatter": [blob]}
    try:
        config: AbstractContextManager[Any] = joblib.parallel_config(
            backend=backend, n_jobs=-1 if workers is None else workers, **more
        )
    except ImportError as error:
        msg = (
            f"backend: {backend!r} needs a package that is not installed; "
            f"pip install 'trebuchet[{backend}]'"
        )
        raise InputError(msg) from error
    except ValueError as error:
        msg = (
            f"backend: {backend!r} has no workers yet ({one_line(error)}); make some first: "
            "from dask.distributed import Client; client = Client(n_workers=2)"
        )
        raise InputError(msg) from error
    return config


def end_with(caller: int) -> None:
    """In a worker of loky: end when the caller is killed, who then cannot end its workers.

    Left alone they wait for more work, and hold their memory, for five minutes.

    Args:
        caller: Its process id: the worker's parent, as long as both live.
    """

    def watch() -> None:
        while os.getppid() == caller:
            time.sleep(ORPHANED)
        os._exit(1)

    Thread(target=watch, daemon=True).start()


def _chunk(key: str, blob: NDArray[np.uint8], index: int) -> tuple[int, History]:
    """In a worker: make one chunk."""
    return index, _bench.do(lambda: _bench.made(key, blob, index))


class _Bench:
    """In a worker: the one thread that runs are made in, and the sweep that lies there.

    A module is trained by one thread at a time, and given back by the one that took it; what calls
    a worker may come from any thread of its process.
    """

    def __init__(self) -> None:
        self._tasks: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        self._thread: Thread | None = None
        self._lock = Lock()
        self._key, self._stack = "", ExitStack()
        self._errand: Errand | None = None
        self._bound: Binding | None = None

    def do(self, task: Callable[[], Result]) -> Result:
        """Do something in the thread, and wait for it."""
        with self._lock:
            if self._thread is None:
                self._thread = Thread(target=self._work, daemon=True)
                self._thread.start()
                atexit.register(lambda: self.do(self._stack.close))
        done: Future[Result] = Future()
        self._tasks.put((task, done))
        return done.result()

    def _work(self) -> None:
        while True:
            task, done = self._tasks.get()
            try:
                done.set_result(task())
            except BaseException as error:  # it is the caller's
                done.set_exception(error)

    def made(self, key: str, blob: NDArray[np.uint8], index: int) -> History:
        """One chunk."""
        if key != self._key:
            self._take(key, blob)
        errand, bound = self._errand, self._bound
        assert errand is not None
        assert bound is not None
        pairs = errand.chunks[index]
        with one_thread(bound.device):
            rates = [float(errand.learning_rate[pair]) for pair in pairs]
            kernel = bound.kernel(rates, [s for _, s in pairs])
            history = errand.plan.history(len(pairs), kernel)
            return Runner(kernel, history, np.arange(len(pairs)), errand.plan).run()

    def _take(self, key: str, blob: NDArray[np.uint8]) -> None:
        """Put another sweep on the bench, as its caller has it."""
        self._key = ""
        self._stack.close()
        errand: Errand = cloudpickle.loads(blob.tobytes())
        bound = self._stack.enter_context(
            binding(
                errand.problem, errand.seeds, steps=errand.plan.stop.max_steps,
                device=errand.device, engine=errand.engine, span=errand.span,
                ratios=False, watched=False,
            )
        )  # fmt: skip
        if bound.fingerprint != errand.fingerprint:
            msg = (
                "problem: in another process it has other weights or data than here; let them "
                "depend on the seed alone, or use backend='threads'"
            )
            raise InputError(msg)
        self._key, self._errand, self._bound = key, errand, bound


_bench = _Bench()
