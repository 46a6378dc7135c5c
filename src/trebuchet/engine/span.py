"""Data-span compression: full-batch training moves weights within the span of the data only."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Span:
    """X = CQᵀ with orthonormal columns in Q.

    For a net whose first layer is linear in x, training on C from QᵀU is training on X from U,
    exactly, with gradient descent, heavy-ball and weight decay; the part of U outside the span
    feels no gradient. It is not exact for Adam, whose update is not equivariant to rotation.

    Attributes:
        coordinates: C, shape ``(D, r)``, r the rank of X.
        basis: Q, shape ``(d, r)``.
    """

    coordinates: Tensor
    basis: Tensor


def compress(x: Tensor) -> Span | None:
    """The span of the rows of x, found in float64; None where there is nothing to save.

    Args:
        x: Inputs, shape ``(D, d)``.

    Returns:
        The span, in the dtype of x; None if its rank is d, since then it would only rotate.

    Example:
        >>> x = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
        >>> span = compress(x)
        >>> [round(v, 6) for v in (span.coordinates @ span.basis.T).flatten().tolist()]
        [3.0, 4.0]
    """
    _, s, vh = torch.linalg.svd(x.double(), full_matrices=False)
    if s.numel() == 0 or s[0] == 0:
        return None
    tolerance = s[0] * max(x.shape) * torch.finfo(torch.float64).eps
    rank = int((s > tolerance).sum())
    if rank == x.shape[1]:
        return None
    basis = vh[:rank].T.contiguous()  # (d, r)
    return Span((x.double() @ basis).to(x.dtype), basis.to(x.dtype))
