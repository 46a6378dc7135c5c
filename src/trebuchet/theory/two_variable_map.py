"""The catapult in two numbers: u = ζ²η²ε² and v = ηλ, with ε = z − y.

Where ψ² is proportional to the identity (eigenvalues ±1), for one sample, gradient descent on the
pure quadratic model closes on

    u' = u (1 − v + u + w)²,   v' = v − u (4 − v) − 4w,   w = ζ²η²εy.

Without a label (w = 0) it is the map of Lewkowycz et al. for a two-layer linear net, with
u = η²f²/n. As u₀ → 0 its edges are 2 (below, u falls from the start) and 4 (above, v grows for
ever).

With a label the sign of ε matters, since w has it: ε' = ε (1 − v + u + w). So **u has the sign of
the residual where there is a label**, u = ζ²η²ε|ε|, and the label is given in the same units, ζηy;
the loss is |u|/2ζ²η². Without one u is the square itself. The outputs are ζηz = ±√|u| + ζηy.
"""

import math

import numpy as np

from trebuchet._checks import FloatArray, finite, from_zero, steps as step_count
from trebuchet._doors import door, rule


@door(u=finite, v=finite, label=finite)
def step(u: float, v: float, *, label: float = 0.0) -> tuple[float, float]:
    """One step of the map.

    Args:
        u: ζ²η²ε², at least 0; with a label, ζ²η²ε|ε|.
        v: ηλ.
        label: ζηy.

    Returns:
        (u', v'), the first with the sign of the residual where there is a label.

    Raises:
        InputError: If a number is none, or not finite.

    Example:
        >>> step(0.5, 3.0)
        (1.125, 2.5)

        z = 1 and y = 2 at ζη = 1: the residual is −1, and so is u; z' = z(1 + u) − vε = 5.

        >>> step(-1.0, 3.0, label=2.0)
        (9.0, 10.0)
    """
    return _step(u, v, label)


def _step(u: float, v: float, label: float) -> tuple[float, float]:
    size = abs(u)
    w = math.copysign(math.sqrt(size), u) * label
    growth = 1 - v + size + w
    return u * growth * (abs(growth) if label else growth), v - size * (4 - v) - 4 * w


@door(u0=finite, v0=from_zero, steps=rule(step_count, least=0), label=finite)
def iterate(
    u0: float, v0: float, steps: int, *, label: float = 0.0
) -> tuple[FloatArray, FloatArray]:
    """Iterate the map; once a number overflows, the rest of both arrays is infinite.

    Args:
        u0: ζ²η²ε² at the start, at least 0; with a label ζ²η²ε|ε|, which is negative where the
            output is below the label.
        v0: ηλ₀, at least 0.
        steps: Number of steps T.
        label: ζηy.

    Returns:
        (u, v), each of shape ``(T + 1,)``, the start first; u has signs where there is a label.

    Raises:
        InputError: If a start is not finite, or negative where it may not be, or `steps` is
            negative.

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

        A label can leave no way down: v cannot go below 2ζηy where z = y, and from ζηy = 1 on
        that is above 2. The run ends on a cycle (`trebuchet.theory.quadratic_map`).

        >>> u, v = iterate(-0.2, 2.2, 2000, label=1.1)
        >>> [round(x, 4) for x in u[-4:].tolist()]
        [-0.137, 0.073, -0.137, 0.073]

    References:
        Meltzer & Liu, arXiv 2301.07737; Lewkowycz et al., arXiv 2003.02218.
    """
    if not label:
        from_zero("u0", u0)
    u, v = (np.full(steps + 1, np.inf) for _ in range(2))
    u[0], v[0] = u0, v0
    for t in range(steps):
        after = _step(float(u[t]), float(v[t]), label)
        if not all(math.isfinite(number) for number in after):
            break
        u[t + 1], v[t + 1] = after
    return u, v
