"""The observables that have a name at the doors, and what else a door takes for one."""

from collections.abc import Iterable, Sequence
from typing import cast

from trebuchet._checks import MANY, as_index, items, nearest, refuse, shown
from trebuchet.errors import InputError
from trebuchet.observables.accuracy import Accuracy
from trebuchet.observables.base import Observable
from trebuchet.observables.eigenvector_overlap import EigenvectorOverlap
from trebuchet.observables.gradient_norm import GradientNorm
from trebuchet.observables.held_out_loss import HeldOutLoss
from trebuchet.observables.loss_directions import LossDirections
from trebuchet.observables.lyapunov import Lyapunov
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
        LossDirections, EigenvectorOverlap, Sharpness, Lyapunov,
    )
}  # fmt: skip
"""By name. The loss is always recorded."""


TAKEN = {*VARIABLES, *COORDINATES, *(f"{name}_final" for name in OBSERVABLES)}
"""Names in results that mean something else than an observable of a user's own."""


def observables(name: str, value: object) -> tuple[Observable, ...]:
    """Observables from names and instances; each name once.

    Args:
        name: What the argument is called.
        value: A list of names, of instances, or of both.

    Returns:
        Instances.

    Raises:
        InputError: If it is no such list, or one of them has no name of its own, or a dimension
            without a size.

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
        hints = [nearest(o, OBSERVABLES) for o in given or [value]]
        if any(isinstance(o, type) and issubclass(o, Observable) for o in [*given, value]):
            hints = ["give instances, not the class"]
        near = next((hint for hint in hints if hint), "")
        refuse(name, f"a list of any of {sorted(OBSERVABLES)}, or of Observables", value, near)
    chosen: dict[str, Observable] = {}
    for item in given:
        made = _named(
            name, OBSERVABLES[item]() if isinstance(item, str) else cast(Observable, item)
        )
        before = chosen.setdefault(made.name, made)
        if type(before) is not type(made) or vars(before) != vars(made):
            msg = f"{name}: expected different names, got two observables called {made.name!r}"
            raise InputError(msg)
    _same_sizes(name, chosen.values())
    return tuple(chosen.values())


def _same_sizes(name: str, chosen: Iterable[Observable]) -> None:
    """A dimension of results has one size."""
    first: dict[str, Observable] = {}
    for observable in chosen:
        if observable.dim is not None and observable.size is not None:
            before = first.setdefault(observable.dim, observable)
            if before.size != observable.size:
                msg = (
                    f"{name}: expected one size of the dimension {observable.dim!r}, got "
                    f"{before.size} of {before.name!r} and {observable.size} of "
                    f"{observable.name!r}; give both the same"
                )
                raise InputError(msg)


def _named(name: str, observable: Observable) -> Observable:
    """One whose numbers have a place of their own in results."""
    called = getattr(observable, "name", None)
    kind = type(observable).__name__
    if not isinstance(called, str) or not called.isidentifier():
        msg = (
            f"{name}: expected a name that is an identifier, as a string, of {kind}, got "
            f"{shown(called)}; set {kind}.name"
        )
        raise InputError(msg)
    ours = OBSERVABLES.get(called)
    if (called in TAKEN and ours is None) or (ours and not isinstance(observable, ours)):
        msg = f"{name}: {called!r} of {kind} has another meaning in results; call it otherwise"
        raise InputError(msg)
    dim, size = observable.dim, observable.size
    if ours is None and dim is not None:
        own = isinstance(dim, str) and dim.isidentifier() and dim not in COORDINATES
        if not own or as_index(size) is None or not 1 <= int(size or 0) <= MANY:
            msg = (
                f"{name}: expected a dimension of its own and its size of {kind}, got dim="
                f"{shown(dim)}, size={shown(size)}; set both, or neither for one number"
            )
            raise InputError(msg)
    return observable


def described(chosen: Sequence[Observable]) -> list[str]:
    """The names, in order, for settings."""
    return sorted(o.name + " of the start" * getattr(o, "of_start", False) for o in chosen)
