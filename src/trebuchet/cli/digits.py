"""`trebuchet scan digits`: the paper's ReLU experiment on scikit-learn's embedded digits."""

import math
from pathlib import Path

import numpy as np
import xarray as xr

from trebuchet._types import Phase
from trebuchet._whole import whole
from trebuchet.cli.output import check_folder, console, prepare_folder, refuse_existing
from trebuchet.cli.tables import rates_table
from trebuchet.errors import InputError
from trebuchet.phases.edges import edges
from trebuchet.results.store import save
from trebuchet.results.summary import table

DEFAULT_OUT = Path("trebuchet-scan-digits")
TENTH = 0.1
"""The largest rate that is named is one where every seed ended below this share of its start."""


def run_digits(
    out: Path | None = None,
    *,
    rates: str | None = None,
    seeds: int = 3,
    steps: int | None = None,
    overwrite: bool = False,
) -> None:
    """Sweep ηλ₀ from 0.5 to 14, print the table, write the data and the picture.

    Args:
        out: Folder for runs.zarr and scan.png; ``trebuchet-scan-digits`` unless given.
        rates: Learning rates ηλ₀, as ``parse_rates`` reads them; 0.5 to 14 by 0.5 unless given.
        seeds: How many seeds.
        steps: Most steps of a run.
        overwrite: Replace results that exist.
    """
    from trebuchet.paper.digits import RATIOS, STEPS, digits_problem, digits_sweep
    from trebuchet.plots.scan_picture import sweep_overview

    out = DEFAULT_OUT if out is None else out
    data, picture = out / "runs.zarr", out / "scan.png"
    ratios = RATIOS if rates is None else parse_rates(rates)
    refuse_existing([data, picture], overwrite=overwrite)
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
    screen.print(rates_table(table(runs)))
    for line in verdict(runs):
        screen.print(line, soft_wrap=True)
    if runs.attrs["interrupted"]:
        screen.print("[yellow]interrupted:[/] what was finished is above and is written too")
    prepare_folder(out)
    save(runs, data, overwrite=overwrite)
    title = f"{problem.name[0].upper()}{problem.name[1:]}"
    with whole(picture) as part:
        sweep_overview(runs, edges(problem), title).savefig(part, dpi=160)
    screen.print(f"picture  {picture}\ndata     {data}   (xarray: trebuchet.load)", soft_wrap=True)


def parse_rates(text: str) -> list[float]:
    """Rates from "start:stop:step", both ends included, or from a list "0.5,1,2".

    Args:
        text: What the user typed.

    Returns:
        The rates, ascending.

    Raises:
        InputError: If the text is neither, or a rate is not positive and finite.

    Example:
        >>> parse_rates("0.5:2:0.5"), parse_rates("3,1")
        ([0.5, 1.0, 1.5, 2.0], [1.0, 3.0])
    """
    try:
        if ":" in text:
            start, stop, step = (float(part) for part in text.split(":"))
            count = math.floor((stop - start) / step + 1e-9) + 1
            rates = [round(start + i * step, 10) for i in range(count)]
        else:
            rates = sorted({float(part) for part in text.split(",") if part.strip()})
    except (ValueError, ZeroDivisionError, OverflowError):
        rates = []
    if not rates or not all(0 < rate < math.inf for rate in rates):
        msg = (
            "--rates: expected positive numbers, as start:stop:step (0.5:14:0.5) or a list "
            f"(0.5,1,2), got {text!r}"
        )
        raise InputError(msg)
    return rates


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
