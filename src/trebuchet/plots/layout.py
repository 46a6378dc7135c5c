"""Pages of panels: places in inches, titles, legends between the rows, a caption below."""

import textwrap
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from trebuchet.plots.style import GREY, INK, RED

WIDTH, ROW, MARGIN, GAP = 12.0, 2.55, 0.62, 0.72  # inches


class Page:
    """A figure of panels in rows, laid out in inches so that nothing can overlap.

    Args:
        columns: Panels in each row, from the top.
        title: Above everything.
        caption: Below everything; wrapped.
        strip: Height in inches of thin axes under each panel of the last row; 0 for none.
    """

    def __init__(
        self, columns: tuple[int, ...], title: str, caption: str, *, strip: float = 0.0
    ) -> None:
        rows = len(columns)
        self.caption = textwrap.fill(caption, 195) if caption else ""
        below = 0.60 + (0.17 * (self.caption.count("\n") + 1) + 0.12 if self.caption else 0)
        self.head, self.between = 1.0, 1.32
        self.height = (
            self.head
            + rows * ROW
            + (rows - 1) * self.between
            + below
            + (strip + 0.12) * (strip > 0)
        )
        self.columns, self.strip = columns, strip
        self.figure = Figure(figsize=(WIDTH, self.height))
        self.figure.text(
            0.2 / WIDTH, self._y(0.16), title, fontsize=14, fontweight="bold", color=INK, va="top"
        )
        if self.caption:
            self.figure.text(
                0.2 / WIDTH,
                0.1 / self.height,
                self.caption,
                fontsize=8,
                color="#444444",
                va="bottom",
                linespacing=1.35,
            )

    def panel(self, row: int, column: int, title: str) -> Axes:
        """Axes in their place, lettered and titled above.

        Args:
            row: From the top, 0.
            column: From the left, 0.
            title: A few words.

        Returns:
            The axes.
        """
        top = self.head + row * (ROW + self.between)
        ax = self._axes(row, column, top, ROW)
        letter = "abcdefghijkl"[sum(self.columns[:row]) + column]
        ax.set_title(f"{letter}   {title}", pad=16 if row else 6)
        return ax

    def strip_axes(self, row: int, column: int) -> Axes:
        """Thin axes right under a panel.

        Args:
            row: Of the panel.
            column: Of the panel.

        Returns:
            The axes.
        """
        top = self.head + row * (ROW + self.between) + ROW + 0.12
        return self._axes(row, column, top, self.strip)

    def legend(self, row: int, handles: Sequence[Any]) -> None:
        """One line of legend above a row of panels.

        Args:
            row: From the top, 0.
            handles: What to name.
        """
        if not handles:
            return
        # in characters, each handle about seven wide: a line holds about 150
        length = sum(len(str(handle.get_label())) + 7 for handle in handles)
        top = self.head + row * (ROW + self.between) - (0.44 if row == 0 else 0.60)
        self.figure.legend(
            handles=list(handles),
            loc="center left",
            ncols=len(handles),
            frameon=False,
            bbox_to_anchor=((MARGIN - 0.08) / WIDTH, self._y(top)),
            borderaxespad=0,
            handlelength=1.8,
            columnspacing=1.8,
            fontsize=8.5 if length < 150 else 8.5 * 150 / length,
        )

    def stamp(self, text: str) -> None:
        """A word in the picture's corner that no reader can miss.

        Args:
            text: The word.
        """
        self.figure.text(
            1 - 0.25 / WIDTH,
            self._y(0.16),
            text,
            fontsize=12,
            fontweight="bold",
            color=RED,
            ha="right",
            va="top",
            bbox={"facecolor": "white", "edgecolor": RED, "linewidth": 1.2, "pad": 4},
        )

    def _axes(self, row: int, column: int, top: float, height: float) -> Axes:
        count = self.columns[row]
        width = (WIDTH - MARGIN - 0.25 - (count - 1) * GAP) / count
        left = MARGIN + column * (width + GAP)
        return self.figure.add_axes(
            (
                left / WIDTH,
                self._y(top + height),
                width / WIDTH,
                height / self.height,
            )
        )

    def _y(self, inches_from_top: float) -> float:
        return 1 - inches_from_top / self.height


def no_data(ax: Axes, why: str) -> Axes:
    """Say in the middle of the axes why they are empty.

    Args:
        ax: The axes.
        why: A few words.

    Returns:
        The axes.
    """
    ax.text(0.5, 0.5, why, transform=ax.transAxes, ha="center", va="center", color=GREY, fontsize=9)
    ax.set_xticks([])
    ax.set_yticks([])
    return ax
