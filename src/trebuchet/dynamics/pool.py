"""Chunks of runs on their way through the workers."""

import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray

from trebuchet._progress import Progress
from trebuchet.dynamics.binding import Bound
from trebuchet.dynamics.checkpoint import Checkpoint, ChunkFile
from trebuchet.dynamics.history import History
from trebuchet.dynamics.runner import Control, Plan, Runner, restore_ended

PATIENCE = 10.0
"""Seconds in which a second Ctrl-C changes nothing: most people press twice."""


@dataclass(slots=True)
class Job:
    """Chunks on their way through the workers."""

    bound: Bound
    plan: Plan
    learning_rate: NDArray[np.float64]
    chunks: list[list[tuple[int, int]]]
    checkpoint: Checkpoint | None
    progress: Progress
    done: int = 0
    lock: Lock = field(default_factory=Lock)

    def run(self, workers: int) -> tuple[list[History], bool]:
        """Histories in the order of the chunks, and whether Ctrl-C came in between.

        Args:
            workers: Chunks in flight together.

        Returns:
            Both.

        Raises:
            InputError: If a saved chunk is damaged, or of other runs.
        """
        for index in range(len(self.chunks)):  # at once, not when its turn comes after hours
            file = self._file(index)
            if file is not None:
                file.load()
        control = Control(advance=self._advance)
        total = sum(len(c) for c in self.chunks) * self.plan.stop.max_steps
        interrupted = False
        futures: list[Future[History]] = []
        pool = ThreadPoolExecutor(workers)
        try:
            for index in range(len(self.chunks)):
                futures.append(pool.submit(self._one, index, control))
            pending = set(futures)
            while pending:
                finished, pending = wait(pending, timeout=0.1, return_when=FIRST_COMPLETED)
                for future in finished:
                    future.result()  # raises what the chunk raised
                self.progress(self.done, total)
        except KeyboardInterrupt:
            interrupted = True
        finally:
            control.stop.set()
            _wind_up(pool, futures)
        try:
            self.progress(total, total)  # whatever shows it can go
        except KeyboardInterrupt:
            interrupted = True
        ended: list[History] = []
        for index in range(len(self.chunks)):
            if index < len(futures) and not futures[index].cancelled():
                ended.append(futures[index].result())
            else:
                ended.append(self._unstarted(index, control))
        return ended, interrupted

    def _one(self, index: int, control: Control) -> History:
        pairs, file = self.chunks[index], self._file(index)
        history = self._blank(index)
        if file is None or not restore_ended(file, history):
            kernel = self.bound.kernel([s for _, s in pairs])
            rates = [self.learning_rate[pair] for pair in pairs]
            lr = torch.tensor(rates, dtype=self.bound.x.dtype, device=self.bound.x.device)
            history = Runner(kernel, lr, self.bound.layers, self.plan, file).run(control)
        else:
            self._advance(int(history.steps.sum()))
        # What a run did not need of its budget counts as done.
        self._advance(int((self.plan.stop.max_steps - history.steps).sum()))
        return history

    def _unstarted(self, index: int, control: Control) -> History:
        """What there is of a chunk whose turn did not come: what an earlier call has saved."""
        file = self._file(index)
        saved = file is not None and file.path.exists()
        return self._one(index, control) if saved else self._blank(index)

    def _blank(self, index: int) -> History:
        runs = len(self.chunks[index])
        return History(runs, self.plan.schedule, self.bound.layers, self.plan.delta)

    def _file(self, index: int) -> ChunkFile | None:
        if self.checkpoint is None:
            return None
        return self.checkpoint.chunk(index, self.chunks[index])

    def _advance(self, steps: int) -> None:
        with self.lock:
            self.done += steps


def _wind_up(pool: ThreadPoolExecutor, futures: Sequence[Future[History]]) -> None:
    """Wait for the chunks to come to a boundary, through a Ctrl-C or two more.

    Raises:
        KeyboardInterrupt: If one comes after `PATIENCE`: a step may take long, or never end.
    """
    asked = time.monotonic()
    pool.shutdown(wait=False, cancel_futures=True)
    while True:
        try:
            # Not the threads: a join that Ctrl-C cuts short takes its thread for ended.
            wait([future for future in futures if not future.cancelled()])
            pool.shutdown(wait=True)
        except KeyboardInterrupt:
            if time.monotonic() - asked > PATIENCE:
                raise
        else:
            return
