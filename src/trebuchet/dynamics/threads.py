"""One thread a chunk: small products do not scale, whole runs do."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

import torch

_lock = Lock()
_inside = 0
_before = 0


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """Have each product on the CPU made by one thread, so that digits do not depend on how many.

    The setting is the process's: sweeps that run side by side share it, and the last one that ends
    puts back what the first one found.

    Args:
        device: Where the work is; nothing is changed for another than a CPU.

    Yields:
        Nothing.
    """
    global _inside, _before
    if device.type != "cpu":
        yield
        return
    with _lock:
        if _inside == 0:
            _before = torch.get_num_threads()
            torch.set_num_threads(1)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                torch.set_num_threads(_before)
