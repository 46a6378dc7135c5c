"""What every plot is given: axes, a dataset of runs, labelled, and edges."""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import is_color_like

from trebuchet._checks import choice, instance, items, refuse, shown, whole
from trebuchet.errors import InputError
from trebuchet.results.cells import axes_of
from trebuchet.results.schema import results

X = {"lr_ratio": "lr_ratio", "lr": "learning_rate"}
"""Names of the x axis, and what holds it."""


def axes(name: str, value: object) -> Axes:
    """Matplotlib's axes."""
    return instance(name, value, Axes, "matplotlib axes", "plt.subplots() makes some")


def labelled(name: str, value: object) -> xr.Dataset:
    """A dataset of runs over rates and seeds that `label` has been through."""
    ds = results(name, value)
    if "phase" not in ds:
        msg = f"{name}: expected a labelled dataset, got none of 'phase'; call label(ds)"
        raise InputError(msg)
    if extra := axes_of(ds):
        choose = ", ".join(f"{axis!r}: ..." for axis in extra)
        msg = (
            f"{name}: expected the dims lr and seed, got {', '.join(map(repr, extra))} too; select "
            f"one cell with ds.sel({{{choose}}}), or draw all with plots.phase_diagram"
        )
        raise InputError(msg)
    for held in ("lr", "learning_rate", "lr_ratio"):
        if held == "lr_ratio" and held in ds and bool(np.isnan(ds[held]).all()):
            continue  # λ₀ was not measured
        if held in ds and not bool((np.isfinite(ds[held]) & (ds[held] > 0)).all()):
            msg = f"{name}: expected positive finite numbers as {held!r}, got some that are not"
            raise InputError(msg)
    return ds


def x_axis(name: str, value: object) -> str | None:
    """The quantity along x; None for the usual one, see `along`."""
    return None if value is None else choice(name, value, X)


def along(ds: xr.Dataset, x: str | None) -> str:
    """What was asked for; or else ηλ₀, if it was swept, or known of gradient descent; or else η.

    Args:
        ds: The runs.
        x: "lr_ratio", "lr" or None.

    Returns:
        "lr_ratio" or "lr".

    Raises:
        InputError: If the dataset does not hold what was asked for.
    """
    if x is None:
        known = "lr_ratio" in ds and bool(np.isfinite(ds["lr_ratio"]).all())
        meant = ds.attrs.get("swept") == "lr_ratio" or is_descent(ds)
        return "lr_ratio" if known and meant else "lr"
    if X[x] not in ds:
        msg = f"x: expected 'lr_ratio' or 'lr', held by the dataset, got {x!r}"
        raise InputError(msg)
    return x


def is_descent(ds: xr.Dataset) -> bool:
    """Whether runs were made by gradient descent, as far as is known: 2 says something of ηλ."""
    plain = {"sgd", "SGD", "GradientDescent(momentum=0.0, weight_decay=0.0)"}
    return str(ds.attrs.get("optimizer", "sgd")) in plain


def rate_name(x: str) -> str:
    """What an axis, or a line, calls its rates."""
    return "ηλ₀" if x == "lr_ratio" else "η"


def drawn_on(ax: Axes | None) -> Axes:
    """The axes, or those of a new figure."""
    if ax is not None:
        return ax
    return plt.subplots(layout="constrained")[1]


def optional_axes(name: str, value: object) -> Axes | None:
    """Axes, or None for new ones."""
    return None if value is None else axes(name, value)


def positions(name: str, value: object) -> tuple[int, ...] | None:
    """Indices along ``lr``, or None for a few that are chosen."""
    if value is None:
        return None
    found = items(value, lambda item: (item,))
    if not found:
        refuse(name, "a list of indices along lr", value)
    return tuple(whole(name, item[0], "an index along lr", least=0) for item in found if item)


def within(rates: Sequence[int], ds: xr.Dataset) -> list[int]:
    """The indices, if the dataset has so many rates."""
    if max(rates) >= ds.sizes["lr"]:
        msg = (
            f"rates: expected indices below {ds.sizes['lr']}, the number of rates, got {max(rates)}"
        )
        raise InputError(msg)
    return list(rates)


def colours(name: str, value: object) -> list[Any] | None:
    """Colours, one a line, or None for the usual ones."""
    if value is None:
        return None
    found = [item[0] for item in items(value, lambda item: (item,)) if item]
    if not found or not all(map(_is_colour, found)):
        refuse(name, "a list of colours", value)
    return found


def as_many(given: Sequence[Any], rates: Sequence[int]) -> Sequence[Any]:
    """The colours, if there is one a rate."""
    if len(given) != len(rates):
        msg = f"colours: expected one a rate, {len(rates)}, got {len(given)}: {shown(given)}"
        raise InputError(msg)
    return given


def _is_colour(value: object) -> bool:
    try:
        return bool(is_color_like(value))
    except Exception:  # matplotlib asks much of what it is given
        return False
