"""Majorities, shading and the bar of seeds."""

import numpy as np
import pytest
import xarray as xr
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from trebuchet.errors import InputError
from trebuchet.plots.phase_bar import (
    cell_edges,
    majority_phase,
    phase_bar,
    phase_handles,
    rate_axis,
    shade_phases,
)
from trebuchet.plots.style import PHASE_COLOURS


def labelled(rows: list[list[str]]) -> xr.Dataset:
    rates = np.arange(1.0, len(rows) + 1)
    grid = np.repeat(rates[:, None], len(rows[0]), axis=1)
    return xr.Dataset(
        {
            "phase": (("lr", "seed"), np.array(rows)),
            "lr_ratio": (("lr", "seed"), grid),
            "learning_rate": (("lr", "seed"), grid / 4),
        },
        coords={"lr": rates, "seed": np.arange(len(rows[0]))},
    )


def test_majority_and_share() -> None:
    ds = labelled(
        [
            ["lazy", "lazy", "catapult"],
            ["divergent", "divergent", "divergent"],
            ["unsettled", "collapsed", "collapsed"],
        ]
    )
    phases, share = majority_phase(ds)
    assert phases.tolist() == ["lazy", "divergent", "collapsed"]
    np.testing.assert_allclose(share, [2 / 3, 1, 2 / 3])


@pytest.mark.parametrize(
    ("row", "winner"),
    [
        (["catapult", "divergent"], "divergent"),
        (["lazy", "catapult"], "catapult"),
        (["catapult", "unsettled"], "unsettled"),
        (["collapsed", "unsettled"], "collapsed"),
    ],
)
def test_ties_claim_less(row: list[str], winner: str) -> None:
    assert majority_phase(labelled([row]))[0].tolist() == [winner]
    assert majority_phase(labelled([row[::-1]]))[0].tolist() == [winner]


def test_order_of_dimensions_is_irrelevant() -> None:
    ds = labelled([["lazy", "lazy"], ["catapult", "divergent"]])
    assert majority_phase(ds.transpose("seed", "lr"))[0].tolist() == ["lazy", "divergent"]


def test_unlabelled() -> None:
    with pytest.raises(InputError, match=r"expected a labelled dataset.*call label"):
        majority_phase(labelled([["lazy"]]).drop_vars("phase"))


def test_rate_axis_in_both_units() -> None:
    ds = labelled([["lazy", "lazy"], ["lazy", "lazy"]])
    np.testing.assert_array_equal(rate_axis(ds), [1, 2])
    np.testing.assert_array_equal(rate_axis(ds, "lr"), [0.25, 0.5])
    with pytest.raises(InputError, match="x: expected 'lr_ratio' or 'lr'"):
        rate_axis(ds, "eta")
    without = ds.drop_vars("lr_ratio")
    np.testing.assert_array_equal(rate_axis(without), [0.25, 0.5])
    adam = ds.assign_attrs(optimizer="adam", swept="lr")  # ηλ₀ = 2 is no edge of it
    np.testing.assert_array_equal(rate_axis(adam), [0.25, 0.5])
    for kind in ({"optimizer": "adam", "swept": "lr_ratio"}, {"optimizer": "sgd", "swept": "lr"}):
        np.testing.assert_array_equal(rate_axis(ds.assign_attrs(kind)), rate_axis(ds, "lr_ratio"))
    with pytest.raises(InputError, match="held by the dataset"):
        rate_axis(without, "lr_ratio")


def test_one_rate_has_a_cell_around_it() -> None:
    left, right = cell_edges([2.0])
    assert left < 2 < right


def test_shading_covers_each_stretch_once() -> None:
    ds = labelled([["lazy"], ["lazy"], ["catapult"], ["divergent"]])
    ax = shade_phases(Figure().add_subplot(), ds)
    spans = [p for p in ax.patches if isinstance(p, Rectangle)]
    got = [(p.get_x(), p.get_x() + p.get_width(), to_rgb(p.get_facecolor())) for p in spans]
    assert got == [
        (0.5, 2.5, to_rgb(PHASE_COLOURS["lazy"])),
        (2.5, 3.5, to_rgb(PHASE_COLOURS["catapult"])),
        (3.5, 4.5, to_rgb(PHASE_COLOURS["divergent"])),
    ]
    assert ax.get_xlim() == (0.5, 4.5)
    assert [t.get_text() for t in ax.texts] == ["lazy", "catapult", "divergent"]


def test_disagreement_is_hatched() -> None:
    ds = labelled([["lazy", "lazy"], ["catapult", "lazy"], ["catapult", "catapult"]])
    ax = shade_phases(Figure().add_subplot(), ds)
    hatched = [p for p in ax.patches if isinstance(p, Rectangle) and p.get_hatch()]
    assert [(p.get_x(), p.get_width()) for p in hatched] == [(1.5, 1.0)]
    assert [h.get_label() for h in phase_handles(ds)] == ["lazy", "catapult", "seeds disagree"]
    assert [h.get_label() for h in phase_handles(ds.isel(lr=[0, 2]))] == ["lazy", "catapult"]


def test_bar_has_a_row_a_seed() -> None:
    ds = labelled([["lazy", "lazy"], ["catapult", "divergent"]])
    ax = phase_bar(ds, ax=Figure().add_subplot())
    cells = {
        (p.get_y() + p.get_height() / 2, p.get_x()): to_rgb(p.get_facecolor())
        for p in ax.patches
        if isinstance(p, Rectangle)
    }
    assert cells == {
        (0.0, 0.5): to_rgb(PHASE_COLOURS["lazy"]),
        (0.0, 1.5): to_rgb(PHASE_COLOURS["catapult"]),
        (1.0, 0.5): to_rgb(PHASE_COLOURS["lazy"]),
        (1.0, 1.5): to_rgb(PHASE_COLOURS["divergent"]),
    }
    assert [t.get_text() for t in ax.get_yticklabels()] == ["0", "1"]
