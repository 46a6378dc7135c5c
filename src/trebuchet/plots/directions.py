"""The loss in each eigendirection over the steps of training."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from trebuchet._checks import whole
from trebuchet._doors import door, maybe, rule
from trebuchet._types import Phase
from trebuchet.errors import InputError
from trebuchet.plots import checks
from trebuchet.plots.phase_bar import majority_phase
from trebuchet.plots.style import SERIES_COLOURS, seed_band

_INDEX = maybe(rule(whole, "an index along lr", least=0))


@door(ds=checks.labelled, rate=_INDEX, ax=checks.optional_axes)
def loss_directions(ds: Any, *, rate: int | None = None, ax: Axes | None = None) -> Axes:
    """The loss in each eigendirection over steps, at one rate: which of them catapults.

    Medians over seeds, with their range as a band.

    Args:
        ds: A labelled results dataset whose runs recorded ``loss_directions``.
        rate: Index along ``lr``; the last at which most runs catapult unless given, or else the
            last.
        ax: Where to draw; a new figure's axes unless given.

    Returns:
        The axes.

    Raises:
        InputError: If ``loss_directions`` was not recorded, or there is no such rate.
    """
    if "loss_directions" not in ds:
        msg = (
            "ds: expected runs that recorded 'loss_directions'; sweep with "
            "observables=['loss_directions']"
        )
        raise InputError(msg)
    if rate is None:
        jumped = np.flatnonzero(majority_phase(ds)[0] == str(Phase.CATAPULT))
        rate = int(jumped[-1]) if len(jumped) else ds.sizes["lr"] - 1
    if rate >= ds.sizes["lr"]:
        msg = f"rate: expected an index below {ds.sizes['lr']}, the number of rates, got {rate}"
        raise InputError(msg)
    losses = ds["loss_directions"].isel(lr=rate).transpose("direction", "step", "seed")
    ax = checks.drawn_on(ax)
    for i, values in enumerate(losses.values):
        known = np.isfinite(values).any(axis=1)
        ordinal = {0: "first", 1: "second", 2: "third"}.get(i, f"{i + 1}th")
        seed_band(
            ax, ds["step"].values[known], values[known],
            colour=SERIES_COLOURS[i % len(SERIES_COLOURS)], label=f"{ordinal} direction",
        )  # fmt: skip
    ax.set_yscale("log")
    ax.set(xlabel="step t", ylabel="loss in one eigendirection")
    ax.legend()
    return ax
