"""The weight-norm ceiling 2k of nets of k layers, measured step by step."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from trebuchet import _torch_checks as checks
from trebuchet._checks import (
    anything,
    path as a_path,
    progress as a_bar,
    real,
    seeds as a_list,
    several,
    steps as step_count,
    whole,
    workers as at_once,
)
from trebuchet._doors import door, maybe, rule
from trebuchet._progress import Progress
from trebuchet.models import MLP
from trebuchet.paper.beyond.problems import relu_problem
from trebuchet.paper.parts import Parts, finished
from trebuchet.problem.problem import Problem
from trebuchet.sweeps.sweep import sweep
from trebuchet.theory import ceiling

ROUNDING = 1e-11
"""A change of |θ|² by less than this part of it is neither a rise nor a fall in float64."""

LARGE_LOSS = 10.0
"""The loss is large when it exceeds this many times ½ mean(y²), its value at zero output."""


@dataclass(frozen=True, slots=True)
class _Case:
    """One way to pose the question."""

    name: str
    single: bool
    labels: float  # ±


CASES = (
    _Case("one sample, y = 0", True, 0.0),
    _Case("many samples, y = 0", False, 0.0),
    _Case("many samples, y = ±0.1", False, 0.1),
    _Case("many samples, y = ±1", False, 1.0),
)


_STEP = rule(real, "a spacing from 1e-3 up", lambda x: 1e-3 <= x < float("inf"))


@door(
    degrees=rule(several, whole, "a number of layers, 2 or more", least=2, most=10_000),
    width=checks.size,
    seeds=a_list, steps=step_count, rate_step=_STEP, samples=anything, workers=at_once,
    checkpoint=maybe(a_path), progress=a_bar,
)  # fmt: skip
def norm_ceiling(
    *,
    degrees: Sequence[int] = (2, 3, 4),
    width: int = 256,
    seeds: int | Sequence[int] = 3,
    steps: int = 60,
    rate_step: float = 0.1,
    samples: int = 32,
    workers: int | None = None,
    checkpoint: str | Path | None = None,
    progress: bool | Progress | None = None,
) -> xr.Dataset:
    """At which ηλ_max(H_t) the weight norm of a bias-free ReLU net of k layers fell, or rose.

    The law (exact, every step): |θ'|² − |θ|² = (η/D)[εᵀ(ηH − 2k)ε − 2k Σ_a ε_a y_a]. So

    - on one sample with y = 0 the norm falls if and only if ηλ < 2k: the largest ηλ at which it
      fell and the smallest at which it rose enclose 2k;
    - on many samples with y = 0 it falls whenever ηλ_max < 2k; above it may do either, as ε lies;
    - with labels it falls whenever ηλ_max < 2k(1 − √(½ mean(y²)/L)), by Cauchy–Schwarz: the
      ceiling is 2k for large losses, and there is none for a loss below ½ mean(y²).

    Every recorded step of sweeps from ηλ₀ = 1 to 2k + 2 is looked at, diverging runs included: the
    law does not care.

    Args:
        degrees: Layers k, each 2 or more.
        width: Units in each hidden layer.
        seeds: How many seeds, or which.
        steps: Updates a run.
        rate_step: Spacing of the rates ηλ₀.
        samples: Digits in the cases of many samples.
        workers: As for :func:`trebuchet.sweep`.
        checkpoint: Folder to keep finished cases in; the same call takes them up from there.
        progress: A bar on a terminal or in a notebook; True: lines in a log too, False: nothing;
            or a function of (done, total).

    Returns:
        A dataset with dims ``case, degree``: ``ceiling`` 2k; ``fell_highest``, the largest ηλ_max
        at which the norm fell in a step; ``rose_lowest``, the smallest at which it rose;
        ``rose_lowest_large_loss``, the same among steps with a loss above 10 × ½ mean(y²);
        ``steps_below`` and ``violations``, how many steps the statement above covers and how many
        of those the norm rose in; ``rises`` and ``falls``, counts of steps.

    Raises:
        InputError: If an argument is not what was expected.

    Example:
        >>> ds = norm_ceiling(degrees=[3], width=16, seeds=1, steps=10, rate_step=0.5, samples=4)
        >>> one = ds.sel(case="one sample, y = 0", degree=3)
        >>> bool(one.fell_highest < one.ceiling < one.rose_lowest), int(ds.violations.sum())
        (True, 0)
    """
    attrs = {"width": width, "steps": steps, "samples": samples, "data": "digits"}
    asked = {**attrs, "degrees": list(degrees), "seeds": seeds, "rate_step": rate_step}
    count = len(CASES) * len(degrees)
    parts = Parts("ceiling", count, asked, checkpoint=checkpoint, progress=progress)

    def measure(case: _Case, degree: int) -> xr.Dataset:
        problem = _problem(case, degree, width, samples)
        rates = np.round(np.arange(1.0, 2 * degree + 2 + 1e-9, rate_step), 10)
        runs = sweep(
            problem, lr_ratio=rates, seeds=seeds, steps=steps, workers=workers,
            progress=parts.inside,
        )  # fmt: skip
        mean_square = float((problem.y**2).mean())
        return xr.Dataset(_observe(finished(runs), ceiling(degree), mean_square))

    cells = [
        [parts.part(f"{n}-{degree}", partial(measure, case, degree)) for degree in degrees]
        for n, case in enumerate(CASES)
    ]
    variables = {
        "ceiling": "2k",
        "fell_highest": "largest ηλ_max at which |θ|² fell",
        "rose_lowest": "smallest ηλ_max at which |θ|² rose",
        "rose_lowest_large_loss": "smallest ηλ_max at which |θ|² rose while the loss was large",
        "steps_below": "steps below the law's bound",
        "violations": "steps below the law's bound in which |θ|² rose",
        "rises": "steps in which |θ|² rose",
        "falls": "steps in which |θ|² fell",
    }
    data = {
        name: (
            ("case", "degree"),
            np.array([[cell[name].item() for cell in row] for row in cells]),
            {"units": "1", "long_name": long_name},
        )
        for name, long_name in variables.items()
    }
    coordinates = {"case": [case.name for case in CASES], "degree": list(degrees)}
    result = xr.Dataset(data, coords=coordinates)
    result["degree"].attrs = {"units": "1", "long_name": "layers k"}
    result.attrs = attrs
    return result


def _problem(case: _Case, degree: int, width: int, samples: int) -> Problem:
    hidden = degree - 1
    if not case.single:
        full = relu_problem(width, hidden=hidden, n_train=samples, dtype=torch.float64)
        return Problem(full.model, "half_mse", (full.x, case.labels * full.y), name=full.name)

    def model(seed: int) -> MLP:
        return MLP.draw(1, width, hidden=hidden, generator=seed, dtype=torch.float64)

    return Problem(
        model, "half_mse", ([[1.0]], [0.0]), name=f"ReLU net of {degree} layers, one sample"
    )


def _observe(runs: xr.Dataset, top: float, mean_square: float) -> dict[str, float]:
    """Rises and falls of all steps of all runs."""
    norm = runs.weight_norm.values  # (lr, seed, step)
    ratio = (runs.learning_rate * runs.top_eigenvalue).values[..., :-1]
    loss = runs.loss.values[..., :-1]
    change = np.diff(norm, axis=-1) / norm[..., :-1]
    rose, fell = change > ROUNDING, change < -ROUNDING  # NaN, an ended run, is neither
    floor = mean_square / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        bound = top * (1 - np.sqrt(floor / loss)) if floor else np.full_like(loss, top)
    below = (rose | fell) & (ratio < bound)
    return {
        "ceiling": top,
        "fell_highest": _extreme("max", ratio[fell]),
        "rose_lowest": _extreme("min", ratio[rose]),
        "rose_lowest_large_loss": _extreme("min", ratio[rose & (loss > LARGE_LOSS * floor)]),
        "steps_below": int(below.sum()),
        "violations": int((below & rose).sum()),
        "rises": int(rose.sum()),
        "falls": int(fell.sum()),
    }


def _extreme(which: Literal["min", "max"], values: NDArray[np.float64]) -> float:
    """The extreme value, NaN of none."""
    if not values.size:
        return float("nan")
    return float(values.min() if which == "min" else values.max())
