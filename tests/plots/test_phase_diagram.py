"""Phase diagrams: areas, shares of seeds, lines and scales, from what is drawn."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import xarray as xr
from matplotlib import pyplot as plt
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_hex

from tests.zoo import inputs, mlp
from trebuchet.errors import InputError
from trebuchet.phases.label import label
from trebuchet.plots.phase_diagram import _colour, phase_diagram
from trebuchet.problem.problem import Problem
from trebuchet.results.cells import combine
from trebuchet.results.schema import make_dataset
from trebuchet.sweeps.sweep import sweep

RATIOS = [0.5, 1.0, 2.5, 4.0, 8.0]


def synthetic(
    axis: Any, swept: str = "lr_ratio", seeds: int = 2, optimizer: str = "sgd"
) -> xr.Dataset:
    """Lazy below ηλ₀ = 2, divergent from 3 (seed 0) or 5 (others) on, catapults between."""
    cells = []
    for k in range(len(axis)):
        top = np.full(seeds, float(k + 1))
        lr = np.array(RATIOS)
        eta = lr[:, None] / top if swept == "lr_ratio" else np.repeat(lr[:, None], seeds, axis=1)
        ratio = eta * top
        end = np.where(np.arange(seeds) == 0, 3.0, 5.0)
        final = np.where(ratio < end, 0.1, 1e12)
        ones = np.ones_like(eta)
        cells.append(
            make_dataset(
                {
                    "learning_rate": eta, "lr_ratio": ratio, "top_eigenvalue_init": top,
                    "status": np.where(ratio < end, "max_steps", "blew_up"),
                    "steps": 100 * ones.astype(int), "loss_first": ones, "loss_min": final,
                    "loss_max": np.where(ratio < 2, 1.0, np.where(ratio < end, 50.0, 1e12)),
                    "loss_final": final, "last_above": np.where(ratio < 2, -1, 20),
                },
                lr=lr, seed=range(seeds), swept=swept, attrs={"optimizer": optimizer},
            )
        )  # fmt: skip
    about = {"units": "1", "long_name": "width"}
    return label(combine(cells, {"width": xr.Variable("width", axis, about)}))


def areas(ax: Any) -> list[tuple[str, float, float]]:
    """Phase, width and height of everything that is filled."""
    (found,) = (c for c in ax.collections if isinstance(c, PolyCollection))
    names = {to_hex(_colour(p)): p for p in ("lazy", "catapult", "divergent")}
    boxes = [path.get_extents() for path in found.get_paths()]
    colours = [names[to_hex(tuple(c))] for c in np.asarray(found.get_facecolor())]
    return [(p, float(b.width), float(b.height)) for p, b in zip(colours, boxes, strict=True)]


def legend(ax: Any) -> Any:
    """What stands beside."""
    return ax.get_legend()


def line(ax: Any, name: str) -> list[float]:
    """Where a line is, one number a row."""
    names = [text.get_text() for text in legend(ax).get_texts()]
    patches = sum(type(h).__name__ != "Line2D" for h in legend(ax).legend_handles)
    x = ax.lines[names.index(name) - patches].get_xdata()
    rows: list[float] = np.asarray(x, dtype=float)[::2].tolist()
    return rows


def test_a_cell_is_filled_by_the_shares_of_its_seeds() -> None:
    ax = phase_diagram(synthetic([10, 20, 40]))
    counted = Counter(phase for phase, _, _ in areas(ax))
    # of five rates two are lazy, one is a catapult, one is split, one diverges: in three rows
    assert counted == {"lazy": 6, "catapult": 6, "divergent": 6}
    assert legend(ax).get_title().get_text() == "shares of 2 seeds"
    plt.close("all")


def test_lines_are_where_phases_part() -> None:
    ax = phase_diagram(synthetic([10, 20, 40]), x="lr_ratio", y="width")
    assert line(ax, "ηλ₀ = 2") == [2.0] * 3
    np.testing.assert_allclose(line(ax, "measured end of lazy"), np.sqrt(2.5))
    begins = np.sqrt(np.sqrt(2.5 * 4) * np.sqrt(4 * 8))  # the mean of both seeds
    np.testing.assert_allclose(line(ax, "measured start of\ndivergent"), begins)
    other = phase_diagram(synthetic([10, 20, 40], "lr"), x="lr")
    np.testing.assert_allclose(line(other, "ηλ₀ = 2"), [2.0, 1.0, 2 / 3])
    moved = phase_diagram(synthetic([10, 20, 40]), x="lr")  # each row has rates of its own
    np.testing.assert_allclose(
        line(moved, "measured end of lazy"), np.sqrt(2.5) / np.array([1, 2, 3])
    )
    plt.close("all")


def test_no_critical_line_for_other_optimizers() -> None:
    ax = phase_diagram(synthetic([10, 20], optimizer="adam"), x="lr")
    assert "ηλ₀ = 2" not in [t.get_text() for t in legend(ax).get_texts()]
    plt.close("all")


@pytest.mark.parametrize(
    ("axis", "scale", "ticks"),
    [
        ([32, 64, 128], "log", ["32", "64", "128"]),
        ([64, 256], "log", ["64", "256"]),
        ([10, 20, 30, 40], "linear", ["10", "20", "30", "40"]),
        ([0.0, 0.5, 0.9], "linear", ["0", "0.5", "0.9"]),
        (["relu", "tanh"], "linear", ["relu", "tanh"]),
        ([40, 10, 20], "log", ["10", "20", "40"]),
    ],
)
def test_scales_and_ticks_are_those_of_the_values(axis: Any, scale: str, ticks: list[str]) -> None:
    ax = phase_diagram(synthetic(axis))
    ax.figure.canvas.draw()
    assert ax.get_yscale() == scale
    assert [t.get_text() for t in ax.get_yticklabels()] == ticks
    plt.close("all")


def test_the_legend_is_beside_the_areas() -> None:
    ax = phase_diagram(synthetic([32, 64, 128]))
    ax.figure.canvas.draw()
    assert legend(ax).get_window_extent().x0 >= ax.get_window_extent().x1
    assert legend(ax).get_window_extent().x1 <= ax.figure.bbox.x1
    plt.close("all")


def test_cells_that_were_not_run_are_white() -> None:
    runs = synthetic([10, 20, 40])
    runs["status"][2], runs["learning_rate"][2] = "not_run", np.nan
    runs = label(runs.drop_vars("phase"))
    ax = phase_diagram(runs)
    assert len(areas(ax)) == 12
    assert "not run" in [t.get_text() for t in legend(ax).get_texts()]
    assert len(areas(phase_diagram(runs, x="lr"))) == 12  # whose rates are not known
    plt.close("all")


def test_two_axes_of_a_sweep_and_what_is_selected() -> None:
    problem = Problem(
        lambda seed, width, hidden: mlp(width=width, hidden=hidden, seed=seed),
        "half_mse", (inputs(4, 5), inputs(4, 1, seed=3)[:, 0]),
    )  # fmt: skip
    runs = label(
        sweep(problem, lr_ratio=[1.0, 9.0], steps=10, axes={"width": [4, 8], "hidden": [1, 2]})
    )
    ax = phase_diagram(runs.isel(lr=[0]), x="width", y="hidden")
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("width", "hidden")
    assert not ax.lines
    phase_diagram(runs.sel(hidden=1))  # y is the one that is left
    with pytest.raises(InputError, match="expected one of width, hidden, got none"):
        phase_diagram(runs)
    with pytest.raises(InputError, match=r"select one with ds\.sel\(\{'hidden': \[\.\.\.\]\}\)"):
        phase_diagram(runs, y="width")
    with pytest.raises(InputError, match="one value of 'lr'"):
        phase_diagram(runs, x="width", y="hidden")
    with pytest.raises(InputError, match="did you mean 'width'"):
        phase_diagram(runs, y="widht")
    with pytest.raises(InputError, match="runs over an axis"):
        phase_diagram(runs.sel(width=4, hidden=1))
    with pytest.raises(InputError, match="call label"):
        phase_diagram(runs.drop_vars("phase"))
    plt.close("all")
