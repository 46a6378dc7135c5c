"""The observables that have a name at the doors, and what else a door takes for one."""

from collections.abc import Iterable, Sequence

from trebuchet._checks import items, nearest, refuse, shown
from trebuchet.errors import InputError
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
from trebuchet.results.schema import COORDINATES, VARIABLES

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

    Raises:
        InputError: If one is neither, or has a name that is none or is taken.

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
        kind = next((o for o in given if isinstance(o, type) and issubclass(o, Observable)), None)
        near = near if kind is None else f"make one: {kind.__name__}()"
        refuse(name, f"a list of any of {sorted(OBSERVABLES)}, or of Observables", value, near)
    made = [OBSERVABLES[o]() if isinstance(o, str) else o for o in given]
    chosen = [_named(name, o) for o in made if isinstance(o, Observable)]
    return tuple({o.name: o for o in chosen}.values())


def _named(argument: str, observable: Observable) -> Observable:
    """The observable, if its name and its dimension are free: results have variables of their own.

    Args:
        argument: What the argument is called.
        observable: It.

    Returns:
        The same.

    Raises:
        InputError: If they are not.
    """
    kind, name = type(observable).__name__, getattr(observable, "name", None)
    if not (isinstance(name, str) and name.isidentifier()):
        msg = (
            f"{argument}: expected a word as the name of {kind}, got {shown(name)}; give its class "
            "a name, such as name = 'largest_weight'"
        )
        raise InputError(msg)
    theirs = OBSERVABLES.get(name)
    ends = {f"{name}_{end}" for end in ("final", "first", "max")}
    taken = {name, *ends} & {*VARIABLES, *COORDINATES}
    if taken and (theirs is None or not isinstance(observable, theirs)):
        msg = (
            f"{argument}: expected a name of its own for {kind}, got {name!r}, but results have a "
            f"{min(taken)!r} of another meaning; name it otherwise"
        )
        raise InputError(msg)
    if observable.dim in {"lr", "seed", "step", name}:
        msg = (
            f"{argument}: expected a dim of its own for {name!r}, got {observable.dim!r}; name it "
            "after what it counts"
        )
        raise InputError(msg)
    return observable


def described(chosen: Sequence[Observable]) -> list[str]:
    """The names, in order, for settings."""
    return sorted(o.name for o in chosen)
