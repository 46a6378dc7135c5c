"""Between which rates of a sweep its behaviour changes, and how many runs are of which phase."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr

from trebuchet._types import Phase
from trebuchet.phases.interval import Interval
from trebuchet.plots.phase_bar import DROPPED, majority_phase

TRAINED = (str(Phase.LAZY), str(Phase.CATAPULT), str(Phase.PERIODIC))


def measured(ds: xr.Dataset) -> dict[str, Interval]:
    """Where the loss first rises, and where training ends, by the majority of seeds.

    Args:
        ds: Labelled runs, without dims beside rate and seed (and those of a run).

    Returns:
        "the loss first rises" and "training ends", each between two rates that were tried; one
        whose near side was not seen has the lower end 0, one whose far side was not, the upper end
        infinity. Left out where no run has a phase.
    """
    phases, _ = majority_phase(ds)
    rate = np.asarray(ds["lr"].values, np.float64)
    order = np.argsort(rate)
    known = [i for i in order if phases[i] not in {"", DROPPED}]
    if not known:
        return {}
    rose = next((k for k, i in enumerate(known) if phases[i] != str(Phase.LAZY)), len(known))
    trained = [k for k, i in enumerate(known) if phases[i] in TRAINED]
    last = max(trained, default=-1) + 1
    return {
        "the loss first rises": _between(rate[known], rose),
        "training ends": _between(rate[known], last),
    }


def _between(rates: Any, first: int) -> Interval:
    """The interval before the first rate that is beyond an edge."""
    return Interval(
        float(rates[first - 1]) if first else 0.0,
        float(rates[first]) if first < len(rates) else np.inf,
    )


def slices(ds: xr.Dataset, axes: list[str]) -> Iterator[tuple[dict[str, int], xr.Dataset]]:
    """Each combination of the values of other axes, with the runs that have it.

    Args:
        ds: Runs.
        axes: Their dims beside rate and seed.

    Yields:
        Positions by axis, and the runs.
    """
    shape = [ds.sizes[axis] for axis in axes]
    for index in np.ndindex(*shape):
        at = dict(zip(axes, map(int, index), strict=True))
        yield at, ds.isel(at, drop=True)
