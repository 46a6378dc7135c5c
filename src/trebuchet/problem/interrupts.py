"""Ctrl-C, kept from falling into the middle of putting things back."""

import contextlib
import math
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Self

PATIENCE = 10.0
"""Seconds in which a second Ctrl-C is the first one again: most people press twice."""


@contextlib.contextmanager
def pressed_twice_is_once() -> Iterator[None]:
    """Let a Ctrl-C through, and drop those that come soon after it.

    Whoever keeps what was made when one comes would lose it to the next. One that comes later goes
    through again: a step may take long, or never end.

    Yields:
        Nothing.
    """
    previous = signal.getsignal(signal.SIGINT)
    main = threading.current_thread() is threading.main_thread()
    if not (main and callable(previous)):
        yield
        return
    last = -math.inf

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal last
        if time.monotonic() - last > PATIENCE:
            last = time.monotonic()
            previous(number, frame)

    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


class Interrupts:
    """Let the first Ctrl-C through, and hold back those that come while state is put back.

    One that arrives during :meth:`held_back`, or after a first one, waits until this context ends.
    Outside the main thread, and where Ctrl-C has no handler of Python's, nothing is done.

    Example:
        >>> with Interrupts() as interrupts:
        ...     try:
        ...         pass  # may be interrupted
        ...     finally:
        ...         interrupts.hold_back()
        ...         # puts things back undisturbed
    """

    def __init__(self) -> None:
        self._holding = False
        self._waiting: tuple[int, FrameType | None] | None = None

    def __enter__(self) -> Self:
        self._previous = signal.getsignal(signal.SIGINT)
        main = threading.current_thread() is threading.main_thread()
        self._installed = main and callable(self._previous)
        if self._installed:
            signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._installed:
            return
        signal.signal(signal.SIGINT, self._previous)
        if self._waiting is not None and callable(self._previous):
            self._previous(*self._waiting)

    def hold_back(self) -> None:
        """From now on, until this context ends, Ctrl-C waits."""
        self._holding = True

    @contextlib.contextmanager
    def held_back(self) -> Iterator[None]:
        """Hold Ctrl-C back from the end of this block on.

        Yields:
            Nothing.
        """
        try:
            yield
        finally:
            self.hold_back()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._holding:
            self._waiting = (number, frame)
            return
        try:
            assert callable(self._previous)
            self._previous(number, frame)
        except BaseException:  # what a handler raises: KeyboardInterrupt, or its own
            self._holding = True
            raise
