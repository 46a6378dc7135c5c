"""The table of rates, as it reaches a terminal and a notebook."""

import html
import io
import re

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

import trebuchet as tb
from trebuchet._types import Phase
from trebuchet.results.summary import PHASE_LETTERS
from trebuchet.scans.tables import DROPPED
from trebuchet.show.marks import EACH, LETTERS, MARKS, NOTEBOOK, TERMINAL, coloured, in_row
from trebuchet.show.numbers import number
from trebuchet.show.rates import RateTable, of_sweep

PHASES = {letter: str(phase) for phase, letter in PHASE_LETTERS.items()}
FULL = pd.DataFrame(
    {
        "lr": [11.83, 23.65, 165.6],
        "lr_ratio": [1.0, 4.0, 14.0],
        "loss_max": [0.412, 309.25, np.inf],
        "loss_final": [0.00612, 1.2e-7, np.nan],
        "test_loss_final": [0.0101, 0.0099, np.nan],
        "ratio_final": [1.06, 0.735, 0.0],
        "weight_norm_ratio": [1.0003, 0.9871, 12345678.0],
        "sparsity": [0.497, 0.834, 1.0],
    }
)


def phases(*rows: str) -> list[list[str]]:
    return [[PHASES.get(letter, "") for letter in row] for row in rows]


def printed(shown: RateTable, width: int = 80) -> list[str]:
    file = io.StringIO()
    Console(file=file, width=width, color_system=None).print(shown)
    return [line.rstrip() for line in file.getvalue().splitlines()]


def test_every_column_fits_in_eighty_characters() -> None:
    lines = printed(RateTable(FULL, phases("LLL", "CC?", "DDX")))
    assert lines[0].split() == [
        "η", "ηλ₀", "phase", "peak", "L", "train", "L", "test", "L", "ηλ", "end", "|θ|²/|θ₀|²",
        "sparsity",
    ]  # fmt: skip
    rows = [" ".join(line.split()) for line in lines[2:5]]
    assert rows[0] == "11.8 1 ● ● ● 0.412 0.00612 0.0101 1.06 1 0.497"
    assert rows[1] == "23.6 4 ▲ ▲ ? 309 1.2e-7 0.0099 0.735 0.987 0.834"
    assert rows[2] == "166 14 ✕ ✕ ■ ∞ – – 0 1.23e7 1"
    assert lines[5] == "● lazy  ▲ catapult  ✕ divergent  ■ collapsed  ? unsettled"
    assert len(lines) == 6
    assert max(map(len, lines)) <= 80


def test_only_marks_that_occur_are_explained() -> None:
    assert printed(RateTable(FULL.iloc[:1], phases("LL")))[-1] == "● lazy"


def test_a_lone_seed_has_its_phase_s_name_and_needs_no_key() -> None:
    lines = printed(RateTable(FULL[["lr"]], phases("L", "C", "D")))
    assert [line.split() for line in lines[2:]] == [
        ["11.8", "●", "lazy"], ["23.6", "▲", "catapult"], ["166", "✕", "divergent"],
    ]  # fmt: skip


def test_seeds_stand_below_each_other_where_some_were_not_run() -> None:
    lines = printed(RateTable(FULL[["lr"]], phases("LLL", " C ", "  D")))
    columns = [line.index(mark) for line, mark in zip(lines[2:5], "●▲✕", strict=True)]
    first = columns[0]
    assert columns == [first, first + 2, first + 4]


def test_many_seeds_are_counted() -> None:
    lines = printed(RateTable(FULL, phases("L" * 40, "L" * 9 + "C" * 31, "D" * 39 + "X")))
    assert [re.findall(r"\d+[●▲✕■]", line) for line in lines[2:5]] == [
        ["40●"], ["9●", "31▲"], ["39✕", "1■"]
    ]  # fmt: skip
    assert max(map(len, lines)) <= 80
    assert len(in_row(["lazy"] * EACH)) == EACH


def test_a_stream_without_the_marks_gets_letters() -> None:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii", errors="replace")
    shown = RateTable(
        FULL[["lr", "lr_ratio", "loss_max", "loss_final"]], phases("LL", "CC", "DX"),
        here=[False, True, False], here_means="here",
    )  # fmt: skip
    Console(file=file, width=80, color_system=None).print(shown)
    file.flush()
    lines = raw.getvalue().decode().splitlines()
    assert lines[0].split() == ["eta", "eta*lambda0", "phase", "peak", "L", "train", "L"]
    assert [line.split() for line in lines[2:5]] == [
        ["11.8", "1", "L", "L", "0.412", "0.00612"],
        [">", "23.6", "4", "C", "C", "309", "1.2e-7"],
        ["166", "14", "D", "X", "inf", "-"],
    ]
    assert lines[-2:] == ["> here", "L lazy  C catapult  D divergent  X collapsed"]


def test_columns_may_be_missing_and_layers_have_numbers() -> None:
    frame = pd.DataFrame({"lr": [0.1], "sparsity_1": [0.5], "sparsity_2": [0.25]})
    lines = printed(RateTable(frame))
    assert lines[0].split() == ["η", "sparsity", "1", "sparsity", "2"]
    assert lines[2].split() == ["0.1", "0.5", "0.25"]
    assert len(lines) == 3  # no phases, no key


@pytest.mark.parametrize("words", [MARKS, LETTERS])
def test_every_phase_has_a_mark_of_its_own(words: dict[str, str]) -> None:
    names = {*map(str, Phase), DROPPED}
    assert {*map(str, words)} == {*map(str, TERMINAL)} == {*map(str, NOTEBOOK)} == names
    assert len(set(words.values())) == len(names)
    assert len(set(TERMINAL.values())) == len(names)


def test_marks_have_the_phase_s_colour() -> None:
    file = io.StringIO()
    console = Console(file=file, width=80, color_system="truecolor", force_terminal=True)
    console.print(RateTable(FULL.iloc[:1], phases("LD")))
    for name in ("lazy", "divergent"):
        with console.capture() as of_mark:
            console.print(coloured(name, MARKS[name]), end="")
        assert of_mark.get() in file.getvalue()


def test_a_notebook_shows_the_same() -> None:
    page = RateTable(FULL, phases("LLL", "CC?", "DDX"), here=[False, True, False]).html()
    rows = re.findall(r"<tr.*?</tr>", page)
    told = [" ".join(re.sub(r"<[^>]*>", " ", html.unescape(row)).split()) for row in rows]
    assert told[2] == "▶ 23.6 4 ▲ ▲ ? 309 1.2e-7 0.0099 0.735 0.987 0.834"
    for name in ("lazy", "divergent"):
        assert f'style="color:{NOTEBOOK[name]}">{MARKS[name]} {name}<' in page


def test_the_runs_of_a_sweep_have_the_marks_of_their_phases() -> None:
    """A sweep at ηλ₀ = 1 and 3 of z = θ₁θ₂x, and its table through the public frame."""
    problem = tb.Problem(
        lambda seed: tb.PureQuadratic.draw(30, generator=seed), "half_mse", ([[1.0]], [0.0])
    )
    runs = tb.label(tb.sweep(problem, lr_ratio=[1.0, 3.0], seeds=2, steps=200))
    lines = printed(of_sweep(runs))
    marks = ["".join(re.findall("[●▲✕■?]", line)) for line in lines[2:4]]
    letters = {PHASE_LETTERS[phase]: MARKS[phase] for phase in PHASE_LETTERS}
    assert marks == [
        "".join(letters[letter] for letter in row.split()) for row in tb.table(runs)["phases"]
    ]
    assert marks == ["●●", "▲▲"]
    transposed = runs.transpose("seed", "lr", ...)
    assert printed(of_sweep(transposed)) == lines
    assert "phase" not in printed(of_sweep(runs.drop_vars("phase")))[0]


@pytest.mark.parametrize("value", [1.0, 0.1234, 9.999, 99.96, 99999.4, 1e-4, 9.99e-5, 1e5, -2.5e-9])
def test_number_keeps_three_digits(value: float) -> None:
    assert float(number(value)) == pytest.approx(value, rel=5.1e-3)
    assert len(number(value)) <= 8
