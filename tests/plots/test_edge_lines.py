"""Edges as lines: units, dashes, labels that share."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from trebuchet.errors import InputError
from trebuchet.plots.edge_lines import draw_edges, edge_handles
from trebuchet.theory.edges import Edge, critical


@dataclass
class Made:
    name: str
    lr: float
    lr_ratio: float
    proven: bool


def axes(right: float = 4.0) -> Axes:
    ax = Figure().add_subplot()
    ax.set_xlim(0, right)
    return ax


def drawn(ax: Axes) -> list[tuple[float, str]]:
    return [
        (float(np.asarray(line.get_xdata())[0]), str(line.get_linestyle())) for line in ax.lines
    ]


def test_solid_if_proven_dashed_if_as_coded() -> None:
    ax = draw_edges(axes(), [Made("upper", 0.5, 2.5, False), Made("upper_omega", 0.4, 2.0, True)])
    assert drawn(ax) == [(2.0, "-"), (2.5, "--")]
    assert [t.get_text() for t in ax.texts] == ["Ω edge 2", "edge as coded 2.5"]


def test_real_edges_in_both_units() -> None:
    edges = {"critical": critical(4.0)}
    assert isinstance(edges["critical"], Edge)
    assert drawn(draw_edges(axes(), edges)) == [(2.0, "-.")]
    assert drawn(draw_edges(axes(), edges, x="lr")) == [(0.5, "-.")]


def test_numbers_are_in_the_unit_of_the_axis() -> None:
    ax = draw_edges(axes(), {"critical": 2.0, "proven": 3.0, "upper, as coded": 3.5})
    assert drawn(ax) == [(2.0, "-."), (3.0, "-"), (3.5, "--")]
    assert [t.get_text() for t in ax.texts][-1] == "upper, as coded 3.5"


def test_what_lies_outside_or_is_unknown_is_not_drawn() -> None:
    ax = draw_edges(axes(), {"inside": 4.0, "outside": 4.1, "unknown": math.nan})
    assert drawn(ax) == [(4.0, "-")]
    assert ax.get_xlim() == (0, 4)


def test_coinciding_edges_share_a_label() -> None:
    ax = draw_edges(axes(), {"one": 3.0, "two": 3.001, "three": 3.5})
    assert [t.get_text() for t in ax.texts] == ["one = two 3", "three 3.5"]
    assert len(ax.lines) == 3


def test_proven_edge_names_the_one_as_coded_that_it_covers() -> None:
    ax = draw_edges(axes(), [Made("upper", 0.5, 2.33, False), Made("upper_omega", 0.4, 2.33, True)])
    assert [t.get_text() for t in ax.texts] == ["Ω edge 2.33"]
    assert len(ax.lines) == 2


def test_labels_can_be_left_out_and_none_draws_nothing() -> None:
    assert not draw_edges(axes(), {"critical": 2.0}, labels=False).texts
    assert not draw_edges(axes(), None).lines
    assert edge_handles(None) == []


def test_legend_says_what_is_proven() -> None:
    handles = edge_handles([Made("upper", 0.5, 2.5, False), Made("upper_omega", 0.4, 2.25, True)])
    assert [h.get_label() for h in handles] == [
        "Ω edge 2.25, proven",
        "edge as coded 2.5",
    ]


def test_not_an_edge() -> None:
    with pytest.raises(InputError, match=r"edges: expected numbers, or objects .* got 'two'"):
        draw_edges(axes(), {"critical": "two"})  # type: ignore[arg-type]
