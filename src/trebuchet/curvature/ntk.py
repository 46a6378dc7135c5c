"""The neural tangent kernel (1/D) J Jᵀ of the outputs, D·K × D·K.

It knows nothing of a loss: its spectrum is the Gauss–Newton spectrum of the half-MSE
(1/2D) Σ_a |ε_a|², whose Hessian at the outputs is I/D. K > 1 outputs are not averaged: the kernel
is DK × DK, as gradient descent sees it.
"""

from torch import Tensor

from trebuchet.curvature.distributed import Ranks
from trebuchet.curvature.evaluation import Evaluation
from trebuchet.curvature.ggn import GGN, OutputGGN
from trebuchet.curvature.operators import Linearisations


def ntk_operator(
    evaluation: Evaluation,
    linearisations: Linearisations,
    *,
    ranks: Ranks,
    outputs_side: bool,
    scale: Tensor | None = None,
) -> GGN | OutputGGN:
    """Return J Jᵀ / D (output side) or Jᵀ J / D (parameter side): the same non-zero spectrum.

    Args:
        evaluation: Model and micro-batches.
        linearisations: One a micro-batch.
        ranks: The processes that share the samples.
        outputs_side: Which of the two.
        scale: s of J S² Jᵀ / D, shape (P,).

    Returns:
        The operator.
    """
    if outputs_side:
        return OutputGGN(evaluation, linearisations, scale=scale, identity=True)
    return GGN(evaluation, linearisations, ranks=ranks, scale=scale, identity=True)
