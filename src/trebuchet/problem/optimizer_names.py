"""What optimizers are called, at every door: scan, sweep, top_eigen and the command line.

No torch here, so that the command line's help costs nothing.
"""

import difflib

from trebuchet._checks import shown
from trebuchet.errors import InputError
from trebuchet.theory.stability import TABLE

NAMES: dict[str, str] = {
    "sgd": "",
    "momentum": "β = 0.9",
    "nesterov": "β = 0.9",
    "adam": "",
    "adamw": "",
    "nadam": "",
    "radam": "",
    "adamax": "",
    "rmsprop": "",
    "adagrad": "",
    "adadelta": "",
    "adafactor": "",
    "asgd": "",
    "rprop": "",
    "muon": "matrices only",
}
"""Name → what to know of its settings; the others are torch's defaults."""

ALIASES = {"gd": "sgd", "gradientdescent": "sgd", "heavyball": "momentum", "nag": "nesterov"}


def lookup(name: str) -> str:
    """Return the name as `NAMES` has it, whatever its case, hyphens and underscores.

    Args:
        name: As given.

    Returns:
        A key of `NAMES`.

    Raises:
        InputError: If there is no such optimizer; the nearest name is suggested.

    Example:
        >>> lookup("AdamW"), lookup("heavy_ball")
        ('adamw', 'momentum')
    """
    plain = "".join(c for c in name.casefold() if c.isalnum())
    plain = ALIASES.get(plain, plain)
    if plain in NAMES:
        return plain
    close = difflib.get_close_matches(plain, [*NAMES, *ALIASES], 3)
    close.sort(key=lambda c: abs(len(c) - len(plain)))  # letters are swapped more often than lost
    meant = f"; did you mean {ALIASES.get(close[0], close[0])!r}?" if close else ""
    names = ", ".join(repr(n) for n in NAMES)
    msg = f"optimizer: expected {names} or a factory(params, rate), got {shown(name)}{meant}"
    raise InputError(msg)


def described(*, edges: bool = False) -> str:
    """The names in a sentence, for help texts.

    Args:
        edges: Only those whose critical rate has a closed form before the first step.

    Returns:
        The sentence.
    """
    known = {n: note for n, note in NAMES.items() if not edges or (n in TABLE and n != "radam")}
    shown = [f"{name} ({note})" if note else name for name, note in known.items()]
    return f"{', '.join(shown[:-1])} or {shown[-1]}, in any case; with torch's defaults."
