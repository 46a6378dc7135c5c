"""`trebuchet sweep digits`: the paper's ReLU experiment on scikit-learn's embedded digits."""

from pathlib import Path

import numpy as np
import xarray as xr

from trebuchet._types import Phase
from trebuchet.cli.options import InterruptedCommandError, read_rates
from trebuchet.cli.output import check_folder, console, refuse_existing, together
from trebuchet.errors import InputError
from trebuchet.phases.edges import edges
from trebuchet.results.store import save
from trebuchet.show.rates import of_sweep

DEFAULT_OUT = Path("trebuchet-sweep-digits")
NAMES = ("runs.zarr", "sweep.png")
MOST_RUNS = 100_000
"""Rates times seeds: more is a slip of the finger, and weeks of work."""
TENTH = 0.1
"""The largest rate that is named is one where every seed ended below this share of its start."""


def sweep_digits(
    out: Path | None = None,
    *,
    rates: str | None = None,
    seeds: int = 3,
    steps: int | None = None,
    overwrite: bool = False,
) -> None:
    """Sweep ηλ₀ from 0.5 to 14, print the table, write the data and the picture.

    Args:
        out: Folder for runs.zarr and sweep.png; ``trebuchet-sweep-digits`` unless given.
        rates: Learning rates ηλ₀, as ``read_rates`` reads them; 0.5 to 14 by 0.5 unless given.
        seeds: How many seeds.
        steps: Most steps of a run; 1000 unless given.
        overwrite: Replace results that exist.

    Raises:
        InputError: If a rate, the seeds or the folder are not what was expected.
        InterruptedCommandError: After Ctrl-C; what was finished by then is written.
    """
    from trebuchet.paper.digits import RATIOS, STEPS, digits_problem, digits_sweep
    from trebuchet.plots.sweep_picture import sweep_overview

    out = DEFAULT_OUT if out is None else out
    places = [out / name for name in NAMES]
    ratios = RATIOS if rates is None else read_rates(rates)
    if len(ratios) * seeds > MOST_RUNS:
        msg = f"--seeds: {seeds} seeds at {len(ratios)} rates are more than {MOST_RUNS} runs"
        raise InputError(msg)
    refuse_existing(places, overwrite=overwrite)
    check_folder(out)
    screen = console()
    problem = digits_problem()
    screen.print(
        f"[bold]{problem.name}[/]: {problem.x.shape[0]} samples, full-batch gradient descent on "
        "L = (1/2D) Σ (z − y)²",
        soft_wrap=True,
    )
    runs = digits_sweep(
        lr_ratio=ratios, seeds=seeds, steps=STEPS if steps is None else steps, progress=True
    )
    screen.print(of_sweep(runs))
    for line in verdict(runs):
        screen.print(line, soft_wrap=True)
    title = f"{problem.name[0].upper()}{problem.name[1:]}"
    with together(out, NAMES) as stage:
        save(runs, stage / "runs.zarr")
        sweep_overview(runs, edges(problem), title).savefig(stage / "sweep.png", dpi=160)
    screen.print(f"picture  {places[1]}", soft_wrap=True, markup=False)
    screen.print(f"data     {places[0]}   (xarray: trebuchet.load)", soft_wrap=True, markup=False)
    if runs.attrs["interrupted"]:
        msg = "interrupted: what was finished is above and is written too"
        raise InterruptedCommandError(msg)


def verdict(runs: xr.Dataset) -> list[str]:
    """The critical rate, and how far training went, in words.

    Args:
        runs: Labelled runs, swept by ηλ₀.

    Returns:
        Lines for a terminal.
    """
    top = runs.top_eigenvalue_init.values
    critical = 2 / top
    lines = [
        f"critical rate  η = 2/λ₀ = {np.median(critical):.4g} "
        f"(seeds {critical.min():.4g}–{critical.max():.4g}); "
        f"λ₀ = {np.median(top):.4g}, the top eigenvalue of the NTK ÷ D"
    ]
    came_through = runs.phase.isin([str(Phase.LAZY), str(Phase.CATAPULT)])
    fell = (came_through & (runs.final_ratio < TENTH)).all("seed")
    if not bool(fell.any()):
        return [*lines, "at no rate did every seed's loss fall below a tenth of its start"]
    largest = runs.lr.where(fell).max()
    eta = float(runs.learning_rate.sel(lr=largest).median())
    last = " (the largest tried)" if float(largest) == float(runs.lr.max()) else ""
    lines.append(
        f"largest rate  ηλ₀ = {float(largest):g}, η = {eta:.4g}{last}, at which every seed's loss "
        "fell below a tenth of its start"
    )
    return lines
