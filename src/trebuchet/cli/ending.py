"""Ctrl-C and a scheduler's SIGTERM: remembered, because libraries may swallow what they raise."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from types import FrameType
from typing import Any

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""
TERMINATED = 143
"""Exit code after SIGTERM."""


AGAIN = getattr(signal, "SIGALRM", None)
"""A clock's signal, where there are such, to come back to what could not be done at once."""


class Ending:
    """How a command was told to end, if it was."""

    def __init__(self) -> None:
        self.code: int | None = None

    def interrupt(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal as Python handles Ctrl-C, and remember it.

        An import that is cut in two may end in any error: matplotlib's, in a ValueError; torch's,
        in C++ that knows no exceptions of Python's and aborts, so that one is let through first.

        Args:
            number: The signal.
            frame: Where it came.

        Raises:
            KeyboardInterrupt: Now, or as soon as torch is imported.
        """
        if number != AGAIN:
            self.code = TERMINATED if number == signal.SIGTERM else INTERRUPTED
        if AGAIN is not None and _imports_torch(frame):
            signal.signal(AGAIN, self.interrupt)
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            return
        raise KeyboardInterrupt


def _imports_torch(frame: FrameType | None) -> bool:
    """Whether the top level of torch is among what is being executed."""
    while frame is not None:
        if frame.f_globals.get("__name__") == "torch" and frame.f_code.co_name == "<module>":
            return True
        frame = frame.f_back
    return False


@contextmanager
def in_order(*, own_process: bool = False) -> Iterator[Ending]:
    """Have SIGTERM do what Ctrl-C does, and remember both, where nobody else has a say in them.

    Args:
        own_process: The process ends with the command: after Ctrl-C a second one is not heard any
            more, which would cut Python's own end in two and abort. SIGTERM still kills.

    Yields:
        What was asked for so far.
    """
    ending = Ending()
    usual: dict[signal.Signals, Any] = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
    }
    ours = [s for s, handler in usual.items() if signal.getsignal(s) is handler]
    if current_thread() is not main_thread():
        ours = []
    for one in ours:
        signal.signal(one, ending.interrupt)
    try:
        yield ending
    finally:
        for one in ours:
            deaf = own_process and ending.code is not None and one == signal.SIGINT
            signal.signal(one, signal.SIG_IGN if deaf else usual[one])
