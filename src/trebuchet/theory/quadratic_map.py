"""Quadratic regression in one number: the residual x = ζηε of the model of one weight.

Gradient descent on z = (ζ/2)θ² with the label y > 0 multiplies θ by 1 − ηζε, so that x obeys

    x' = (x + a)(1 − x)² − a,   a = ζηy,

the map of the two-variable one with all weight on one side (v = 2(x + a)), and, at its minimum,
a = ηλ/2. It is a cubic of one critical point that matters, x = (1 − 2a)/3, whose orbit ends on what
attracts almost every start. By a:

- up to 2√2 − 2 the loss x² never rises, from any start in [−a, 2];
- up to 1 it may, and comes down: the minimum is stable, ηλ = 2a < 2;
- at 1 the minimum gives way to a cycle of two, which doubles at √5 − 1 = 1.2361, 1.2880, 1.2992, …;
- from 1.30228 on there is chaos, with windows of cycles in it;
- past 2 the image of the critical point leaves [−a, 2], and almost every start diverges; at 2 the
  map is Chebyshev's, x = 2cos φ → 2cos 3φ.
"""

import math

import numpy as np

from trebuchet._checks import FloatArray, finite, from_zero, positive, steps as step_count, whole
from trebuchet._doors import door, rule

MONOTONE = 2 * math.sqrt(2) - 2
"""Up to this a no step raises the loss."""
STABLE = 1.0
"""Up to this a the minimum is stable, and there is a cycle of two above it."""
DOUBLED = math.sqrt(5) - 1
"""Up to this a the cycle of two is stable, and there is one of four above it."""
BOUNDED = 2.0
"""Up to this a runs from [−a, 2] stay there."""
FEIGENBAUM = 4.669201609
"""What the ratios of distances between doublings tend to."""


@door(x=finite, a=finite)
def step(x: float, a: float) -> float:
    """One step of the map.

    Args:
        x: ζηε.
        a: ζηy.

    Returns:
        x'.

    Raises:
        InputError: If a number is none, or not finite.

    Example:
        >>> step(0.5, 1.0)
        -0.625
    """
    return _step(x, a)


def _step(x: float, a: float) -> float:
    return (x + a) * (1 - x) * (1 - x) - a


def _slope(x: float, a: float) -> float:
    """∂x'/∂x, by which a small separation is multiplied."""
    return (1 - x) * (1 - 2 * a - 3 * x)


@door(x0=finite, a=finite, steps=rule(step_count, least=0))
def iterate(x0: float, a: float, steps: int) -> FloatArray:
    """Iterate the map; once a number overflows, the rest is infinite.

    Args:
        x0: ζηε at the start: −a is the weight zero, which stays there.
        a: ζηy.
        steps: Number of steps T.

    Returns:
        x, shape ``(T + 1,)``, the start first.

    Raises:
        InputError: If a number is not finite, or `steps` is negative.

    Example:
        A cycle of two past a = 1:

        >>> iterate(-0.3, 1.1, 500)[-4:].round(3).tolist()
        [0.27, -0.37, 0.27, -0.37]

    References:
        Chen, Balasubramanian, Ghosal & Agarwalla, arXiv 2310.01687.
    """
    x = np.full(steps + 1, np.inf)
    x[0] = x0
    for t in range(steps):
        after = _step(float(x[t]), a)
        if not math.isfinite(after):
            break
        x[t + 1] = after
    return x


def _critical_point(a: float) -> float:
    """The start whose orbit ends on the attractor, if there is one: where ∂x'/∂x = 0."""
    return (1 - 2 * a) / 3


@door(a=positive, steps=step_count, settle=rule(step_count, least=0))
def lyapunov_exponent(a: float, *, steps: int = 10_000, settle: int = 1000) -> float:
    """The mean growth rate of a small separation a step, by the tangent map: mean log |∂x'/∂x|.

    Args:
        a: ζηy.
        steps: Over how many.
        settle: Steps before that are not counted.

    Returns:
        In units of 1/step, of the critical point's orbit; negative on a cycle, zero where one
        doubles, NaN where the orbit diverges.

    Raises:
        InputError: If a is not positive, or a number of steps is none.

    Example:
        At a = 2 the map is 2cos φ → 2cos 3φ, and the exponent log 3 = 1.0986:

        >>> round(lyapunov_exponent(1.1), 2), round(lyapunov_exponent(2 - 1e-9), 2)
        (-0.86, 1.1)
    """
    x = _critical_point(a) + 1e-3  # exactly there, the first slope were zero
    total = 0.0
    for t in range(settle + steps):
        if t >= settle:
            total += math.log(max(abs(_slope(x, a)), 1e-300))
        x = _step(x, a)
        if not abs(x) < 1e6:
            return math.nan
    return total / steps


@door(a=positive, most=step_count, settle=rule(step_count, least=0), rtol=from_zero)
def period(a: float, *, most: int = 1024, settle: int = 100_000, rtol: float = 1e-9) -> int | None:
    """The period of the cycle that attracts the critical point's orbit.

    Args:
        a: ζηy.
        most: The longest that is looked for.
        settle: Steps before.
        rtol: How near the orbit must come back, relative to the attractor's own size of order one.

    Returns:
        1 for the minimum; None where no cycle is found: in chaos, and where the orbit diverges or
        is still on its way, as it is for long where a cycle doubles.

    Raises:
        InputError: If a is not positive, or a number of steps is none.

    Example:
        >>> [period(a) for a in (0.9, 1.1, 1.25, 1.29, 1.3)], period(1.5), period(2.1)
        ([1, 2, 4, 8, 16], None, None)
    """
    x = _critical_point(a)
    for _ in range(settle):
        x = _step(x, a)
        if not abs(x) < 1e6:
            return None
    first, slope = x, 1.0
    for p in range(1, most + 1):
        slope *= _slope(x, a)
        x = _step(x, a)
        if abs(x - first) <= rtol:
            return p if abs(slope) < 1 else None
    return None


@door(count=rule(whole, "a number from 1 to 9", most=9))
def doublings(count: int = 6) -> FloatArray:
    """The a at which the minimum, and then each cycle, doubles its period.

    Where the cycle of 2ᵏ⁻¹, followed from its superstable a (through the critical point) by
    Newton's method, has the multiplier −1.

    Args:
        count: How many, at most 9.

    Returns:
        Ascending, shape ``(count,)``: 1, √5 − 1, 1.288…, towards 1.302283; the ratios of their
        distances tend to Feigenbaum's 4.669.

    Raises:
        InputError: If `count` is not from 1 to 9.

    Example:
        >>> found = doublings(5)
        >>> found.round(4).tolist()
        [1.0, 1.2361, 1.288, 1.2992, 1.3016]
        >>> (np.diff(found)[:-1] / np.diff(found)[1:]).round(2).tolist()
        [4.54, 4.64, 4.66]
    """
    found, superstable = [STABLE], [0.5, 1.12]  # the second of them is a guess as yet
    for k in range(1, count):
        p, guess = 2**k, superstable[-1]
        if k > 1:
            guess += (superstable[-1] - superstable[-2]) / FEIGENBAUM
            superstable.append(guess)
        superstable[-1] = _superstable(p, guess)
        found.append(_doubling(p, superstable[-1], found[-1]))
    return np.array(found)


def _superstable(p: int, a: float) -> float:
    """The a near the given one at which the critical point is on a cycle of period p."""

    def miss(a: float) -> float:
        x = _critical_point(a)
        for _ in range(p):
            x = _step(x, a)
        return x - _critical_point(a)

    before, off = a - 1e-6, miss(a - 1e-6)
    for _ in range(50):
        now = miss(a)
        if now == off:
            break
        a, before, off = a - now * (a - before) / (now - off), a, now
    return a


def _doubling(p: int, superstable: float, before: float) -> float:
    """Where the cycle of period p, which is born at `before`, has the multiplier −1."""
    low, x, out = superstable, _critical_point(superstable), (superstable - before) / 20
    high = math.inf
    for _ in range(400):
        a = low + out if math.isinf(high) else (low + high) / 2
        there, multiplier = _cycle(x, a, p)
        if multiplier > -1:
            low, x = a, there
        else:
            high = a
        if high - low < 1e-15:
            break
    return low


def _cycle(x: float, a: float, p: int) -> tuple[float, float]:
    """A point of the cycle of period p near x, by Newton's method, and the cycle's multiplier."""
    multiplier = 1.0
    for _ in range(50):
        y, multiplier = x, 1.0
        for _ in range(p):
            multiplier *= _slope(y, a)
            y = _step(y, a)
        change = (y - x) / (multiplier - 1)
        x -= change
        if abs(change) < 1e-15:
            break
    return x, multiplier
