"""How micro-batches add up: what a loss divides by, known or found by trial.

With L_b the loss on micro-batch b, the loss on everything is

    L = Σ_b w_b L_b,   w_b = 1 for a sum over samples,   w_b = d_b / Σ_b d_b for a mean,

with d_b what the mean divides by: elements (MSE and its like), targets that count (cross-entropy
with ``ignore_index``), their total class weight, or rows. The table in losses.py says so for
torch's own losses. Every other loss is tried (trial.py) before it is believed, wherever it matters.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from trebuchet.errors import InputError
from trebuchet.problem.batches import Batch
from trebuchet.problem.losses import LossFn, ModelLoss, Reduction, known
from trebuchet.problem.trial import Rule, as_shapes, by_samples, one, tried, tried_closure


def find_rule(
    loss: LossFn | ModelLoss | None,
    batches: Sequence[Batch],
    *,
    reduction: Reduction | None,
    outputs_of: Callable[[Batch], Any],
    value_of: Callable[[Batch], Tensor],
    always: bool = False,
) -> Rule:
    """Return how the losses of micro-batches add up.

    Args:
        loss: The resolved loss; None (NTK without a loss) counts as a mean over samples.
        batches: The micro-batches.
        reduction: The caller's word on what the loss is; None finds out.
        outputs_of: Gives a batch's outputs.
        value_of: Gives a closure's loss on a batch, for its trial.
        always: Find the rule out even for one batch (distributed shards need it).

    Returns:
        The rule.

    Raises:
        InputError: If `reduction` is unknown, or a loss that is not known adds up in no way.
    """
    if reduction not in (None, "mean", "sum"):
        msg = f"reduction: expected 'mean', 'sum' or None, got {reduction!r}"
        raise InputError(msg)
    if reduction == "sum":
        return Rule("sum", one)
    row = known(loss)
    if row is not None:
        if row[1].get("reduction") == "sum" and reduction is None:
            return Rule("sum", one)

        def divides_by(z: Any, y: Any, n: int) -> float:
            del n
            return row[0].divides_by(z, y, row[1])

        return Rule("mean", divides_by, sees_outputs=True)
    said = reduction is not None or all(b.weight is not None for b in batches)
    if loss is None or said or (len(batches) == 1 and not always):
        return Rule("mean", by_samples)
    if isinstance(loss, ModelLoss):
        return tried_closure(batches, value_of)
    return tried(loss, batches, outputs_of, every_axis=always)


def divisors(
    rule: Rule, batches: Sequence[Batch], outputs_of: Callable[[Batch], Any]
) -> tuple[list[float], float]:
    """Return d of every batch, and their total (1 for a sum).

    Args:
        rule: How they add up.
        batches: The micro-batches.
        outputs_of: Gives a batch's outputs; called once for batches whose tensors agree in shape.

    Returns:
        B divisors and the total.
    """
    shapes: dict[Any, Any] = {}

    def shape_of(batch: Batch) -> Any:
        key = batch.shapes
        if key not in shapes:
            shapes[key] = as_shapes(outputs_of(batch))
        return shapes[key]

    found = [rule.divisor(b, shape_of) for b in batches]
    return found, 1.0 if rule.reduction == "sum" else sum(found)
