"""The look, and the median-and-range band."""

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from trebuchet._types import Phase
from trebuchet.plots.style import PHASE_COLOURS, rate_colours, seed_band, style


def test_every_phase_has_a_colour_of_its_own() -> None:
    assert set(PHASE_COLOURS) == set(Phase)
    assert len({to_rgb(colour) for colour in PHASE_COLOURS.values()}) == len(Phase)


def test_style_leaves_no_trace() -> None:
    before = dict(mpl.rcParams)
    with style():
        assert mpl.rcParams["axes.spines.top"] is False
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize("count", [1, 2, 7])
def test_rate_colours_differ(count: int) -> None:
    assert len(set(rate_colours(count))) == count


def test_band_holds_median_and_range() -> None:
    ax = Figure().add_subplot()
    values = np.array([[1.0, 5.0, 2.0], [4.0, np.nan, 3.0], [np.nan, np.nan, np.nan]])
    line = seed_band(ax, [0, 1, 2], values, colour="k")
    np.testing.assert_array_equal(np.asarray(line.get_ydata()), [2.0, 3.5, np.nan])
    corners = np.asarray(ax.collections[0].get_paths()[0].vertices)
    assert {(0.0, 1.0), (0.0, 5.0), (1.0, 3.0), (1.0, 4.0)} <= {tuple(c) for c in corners.tolist()}


def test_median_breaks_off_where_most_seeds_are_gone() -> None:
    ax = Figure().add_subplot()
    values = np.array([[1.0, 2.0, 3.0], [1.0, 2.0, np.inf], [1.0, np.inf, np.inf]])
    line = seed_band(ax, [0, 1, 2], values, colour="k")
    np.testing.assert_array_equal(np.asarray(line.get_ydata()), [2.0, 2.0, np.nan])
    corners = np.asarray(ax.collections[0].get_paths()[0].vertices)
    assert (1.0, 2.0) in {tuple(c) for c in corners.tolist()}  # the band is of those left
    assert np.isfinite(corners).all()


def test_even_number_of_seeds_takes_the_mean_of_the_middle_two() -> None:
    ax = Figure().add_subplot()
    values = np.array([[1.0, 2.0, 4.0, 9.0], [1.0, 2.0, np.inf, np.inf], [np.inf] * 4])
    line = seed_band(ax, [0, 1, 2], values, colour="k")
    np.testing.assert_array_equal(np.asarray(line.get_ydata()), [3.0, np.nan, np.nan])


def test_one_seed_has_no_band() -> None:
    ax = Figure().add_subplot()
    seed_band(ax, [0, 1], np.array([[1.0], [2.0]]), colour="k")
    assert not ax.collections
