"""The table of a sweep on a terminal: one row a rate."""

import math

import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text

from trebuchet._types import Phase
from trebuchet.results.summary import PHASE_LETTERS

# the terminal's own colours, so that a reader's theme keeps them legible
PHASE_STYLES: dict[str, str] = {
    Phase.LAZY: "cyan",
    Phase.CATAPULT: "yellow",
    Phase.DIVERGENT: "bold red",
    Phase.COLLAPSED: "magenta",
    Phase.UNSETTLED: "dim",
}
HEADINGS: dict[str, str] = {
    "lr": "η",
    "lr_ratio": "ηλ₀",
    "phases": "phase",
    "loss_max": "peak L",
    "loss_final": "train L",
    "test_loss_final": "test L",
    "ratio_final": "ηλ end",
    "weight_norm_ratio": "|θ|²/|θ₀|²",
    "sparsity": "sparsity",
}


def rates_table(frame: pd.DataFrame) -> Table:
    """Lay out the frame of :func:`trebuchet.results.summary.table` for a terminal.

    Args:
        frame: One row a rate; the columns that it lacks are left out, those that no heading is
            known for keep their name.

    Returns:
        A rich table: numbers to three digits, "–" for a missing one, "∞" for an infinite one,
        a coloured letter a seed for the phase, with the letters explained below.

    Example:
        >>> from rich.console import Console
        >>> frame = pd.DataFrame({"lr_ratio": [1.0, 4.0], "phases": ["L L", "C C"],
        ...                       "loss_max": [0.5, 30.25]})
        >>> Console(width=60, color_system=None).print(rates_table(frame))
        ηλ₀  phase  peak L
        ───────────────────
        1    L L       0.5
        4    C C      30.2
        L lazy  C catapult
    """
    shown = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
        caption=_legend(frame),
        caption_justify="left",
        caption_style="",
    )
    for name in frame.columns:
        shown.add_column(
            _heading(str(name)),
            justify="left" if name in {"lr", "lr_ratio", "phases"} else "right",
            no_wrap=True,
        )
    for row in frame.itertuples(index=False):
        shown.add_row(
            *(
                phase_letters(str(value)) if name == "phases" else number(float(value))
                for name, value in zip(frame.columns, row, strict=True)
            )
        )
    return shown


def phase_letters(letters: str) -> Text:
    """Letters of phases, ``"L C D"``, each in its colour.

    Args:
        letters: As in the frame's column ``phases``.

    Returns:
        Coloured text.
    """
    styles = {letter: PHASE_STYLES[phase] for phase, letter in PHASE_LETTERS.items()}
    text = Text()
    for letter in letters:
        text.append(letter, style=styles.get(letter, ""))
    return text


def number(value: float) -> str:
    """Three digits, in as few characters as they take.

    Args:
        value: Any number.

    Returns:
        The text.

    Example:
        >>> [number(v) for v in (0.5, 12.345, 1234.5, 0.00012, 1e-7, 2.5e7)]
        ['0.5', '12.3', '1230', '0.00012', '1e-7', '2.5e7']
        >>> [number(v) for v in (0.0, float("nan"), float("inf"), float("-inf"))]
        ['0', '–', '∞', '-∞']
    """
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if value == 0:
        return "0"
    if 1e-4 <= abs(value) < 1e5:
        digits = 2 - math.floor(math.log10(abs(value)))
        return f"{round(value, digits):g}"
    mantissa, power = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(power)}"


def _heading(name: str) -> str:
    if name.startswith("sparsity_"):
        return f"sparsity {name.removeprefix('sparsity_')}"
    return HEADINGS.get(name, name)


def _legend(frame: pd.DataFrame) -> Text | None:
    """What the letters that occur stand for."""
    if "phases" not in frame:
        return None
    present = set("".join(frame["phases"]))
    text = Text()
    for phase, letter in PHASE_LETTERS.items():
        if letter in present:
            text.append("  " if text else "")
            text.append(f"{letter} {phase}", style=PHASE_STYLES[phase])
    return text
