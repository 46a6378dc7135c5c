"""One thread a chunk: small products do not scale, whole runs do."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, Thread

import torch
from threadpoolctl import ThreadpoolController

_lock = Lock()
_inside = 0  # how many sweeps are at work
_outside = 1  # the number of threads before the first of them


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """Have each product on the CPU made by one thread, so that digits do not depend on how many.

    Torch keeps one number for the calling thread and another for the process: new threads and the
    matrix products of every thread go by the second. Sweeps that run side by side share that one,
    and the last of them puts back what the first one found.

    Args:
        device: Where the work is; nothing is changed for another than a CPU.

    Yields:
        Nothing.
    """
    global _inside, _outside
    if device.type != "cpu":
        yield
        return
    with _lock:
        before = torch.get_num_threads()
        if _inside == 0:
            _outside = before
        _inside += 1
        torch.set_num_threads(1)
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside:
                _set_for_thread(before)
            else:
                torch.set_num_threads(before)  # for both
                if before != _outside:
                    _set_for_process(_outside)


def _set_for_thread(threads: int) -> None:
    """Set the number of this thread, and not for a moment that of the process, as torch would."""
    openmp = ThreadpoolController().select(user_api="openmp")
    for library in openmp.lib_controllers:
        library.set_num_threads(threads)


def _set_for_process(threads: int) -> None:
    """Set the number of the process from a thread of its own, whose own number is gone with it."""
    setter = Thread(target=torch.set_num_threads, args=(threads,))
    setter.start()
    setter.join()
