"""The paper's ReLU experiment on scikit-learn's embedded digits, 0 against 1."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import ArrayLike

from trebuchet._progress import Progress
from trebuchet.data.digits import load_digits01
from trebuchet.engine.recording import Recording
from trebuchet.engine.threads import one_thread
from trebuchet.models.mlp import MLP
from trebuchet.phases.label import label
from trebuchet.problem.problem import Problem
from trebuchet.scans.door import scan
from trebuchet.scans.result import Scan
from trebuchet.sweeps.sweep import sweep

RATIOS = np.round(np.arange(0.5, 14.01, 0.5), 10)
STEPS = 1000
TOLERANCE = 1e-8
BATCH_SIZE = 32
"""Samples a batch of the scan: a quarter of them, four steps an epoch."""
EDGE_RTOL = 0.1
"""Relative width to which the scan bisects its edges."""


def digits_problem(width: int = 512, dtype: torch.dtype = torch.float32) -> Problem:
    """Two-layer ReLU net, no biases, on 128 digits 0 (−1) and 1 (+1); the rest are for testing."""
    data = load_digits01()
    arrays = (data.x_train, data.y_train, data.x_test, data.y_test)
    x, y, x_test, y_test = (torch.as_tensor(a).to(dtype) for a in arrays)

    def model(seed: int) -> MLP:
        return MLP.draw(x.shape[1], width, generator=seed, dtype=dtype)

    return Problem(
        model,
        "half_mse",
        (x, y),
        test=(x_test, y_test),
        name=f"two-layer ReLU net, width {width}, on digits 0/1",
        facts={"data_source": data.source, "data_sha256": data.sha256},
    )


def digits_sweep(
    *,
    lr_ratio: ArrayLike = RATIOS,
    seeds: int | Sequence[int] = 3,
    steps: int = STEPS,
    progress: bool | Progress | None = None,
) -> xr.Dataset:
    """Labelled runs of the digits problem.

    Args:
        lr_ratio: Learning rates as ηλ₀.
        seeds: How many seeds, or which.
        steps: Most steps of a run; it also stops once the loss changes by less than 1e-8.
        progress: As for :func:`trebuchet.sweep`.

    Returns:
        A labelled dataset, dims ``lr, seed, step``.
    """
    runs = sweep(
        digits_problem(),
        lr_ratio=lr_ratio,
        seeds=seeds,
        steps=steps,
        tolerance=TOLERANCE,
        record=Recording(dense=100, per_decade=40),
        chunk=1,
        progress=progress,
    )
    return label(runs)


def digits_scan(
    optimizer: str = "sgd",
    *,
    batch_size: int = BATCH_SIZE,
    seeds: int | Sequence[int] = 3,
    edge_rtol: float | None = EDGE_RTOL,
    **options: Any,
) -> Scan:
    """A scan of the digits problem, met as a net of one's own is: one initialisation, in batches.

    Where the sweep follows ηλ of the full batch at rates that are given, from three
    initialisations, here only a net, a loss and the data are known, and steps are noisy. Bisecting
    the edges takes whole runs to either side of both. Training of this net ends at ten times the
    rate at which its loss first rises, so those just below the end rose and came back: catapults.

    Args:
        optimizer: As for :func:`trebuchet.scan`.
        batch_size: Samples a batch; all 128 of them make full batches.
        seeds: Orders of the batches.
        edge_rtol: Width of the edges; None leaves them to what the budget allows.
        **options: Others of :func:`trebuchet.scan`.

    Returns:
        The scan.
    """
    problem = digits_problem()
    # So small a net gains nothing by a second thread, and its digits depend on how many there are.
    with one_thread(problem.x.device):
        return scan(
            problem.initial(0), "half_mse", (problem.x, problem.y), optimizer,
            batch_size=batch_size, seeds=seeds, edge_rtol=edge_rtol, **options,
        )  # fmt: skip
