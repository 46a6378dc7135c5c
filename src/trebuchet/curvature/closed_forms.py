"""Closed forms of the NTK ÷ D of the quadratic models."""

from torch import Tensor


def quadratic_gram(v: Tensor, zeta: float, phi: Tensor | None = None) -> Tensor:
    """H = (1/D)[ΦΦᵀ + ζ²VVᵀ] with V the stack of ψ(x_a)θ.

    Args:
        v: V, shape ``(…, D, n)``.
        zeta: ζ.
        phi: Φ, shape ``(D, p)``, for a model with bias.

    Returns:
        H, shape ``(…, D, D)``.
    """
    h = zeta**2 * (v @ v.mT)
    if phi is not None:
        h = h + phi @ phi.T
    return h / v.shape[-2]
