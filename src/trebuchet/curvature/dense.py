"""Small problems whole: form the matrix, take its eigenvalues, nothing left to doubt.

The DK × DK matrix N = J Jᵀ comes from the layer rule (layer_rule.py), or from products with the
identity. The Gauss–Newton spectrum is that of S N S with S = √M, M = w ∂²L/∂z².
"""

from collections.abc import Callable

import torch
from torch import Tensor

from trebuchet.curvature.evaluation import Evaluation
from trebuchet.curvature.loss_curvature import LossCurvature
from trebuchet.problem.batches import Batch

AUTO_DENSE = 8
"""Up to this many dimensions the dense matrix is never dearer than Lanczos."""

DENSE_LIMIT = 4096
"""Largest P (or D·K) that ``method="dense"`` accepts: its matrix is 128 MB."""


def loss_hessian(evaluation: Evaluation, z: Tensor, batch: Batch) -> Tensor:
    """Return ∂²L_b/∂z², shape (D·K, D·K), float64, by products with the identity.

    Args:
        evaluation: Gives the loss.
        z: Outputs.
        batch: Their micro-batch.

    Returns:
        The dense matrix.
    """
    return LossCurvature(evaluation, z, batch).matrix()


def matrix_of(product: Callable[[Tensor], Tensor], n: int, like: Tensor) -> tuple[Tensor, float]:
    """Return the n × n matrix of a linear map, column by column, made symmetric, float64.

    Args:
        product: v ↦ A v.
        n: Length of v.
        like: Gives dtype and device.

    Returns:
        (A + Aᵀ)/2, and ‖A − Aᵀ‖ in the Frobenius norm, which only rounding should make differ
        from zero.
    """
    columns = [product(e) for e in torch.eye(n, dtype=like.dtype, device=like.device)]
    a = torch.stack(columns).double()
    return (a + a.T) / 2, float((a - a.T).norm())


def root(m: Tensor) -> Tensor | None:
    """Return √M for M ⪰ 0, or None if M has a negative eigenvalue beyond rounding.

    Args:
        m: Symmetric, shape (n, n), float64.

    Returns:
        The symmetric root, shape (n, n); for diagonal M the vector of roots, shape (n,).
    """
    diagonal = torch.diagonal(m)
    if not bool((m - torch.diag(diagonal)).any()):
        return None if bool((diagonal < 0).any()) else diagonal.sqrt()
    values, vectors = torch.linalg.eigh((m + m.T) / 2)
    if float(values[0]) < -1e-6 * float(values[-1].abs()):
        return None
    s: Tensor = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    return s


def sandwich(s: Tensor, n: Tensor) -> Tensor:
    """Return S N S for a symmetric S given whole or by its diagonal."""
    return s[:, None] * n * s if s.ndim == 1 else s @ n @ s
