"""Which steps of a run are recorded."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trebuchet._checks import steps as step_count, whole
from trebuchet._doors import door, maybe, rule
from trebuchet.errors import InputError

MOST = 20_000_000
"""Recorded steps of one run."""


@door(
    every=rule(whole, "a positive number"),
    dense=maybe(whole, "a positive number or None"),
    per_decade=rule(whole, "a positive number", most=1_000_000),
    tail=rule(whole, "a number of steps", least=0),
)
@dataclass(frozen=True, slots=True)
class Recording:
    """Every `every` steps up to `dense`, then `per_decade` a factor of ten; and the last ones.

    A catapult happens early and fast, and what follows is slow: a run of 1e5 steps is told by a
    few hundred rows. Whether it ends on a cycle is seen where every step of its end is recorded.

    Args:
        every: Spacing of the regular part.
        dense: Last step of the regular part; None: regular to the end.
        per_decade: How many steps a decade beyond `dense`.
        tail: So many last steps of the budget, and its end, are recorded whatever the rest says.

    Raises:
        InputError: If a number is not positive.

    Example:
        >>> Recording(dense=4, per_decade=5).steps(100).tolist()
        [0, 1, 2, 3, 4, 6, 10, 16, 25, 40, 63, 100]
        >>> Recording(every=50, tail=2).steps(100).tolist()
        [0, 50, 98, 99, 100]
    """

    every: int = 1
    dense: int | None = None
    per_decade: int = 40
    tail: int = 0

    @door(last=rule(step_count, least=0))
    def steps(self, last: int) -> NDArray[np.int64]:
        """The recorded steps of a run that may take `last` steps; 0 is always one of them.

        Args:
            last: The largest step.

        Returns:
            Steps, increasing from 0.

        Raises:
            InputError: If there would be more of them than a computer can hold for many runs.
        """
        dense = last if self.dense is None else min(self.dense, last)
        most = max(dense // self.every, min(self.tail, last))
        if most > MOST:
            msg = (
                f"record: expected at most {MOST} recorded steps, got {most}; thin "
                "them out with Recording(dense=1000)"
            )
            raise InputError(msg)
        regular = np.arange(0, dense + 1, self.every)
        tail = np.arange(max(last - self.tail, 0), last + 1 if self.tail else last)
        low, high = np.log10(max(dense, 1)), np.log10(max(last, 1))
        # Multiples of 1/per_decade, so that a longer run records the steps of a shorter one.
        exponents = np.arange(np.ceil(low * self.per_decade), high * self.per_decade + 1e-9)
        sparse = np.rint(10.0 ** (exponents / self.per_decade)).astype(np.int64)
        keep = (sparse > dense) & (sparse <= last)
        return np.unique(np.concatenate([regular, sparse[keep], tail])).astype(np.int64)
