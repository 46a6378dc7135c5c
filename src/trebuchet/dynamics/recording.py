"""Which steps of a run are recorded."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trebuchet.errors import InputError


@dataclass(frozen=True, slots=True)
class Recording:
    """Every `every` steps up to `dense`, then `per_decade` steps a factor of ten.

    A catapult happens early and fast, and what follows is slow: a run of 1e5 steps is told by a
    few hundred rows.

    Args:
        every: Spacing of the regular part.
        dense: Last step of the regular part; None: regular to the end.
        per_decade: How many steps a decade beyond `dense`.

    Raises:
        InputError: If a number is not positive.

    Example:
        >>> Recording(dense=4, per_decade=5).steps(100).tolist()
        [0, 1, 2, 3, 4, 6, 10, 16, 25, 40, 63, 100]
    """

    every: int = 1
    dense: int | None = None
    per_decade: int = 40

    def __post_init__(self) -> None:
        for name, value in {"every": self.every, "per_decade": self.per_decade}.items():
            if value < 1:
                msg = f"{name}: expected a positive number, got {value}"
                raise InputError(msg)
        if self.dense is not None and self.dense < 1:
            msg = f"dense: expected a positive number or None, got {self.dense}"
            raise InputError(msg)

    def steps(self, last: int) -> NDArray[np.int64]:
        """The recorded steps of a run that may take `last` steps; 0 is always one of them."""
        dense = last if self.dense is None else min(self.dense, last)
        regular = np.arange(0, dense + 1, self.every)
        low, high = np.log10(max(dense, 1)), np.log10(max(last, 1))
        # Multiples of 1/per_decade, so that a longer run records the steps of a shorter one.
        exponents = np.arange(np.ceil(low * self.per_decade), high * self.per_decade + 1e-9)
        sparse = np.rint(10.0 ** (exponents / self.per_decade)).astype(np.int64)
        keep = (sparse > dense) & (sparse <= last)
        return np.unique(np.concatenate([regular, sparse[keep]])).astype(np.int64)
