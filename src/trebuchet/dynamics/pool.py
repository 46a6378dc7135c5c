"""Chunks of runs on their way through the workers."""

from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray

from trebuchet._progress import Progress
from trebuchet.dynamics.binding import Bound
from trebuchet.dynamics.history import History
from trebuchet.dynamics.runner import Control, Plan, Runner


@dataclass(slots=True)
class Job:
    """Chunks on their way through the workers."""

    bound: Bound
    plan: Plan
    learning_rate: NDArray[np.float64]
    chunks: list[list[tuple[int, int]]]
    folder: Path | None
    progress: Progress
    done: int = 0
    lock: Lock = field(default_factory=Lock)

    def run(self, workers: int) -> tuple[list[History], bool]:
        """Histories in the order of the chunks, and whether Ctrl-C came in between."""
        control = Control(advance=self._advance)
        total = sum(len(c) for c in self.chunks) * self.plan.stop.max_steps
        interrupted = False
        with ThreadPoolExecutor(workers) as pool:
            futures = [pool.submit(self._one, i, control) for i in range(len(self.chunks))]
            pending: set[Future[History]] = set(futures)
            try:
                while pending:
                    finished, pending = wait(pending, timeout=0.1, return_when=FIRST_COMPLETED)
                    for future in finished:
                        future.result()  # raises what the chunk raised
                    self.progress(self.done, total)
            except KeyboardInterrupt:
                interrupted = True
            finally:
                if pending:
                    control.stop.set()
                    for future in pending:
                        future.cancel()
            self.progress(total, total)
        return [self._result(i, future) for i, future in enumerate(futures)], interrupted

    def _one(self, index: int, control: Control) -> History:
        pairs = self.chunks[index]
        kernel = self.bound.kernel([s for _, s in pairs])
        rates = [self.learning_rate[pair] for pair in pairs]
        lr = torch.tensor(rates, dtype=self.bound.x.dtype, device=self.bound.x.device)
        path = None if self.folder is None else self.folder / f"chunk-{index}.pt"
        runner = Runner(kernel, lr, self.bound.layers, self.plan, path)
        history = runner.run(control)
        # What a run did not need of its budget counts as done.
        self._advance(int((self.plan.stop.max_steps - history.steps).sum()))
        return history

    def _result(self, index: int, future: Future[History]) -> History:
        if future.cancelled():
            runs = len(self.chunks[index])
            return History(runs, self.plan.schedule, self.bound.layers, self.plan.delta)
        return future.result()

    def _advance(self, steps: int) -> None:
        with self.lock:
            self.done += steps


@contextmanager
def intra_op_threads(n: int | None) -> Iterator[None]:
    """One thread a chunk: small products do not scale, whole runs do."""
    before = torch.get_num_threads()
    if n is not None:
        torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)
