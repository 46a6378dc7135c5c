"""Chunks of runs on their way through the workers."""

import time
import warnings
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from trebuchet._progress import Progress
from trebuchet._types import Status
from trebuchet.engine.checkpoint import Checkpoint
from trebuchet.engine.chunkfile import ChunkFile
from trebuchet.engine.history import History
from trebuchet.engine.kernels.base import Kernel
from trebuchet.engine.runner import Control, Plan, Runner, restore_ended, save_ended
from trebuchet.problem.interrupts import PATIENCE
from trebuchet.sweeps.binding import Binding

Elsewhere = Callable[[Sequence[int]], Generator[tuple[int, History], None, None]]
"""Makes chunks in other processes, given their positions."""


@dataclass(slots=True)
class Job:
    """Chunks on their way through the workers."""

    bound: Binding
    plan: Plan
    learning_rate: NDArray[np.float64]
    chunks: list[list[tuple[int, int]]]
    checkpoint: Checkpoint | None
    progress: Progress
    done: int = 0
    _shape: Kernel | None = None  # whose observables have which size
    lock: Lock = field(default_factory=Lock)

    def run(self, workers: int, elsewhere: Elsewhere | None = None) -> tuple[list[History], bool]:
        """Histories in the order of the chunks, and whether Ctrl-C came in between.

        Args:
            workers: Chunks in flight together; 0 for one after the other, in this thread.
            elsewhere: What makes them instead, if not threads of this process.

        Returns:
            Both.

        Raises:
            InputError: If a saved chunk is damaged, or of other runs.
        """
        there = set() if self.checkpoint is None else self.checkpoint.begun()
        for index in range(len(self.chunks)):  # at once, not when its turn comes after hours
            file = self._file(index)
            if file is not None and file.path in there:
                file.load()
        histories, interrupted = self._made(workers, elsewhere)
        for index, history in enumerate(histories):
            self._keep(index, history)
        if self.checkpoint is not None:
            self.checkpoint.flush()
        return histories, interrupted

    def _made(self, workers: int, elsewhere: Elsewhere | None) -> tuple[list[History], bool]:
        control = Control(advance=self._advance)
        total = sum(len(c) for c in self.chunks) * self.plan.stop.max_steps
        if elsewhere is not None:
            return self._elsewhere(elsewhere, total)
        if not workers:
            return self._inline(total)
        interrupted = False
        futures: list[Future[History]] = []
        pool = ThreadPoolExecutor(workers, thread_name_prefix="chunks")
        try:
            for index in range(len(self.chunks)):
                futures.append(pool.submit(self._one, index, control))
            pending = set(futures)
            index_of = {future: index for index, future in enumerate(futures)}
            while pending:
                finished, pending = wait(pending, timeout=0.1, return_when=FIRST_COMPLETED)
                for future in finished:
                    self._keep(index_of[future], future.result())  # raises what the chunk raised
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

    def _inline(self, total: int) -> tuple[list[History], bool]:
        """The same where the runs share a module: Ctrl-C comes in the middle of one of them."""
        shown = time.monotonic()

        def advance(steps: int) -> None:
            nonlocal shown
            self._advance(steps)
            if time.monotonic() - shown > 0.1:
                shown = time.monotonic()
                self.progress(min(self.done, total - 1), total)

        ended: list[History] = []
        interrupted = False
        for index in range(len(self.chunks)):
            if interrupted and not self._begun(index):
                ended.append(self._blank(index))
                continue
            begun = self._blank(index)
            ended.append(begun)
            try:
                self._one(index, Control(advance=advance), begun)
                self._keep(index, begun)
            except KeyboardInterrupt:
                interrupted = True
        try:
            self.progress(total, total)
        except KeyboardInterrupt:
            interrupted = True
        return ended, interrupted

    def _elsewhere(self, made: Elsewhere, total: int) -> tuple[list[History], bool]:
        """The same in other processes; what comes back is saved here, as one writer."""
        ended: dict[int, History] = {}
        for index in range(len(self.chunks)):
            history = self._blank(index)
            if self._restored(index, history):
                ended[index] = history
        self._advance(sum(len(self.chunks[i]) for i in ended) * self.plan.stop.max_steps)
        left = [index for index in range(len(self.chunks)) if index not in ended]
        interrupted = False
        coming = made(left)
        try:
            self.progress(self.done, total)
            for index, history in coming:
                file = self._file(index)
                if file is not None:
                    save_ended(file, history)
                ended[index] = history
                self._keep(index, history)
                self._advance(history.steps.size * self.plan.stop.max_steps)
                self.progress(self.done, total)
        except KeyboardInterrupt:
            interrupted = True
        finally:
            with warnings.catch_warnings():  # of joblib's, that chunks on their way are given up
                warnings.filterwarnings("ignore", ".*still being processed", UserWarning)
                coming.close()
        try:
            self.progress(total, total)
        except KeyboardInterrupt:
            interrupted = True
        whole = [ended[i] if i in ended else self._blank(i) for i in range(len(self.chunks))]
        return whole, interrupted

    def _one(self, index: int, control: Control, history: History | None = None) -> History:
        pairs, file = self.chunks[index], self._file(index)
        history = self._blank(index) if history is None else history
        if not self._restored(index, history):
            rates = [float(self.learning_rate[pair]) for pair in pairs]
            kernel = self.bound.kernel(rates, [s for _, s in pairs])
            rows = np.arange(len(pairs))
            Runner(kernel, history, rows, self.plan, checkpoint=file).run(control)
        else:
            self._advance(int(history.steps.sum()))
        # What a run did not need of its budget counts as done.
        self._advance(int((self.plan.stop.max_steps - history.steps).sum()))
        return history

    def _unstarted(self, index: int, control: Control) -> History:
        """What there is of a chunk whose turn did not come: what an earlier call has saved."""
        return self._one(index, control) if self._begun(index) else self._blank(index)

    def _begun(self, index: int) -> bool:
        """Whether anything of a chunk is saved."""
        file = self._file(index)
        if file is None or self.checkpoint is None:
            return False
        return self.checkpoint.has(file.runs) or file.path.exists()

    def _restored(self, index: int, history: History) -> bool:
        """Whether the runs of a chunk had ended before; then the history becomes theirs."""
        file = self._file(index)
        if file is None or self.checkpoint is None:
            return False
        return self.checkpoint.restore(file.runs, history) or restore_ended(file, history)

    def _keep(self, index: int, history: History) -> None:
        """Have the runs of a chunk in the Zarr, if they have ended."""
        file = self._file(index)
        if file is None or self.checkpoint is None:
            return
        if not (history.status == str(Status.INTERRUPTED)).any():
            self.checkpoint.take(file, history)

    def blank(self, runs: int = 0) -> History:
        """What is remembered of runs that have not begun.

        Args:
            runs: How many.

        Returns:
            Their history.
        """
        if self._shape is None:
            self._shape = self.bound.kernel([1.0], [0])
        return self.plan.history(runs, self._shape)

    def _blank(self, index: int) -> History:
        return self.blank(len(self.chunks[index]))

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
