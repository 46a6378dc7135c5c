"""How much of a model's graph may be kept between products."""

import torch
from torch import Tensor

from trebuchet.curvature.evaluation import Evaluation

KEEP_BYTES = 1 << 30
"""Memory for kept graphs when there are several micro-batches: 1 GiB."""


def how_many_fit(evaluation: Evaluation, *, outputs: bool = True) -> int:
    """Return how many micro-batches' graphs may be kept at once.

    One micro-batch is always kept: its activations are alive during a product anyway. For several,
    one forward pass is watched to see how much it saves for its backward pass; the graph with the
    recorded backward pass holds about three times that.

    Args:
        evaluation: The evaluation.
        outputs: Whether the graph is that of the outputs, or of the loss.

    Returns:
        A number of graphs, 0 if keeping even one would use memory that the next one needs.
    """
    if len(evaluation.batches) == 1:
        return 1
    seen: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in evaluation.leaves}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return x.detach()

    biggest = max(evaluation.batches, key=lambda b: b.size)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        kept = evaluation.outputs(biggest) if outputs else evaluation.loss_of(biggest)
    each = 3 * (sum(seen.values()) + kept.numel() * kept.element_size()) + 1
    return int(KEEP_BYTES // each)
