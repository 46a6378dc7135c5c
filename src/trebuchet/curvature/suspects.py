"""Operations whose second derivative is known to be wrong, or cannot be known to be right.

An autograd graph names its operations. Two kinds are not believed before they are checked:

- ``torch._weight_norm_interface``, which both forms of ``weight_norm`` are made of: its double
  backward is wrong in torch 2.13 (``gradgradcheck`` fails; the Hessian is not symmetric);
- a user's ``torch.autograd.Function``: its backward pass may be anything, and one that computes
  with detached numbers (fused losses often do) has a second derivative of zero without a word.
"""

import torch
from torch import Tensor

from trebuchet._differentiable import operations
from trebuchet.curvature.explain import reentrant
from trebuchet.errors import InputError

_WRONG = {"WeightNormInterfaceBackward0": "weight_norm"}
_CHECKPOINT = "CheckpointFunctionBackward"


def suspects(value: Tensor) -> list[str]:
    """Return the operations behind a tensor that are not believed unchecked.

    Args:
        value: A tensor with its graph.

    Returns:
        Names, each once, in alphabetical order.

    Raises:
        InputError: If the graph holds a reentrant checkpoint, which can be differentiated once
            and only by ``backward()``.
    """
    found: set[str] = set()
    for node in operations(value):
        name = node.name()
        if name == _CHECKPOINT:
            raise InputError(reentrant())
        if name in _WRONG:
            found.add(_WRONG[name])
        elif isinstance(node, torch.autograd.function.BackwardCFunction):
            found.add(name.removesuffix("Backward"))
    return sorted(found)
