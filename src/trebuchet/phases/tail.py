"""Numbers of the last part of a run's loss: whether it repeats, and whether it stands.

They are of the **loss**. A cycle of the weights whose points share a loss in pairs has half its
period there, and one whose points all share one loss, such as a swing to and fro across a symmetric
valley, has none.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

LONGEST = 4096
"""At most so many of a run's last steps are looked at, and no more than its second half."""
REPEATS = 16
"""A cycle is seen so often, at least."""
TOLERANCE = 1e-3
"""How far from its limit a cycle may be, relative to its amplitude …"""
CONTRACTION = 0.25
"""… where every quarter of the window moves so much less than the one before: by a power of time,
or in a slow decay to no cycle at all, it would not."""
STILL = 1e-9
"""Or it moves less than this in a quarter: in float64. In other types, `ROUNDINGS` of theirs."""
ROUNDINGS = 100.0
LEAST_SWING = 1e3
"""An amplitude below so many roundings of L₀, or of 1 squared, is one of rounding."""
BLOCKS, LEAST_BLOCK = 16, 32
"""A loss stands if it shows no trend over so many blocks, each of so many steps at least."""
TREND = 0.7
"""Rank correlation with time, which 1 in 400 lists of 16 unrelated numbers exceeds."""


@dataclass(frozen=True, slots=True)
class Tail:
    """What the last part of a loss shows.

    Attributes:
        period: Of the cycle that it has settled on, at least 2; NaN for none.
        amplitude: Largest less smallest loss in the last quarter of what was looked at.
        steady: Whether it swings, and neither its mean nor its swing shows a trend.
    """

    period: float = np.nan
    amplitude: float = np.nan
    steady: bool = False


def rounding_of(dtype: object) -> float:
    """ε of a type by its name; of one that NumPy does not know, bfloat16's.

    Args:
        dtype: Such as "float32"; None is float64.

    Returns:
        The distance from 1 to the next number.

    Example:
        >>> rounding_of("float32") == 2.0**-23, rounding_of("bfloat16") == 2.0**-7
        (True, True)
    """
    known = {"float64": 52, "float32": 23, "float16": 10, "None": 52}
    return float(2.0 ** -known.get(str(dtype), 7))


def consecutive(step: NDArray[np.int64], loss: FloatArray, steps: int) -> FloatArray:
    """The losses at the last steps of a run, as far back as every step was recorded.

    Args:
        step: Recorded steps, ascending.
        loss: There; NaN where it is not known.
        steps: Updates the run made; what comes later is not its own.

    Returns:
        Up to the second half of the run, at most `LONGEST` losses; none if the last is missing.

    Example:
        >>> consecutive(np.array([0, 2, 3, 4, 5]), np.array([5.0, 4, 3, 2, 1]), 5).tolist()
        [2.0, 1.0]
    """
    known = (step <= steps) & np.isfinite(loss)
    at, found = step[known], loss[known]
    if at.size == 0 or at[-1] != steps:
        return np.zeros(0)
    gaps = np.flatnonzero(np.diff(at) != 1)
    start = 0 if gaps.size == 0 else gaps[-1] + 1
    length = min(at.size - start, steps // 2, LONGEST)
    return found[at.size - length :]


def tail_of(loss: FloatArray, first: float, rounding: float) -> Tail:
    """Look for a cycle, and for a trend.

    The window is cut into quarters. A loss has settled on a cycle of period p if it comes back to
    itself after p steps, at every point of the cycle and `REPEATS` times or more, to `TOLERANCE` of
    its amplitude, and what it still moves comes to an end: either less than rounding in each of
    the last two quarters, or each quarter so much less than the one before that the rest, a
    geometric series, is within the tolerance. A swing that decays or grows slowly does neither:
    what it moves in a quarter hardly changes.

    Args:
        loss: The last steps, as `consecutive` has them.
        first: L₀.
        rounding: ε of the weights' type.

    Returns:
        The numbers; those of a window too short are NaN and False.

    Example:
        >>> swing = np.tile([0.2, 0.5], 200)
        >>> tail_of(swing, 1.0, 2e-16).period
        2.0
        >>> decaying = swing * (1 - 1e-6) ** np.arange(400)
        >>> tail_of(decaying, 1.0, 2e-16).period
        nan
    """
    quarter = loss.size // 4
    if loss.size < 2 * REPEATS:
        return Tail()
    amplitude = float(np.ptp(loss[-quarter:]))
    if not amplitude > LEAST_SWING * rounding * max(abs(first), rounding):
        return Tail(amplitude=amplitude)
    still = max(STILL, ROUNDINGS * rounding) * amplitude
    back = np.abs(loss[-1] - loss[::-1][1 : loss.size // REPEATS + 1])
    for p in (np.flatnonzero(back[1:] <= TOLERANCE * amplitude) + 2).tolist():
        if _repeats(loss, p, TOLERANCE * amplitude, still):
            # Rounding may settle on a cycle of its own about the true one, of a multiple's length.
            noise = LEAST_SWING * rounding * float(np.abs(loss[-quarter:]).max())
            shorter = [q for q in range(2, p) if p % q == 0 and _moved(loss, q).max() <= noise]
            return Tail(float(min([*shorter, p])), float(np.ptp(loss[-p:])))
    return Tail(np.nan, amplitude, _steady(loss))


def _repeats(loss: FloatArray, p: int, tolerance: float, still: float) -> bool:
    moved, means = _moved(loss, p), _quarters(loss, p).mean(1)
    if np.abs(means[3] - means[2]).max() > tolerance or moved[3] > tolerance:
        return False
    at_rest = bool((moved[2:] <= still).all())
    return at_rest or bool((moved[1:] <= np.maximum(CONTRACTION * moved[:-1], still)).all())


def _quarters(loss: FloatArray, p: int) -> FloatArray:
    """The loss by quarter, repeat and point of the cycle."""
    repeats = loss.size // (4 * p)
    return loss[loss.size - 4 * repeats * p :].reshape(4, repeats, p)


def _moved(loss: FloatArray, p: int) -> FloatArray:
    """How far a loss moves in each quarter, at the point of the cycle where it is most."""
    moved: FloatArray = np.ptp(_quarters(loss, p), axis=1).max(1)
    return moved


def _steady(loss: FloatArray) -> bool:
    length = loss.size // BLOCKS
    if length < LEAST_BLOCK:
        return False
    blocks = loss[loss.size - length * BLOCKS :].reshape(BLOCKS, length)
    return not (trending(blocks.mean(1)) or trending(blocks.std(1)))


def trending(values: FloatArray) -> bool:
    """Whether numbers in order of time rise or fall with it.

    Args:
        values: Shape ``(N,)``.

    Returns:
        Whether their rank correlation with time is above `TREND` in size.

    Example:
        >>> trending(np.arange(16.0)), trending(np.array([1.0, 3.0] * 8))
        (True, False)
    """
    ranks = np.argsort(np.argsort(values)).astype(np.float64)
    return bool(abs(np.corrcoef(ranks, np.arange(values.size))[0, 1]) > TREND)
