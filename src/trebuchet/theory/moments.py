"""The pure quadratic model on one sample, in the eigenbasis of ψ: O(n) a step.

With ψ = Σ_i s_i q_i q_iᵀ and weights c_i = q_i·θ, a step of gradient descent multiplies each
weight, c_i' = (1 − ηζ ε s_i) c_i, so that the moments m_j = Σ_i s_iʲ c_i² obey a closed recursion
(m_j' needs m_j, m_{j+1} and m_{j+2}). z = (ζ/2) m₁ and λ = ζ² m₂. With s_i = ±1 this is
`two_variable_map`.
"""

import math

import numpy as np
from numpy.typing import ArrayLike

from trebuchet._checks import FloatArray, array, finite, positive, steps as step_count
from trebuchet._doors import door, maybe, rule
from trebuchet.errors import InputError


@door(
    eigenvalues=rule(array, 1), weights=rule(array, 1), lr=positive,
    steps=rule(step_count, least=0), label=finite, zeta=maybe(positive),
)  # fmt: skip
def iterate(
    eigenvalues: ArrayLike,
    weights: ArrayLike,
    lr: float,
    steps: int,
    *,
    label: float = 0.0,
    zeta: float | None = None,
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Gradient descent on L = ½(z − y)² for a ψ of any spectrum.

    Args:
        eigenvalues: s, the spectrum of ψ, shape ``(n,)``.
        weights: c, the weights in its eigenbasis, shape ``(n,)``.
        lr: η.
        steps: Number of steps T.
        label: y.
        zeta: ζ; (n/2)^(−1/2) unless given.

    Returns:
        (z, λ, |θ|²), each of shape ``(T + 1,)``; infinite from the step where one overflows.

    Raises:
        InputError: If shapes disagree, η is not positive, or `steps` is negative.

    Example:
        >>> z, top, norm = iterate([1.0, -1.0], [1.0, 0.5], lr=2.4, steps=200)
        >>> float(2.4 * top[0]), bool(2.4 * top[-1] < 2), bool(norm[-1] < norm[0])
        (3.0, True, True)
    """
    s, c = np.asarray(eigenvalues), np.asarray(weights)
    if c.shape != s.shape:
        msg = f"weights: expected the shape of eigenvalues, {s.shape}, got {c.shape}"
        raise InputError(msg)
    zeta = np.float64(math.sqrt(2 / len(s)) if zeta is None else zeta)  # overflows to infinity
    z, top, norm = (np.full(steps + 1, np.inf) for _ in range(3))
    with np.errstate(over="ignore", invalid="ignore"):
        for t in range(steps + 1):
            square = c * c
            now = (zeta / 2 * s @ square, zeta**2 * (s * s) @ square, square.sum())
            if not np.isfinite(now).all():
                break
            z[t], top[t], norm[t] = now
            c = (1 - lr * zeta * (z[t] - label) * s) * c
    return z, top, norm
