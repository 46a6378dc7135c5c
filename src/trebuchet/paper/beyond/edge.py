"""Where nets stop training: the measured divergence edge, over activation, depth and width."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from trebuchet import _torch_checks as checks
from trebuchet._checks import (
    anything,
    checked_seeds,
    choice,
    path as a_path,
    positive,
    progress as a_bar,
    real,
    seeds as a_list,
    several,
    steps as step_count,
    words,
    workers as at_once,
)
from trebuchet._doors import door, maybe, rule
from trebuchet._progress import Progress
from trebuchet._types import Phase
from trebuchet.engine.recording import Recording
from trebuchet.errors import InputError
from trebuchet.paper.beyond.problems import DATA, DIGITS, relu_problem, tanh_problem
from trebuchet.paper.parts import Parts, finished, laid_out
from trebuchet.phases.label import label
from trebuchet.problem.problem import Problem
from trebuchet.sweeps.sweep import sweep

TRAINED = (Phase.LAZY, Phase.CATAPULT)
EMPIRICAL = {"relu": 12.0, "tanh": 4.0}
"""Largest ηλ₀ of the catapult phase reported for wide nets (Lewkowycz et al., arXiv 2003.02218)."""

_MAKERS: dict[str, Callable[..., Problem]] = {"relu": relu_problem, "tanh": tanh_problem}


@dataclass(frozen=True, slots=True)
class Bracket:
    """Between which rates, as ηλ₀, one seed stops training.

    Attributes:
        trains: Largest rate below which every rate tried trained.
        fails: Smallest rate tried that did not train; NaN if all did.
        fails_as: The phase at `fails`; empty if none.
        last: Largest rate tried at which the seed trained: above `fails` where training comes back.
    """

    trains: float
    fails: float
    fails_as: str
    last: float


MOST_RATES = 500
"""Of the coarse scan."""

_PRECISION = rule(real, "a number from 1e-6 up", lambda x: 1e-6 <= x < float("inf"))
_SIZES = rule(several, checks.size)


@door(
    activations=rule(words, _MAKERS), hidden=rule(several, checks.depth), widths=_SIZES,
    seeds=a_list, steps=step_count,
    start=positive, stop=positive, growth=positive, precision=_PRECISION, data=rule(choice, DATA),
    data_root=maybe(a_path), n_train=anything, workers=at_once, checkpoint=maybe(a_path),
    progress=a_bar,
)  # fmt: skip
def divergence_edge(
    *,
    activations: Sequence[str] = ("relu", "tanh"),
    hidden: Sequence[int] = (1, 2, 3),
    widths: Sequence[int] = (32, 128, 512),
    seeds: int | Sequence[int] = 3,
    steps: int = 150,
    start: float = 1.5,
    stop: float = 64.0,
    growth: float = 1.25,
    precision: float = 0.02,
    data: str = DIGITS,
    data_root: str | Path | None = None,
    n_train: int = 64,
    workers: int | None = None,
    checkpoint: str | Path | None = None,
    progress: bool | Progress | None = None,
) -> xr.Dataset:
    """The smallest ηλ₀ at which nets no longer train, by a coarse scan and then bisection.

    A run trains if it ends lazy or as a catapult: diverging, collapsing and not coming back within
    `steps` all count as failing, and ``fails_as`` says which it was.

    Args:
        activations: ``"relu"``, ``"tanh"`` or both.
        hidden: Numbers of hidden layers.
        widths: Units in each.
        seeds: How many seeds, or which.
        steps: Updates a run.
        start: Smallest ηλ₀ of the scan.
        stop: Largest.
        growth: Factor between neighbouring rates of the scan.
        precision: Bisection ends when the bracket's ends differ by less than this part.
        data: As for :func:`trebuchet.paper.beyond.relu_problem`.
        data_root: Folder of image files.
        n_train: Training samples.
        workers: As for :func:`trebuchet.sweep`.
        checkpoint: Folder to keep finished nets in; the same call takes them up from there.
        progress: A bar on a terminal or in a notebook; True: lines in a log too, False: nothing;
            or a function of (done, total).

    Returns:
        A dataset with dims ``activation, hidden, width, seed``: ``trains``, ``fails``,
        ``fails_as`` and ``last`` as in :class:`Bracket`; and ``edge``, the geometric middle of the
        bracket, NaN where every rate trained.

    Raises:
        InputError: If an activation is unknown, or the scan's numbers are out of range.

    Example:
        >>> ds = divergence_edge(activations=["relu"], hidden=[1], widths=[32], seeds=1, steps=50,
        ...                      n_train=8, growth=2.0, precision=0.5)
        >>> bool((ds.trains < ds.edge).all() and (ds.edge < ds.fails).all())
        True
    """
    if not (0 < start < stop and growth > 1 and precision > 0):
        msg = (
            "start: expected 0 < start < stop, growth > 1 and precision > 0, got "
            f"start={start}, stop={stop}, growth={growth}, precision={precision}"
        )
        raise InputError(msg)
    count = int(np.ceil((np.log(stop) - np.log(start)) / np.log(growth) - 1e-9))
    if count > MOST_RATES:
        msg = f"growth: expected at most {MOST_RATES} rates from start to stop, got {count}"
        raise InputError(msg)
    rates = start * growth ** np.arange(count + 1)
    seed_list = list(checked_seeds(seeds))
    axes: dict[str, Sequence[Any]] = {
        "activation": activations, "hidden": hidden, "width": widths,
    }  # fmt: skip
    attrs = {"data": data, "n_train": n_train, "steps": steps, "precision": precision}
    cells = list(product(activations, hidden, widths))
    asked = {**axes, **attrs, "seeds": seed_list, "rates": list(rates)}
    parts = Parts("edge", len(cells), asked, checkpoint=checkpoint, progress=progress)

    def measure(activation: str, depth: int, width: int) -> xr.Dataset:
        problem = _MAKERS[activation](
            width, hidden=depth, data=data, data_root=data_root, n_train=n_train
        )
        found = bracket(
            problem, rates, seeds=seed_list, steps=steps, precision=precision, workers=workers
        )
        return _dataset(found).assign_coords(seed=seed_list)

    found = [parts.part("-".join(map(str, cell)), partial(measure, *cell)) for cell in cells]
    return laid_out(found, axes, attrs, {})


def bracket(
    problem: Problem,
    rates: np.ndarray,
    *,
    seeds: Sequence[int],
    steps: int,
    precision: float = 0.02,
    workers: int | None = None,
) -> list[Bracket]:
    """Between which rates each seed of a problem stops training.

    Args:
        problem: The problem.
        rates: Rates of the scan, as ηλ₀, increasing; the first should train.
        seeds: Which seeds.
        steps: Updates a run.
        precision: Bisection ends when the bracket's ends differ by less than this part.
        workers: As for :func:`trebuchet.sweep`.

    Returns:
        A bracket a seed; ``trains`` is NaN where the smallest rate failed already.
    """
    phases = _phases(problem, rates, seeds, steps, workers)  # (lr, seed)
    result = []
    for column, seed in enumerate(seeds):
        trained = np.isin(phases[:, column], TRAINED)
        last = float(rates[trained][-1]) if trained.any() else float("nan")
        if trained.all():
            result.append(Bracket(last, float("nan"), "", last))
            continue
        first = int(np.argmin(trained))
        low = float(rates[first - 1]) if first else float("nan")
        high, how = float(rates[first]), str(phases[first, column])
        while high > (1 + precision) * low:
            middle = float(np.sqrt(low * high))
            phase = str(_phases(problem, np.array([middle]), [seed], steps, workers)[0, 0])
            if phase in TRAINED:
                low = middle
            else:
                high, how = middle, phase
        result.append(Bracket(low, high, how, max(last, low)))
    return result


def _phases(
    problem: Problem, rates: np.ndarray, seeds: Sequence[int], steps: int, workers: int | None
) -> np.ndarray:
    """Phases, shape ``(lr, seed)``."""
    runs = sweep(
        problem,
        lr_ratio=rates,
        seeds=seeds,
        steps=steps,
        record=Recording(every=steps),
        observables=(),
        chunk=1,
        workers=workers,
        progress=False,
    )
    phases: np.ndarray = label(finished(runs)).phase.values
    return phases


def _dataset(found: Sequence[Bracket]) -> xr.Dataset:
    """Brackets, one a seed, as variables."""
    names = {
        "trains": "largest ηλ₀ up to which every rate tried trained",
        "fails": "smallest ηλ₀ tried that did not train",
        "last": "largest ηλ₀ tried that trained",
        "fails_as": "phase at the smallest rate that did not train",
    }
    result = xr.Dataset()
    for name, long_name in names.items():
        values = [getattr(one, name) for one in found]
        units = "" if name == "fails_as" else "1"
        result[name] = ("seed", values, {"units": units, "long_name": long_name})
    edge = np.sqrt(result.trains.values * result.fails.values)
    result["edge"] = ("seed", edge, {"units": "1", "long_name": "measured edge, as ηλ₀"})
    return result
