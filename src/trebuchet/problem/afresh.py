"""Other initialisations of a module that was given as it is.

Layers know how they are initialised: ``reset_parameters``. Whether a module's weights *are* such an
initialisation has to be looked at, since a module that was trained, loaded or initialised in a way
of its own is another problem once its layers are reset.
"""

import copy
import math
from collections.abc import Callable

import torch
from scipy.stats import ks_2samp
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from trebuchet.problem.noise import seeded
from trebuchet.problem.selection import select

CHANCE = 1e-4
"""Of taking weights for others than a layer would draw, where they are not; of a whole module."""
SHOWN = 100_000
"""Entries of a tensor that are compared, at most."""


def afresh(model: nn.Module, seed: int) -> nn.Module | str:
    """Copy a module and initialise all of its layers anew, if that is how it was initialised.

    Every module that owns parameters must say how they are reset, every parameter must be trained
    and must change, and the entries that it has must pass for a draw like those that it gets
    (Kolmogorov–Smirnov), or be the same constants.

    Args:
        model: The module; it is left as it is.
        seed: Of the draw.

    Returns:
        The new module, or why there is none.

    Example:
        >>> other = afresh(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), seed=1)
        >>> isinstance(other, nn.Sequential)
        True
        >>> afresh(nn.ParameterList([torch.ones(2)]), seed=1)
        'ParameterList does not say how its parameters are initialised'
    """
    owners = [m for m in model.modules() if any(p is not None for p in m._parameters.values())]
    for module in owners:
        if _reset_of(module) is None or is_parametrized(module):
            return f"{type(module).__name__} does not say how its parameters are initialised"
    if len(select(model)) < sum(1 for _ in model.parameters()):
        return "some parameters are not trained"
    try:
        other = copy.deepcopy(model)
        with seeded(seed), torch.no_grad():
            # Children first: a parent's rule is the last word, as when they were made.
            for module in reversed([m for m in other.modules() if m._parameters]):
                reset = _reset_of(module)
                if reset is not None:
                    reset()
    except Exception as error:  # a user's module may raise anything
        return f"it cannot be copied and reset ({type(error).__name__})"
    before, after = select(model), select(other)
    level = CHANCE / max(1, len(before))
    for name, was in before.items():
        if not _alike(was.detach(), after[name].detach(), level):
            return f"{name} is not as its layer would initialise it"
    return other


def _reset_of(module: nn.Module) -> Callable[[], object] | None:
    found = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
    return found if callable(found) else None


def _alike(was: Tensor, now: Tensor, level: float) -> bool:
    if was.shape != now.shape or not bool(torch.isfinite(now).all()):
        return False
    if torch.equal(was, now):  # a constant, or nobody's to draw
        return was.numel() == 0 or bool((was == was.reshape(-1)[0]).all())
    a, b = (t.double().reshape(-1)[:: max(1, math.ceil(t.numel() / SHOWN))] for t in (was, now))
    return bool(ks_2samp(a.cpu().numpy(), b.cpu().numpy()).pvalue > level)
