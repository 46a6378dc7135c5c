"""A figure as a picture, with a caption that states its conventions."""

import math

from matplotlib.figure import Figure as Picture

from trebuchet.paper.figures import Figure
from trebuchet.plots.figure_panels import paper_panels

SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def draw(result: Figure) -> Picture:
    """The panels of the paper's figure.

    Args:
        result: The figure that was run.

    Returns:
        A matplotlib figure.
    """
    return paper_panels(
        result.runs,
        result.edges,
        title=f"Figure {result.number}: {result.setting.title}",
        caption=caption(result),
        quick=result.quick,
    )


def caption(result: Figure) -> str:
    """Conventions, seeds and stop rule in two sentences."""
    setting, runs = result.setting, result.runs
    seeds = ", ".join(str(seed) for seed in result.seeds)
    stop = f"at most {setting.steps:,} steps"
    if setting.tolerance is not None:
        exponent = round(math.log10(setting.tolerance))
        stop += f", stopped when |ΔL| < 10{str(exponent).translate(SUPERSCRIPTS)}"
    return (
        "Full-batch gradient descent on L = (1/2D) Σ (z − y)²; λ is the top eigenvalue of the "
        f"NTK/D; |θ|²/P with P = {runs.attrs['n_parameters']:,} weights; {runs.attrs['dtype']}; "
        f"{'seed' if len(result.seeds) == 1 else 'seeds'} {seeds}; {stop}."
    )
