"""Refined sweeps: more runs where phases part, and nothing else changed."""

from typing import Any

import numpy as np
import pytest
from matplotlib import pyplot as plt
from torch import nn

import trebuchet as tb
from tests.sweeps.interrupting import STOPPER, Watched
from tests.zoo import inputs, mlp
from trebuchet.errors import InputError
from trebuchet.problem.problem import Problem
from trebuchet.results.schema import validate

X, Y = inputs(4, 5), inputs(4, 1, seed=3)[:, 0]
COARSE: dict[str, Any] = {"steps": 30, "seeds": 2, "workers": 1}


def net(seed: int, width: int = 8) -> nn.Module:
    """A net of the theory."""
    return mlp(width=width, seed=seed)


def problem(**changes: Any) -> Problem:
    """A small one."""
    return Problem(net, "half_mse", (X, Y), **changes)


@pytest.mark.parametrize("swept", ["lr_ratio", "lr"])
def test_runs_are_spent_where_neighbours_differ(swept: str) -> None:
    rates = [0.2, 0.5, 30.0] if swept == "lr_ratio" else [0.01, 0.02, 50.0]
    given: dict[str, Any] = {swept: rates, **COARSE}
    coarse = tb.label(tb.sweep(problem(), **given))
    finer = tb.refine(coarse, problem(), runs=8)
    assert finer.sizes["lr"] == 3 + 8 // 2
    new = np.setdiff1d(finer.lr.values, rates)
    assert (new > rates[1]).all()  # between lazy and divergent, not among the lazy ones
    assert np.isclose(new, np.sqrt(rates[1] * rates[2])).any()
    np.testing.assert_array_equal(finer.phase.sel(lr=rates), coarse.phase)
    np.testing.assert_array_equal(finer.loss.sel(lr=rates), coarse.loss)
    again = tb.label(tb.sweep(problem(), **{**given, swept: new}))
    np.testing.assert_array_equal(again.phase, finer.phase.sel(lr=new))
    np.testing.assert_allclose(again.loss_final, finer.loss_final.sel(lr=new), rtol=1e-6)
    validate(finer)


def test_cells_have_rates_of_their_own_and_holes_elsewhere() -> None:
    axes = {"width": [8, 64]}
    coarse = tb.sweep(problem(), lr_ratio=[0.5, 30.0], axes=axes, **COARSE)
    finer = tb.refine(coarse, problem(), runs=6)
    holes = (finer.status == "not_run").all("seed")
    assert holes.any()
    assert (finer.phase.values[holes.values] == "").all()
    assert int((~holes).sum()) == 4 + 6 // 2
    assert bool((finer.learning_rate > 0).all())  # what it would have been
    twice = tb.refine(finer, problem(), runs=4)
    assert int((twice.status != "not_run").sum()) == 8 + 6 + 4
    legend: Any = tb.plots.phase_diagram(finer).get_legend()
    assert "not run" not in [text.get_text() for text in legend.get_texts()]
    plt.close("all")


def test_ctrl_c_keeps_what_there_is() -> None:
    watched = problem(optimizer=Watched())
    coarse = tb.sweep(watched, lr_ratio=[0.5, 30.0], chunk=1, **{**COARSE, "seeds": 1})
    calls: list[int] = []

    def stop(done: int, total: int) -> None:
        calls.append(done)
        if len(calls) == 2:
            raise KeyboardInterrupt

    STOPPER.at(-1)
    finer = tb.refine(coarse, watched, runs=10, progress=stop)
    assert finer.attrs["interrupted"] == 1
    assert 2 + 2 <= finer.sizes["lr"] <= 2 + 3
    assert (finer.status != "interrupted").all()


def test_names_need_their_values_and_another_problem_is_refused() -> None:
    axes = {"clip_grad_norm": [None, 1.0]}
    common: dict[str, Any] = {"lr": [0.01, 50.0], "steps": 10}
    coarse = tb.sweep(problem(), **common, axes=axes)
    with pytest.raises(InputError, match=r"give axes=.'clip_grad_norm'"):
        tb.refine(coarse, problem(), runs=2)
    with pytest.raises(InputError, match="that the runs have"):
        tb.refine(coarse, problem(), runs=2, axes={"clip_grad_norm": [None, 2.0]})
    finer = tb.refine(coarse, problem(), runs=2, axes=axes)
    assert finer.sizes["lr"] > 2
    other = Problem(lambda seed: net(seed, 9), "half_mse", (X, Y))
    with pytest.raises(InputError, match="the one that was swept, with n_parameters"):
        tb.refine(tb.sweep(problem(), **common), other, runs=2)
    with pytest.raises(InputError, match="without a checkpoint"):
        tb.refine(coarse, problem(), runs=2, execution=tb.Execution(checkpoint="x"))
