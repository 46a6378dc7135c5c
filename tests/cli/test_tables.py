"""The table of a sweep, as it reaches a terminal."""

import io

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from trebuchet._types import Phase
from trebuchet.cli.tables import PHASE_STYLES, number, phase_letters, rates_table
from trebuchet.results.summary import PHASE_LETTERS

FULL = pd.DataFrame(
    {
        "lr": [11.83, 23.65, 165.6],
        "lr_ratio": [1.0, 4.0, 14.0],
        "phases": ["L L L", "C C ?", "D D X"],
        "loss_max": [0.412, 309.25, np.inf],
        "loss_final": [0.00612, 1.2e-7, np.nan],
        "test_loss_final": [0.0101, 0.0099, np.nan],
        "ratio_final": [1.06, 0.735, 0.0],
        "weight_norm_ratio": [1.0003, 0.9871, 12345678.0],
        "sparsity": [0.497, 0.834, 1.0],
    }
)


def printed(frame: pd.DataFrame, width: int = 80) -> list[str]:
    file = io.StringIO()
    Console(file=file, width=width, color_system=None).print(rates_table(frame))
    return [line.rstrip() for line in file.getvalue().splitlines()]


def test_every_column_fits_in_eighty_characters() -> None:
    lines = printed(FULL)
    assert lines[0].split() == [
        "η", "ηλ₀", "phase", "peak", "L", "train", "L", "test", "L", "ηλ", "end", "|θ|²/|θ₀|²",
        "sparsity",
    ]  # fmt: skip
    rows = [line.split() for line in lines[2:5]]
    assert rows[0] == [
        "11.8",
        "1",
        "L",
        "L",
        "L",
        "0.412",
        "0.00612",
        "0.0101",
        "1.06",
        "1",
        "0.497",
    ]
    assert rows[1] == [
        "23.6",
        "4",
        "C",
        "C",
        "?",
        "309",
        "1.2e-7",
        "0.0099",
        "0.735",
        "0.987",
        "0.834",
    ]
    assert rows[2] == ["166", "14", "D", "D", "X", "∞", "–", "–", "0", "1.23e7", "1"]
    assert lines[5].strip() == "L lazy  C catapult  D divergent  X collapsed  ? unsettled"
    assert max(map(len, lines)) <= 80


def test_only_letters_that_occur_are_explained() -> None:
    assert printed(FULL.iloc[:1])[-1].strip() == "L lazy"


def test_columns_may_be_missing_and_layers_have_numbers() -> None:
    frame = pd.DataFrame({"lr": [0.1], "sparsity_1": [0.5], "sparsity_2": [0.25]})
    lines = printed(frame)
    assert lines[0].split() == ["η", "sparsity", "1", "sparsity", "2"]
    assert lines[2].split() == ["0.1", "0.5", "0.25"]
    assert len(lines) == 3  # no letters, no legend


def test_letters_have_the_phase_s_colour() -> None:
    assert set(PHASE_STYLES) == set(Phase)
    assert len(set(PHASE_STYLES.values())) == len(Phase)
    text = phase_letters("L D")
    assert text.plain == "L D"
    styles = {text.plain[span.start]: span.style for span in text.spans}
    assert styles["L"] == PHASE_STYLES[Phase.LAZY]
    assert styles["D"] == PHASE_STYLES[Phase.DIVERGENT]


@pytest.mark.parametrize("letter", PHASE_LETTERS.values())
def test_every_letter_is_known(letter: str) -> None:
    assert phase_letters(letter).spans


@pytest.mark.parametrize("value", [1.0, 0.1234, 9.999, 99.96, 99999.4, 1e-4, 9.99e-5, 1e5, -2.5e-9])
def test_number_keeps_three_digits(value: float) -> None:
    assert float(number(value)) == pytest.approx(value, rel=5.1e-3)
    assert len(number(value)) <= 8
