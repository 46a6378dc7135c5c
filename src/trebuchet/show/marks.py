"""A run's phase in one coloured mark, and the words that go with it."""

from collections.abc import Iterable

from rich.text import Text

from trebuchet._types import Phase, Status
from trebuchet.plots.style import DARK_RED, GREY, PHASE_COLOURS
from trebuchet.results import summary

DROPPED = str(Status.DROPPED)
"""A run that a scan left before the horizon, for better ones: what it shows of its phase."""

MARKS: dict[str, str] = {
    Phase.LAZY: "●", Phase.CATAPULT: "▲", Phase.DIVERGENT: "✕", Phase.COLLAPSED: "■",
    Phase.PERIODIC: "◆", Phase.CHAOTIC: "✱", Phase.UNSETTLED: "?", DROPPED: "○",
}  # fmt: skip
"""One character a phase, for those who do not see its colour; in the order of a key."""

LETTERS: dict[str, str] = {name: summary.LETTERS[name] for name in MARKS}
"""The same for a stream that has no such characters."""

# the terminal's own colours, so that a reader's theme keeps them legible
TERMINAL: dict[str, str] = {
    Phase.LAZY: "cyan", Phase.CATAPULT: "yellow", Phase.DIVERGENT: "bold red",
    Phase.COLLAPSED: "magenta", Phase.PERIODIC: "green", Phase.CHAOTIC: "blue",
    Phase.UNSETTLED: "bold", DROPPED: "dim",
}  # fmt: skip

NOTEBOOK: dict[str, str] = {
    # Darker than in pictures where the hue is too light to read as text.
    **PHASE_COLOURS, Phase.LAZY: "#1F78A8", Phase.CATAPULT: "#A36F00",
    Phase.DIVERGENT: DARK_RED, DROPPED: GREY,
}  # fmt: skip

EACH = 8
"""So many seeds have a mark each in a row; of more, the marks are counted."""


def marked(name: str, *, letters: bool = False) -> str:
    """A phase with its mark before it.

    Args:
        name: The phase, or "dropped".
        letters: Mark it by a letter.

    Returns:
        Both.

    Example:
        >>> marked("lazy"), marked("lazy", letters=True)
        ('● lazy', 'L lazy')
    """
    return f"{(LETTERS if letters else MARKS)[name]} {name}"


def coloured(name: str, text: str) -> Text:
    """Text in the terminal's colour of a phase.

    Args:
        name: The phase, or "dropped"; another has no colour.
        text: What to write.

    Returns:
        For rich.
    """
    return Text(text, style=TERMINAL.get(name, ""))


def in_row(phases: Iterable[str], *, letters: bool = False) -> list[tuple[str, str]]:
    """What a row shows of the phases of its seeds.

    Args:
        phases: One a seed; empty where it was not run.
        letters: Mark them by letters.

    Returns:
        Pairs of a phase and its text, to be joined by spaces: a mark a seed; a lone one with its
        name; of more than `EACH`, how many had which.

    Example:
        >>> in_row(["catapult"]), in_row(["lazy", "", "catapult"])
        ([('catapult', '▲ catapult')], [('lazy', '●'), ('', ' '), ('catapult', '▲')])
        >>> in_row(["catapult", *["lazy"] * 11])
        [('lazy', '11●'), ('catapult', '1▲')]
    """
    seeds = list(phases)
    if len(seeds) == 1:
        return [(seeds[0], marked(seeds[0], letters=letters) if seeds[0] else "")]
    marks = LETTERS if letters else MARKS
    if len(seeds) > EACH:
        counts = {str(name): seeds.count(name) for name in marks}
        return [(name, f"{count}{marks[name]}") for name, count in counts.items() if count]
    return [(phase, marks.get(phase, " ")) for phase in seeds]


def in_key(rows: Iterable[Iterable[str]]) -> list[str]:
    """The phases that a key below a table must explain.

    Args:
        rows: Phases by row and seed.

    Returns:
        Those that occur, in the order of `MARKS`; none where every row has one seed, whose name
        is beside its mark.
    """
    known = [list(row) for row in rows]
    if all(len(row) <= 1 for row in known):
        return []
    seen = {phase for row in known for phase in row}
    return [name for name in MARKS if name in seen]
