"""Refined sweeps: more runs where phases part, and nothing else changed."""

import dataclasses
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from matplotlib import pyplot as plt
from torch import Tensor, nn

import trebuchet as tb
from tests.cli.test_paper import run
from tests.sweeps.interrupting import STOPPER, Watched, differing
from tests.zoo import inputs, mlp
from trebuchet.engine.kernels import OutputKernel
from trebuchet.engine.optimizers import GradientDescent
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
    unfinished = coarse.status.where(coarse.clip_grad_norm != "1.0", "not_run")
    with pytest.raises(InputError, match=r"got none at clip_grad_norm=1\.0; sweep it to its end"):
        tb.refine(coarse.assign(status=unfinished), problem(), runs=2, axes=axes)


def test_nothing_is_observed_that_the_sweep_did_not() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    batches = Problem(module, "mse", (X, Y[:, None]), batch_size=2)
    for observables in ([], ["gradient_norm"]):
        coarse = tb.sweep(batches, lr=[0.01, 50.0], steps=10, observables=observables)
        assert "gradient_norm_final" in coarse
        finer = tb.refine(coarse, batches, runs=2)
        assert set(coarse.data_vars) <= set(finer.data_vars)
        assert ("gradient_norm" in finer) == bool(observables)


def test_runs_or_a_tolerance_must_be_given() -> None:
    coarse = tb.sweep(problem(), lr=[0.01, 50.0], steps=10)
    with pytest.raises(InputError, match="runs: expected how many may be made, or a tolerance"):
        tb.refine(coarse, problem())
    with pytest.raises(InputError, match=r"tolerance: expected a number from 1e-9 up, in ln η"):
        tb.refine(coarse, problem(), tolerance=0.0)
    given: Any = {"execution": tb.Execution(workers=1), "checkpoint": "x"}
    with pytest.raises(InputError, match=r"give execution=Execution\(checkpoint=\.\.\.\)"):
        tb.refine(coarse, problem(), runs=2, **given)


def widest(ds: xr.Dataset) -> float:
    """Of the gaps in ln η over which some seed's phase changes, in any cell."""
    found = 0.0
    for width in ds.width.values if "width" in ds.dims else [None]:
        cell = ds if width is None else ds.sel(width=width)
        cell = cell.isel(lr=np.flatnonzero((cell.status != "not_run").all("seed").values))
        logs, phases = np.log(cell.lr.values), cell.phase.transpose("lr", "seed").values
        parted = (phases[1:] != phases[:-1]).any(axis=1)
        found = max(found, *np.diff(logs)[parted], 0.0)
    return found


def test_a_tolerance_ends_it_where_every_boundary_is_bracketed() -> None:
    coarse = tb.sweep(problem(), lr_ratio=[0.5, 30.0], axes={"width": [8, 64]}, **COARSE)
    told: list[tuple[int, int]] = []
    finer = tb.refine(coarse, problem(), tolerance=0.4, progress=lambda *at: told.append(at))
    made = int((finer.status != "not_run").sum()) - 8
    assert widest(finer) == pytest.approx(finer.attrs["boundary_width"], rel=1e-12)
    assert finer.attrs["boundary_width"] <= 0.4 < widest(tb.label(coarse))
    assert told[-1][0] < told[-1][1]
    assert told[-1][0] in (made, made - 1)
    np.testing.assert_array_equal(
        finer.phase, tb.refine(coarse, problem(), tolerance=0.4, runs=made + 100).phase
    )
    few = tb.refine(coarse, problem(), tolerance=0.4, runs=made - 2)
    assert few.attrs["boundary_width"] > 0.4
    # Nothing is left to do, and nothing is done.
    same = tb.refine(finer, problem(), tolerance=0.4)
    assert differing(same, finer) == []


@dataclasses.dataclass(frozen=True, slots=True)
class Counted(GradientDescent):
    """Gradient descent that counts its steps, and sends Ctrl-C at one of them."""

    def step_(self, kernel: OutputKernel, dz: Tensor, lr: Tensor, velocity: Any) -> None:
        GradientDescent.step_(self, kernel, dz, lr, velocity)
        STEPS.append(1)
        if len(STEPS) == STOP_AT[0]:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.3)  # until the main thread has heard


STEPS: list[int] = []
STOP_AT = [-1]


@pytest.mark.parametrize("axes", [None, {"width": [8, 16]}], ids=["alone", "over widths"])
def test_what_a_checkpoint_holds_is_not_made_again(
    axes: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counted = problem(optimizer=Counted())
    coarse = tb.sweep(counted, lr_ratio=[0.5, 30.0], axes=axes, chunk=1, **COARSE)
    settings: dict[str, Any] = {"execution": tb.Execution(workers=1, chunk=1, checkpoint=tmp_path)}
    STEPS.clear()
    whole = tb.refine(coarse, counted, tolerance=0.7, execution=tb.Execution(workers=1, chunk=1))
    all_steps = len(STEPS)

    STEPS.clear()
    STOP_AT[0] = all_steps // 2
    part = tb.refine(coarse, counted, tolerance=0.7, **settings)
    STOP_AT[0] = -1
    assert part.attrs["interrupted"] == 1
    assert part.sizes["lr"] < whole.sizes["lr"]
    done = len(STEPS)
    resumed = tb.refine(coarse, counted, tolerance=0.7, **settings)
    assert len(STEPS) <= all_steps  # none was made twice
    assert len(STEPS) > done
    assert differing(resumed, whole) == []

    STEPS.clear()
    finer = tb.refine(coarse, counted, tolerance=0.4, **settings)
    new = len(STEPS)
    assert 0 < new < all_steps
    assert differing(tb.refine(coarse, counted, tolerance=0.4, **settings), finer) == []
    assert len(STEPS) == new
    # What was cut off is made again, without a checkpoint too.
    again = tb.refine(part, counted, tolerance=0.7, execution=tb.Execution(workers=1, chunk=1))
    assert differing(again, whole) == []
    assert again.attrs["interrupted"] == 0
    assert run("show", tmp_path) == 0  # every round, and how far it came
    assert capsys.readouterr().out.count("/round-") >= 2


def test_a_checkpoint_of_other_runs_or_in_use_is_refused(tmp_path: Path) -> None:
    coarse = tb.sweep(problem(), lr=[0.01, 50.0], **COARSE)
    tb.refine(coarse, problem(), runs=4, checkpoint=tmp_path)
    longer = tb.sweep(problem(), lr=[0.01, 50.0], **{**COARSE, "steps": 31})
    with pytest.raises(InputError, match=r"holds another sweep \(it differs in .*steps"):
        tb.refine(longer, problem(), runs=4, checkpoint=tmp_path)

    def another(done: int, total: int) -> None:
        with pytest.raises(InputError, match=r"checkpoint: .* is in use by another thread"):
            tb.refine(coarse, problem(), runs=4, checkpoint=tmp_path)

    tb.refine(coarse, problem(), runs=4, checkpoint=tmp_path, progress=another)
