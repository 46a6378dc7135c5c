"""The loss per direction: lines of what was recorded."""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import trebuchet as tb
from tests.zoo import F64, inputs, mlp


def test_draws_a_line_a_direction() -> None:
    x, y = inputs(6, 3), torch.zeros(6, dtype=F64)
    problem = tb.Problem(lambda s: mlp(3, 40, seed=s), "half_mse", (x, y))
    runs = tb.label(
        tb.sweep(
            problem, lr_ratio=[1.0, 2.4, 1e6], seeds=2, steps=40,
            observables=[tb.observables.LossDirections(2)],
        )
    )  # fmt: skip
    ax = Figure().add_subplot()
    assert tb.plots.loss_directions(runs, rate=0, ax=ax) is ax
    assert ax.get_yscale() == "log"
    for i, line in enumerate(ax.lines):
        wanted = runs.loss_directions.isel(lr=0, direction=i).median("seed")
        np.testing.assert_allclose(np.asarray(line.get_ydata()), wanted)
    legend = ax.get_legend()
    assert legend is not None
    assert [t.get_text() for t in legend.get_texts()] == [
        "first direction",
        "second direction",
    ]
    assert list(runs.phase.values[1]) == ["catapult", "catapult"]
    chosen = tb.plots.loss_directions(runs, ax=Figure().add_subplot())
    wanted = runs.loss_directions.isel(lr=1, direction=0).median("seed")
    np.testing.assert_allclose(np.asarray(chosen.lines[0].get_ydata()), wanted)


def test_refuses_what_it_cannot_draw() -> None:
    problem = tb.Problem(mlp(3, 8), "half_mse", (inputs(4, 3), torch.zeros(4, dtype=F64)))
    runs = tb.label(tb.sweep(problem, lr=[0.1], seeds=[0], steps=3))
    with pytest.raises(tb.errors.InputError, match="ds: expected runs that recorded"):
        tb.plots.loss_directions(runs)
    runs = tb.label(
        tb.sweep(problem, lr=[0.1], seeds=[0], steps=3, observables=["loss_directions"])
    )
    with pytest.raises(tb.errors.InputError, match="rate: expected an index below 1"):
        tb.plots.loss_directions(runs, rate=1)
