"""The loss's Hessian at the outputs as B Bᵀ, sample by sample.

For a loss that is a sum over samples, M = w ∂²L/∂z² is block-diagonal: one K × K block a sample,
M_a = B_a B_aᵀ with B_a of K × R, R the largest rank of any block. Then Jᵀ M J = (Bᵀ J)ᵀ (Bᵀ J), and
its non-zero spectrum is that of the DR × DR matrix (Bᵀ J)(Bᵀ J)ᵀ. Softmax cross-entropy is blind to
a shift of all logits, so R = K − 1: two classes cost as much as one output.
"""

import torch
from torch import Tensor

from trebuchet.curvature.basis import normal
from trebuchet.curvature.evaluation import Evaluation
from trebuchet.curvature.loss_curvature import LossCurvature
from trebuchet.problem.batches import Batch


def loss_factor(
    evaluation: Evaluation, z: Tensor, batch: Batch, weight: float, seed: int
) -> Tensor | None:
    """Return B, or None where the loss couples samples or is not convex here.

    K products with the loss's Hessian give all blocks at once if samples are separate; one more,
    with random numbers, tells whether they are.

    Args:
        evaluation: Gives the loss.
        z: Outputs, shape (D, …), K a sample.
        batch: Their micro-batch.
        weight: w.
        seed: Of the random numbers.

    Returns:
        Shape (D, K, R), in z's dtype.
    """
    d, k = z.shape[0], z.numel() // z.shape[0]
    curvature = LossCurvature(evaluation, z, batch)
    if curvature.zero:
        return z.new_zeros((d, k, 1))  # linear in z: no curvature

    def product(u: Tensor) -> Tensor:
        return curvature.product(u).reshape(d, k)

    columns = []
    for i in range(k):
        u = torch.zeros((d, k), dtype=z.dtype, device=z.device)
        u[:, i] = 1
        columns.append(product(u))
    blocks = torch.stack(columns, dim=2)  # (D, K, K)
    probe = normal((d, k), z, seed)
    want, got = product(probe), (blocks @ probe[..., None])[..., 0]
    size = float(blocks.abs().max())
    eps = float(torch.finfo(z.dtype).eps)
    if float((want - got).abs().max()) > 1e3 * eps * size * k:
        return None
    wide = blocks.double() * weight
    values, vectors = torch.linalg.eigh((wide + wide.mT) / 2)  # ascending
    top = float(values.abs().max())
    if float(values.min()) < -1e2 * eps * top:
        return None
    # What rounding makes of an exact zero eigenvalue is dropped: a relative error of eps.
    rank = max(1, int((values > 1e2 * eps * top).sum(1).max()))
    b = vectors * values.clamp_min(0).sqrt()[:, None]
    out: Tensor = b[..., k - rank :].to(z.dtype)
    return out
