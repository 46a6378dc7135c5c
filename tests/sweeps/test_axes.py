"""Sweeps over axes: every cell is the sweep of its own problem, bit for bit."""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from rich.console import Console
from torch import nn

import trebuchet as tb
from tests.sweeps.interrupting import STOPPER, Watched, differing
from tests.zoo import inputs, mlp
from trebuchet.errors import InputError
from trebuchet.problem.problem import Problem
from trebuchet.results.schema import validate
from trebuchet.show.rates import of_sweep
from trebuchet.sweeps.sweep import sweep

X, Y = inputs(4, 5), inputs(4, 1, seed=3)[:, 0]
SMALL: dict[str, Any] = {"lr_ratio": [0.5, 2.5, 9.0], "steps": 20, "chunk": 3, "workers": 1}
GRID: dict[str, Any] = {"width": [4, 8], "hidden": [1, 2]}


def net(seed: int, width: int = 4, hidden: int = 1) -> nn.Module:
    """A net of the theory."""
    return mlp(width=width, hidden=hidden, seed=seed)


def module(seed: int, width: int = 4) -> nn.Module:
    """A net that runs on the module itself."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, width), nn.Tanh(), nn.Linear(width, 1)).double()


def problem(**changes: Any) -> Problem:
    """A small one."""
    return Problem(changes.pop("model", net), "half_mse", (X, Y), **changes)


def modules(**changes: Any) -> Problem:
    """One of batches."""
    return Problem(module, "mse", (X, Y[:, None]), **changes)


def alone(runs: xr.Dataset, **place: Any) -> xr.Dataset:
    """One cell, without the coordinates that say where it is, as one sweep would give it."""
    cell = runs.sel({key.replace("__", "."): value for key, value in place.items()})
    cell = cell.drop_vars([name for name, c in cell.coords.items() if c.ndim == 0])
    return cell.drop_vars([name for name, v in cell.data_vars.items() if v.isnull().all()])


def one(cell: xr.Dataset) -> xr.Dataset:
    """What one sweep gave, without what is missing altogether."""
    return cell.drop_vars([name for name, v in cell.data_vars.items() if v.isnull().all()])


def test_every_cell_is_the_sweep_of_its_problem() -> None:
    runs = sweep(problem(), **SMALL, seeds=2, axes=GRID)
    assert runs.loss.dims == ("width", "hidden", "lr", "seed", "step")
    for width in GRID["width"]:
        for hidden in GRID["hidden"]:
            single = sweep(
                problem(model=lambda s: net(s, width, hidden)),  # noqa: B023
                **SMALL, seeds=2,
            )  # fmt: skip
            cell = alone(runs, width=width, hidden=hidden)
            cell = cell.sel(layer=slice(None, hidden))  # padded to the deepest
            assert differing(one(single), cell) == []
    first = runs.top_eigenvalue_init.values
    assert len(np.unique(first)) == first.size  # λ₀ is each cell's and seed's own
    np.testing.assert_allclose(
        runs.learning_rate.transpose("lr", ...).values,
        runs.lr.values[:, None, None, None] / first[None],
    )
    assert np.isnan(runs.sparsity.sel(hidden=1, layer=2)).all()
    validate(runs)


def test_axes_have_coordinates_and_attributes_that_differ_are_along_them() -> None:
    runs = sweep(problem(), **SMALL, axes=GRID)
    assert runs.width.dtype.kind == "i"
    assert {"units", "long_name"} <= set(runs.width.attrs)
    assert runs.n_parameters.dims == ("width", "hidden")
    single = sweep(problem(model=lambda s: net(s, 8, 2)), **SMALL)
    labelled = tb.label(runs.sel(width=8, hidden=2))
    for name in ("n_parameters", "kernel", "deterministic", "optimizer", "loss"):
        assert labelled.attrs[name] == single.attrs[name]


def test_batches_and_settings_of_the_optimizer_on_a_module() -> None:
    axes: dict[str, Any] = {"batch_size": [2, 3], "optimizer.momentum": [0.0, 0.9]}
    common: dict[str, Any] = {"lr": [0.01, 0.1], "seeds": 2, "steps": 12}
    runs = sweep(modules(), **common, axes=axes)
    for size in axes["batch_size"]:
        for beta in axes["optimizer.momentum"]:
            optimizer = torch.optim.SGD if beta == 0 else _sgd(beta)
            single = sweep(modules(batch_size=int(size), optimizer=optimizer), **common)
            cell = alone(runs, batch_size=size, optimizer__momentum=beta)
            assert differing(one(single), cell) == []
            both = tb.label(single).phase.values, tb.label(runs).phase
            at = {"batch_size": size, "optimizer.momentum": beta}
            np.testing.assert_array_equal(both[0], both[1].sel(at).values)
    assert runs.optimizer.values.tolist() == ["SGD", "SGD(momentum=0.9)"]


def _sgd(beta: float) -> Any:
    def factory(params: Any, lr: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(params, lr=lr, momentum=beta)

    return factory


def test_full_batches_beside_small_ones_keep_their_steps_and_their_verdicts() -> None:
    common: dict[str, Any] = {"lr": [0.01, 30.0], "steps": 200}
    runs = sweep(modules(), **common, axes={"batch_size": [2, 4, None]})
    assert runs.batch_size.values.tolist() == ["2", "4", "None"]
    for size in (2, 4, None):
        single = tb.label(sweep(modules(batch_size=size), **common))
        cell = tb.label(runs).sel(batch_size=str(size))
        np.testing.assert_array_equal(single.phase, cell.phase)
        np.testing.assert_array_equal(single.loss, cell.loss.sel(step=single.step))
        assert float(cell.deterministic) == single.attrs["deterministic"]


def test_losses_optimizers_and_values_of_any_kind_go_by_name() -> None:
    def lossy(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (outputs - targets).abs().mean()

    runs = sweep(
        modules(), lr=[0.01], steps=3,
        axes={
            "loss": ["mse", lossy], "optimizer": ["Adam", tb.GradientDescent(0.5)],
            "clip_grad_norm": {"never": None, "hard": 0.1},
        },
    )  # fmt: skip
    assert runs.loss_name.values.tolist() == ["mse", "lossy"]
    assert runs.optimizer.values[0] == "adam"
    assert runs.clip_grad_norm.values.tolist() == ["never", "hard"]
    assert tb.label(runs.sel(loss_name="mse", clip_grad_norm="hard")).attrs["loss"] == "mse"
    betas = sweep(
        modules(optimizer="adam"), lr=[0.01], steps=3,
        axes={"optimizer.betas": [(0.9, 0.99), (0.5, 0.9)]},
    )  # fmt: skip
    assert betas["optimizer.betas"].values.tolist() == ["(0.9, 0.99)", "(0.5, 0.9)"]


def test_an_optimizer_already_made_takes_settings() -> None:
    model = module(0)
    given = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.3)
    runs = sweep(
        Problem(model, "mse", (X, Y[:, None]), given), lr=[0.05], steps=5,
        axes={"optimizer.momentum": [0.0, 0.9]},
    )  # fmt: skip
    assert given.param_groups[0]["momentum"] == 0.3
    assert len(np.unique(runs.loss_final)) == 2


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        ({"widht": [4]}, r"nothing called 'widht' can vary here; did you mean 'width'\?"),
        ({"widht": [4]}, "These can: width, hidden, loss, optimizer, batch_size"),
        ({"momentum": [0.1]}, r"did you mean 'optimizer\.momentum'\?"),
        ({"optimizer.momentun": [0.1]}, r"did you mean 'optimizer\.momentum'\?"),
        (
            {"optimizer": ["adam", "sgd"], "optimizer.momentum": [0.5]},
            "adam has no setting 'momentum'",
        ),
        ({"optimizer.lr": [0.1]}, "lr= and lr_ratio= sweep"),
        ({"lr": [0.1]}, "give lr= or lr_ratio="),
        ({"seed": [1]}, "give seeds="),
        ({"width": []}, r"axes\['width'\]: expected one value or more"),
        ({"width": 64}, r"a single one is \[64\]"),
        ({"optimizer": "adam"}, r"a single one is \['adam'\]"),
        ({"width": [4, 4]}, "expected different values, got 4 twice"),
        ({"width": [4.0, float("nan")]}, "expected finite numbers"),
        ({"optimizer": [lambda p, r: None, lambda p, r: None]}, "give a dict of names"),
        ({}, "expected one axis or more"),
        ({1: [2]}, "expected names as keys"),
        ({"batch_size": [2, 0]}, "batch_size: expected a positive number of samples"),
        ({"width": [4, 0]}, r"width=0"),
    ],
)
def test_wrong_axes_are_refused_before_a_run_is_made(axes: Any, said: str) -> None:
    calls: list[int] = []
    with pytest.raises(InputError, match=said):
        sweep(problem(), **SMALL, axes=axes, progress=lambda *a: calls.append(1))
    assert not calls


def test_names_that_results_have_are_refused() -> None:
    def factory(seed: int, sparsity: int = 1) -> nn.Module:
        return net(seed)

    with pytest.raises(InputError, match="rename the argument of the model's function"):
        sweep(problem(model=factory), **SMALL, axes={"sparsity": [1, 2]})

    def other(seed: int, batch_size: int = 1) -> nn.Module:
        return net(seed)

    with pytest.raises(InputError, match="rename the function's argument"):
        sweep(problem(model=other), **SMALL, axes={"batch_size": [1, 2]})


def test_a_function_that_needs_more_than_the_axes_says_so() -> None:
    def needs(seed: int, width: int, hidden: int) -> nn.Module:
        return net(seed, width, hidden)

    with pytest.raises(InputError, match="name the others too"):
        sweep(problem(model=needs), **SMALL, axes={"width": [4, 8]})
    with pytest.raises(InputError, match="once the model is a function"):
        sweep(problem(model=net(0)), lr=[0.1], axes={"width": [4, 8]})


def test_a_checkpoint_resumes_and_grows(tmp_path: Path) -> None:
    common: dict[str, Any] = {**SMALL, "optimizer": Watched(), "seeds": 2}
    whole = sweep(problem(), **common, axes=GRID)
    held = {**common, "checkpoint": tmp_path, "checkpoint_seconds": 0.0}
    part = sweep(problem(), **held, axes=GRID, progress=STOPPER.at(50))
    STOPPER.at(-1)
    assert part.attrs["interrupted"] == 1
    assert sorted(p.name for p in tmp_path.glob("*=*")) == ["width=4,hidden=1", "width=4,hidden=2"]
    there = tb.load(tmp_path)
    assert there.attrs["interrupted"] == 1
    ended = there.status.values != "not_run"
    assert ended[0, 0].all()  # what has ended in a chunk that has not is still in its file
    assert ended.sum() <= (~part.status.isin(["not_run", "interrupted"])).sum()
    np.testing.assert_array_equal(there.loss.values[ended], whole.loss.values[ended])
    assert differing(whole, sweep(problem(), **held, axes=GRID)) == []
    assert differing(whole, tb.load(tmp_path)) == []
    with xr.open_datatree(tmp_path, engine="zarr") as tree:
        found = tree["width=4,hidden=2"]["loss"].values
    np.testing.assert_array_equal(found, whole.loss.sel(width=4, hidden=2).values)
    steps: list[int] = []
    again = sweep(
        problem(), **held, axes={**GRID, "width": [4, 8]}, progress=lambda d, t: steps.append(d)
    )
    assert differing(whole, again) == []
    with pytest.raises(InputError, match="holds another sweep"):
        sweep(problem(), **{**held, "steps": 21}, axes=GRID)


def test_a_folder_of_a_sweep_without_axes_is_left_alone(tmp_path: Path) -> None:
    sweep(problem(), **SMALL, checkpoint=tmp_path)
    with pytest.raises(InputError, match="holds a sweep without axes"):
        sweep(problem(), **SMALL, checkpoint=tmp_path, axes={"width": [4]})


def test_a_second_writer_is_refused_in_a_sentence_and_the_first_goes_on(tmp_path: Path) -> None:
    held: dict[str, Any] = {**SMALL, "axes": GRID, "checkpoint": tmp_path}
    said: list[str] = []

    def meanwhile(done: int, total: int) -> None:
        if not said:
            with pytest.raises(InputError) as refused:
                sweep(problem(), **held)
            said.append(str(refused.value))

    runs = sweep(problem(), **held, progress=meanwhile)
    assert re.fullmatch(
        r"checkpoint: \S+ is in use by another thread of this process \(\d+\), since [^;]*; "
        r"wait for it to end, or name another folder",
        said[0],
    )
    assert differing(runs, sweep(problem(), **SMALL, axes=GRID)) == []


@pytest.mark.parametrize("swept", ["lr_ratio", "lr"])
def test_ctrl_c_gives_what_there_is(swept: str) -> None:
    common: dict[str, Any] = {
        swept: [0.1, 0.2], "steps": 20, "chunk": 1, "workers": 1, "optimizer": Watched(),
    }  # fmt: skip
    whole = sweep(problem(), **common, axes={"width": [4, 8, 6]})
    part = sweep(problem(), **common, axes={"width": [4, 8, 6]}, progress=STOPPER.at(70))
    STOPPER.at(-1)
    assert part.attrs["interrupted"] == 1
    assert part.status.values[..., 0].tolist() == [
        ["max_steps", "max_steps"], ["max_steps", "interrupted"], ["not_run", "not_run"],
    ]  # fmt: skip
    np.testing.assert_array_equal(part.loss.sel(width=4), whole.loss.sel(width=4))
    held = {"lr": "learning_rate", "lr_ratio": "lr_ratio"}[swept]
    np.testing.assert_array_equal(part[held].sel(width=6).values[:, 0], [0.1, 0.2])
    assert part.steps.sel(width=6).values.tolist() == [[0], [0]]
    labelled = tb.label(part)
    assert labelled.phase.sel(width=6).values.tolist() == [[""], [""]]
    assert tb.table(labelled).phases.tolist()[-2:] == ["·", "·"]
    validate(labelled)


def test_ctrl_c_between_cells_keeps_those_before() -> None:
    starts: list[int] = []

    def interrupted(seed: int, width: int) -> nn.Module:
        starts.append(width)
        if starts.count(8) == 2:  # the first time it is only tried
            raise KeyboardInterrupt
        return net(seed, width)

    runs = sweep(problem(model=interrupted), **SMALL, axes={"width": [4, 8, 6]})
    assert runs.attrs["interrupted"] == 1
    assert (runs.status.sel(width=[8, 6]) == "not_run").all()
    assert (runs.status.sel(width=4) != "not_run").all()


def test_one_progress_over_all_cells() -> None:
    seen: list[tuple[int, int]] = []
    sweep(problem(), **SMALL, axes=GRID, progress=lambda *a: seen.append(a))
    assert {total for _, total in seen} == {4 * 3 * 20}
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == seen[-1][1]


def test_results_are_labelled_shown_saved_and_read_back(tmp_path: Path) -> None:
    runs = tb.label(sweep(problem(), **SMALL, seeds=2, axes={**GRID, "optimizer.momentum": [0.5]}))
    assert runs.phase.dims == ("width", "hidden", "optimizer.momentum", "lr", "seed")
    table = tb.table(runs)
    assert list(table.columns[:4]) == ["width", "hidden", "optimizer.momentum", "lr"]
    assert len(table) == 4 * 3
    assert table.phases[0] == "L L"
    console = Console(width=200, color_system=None)
    with console.capture() as shown:
        console.print(of_sweep(runs))
    assert "momentum" in shown.get()
    again = tb.load(tb.save(runs, tmp_path / "runs.zarr"))
    xr.testing.assert_identical(again, runs)
    with pytest.raises(InputError, match=r"'width', 'hidden', 'optimizer.momentum' too; select"):
        tb.plots.phase_bar(runs)
    cell = runs.sel({"width": 4, "hidden": 1, "optimizer.momentum": 0.5})
    tb.plots.phase_bar(cell)
    with pytest.raises(InputError, match="distinct values of the axis"):
        validate(xr.concat([runs, runs], "width", data_vars="all"))


def test_cells_are_opened_without_being_read(tmp_path: Path) -> None:
    """Of different depths, so that one has layers that another has not, and one not reached."""
    held: dict[str, Any] = {**SMALL, "checkpoint": tmp_path}
    runs = sweep(problem(), **held, axes=GRID)
    opened = tb.load(tmp_path, lazy=True)
    assert opened.loss.chunks is not None
    assert opened.sparsity.chunks is not None
    assert differing(runs, opened.compute()) == []
    shutil.rmtree(tmp_path / "width=8,hidden=1")
    opened = tb.load(tmp_path, lazy=True)
    assert (opened.status.sel(width=8, hidden=1).values == "not_run").all()
    assert opened.loss.sel(width=8, hidden=1).isnull().all()
    assert differing(opened.compute(), tb.load(tmp_path)) == []
    assert opened.attrs["interrupted"] == 1


def test_a_sweep_that_could_not_begin_leaves_nothing_and_other_cells_alone(tmp_path: Path) -> None:
    held: dict[str, Any] = {**SMALL, "checkpoint": tmp_path / "c"}

    class Broken(tb.Observable):
        name, units, long_name = "broken", "1", "broken"

        def measure(self, model: Any, problem: tb.Problem) -> float:
            raise ZeroDivisionError

    with pytest.raises(InputError, match="ZeroDivisionError"):
        sweep(problem(), **held, axes={"width": [4]}, observables=[Broken()])
    assert list(tmp_path.iterdir()) == []
    runs = sweep(problem(), **held, axes={"width": [4]})
    with pytest.raises(InputError, match="ZeroDivisionError"):
        sweep(problem(), **held, axes={"width": [8]}, observables=[Broken()])
    assert differing(runs, sweep(problem(), **held, axes={"width": [4]})) == []
