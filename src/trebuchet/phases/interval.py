"""An edge is searched by trials: out to where it is enclosed, then by halves, in log rate."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Interval:
    """An edge is somewhere between two rates that were tried.

    Attributes:
        low: The largest rate on the near side; 0 if even the smallest tried is beyond the edge.
        high: The smallest rate on the far side; infinite if none that was tried is.

    Example:
        >>> edge = Interval(0.0, math.inf).after(1.0, beyond=False)
        >>> while not edge.within(0.1):
        ...     rate = edge.trial(out=2.0)
        ...     edge = edge.after(rate, beyond=rate > 3)
        >>> print(edge)
        2.83 to 3.08
    """

    low: float
    high: float

    @property
    def value(self) -> float:
        """Best single number: the geometric middle, or the finite end of a one-sided interval."""
        if self.low <= 0 or math.isinf(self.high):
            return self.low if math.isinf(self.high) else self.high
        return math.sqrt(self.low * self.high)

    @property
    def closed(self) -> bool:
        """Whether both sides were seen."""
        return self.low > 0 and math.isfinite(self.high)

    def within(self, rtol: float) -> bool:
        """Whether its ends are within a factor 1 + rtol."""
        return self.high <= self.low * (1 + rtol)

    def trial(self, *, out: float) -> float:
        """The rate to try next: the geometric middle, or past an open end by a factor."""
        if self.closed:
            return math.sqrt(self.low * self.high)
        return self.high / out if self.low <= 0 else self.low * out

    def after(self, rate: float, *, beyond: bool) -> "Interval":
        """The interval that is left once a rate was tried."""
        return Interval(self.low, rate) if beyond else Interval(rate, self.high)

    def __contains__(self, rate: float) -> bool:
        return self.low <= rate <= self.high

    def __str__(self) -> str:
        """Both ends, to three digits."""
        if math.isinf(self.high):
            return f"above {self.low:.3g}"
        if self.low <= 0:
            return f"below {self.high:.3g}"
        return f"{self.low:.3g} to {self.high:.3g}"
