"""`trebuchet sweep FILE.toml`: a sweep as it is written down, saved as it goes, and resumed."""

import inspect
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trebuchet.cli.loading import imported, load_data, shaped, users_code
from trebuchet.cli.options import InterruptedCommandError
from trebuchet.cli.output import check_folder, console, refuse_existing, together
from trebuchet.cli.sweep_schema import (
    MOST_RUNS,
    Spaced,
    SweepFile,
    What,
    read_sweep,
    told_with_its_line,
)
from trebuchet.errors import InputError

if TYPE_CHECKING:
    from torch import nn

    from trebuchet.problem.problem import Problem

NAMES = ("runs.zarr", "sweep.png")
MOST_PANELS = 6
"""Of the picture of a sweep over several axes."""
UNFINISHED = "unfinished"
"""Folder of what has been saved of a sweep that has not ended."""


def sweep_file(
    path: Path, out: Path | None = None, *, resume: bool = False, overwrite: bool = False
) -> None:
    """Sweep what a file says, print the table, write the data and the picture.

    Args:
        path: The file.
        out: Folder for runs.zarr and sweep.png; beside the working folder, named after the file,
            unless given.
        resume: Go on with what is unfinished in the folder.
        overwrite: Replace results that exist, and what is unfinished.

    Raises:
        InputError: If the file or the folder is not what was expected.
        InterruptedCommandError: After Ctrl-C; `resume` goes on from there.
    """
    asked = read_sweep(path)
    _check_size(path, asked)
    out = Path(f"trebuchet-{path.stem}") if out is None else out
    places, unfinished = [out / name for name in NAMES], out / UNFINISHED
    if resume and places[0].exists() and not (unfinished.exists() or overwrite):
        msg = f"--resume: the sweep in {out} has ended; add --overwrite to make it anew"
        raise InputError(msg)
    refuse_existing(places, overwrite=overwrite)
    check_folder(out)
    if unfinished.exists() and overwrite and not resume:
        shutil.rmtree(unfinished)
    if unfinished.exists() and not resume:
        msg = (
            f"--resume: {out} holds a sweep that was not finished; add --resume to go on with it, "
            "or --overwrite to start anew"
        )
        raise InputError(msg)
    from trebuchet.phases.label import label
    from trebuchet.results.store import save
    from trebuchet.show.rates import of_sweep

    with told_with_its_line(path, asked):
        problem = problem_of(asked, path.resolve().parent)
    screen = console()
    screen.print(f"[bold]{problem.name}[/], {problem.optimizer_name}, {problem.loss_name}")
    with told_with_its_line(path, asked):
        runs = label(_swept(problem, asked, unfinished))
    screen.print(of_sweep(runs))
    if runs.attrs["interrupted"]:
        msg = (
            f"interrupted: what was finished is saved in {unfinished}; the same command with "
            "--resume goes on"
        )
        raise InterruptedCommandError(msg)
    with together(out, NAMES) as stage:
        save(runs, stage / "runs.zarr")
        _picture(runs, problem, asked).savefig(stage / "sweep.png", dpi=160)
    shutil.rmtree(unfinished, ignore_errors=True)
    for name, place in zip(("data", "picture"), places, strict=True):
        screen.print(f"{name:8s} {place}", soft_wrap=True, markup=False)


def _check_size(path: Path, asked: SweepFile) -> None:
    given = asked.sweep.lr or asked.sweep.lr_ratio
    assert given is not None
    rates = given.number if isinstance(given, Spaced) else len(given)
    seeds = asked.sweep.seeds if isinstance(asked.sweep.seeds, int) else len(asked.sweep.seeds)
    runs = rates * seeds
    for values in asked.axes.values():
        runs *= max(1, len(values))
    if runs > MOST_RUNS:
        msg = f"{path}: {runs} runs are more than {MOST_RUNS}; take fewer rates, seeds or axes"
        raise InputError(msg)


def _swept(problem: "Problem", asked: SweepFile, checkpoint: Path) -> Any:
    from trebuchet.engine.recording import Recording
    from trebuchet.sweeps.sweep import sweep

    grid = asked.sweep
    rates = {
        name: given.values() if isinstance(given, Spaced) else given
        for name, given in (("lr", grid.lr), ("lr_ratio", grid.lr_ratio))
        if given is not None
    }
    settings: dict[str, Any] = {
        **rates, **asked.execution.model_dump(), "seeds": grid.seeds, "steps": grid.steps,
        "tolerance": grid.tolerance, "blowup": grid.blowup, "observables": grid.observables,
        "record": None if asked.record is None else Recording(**asked.record.model_dump()),
        **({"axes": asked.axes} if asked.axes else {}),
    }  # fmt: skip
    return sweep(problem, **settings, checkpoint=checkpoint, progress=True)


def problem_of(asked: SweepFile, folder: Path) -> "Problem":
    """The problem that a file names.

    Args:
        asked: What it says.
        folder: Where it is, and where its paths begin.

    Returns:
        The problem.

    Raises:
        InputError: If the model, the data or the loss is not what was expected.
    """
    from trebuchet.problem.problem import Problem, initial

    what = asked.problem
    how: dict[str, Any] = {
        "batch_size": what.batch_size, "accumulate": what.accumulate,
        "micro_batch": what.micro_batch, "clip_grad_norm": what.clip_grad_norm,
        "clip_grad_value": what.clip_grad_value,
    }  # fmt: skip
    optimizer = _optimizer(what.optimizer)
    if what.model == "digits":
        return _digits(what, optimizer, how)
    if what.loss is None:
        msg = 'problem.loss: is needed beside a model of your own: "cross_entropy", "mse" …'
        raise InputError(msg)
    if what.data is None:
        msg = "problem.data: is needed beside a model of your own: a .npz file with x and y"
        raise InputError(msg)
    model = imported(what.model, "problem.model")
    with users_code(f"problem.model: {what.model} failed"):
        model = model() if callable(model) and not _takes_a_seed(model) else model
    net = initial(_at_first(model, asked.axes), 0)
    return Problem(
        model, what.loss, _pair(what.data, folder, net, what.loss, "problem.data"), optimizer,
        test=None
        if what.test is None
        else _pair(what.test, folder, net, what.loss, "problem.test"),
        name=what.model, **how,
    )  # fmt: skip


def _at_first(model: Any, axes: dict[str, list[Any]]) -> Any:
    """The model's function with the first value of each axis that is its argument."""
    taken = inspect.signature(model).parameters if callable(model) else {}
    first = {name: values[0] for name, values in axes.items() if name in taken and values}
    return partial(model, **first) if first else model


def _takes_a_seed(model: Callable[..., Any]) -> bool:
    from torch import nn

    if isinstance(model, nn.Module):
        return True  # as it is
    try:
        return bool(inspect.signature(model).parameters)
    except ValueError:  # written in C
        return True


def _pair(name: str, folder: Path, net: "nn.Module", loss: str, called: str) -> Any:
    try:
        x, y = load_data(Path(os.path.join(folder, name)), net, loss, None)
    except InputError as error:
        raise InputError(str(error).replace("--data", called, 1)) from error
    if y is None:
        msg = f"{called}: {name} holds no targets; numpy.savez(path, x=…, y=…) saves both"
        raise InputError(msg)
    return x, shaped(net, loss, x, y)


def _digits(what: What, optimizer: Any, how: dict[str, Any]) -> "Problem":
    """The paper's net on digits 0 and 1, of any width."""
    from dataclasses import replace

    from trebuchet.models.mlp import MLP
    from trebuchet.paper.digits import digits_problem

    if what.data is not None or what.test is not None:
        msg = "problem.data: expected none, since digits are data already; name a model of yours"
        raise InputError(msg)
    problem = digits_problem()
    inputs, dtype = problem.x.shape[1], problem.x.dtype

    def model(seed: int, width: int = 512) -> MLP:
        return MLP.draw(inputs, width, generator=seed, dtype=dtype)

    return replace(
        problem, model=model, loss=what.loss or problem.loss, optimizer=optimizer,
        name="two-layer ReLU net on digits 0/1", **how,
    )  # fmt: skip


def _optimizer(given: str | dict[str, Any]) -> Any:
    """A name, or a class of torch's with settings of its own."""
    if isinstance(given, str):
        return given
    from trebuchet.problem.optimizer_names import lookup
    from trebuchet.problem.optimizer_settings import with_setting

    settings = dict(given)
    name = settings.pop("name", None)
    if not isinstance(name, str):
        msg = 'problem.optimizer: expected a name in it, {name = "sgd", momentum = 0.9}'
        raise InputError(msg)
    optimizer: Any = lookup(name)
    for setting, value in settings.items():
        try:
            optimizer = with_setting(optimizer, setting, value)
        except InputError as error:
            raise InputError(str(error).replace("axes", "problem.optimizer", 1)) from error
    return optimizer


def _picture(runs: Any, problem: "Problem", asked: SweepFile) -> Any:
    """Of one problem its sweep; over axes, phases over rates and the longest of them."""
    from trebuchet.plots import phase_diagram, sweep_overview
    from trebuchet.results.cells import axes_of

    if not asked.axes:
        return sweep_overview(runs, None, problem.name)
    import numpy as np
    from matplotlib.figure import Figure

    y, *others = sorted(axes_of(runs), key=lambda axis: -runs.sizes[axis])
    shown = list(np.ndindex(*(runs.sizes[axis] for axis in others)))[:MOST_PANELS]
    figure = Figure(figsize=(7, 3.6 * len(shown)), layout="constrained")
    panels = figure.subplots(len(shown), squeeze=False)[:, 0]
    for ax, at in zip(panels, shown, strict=True):
        place = dict(zip(others, at, strict=True))
        phase_diagram(runs.isel({axis: [i] for axis, i in place.items()}), y=y, ax=ax)
        where = (f"{axis} {runs[axis].values[i]}" for axis, i in place.items())
        ax.set_title(", ".join(where) or problem.name)
    return figure
