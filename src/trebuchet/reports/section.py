"""What a page says of one result, whatever kind of result it is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of a table.

    Attributes:
        text: What is shown.
        value: What it is sorted by; None for a missing number, which comes last.
        marks: Phases whose marks are shown, one a seed, in place of the text; None for none.
    """

    text: str
    value: float | str | None
    marks: Sequence[tuple[str, str]] | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a table.

    Attributes:
        cells: One a column.
        here: Whether it is pointed out.
        faint: Whether it matters less.
    """

    cells: Sequence[Cell]
    here: bool = False
    faint: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """A table that the page sorts.

    Attributes:
        headings: One a column.
        rows: The rows.
        said: What is below it: what is pointed out, what was left out.
    """

    headings: Sequence[str]
    rows: Sequence[Row]
    said: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture that was drawn before.

    Attributes:
        url: A ``data:`` URL.
        meaning: What it shows, for those who do not see it.
    """

    url: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Section:
    """One result on a page. All of it is plain text, which the template escapes.

    Attributes:
        kind: "scan", "sweep", "figure", "experiment" or "top eigenvalue".
        heading: Names it.
        headline: The answer in a few words.
        sure: Whether the answer can be relied on; None where that is not the question.
        answer: Sentences.
        asked: What was asked: name and value.
        more: Sentences that say the rest.
        runs: What the interactive pictures are drawn from, as JSON holds it
            (``trebuchet.reports.runs.drawn``); None for none.
        picture: Of the project's own.
        table: Of rates.
        code: Lines that make the result again.
        settings: Every other fact that the result holds: name and value.
        versions: What it was computed with: name and value.
    """

    kind: str
    heading: str
    headline: str
    answer: Sequence[str]
    asked: Sequence[tuple[str, str]]
    code: str
    sure: bool | None = None
    more: Sequence[str] = ()
    runs: Mapping[str, Any] | None = None
    picture: Picture | None = None
    table: Table | None = None
    settings: Sequence[tuple[str, str]] = ()
    versions: Sequence[tuple[str, str]] = ()
