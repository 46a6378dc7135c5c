"""The observables that have a name at the doors, and what else a door takes for one."""

from collections.abc import Iterable, Sequence

from trebuchet._checks import items, nearest, refuse
from trebuchet.observables.accuracy import Accuracy
from trebuchet.observables.base import Observable
from trebuchet.observables.eigenvector_overlap import EigenvectorOverlap
from trebuchet.observables.gradient_norm import GradientNorm
from trebuchet.observables.held_out_loss import HeldOutLoss
from trebuchet.observables.loss_directions import LossDirections
from trebuchet.observables.sharpness import Sharpness
from trebuchet.observables.sparsity import Sparsity
from trebuchet.observables.top_eigenvalue import TopEigenvalue
from trebuchet.observables.top_eigenvalues import TopEigenvalues
from trebuchet.observables.weight_norm import WeightNorm

OBSERVABLES: dict[str, type[Observable]] = {
    kind.name: kind
    for kind in (
        TopEigenvalue, Sparsity, HeldOutLoss, WeightNorm, GradientNorm, Accuracy, TopEigenvalues,
        LossDirections, EigenvectorOverlap, Sharpness,
    )
}  # fmt: skip
"""By name. The loss is always recorded."""


def observables(name: str, value: object) -> tuple[Observable, ...]:
    """Observables from names and instances; each name once.

    Args:
        name: What the argument is called.
        value: A list of names, of instances, or of both.

    Returns:
        Instances.

    Example:
        >>> [o.name for o in observables("observables", ["accuracy", "sharpness"])]
        ['accuracy', 'sharpness']
    """
    found = items(value, lambda item: (item,))
    given = [item[0] for item in found if item]
    listed = isinstance(value, Iterable) and not isinstance(value, (str, bytes))
    good = all(
        isinstance(o, Observable) or (isinstance(o, str) and o in OBSERVABLES) for o in given
    )
    if not listed or not good:
        hints = (nearest(o, OBSERVABLES) for o in given or [value])
        near = next((hint for hint in hints if hint), "")
        refuse(name, f"a list of any of {sorted(OBSERVABLES)}, or of Observables", value, near)
    made = [OBSERVABLES[o]() if isinstance(o, str) else o for o in given]
    return tuple({o.name: o for o in made if isinstance(o, Observable)}.values())


def described(chosen: Sequence[Observable]) -> list[str]:
    """The names, in order, for settings."""
    return sorted(o.name for o in chosen)
