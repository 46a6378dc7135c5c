"""What only an evaluation can tell: whether the model, the loss and the data fit together."""

from collections.abc import Sequence

from trebuchet.curvature.batches import Batch
from trebuchet.errors import InputError
from trebuchet.phases.scanning.objective import Objective, is_finite, out_of_memory
from trebuchet.phases.scanning.stream import Stream


def check_start(objective: Objective, fixed: Sequence[Batch], stream: Stream) -> None:
    """Evaluate the loss once, and say in one sentence what is wrong with it.

    Args:
        objective: The model and the loss.
        fixed: The samples that runs are compared on.
        stream: The batches that they are trained on.

    Raises:
        InputError: If the loss cannot be evaluated, or is not finite.
    """
    del stream
    try:
        first = objective.value(fixed)
    except InputError:
        raise
    except (RuntimeError, ValueError, TypeError) as error:
        if out_of_memory(error):
            raise
        lines = str(error).strip().splitlines() or [type(error).__name__]
        msg = f"model: cannot be evaluated with this loss on this data ({lines[0]})"
        raise InputError(msg) from error
    if not is_finite(first):
        msg = (
            f"model: its loss is {first} at the initialisation, before any step; no learning rate "
            "can mend that: check the data for NaN, and the model's outputs"
        )
        raise InputError(msg)
