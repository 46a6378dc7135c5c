"""The catapult in two numbers: u = ζ²η²z² and v = ηλ.

Where ψ² is proportional to the identity (eigenvalues ±1), for one sample with label zero,
gradient descent on the pure quadratic model closes on

    u' = u (1 − v + u)²,   v' = v − u (4 − v).

It is the map of Lewkowycz et al. for a two-layer linear net, with u = η²f²/n. As u₀ → 0 its edges
are 2 (below, u falls from the start) and 4 (above, v grows for ever).
"""

import math

import numpy as np

from trebuchet._checks import FloatArray, finite, from_zero, steps as step_count
from trebuchet._doors import door, rule


@door(u=finite, v=finite)
def step(u: float, v: float) -> tuple[float, float]:
    """One step of the map.

    Args:
        u: ζ²η²z², at least 0.
        v: ηλ.

    Returns:
        (u', v').

    Raises:
        InputError: If a number is none, or not finite.

    Example:
        >>> step(0.5, 3.0)
        (1.125, 2.5)
    """
    return _step(u, v)


def _step(u: float, v: float) -> tuple[float, float]:
    growth = 1 - v + u
    return u * growth * growth, v - u * (4 - v)


@door(u0=from_zero, v0=from_zero, steps=rule(step_count, least=0))
def iterate(u0: float, v0: float, steps: int) -> tuple[FloatArray, FloatArray]:
    """Iterate the map; once a number overflows, the rest of both arrays is infinite.

    Args:
        u0: ζ²η²z² at the start, at least 0.
        v0: ηλ₀, at least 0.
        steps: Number of steps T.

    Returns:
        (u, v), each of shape ``(T + 1,)``, the start first.

    Raises:
        InputError: If a start is negative or not finite, or `steps` is negative.

    Example:
        Below 4 the map catapults: u peaks, v falls, and settles below 2.

        >>> u, v = iterate(1e-3, 2.5, 1000)
        >>> print(f"v_∞ = {v[-1]:.3f}, peak u = {u.max():.3f}")
        v_∞ = 1.280, peak u = 0.166
        >>> u, v = iterate(1e-3, 3.0, 1000)
        >>> print(f"v_∞ = {v[-1]:.3f}, peak u = {u.max():.3f}")
        v_∞ = 0.238, peak u = 0.672

        Both sides of the upper edge:

        >>> u, v = iterate(1e-3, 3.99, 2000)
        >>> bool(v[-1] < 2) and bool(u[-1] < 1e-12)
        True
        >>> u, v = iterate(1e-3, 4.01, 20)
        >>> bool(u[10] > 1e8 * u[0]), float(u[-1])
        (True, inf)

    References:
        Meltzer & Liu, arXiv 2301.07737; Lewkowycz et al., arXiv 2003.02218.
    """
    u, v = (np.full(steps + 1, np.inf) for _ in range(2))
    u[0], v[0] = u0, v0
    for t in range(steps):
        after = _step(float(u[t]), float(v[t]))
        if not all(math.isfinite(number) for number in after):
            break
        u[t + 1], v[t + 1] = after
    return u, v
