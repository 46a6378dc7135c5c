"""Bifurcation diagrams draw the last losses of every run, in the colours of their phases."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

import trebuchet as tb
from trebuchet.errors import InputError
from trebuchet.paper.beyond import map_runs
from trebuchet.plots.bifurcation import LAST
from trebuchet.plots.style import PHASE_COLOURS

A = [0.9, 1.1, 1.25, 1.5, 2.1]


def test_points_are_those_of_the_runs_cycles() -> None:
    runs = map_runs(A)
    ax = tb.plots.bifurcation(runs, ax=Figure().add_subplot(), x="lr")
    drawn = {line.get_label(): line for line in ax.lines}
    assert set(drawn) == {"lazy", "periodic", "chaotic"}  # what diverged has no last losses
    for name, line in drawn.items():
        assert to_rgb(line.get_color()) == to_rgb(PHASE_COLOURS[str(name)])
    x, y = (np.asarray(v) for v in drawn["periodic"].get_data())
    assert np.unique(x).tolist() == [1.1, 1.25]
    for a, count in ((1.1, 2), (1.25, 4)):
        at, losses = -0.3, []
        for _ in range(20_000):
            at = (at + a) * (1 - at) ** 2 - a
            losses.append(at * at / 2)
        np.testing.assert_allclose(
            np.unique(y[x == a].round(9)), np.unique(np.round(losses[-64:], 9))
        )
        assert len(np.unique(y[x == a].round(9))) == count
    assert (np.asarray(drawn["chaotic"].get_xdata()) == 1.5).sum() == LAST


def test_the_exponent_is_drawn_about_zero_and_what_is_not_held_is_refused() -> None:
    runs = map_runs(A)
    ax = tb.plots.bifurcation(runs, "lyapunov_exponent", ax=Figure().add_subplot())
    points = np.concatenate([np.asarray(line.get_ydata()) for line in ax.lines[:-1]])
    np.testing.assert_allclose(np.sort(points), np.sort(runs.lyapunov_exponent.values[:4, 0]))
    assert np.asarray(ax.lines[-1].get_ydata()).tolist() == [0, 0]
    assert ax.get_ylabel() == "Lyapunov exponent"
    for name in ("sharpness", "lyapunov_final", "lr"):
        with pytest.raises(InputError, match="quantity"):
            tb.plots.bifurcation(runs, name)


def test_tables_and_bars_know_the_new_phases() -> None:
    runs = map_runs(A)
    assert runs.phase.values[:, 0].tolist() == [
        "lazy",
        "periodic",
        "periodic",
        "chaotic",
        "divergent",
    ]
    assert tb.table(runs).phases.tolist() == ["L", "P", "P", "~", "D"]
    ax = tb.plots.phase_bar(runs, ax=Figure().add_subplot(), x="lr")
    assert len(ax.patches) == 4
    assert tb.plots.majority_phase(runs)[0].tolist() == runs.phase.values[:, 0].tolist()
