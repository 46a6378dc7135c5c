"""``trebuchet.report``: results as one file of HTML."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trebuchet._checks import flag, path as a_path, refuse, shown, text
from trebuchet._doors import door, maybe
from trebuchet._whole import write_whole
from trebuchet.errors import InputError

if TYPE_CHECKING:
    from trebuchet.reports.kinds import Maker

MOST_BYTES = 5_000_000
"""A page is smaller: mail takes it."""
POINTS = 120_000
"""Points of traces on a page, at first; fewer where the page would be too large."""


def results(name: str, value: Any) -> tuple["Maker", ...]:
    """Results of any kind, one or several, each as who makes its section."""
    from trebuchet.reports.kinds import maker

    found = []
    for result in value:
        made = maker(result)
        if made is None:
            expected = (
                "scans, runs (a dataset that sweep returned), figures of the paper or top "
                "eigenvalues"
            )
            refuse(name, expected, result, "trebuchet.load reads one that was saved")
        found.append(made)
    return tuple(found)


@door(results=results, path=a_path, title=maybe(text), overwrite=flag)
def report(
    *results: Any,
    path: str | os.PathLike[str],
    title: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write results to one HTML file that anybody can open: no network, no Python, below 5 MB.

    It says what was asked and what the answer is, draws phases, losses and every run's trace to
    look into (a click on a rate picks its runs out), and has the table, the settings, the versions
    and the lines of code that make the result again.

    Args:
        *results: One or several of: a ``Scan``, runs (the dataset that ``sweep`` or ``label``
            returned, with any axes), a figure of ``trebuchet.paper``, an experiment's dataset, a
            ``TopEigen``.
        path: The file to make, ``report.html`` say; missing folders are made too.
        title: Of the page; says what is on it unless given.
        overwrite: Replace a file that is there.

    Returns:
        The path.

    Raises:
        InputError: If a result is something else, `path` exists and `overwrite` is off, or it
            cannot be written, or the results are too many for one page.

    Example:
        >>> import tempfile, trebuchet as tb
        >>> problem = tb.Problem(lambda seed: tb.PureQuadratic.draw(50, generator=seed),
        ...                      "half_mse", ([[1.0]], [0.0]))
        >>> runs = tb.sweep(problem, lr_ratio=[1.0, 2.5, 5.0], seeds=2, steps=100)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     page = tb.report(runs, path=f"{folder}/runs.html", title="For Ada")
        ...     "<title>For Ada</title>" in page.read_text(), page.stat().st_size < 5_000_000
        (True, True)
    """
    return write(results, Path(path), title, overwrite=overwrite)  # as their check returned them


def write(makers: Sequence["Maker"], target: Path, title: str | None, *, overwrite: bool) -> Path:
    """Write a page, whole or not at all.

    Args:
        makers: One a result.
        target: The file to make.
        title: Of the page; None for what is on it.
        overwrite: Replace a file that is there.

    Returns:
        The file.

    Raises:
        InputError: As `report` says.
    """
    if not makers:
        msg = "results: expected one result or several, got none; trebuchet.scan makes one"
        raise InputError(msg)
    _check_place(target, overwrite=overwrite)
    page = page_of(makers, title)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target.resolve(), page)
    except OSError as error:
        msg = f"path: cannot write {target} ({error.strerror or error}); name another"
        raise InputError(msg) from error
    return target


def page_of(makers: Sequence["Maker"], title: str | None) -> bytes:
    """The page, with as many points of traces as fit.

    Args:
        makers: One a result.
        title: Of the page; None for what is on it.

    Returns:
        HTML in UTF-8.

    Raises:
        InputError: If it is too large however few points there are.
    """
    from trebuchet.reports.page import html

    points = POINTS // len(makers)
    while True:
        sections = [make(points) for make in makers]
        headings = [section.heading for section in sections]
        named = headings[0] if len(headings) == 1 else f"{len(headings)} results"
        page = html(named if title is None else title, sections).encode("utf-8", "replace")
        if len(page) < MOST_BYTES:
            return page
        if points < 1000:
            msg = (
                f"results: expected as many as fit into a page of {MOST_BYTES / 1e6:g} MB, got "
                f"{len(page) / 1e6:.1f} MB of {len(makers)}; give fewer at a time"
            )
            raise InputError(msg)
        points //= 3


def _check_place(target: Path, *, overwrite: bool) -> None:
    """Refuse a place that cannot be written to, before anything is made."""
    if target.is_dir():
        msg = f"path: {shown(str(target))} is a folder; name a file, report.html say"
        raise InputError(msg)
    if os.path.lexists(target) and not overwrite:
        msg = f"path: {target} exists; pass overwrite=True (--overwrite) to replace it"
        raise InputError(msg)
