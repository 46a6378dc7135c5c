"""Every public function and constructor, with arguments that are right, and some that are wrong.

`doors` finds the functions by inspection; `GOOD` has a call that works for each of them; `JUNK` is
what takes an argument's place; `outcome` makes one call, and says how it ended.
"""

import importlib
import inspect
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import nn

import trebuchet as tb
from trebuchet.errors import TrebuchetError

from .junk import JUNK, Planted
from .specimens import (
    ax,
    data,
    directed,
    edges,
    eye,
    figure,
    grid_of_runs,
    images,
    net,
    problem,
    runs,
    saved,
    scan,
    tensor,
    top,
    wide,
)

ROOMS = (
    "trebuchet", "trebuchet.data", "trebuchet.models", "trebuchet.paper", "trebuchet.plots",
    "trebuchet.theory", "trebuchet.theory.edges", "trebuchet.theory.weight_norm_law",
    "trebuchet.theory.two_variable_map", "trebuchet.theory.quadratic_map",
    "trebuchet.theory.moments", "trebuchet.theory.stability",
    "trebuchet.results", "trebuchet.curvature", "trebuchet.paper.beyond",
    "trebuchet.paper.export", "trebuchet.plots.traces", "trebuchet.plots.phase_bar",
)  # fmt: skip
"""The modules whose functions docs/api.md lists."""

NO_DOORS = {
    "Figure", "Scaling", "Scan", "Setting", "StabilityRow", "TopEigen",
    "Critical", "Critical.worded", "EarlyConstants", "ForwardRate", "Interval", "Interval.after",
    "Interval.trial", "Interval.within", "Suggestion", "Warmup",
    "GradientDescent.start", "GradientDescent.step_", "StopRule.failures", "StopRule.verdicts",
    "Observable", "Observable.measure", "Observable.of", "Observable.extent", "Observable.start",
    "Observable.since",
    "Scan.summary", "Scan.to_dataframe", "Scan.to_dataset", "TopEigen.to_dataset", "style.style",
}  # fmt: skip
"""Results and settings, which trebuchet makes; steps of its own engine, and what it calls of an
observable; what takes no argument."""

CALLBACKS = {"progress", "on_step"}
"""Called in the middle of the work: what they raise is the caller's own, and comes out as it is."""

OWN = {
    "top.top_eigen": {"model", "loss", "data"},
    "edges.edges": {"problem", "loss", "data"},
}
"""Where a model or a loss may raise a type of the caller's own, or a warning made an error."""


@cache
def doors() -> dict[str, Callable[..., Any]]:
    """Public functions, constructors, methods and properties that take arguments, by name."""
    found: dict[str, Callable[..., Any]] = {}
    for room in map(importlib.import_module, ROOMS):
        names = getattr(room, "__all__", None) or [n for n in vars(room) if not n.startswith("_")]
        for name in names:
            value = getattr(room, name)
            # A module without __all__ also holds what it imports.
            listed = hasattr(room, "__all__") or getattr(value, "__module__", "") == room.__name__
            if listed and callable(value) and not inspect.ismodule(value):
                found |= _of(value) if inspect.isclass(value) else {_name(value): value}
    return {name: value for name, value in found.items() if name not in NO_DOORS}


def _of(kind: type) -> dict[str, Callable[..., Any]]:
    if issubclass(kind, (Enum, Exception)):
        return {}
    members: dict[str, Callable[..., Any]] = {kind.__name__: kind}
    for name, raw in vars(kind).items():
        if name.startswith("_") or f"{kind.__name__}.{name}" in NO_DOORS:
            continue
        if isinstance(raw, classmethod):
            members[f"{kind.__name__}.{name}"] = getattr(kind, name)
        elif inspect.isfunction(raw):
            members[f"{kind.__name__}.{name}"] = raw
    return members


def _name(function: Callable[..., Any]) -> str:
    module = function.__module__.rsplit(".", 1)[-1]
    return f"{module}.{function.__name__}"


def _psi() -> tb.MetaFeature:
    return tb.MetaFeature.draw(2, 3, generator=0)


def _biased() -> tb.QuadraticWithBias:
    return tb.QuadraticWithBias.draw(2, 2, 3, generator=0)


def _two_class() -> dict[str, Any]:
    x, y = np.zeros((2, 3)), np.array([-1.0, 1.0])
    return {"name": "a", "x_train": x, "y_train": y, "x_test": x, "y_test": y, "source": "",
            "sha256": ""}  # fmt: skip


def _training() -> dict[str, Any]:
    return {"model": net(), "loss": "mse", "data": data()}


def _drawn() -> dict[str, Any]:
    return {"generator": 0, "dtype": torch.float64}


def _rates() -> dict[str, Any]:
    return {"optimizer": "adam", "momentum": 0.5, "beta1": 0.5}


GOOD: dict[str, Callable[[], dict[str, Any]]] = {
    "MLP": lambda: {"weights": [tensor(4, 3), tensor(1, 4)], "slopes": (1.0, 0.5)},
    "MLP.draw": lambda: {"d": 3, "width": 4, "hidden": 1, "outputs": 1, "slopes": (1.0, 0.0),
                         **_drawn()},
    "MLP.forward": lambda: {"self": tb.MLP.draw(3, 4, generator=0), "x": tensor(2, 3)},
    "Edge": lambda: {"name": "critical", "lr": 0.5, "top_eigenvalue_init": 4.0, "proven": False,
                     "conditions": "", "source": ""},
    "GradientDescent": lambda: {"momentum": 0.5, "weight_decay": 0.1},
    "MetaFeature": lambda: {"matrices": tensor(3, 2, 2), "elementwise": "tanh"},
    "MetaFeature.draw": lambda: {
        "n": 2, "d": 3, "eigenvalues": (1.0, 2.0), "elementwise": "relu", **_drawn(),
    },
    "MetaFeature.select": lambda: {"self": _psi(), "index": torch.tensor([1])},
    "MetaFeature.forward": lambda: {"self": _psi(), "x": tensor(2, 3)},
    "MetaFeature.family": lambda: {"self": _psi(), "x": tensor(2, 3)},
    "Problem": lambda: {
        **_training(), "optimizer": "sgd", "batch_size": 3, "test": data(), "accumulate": 1,
        "micro_batch": 2, "autocast": torch.bfloat16, "schedule": lambda t: 1.0,
        "clip_grad_norm": 1.0, "clip_grad_value": 1.0, "weights": None, "size_of": None,
        "name": "p", "facts": {"a": "b"}},
    "Problem.initial": lambda: {"self": problem(), "seed": 1},
    "PureQuadratic": lambda: {"psi": _psi(), "theta": tensor(2), "zeta": 1.0},
    "PureQuadratic.draw": lambda: {"n": 2, "d": 3, "eigenvalues": (1.0, 2.0), **_drawn()},
    "PureQuadratic.forward": lambda: {
        "self": tb.PureQuadratic.draw(2, 3, generator=0), "x": tensor(2, 3)},
    "QuadraticWithBias": lambda: {"features": tensor(3, 2), "psi": _psi(), "theta_phi": tensor(2),
                                  "theta_psi": tensor(2), "zeta": 1.0, "n_features": 4},
    "QuadraticWithBias.draw": lambda: {"n": 2, "p": 2, "d": 3, "eigenvalues": (1.0, 2.0),
                                       **_drawn()},
    "QuadraticWithBias.phi": lambda: {"self": _biased(), "x": tensor(2, 3)},
    "QuadraticWithBias.forward": lambda: {"self": _biased(), "x": tensor(2, 3)},
    "Recording": lambda: {"every": 2, "dense": 10, "per_decade": 3, "tail": 4},
    "StopRule": lambda: {"max_steps": 10, "tolerance": 1e-8, "blowup": 1e6},
    "Execution": lambda: {"engine": "auto", "span": True, "chunk": 2, "workers": 1,
                          "memory": 10**8, "device": "cpu", "checkpoint": "runs",
                          "checkpoint_seconds": 1.0},
    "Lanczos": lambda: {"method": "auto", "max_products": 50, "basis_cap": 8, "failure": 1e-3,
                        "seed": 1},
    "Recording.steps": lambda: {"self": tb.Recording(), "last": 10},
    "early.early_constants": lambda: {**_training(), "steps": 1, "train_steps": 2, "rtol": 0.5,
                                      "delta": 0.01, "weights": None, "size_of": None,
                                      "seeds": 1, "progress": False},
    "edges.edges": lambda: {"problem": net(), "loss": "half_mse", "data": data(), "seed": 0},
    "forward_rate.forward_critical_rate": lambda: {
        **_training(), "optimizer": "sgd", "delta": 0.1, "micro_batch": 4, "weights": None,
        "size_of": None},
    "label.label": lambda: {"ds": runs(), "blowup": 1e8, "delta": 1e-3},
    "files.load": lambda: {"path": saved("runs")},
    "store.load": lambda: {"path": saved("runs")},
    "store.save": lambda: {"ds": runs(), "path": "saved.zarr", "overwrite": False},
    "files.save": lambda: {"result": runs(), "path": "saved.zarr", "overwrite": False},
    "door.scan": lambda: {
        **_training(), "optimizer": "sgd", "horizon": 10, "batch_size": 3, "seeds": 1,
        "budget": 40, "rates": [0.1, 0.2], "edge_rtol": 0.5, "curvature": "initial",
        "accumulate": 1, "micro_batch": 2, "autocast": torch.bfloat16, "schedule": lambda t: 1.0,
        "clip_grad_norm": 1.0, "clip_grad_value": 1.0, "weights": None, "size_of": None,
        "stacked": False, "delta": 0.01, "blowup": 1e6, "progress": False, "check_law": False},
    "door.report": lambda: {"results": [runs(), top()], "path": "page.html", "title": "a",
                            "overwrite": False},
    "Scan.report": lambda: {"self": scan(), "path": "page.html", "title": "a", "overwrite": False},
    "Figure.report": lambda: {"self": figure(), "path": "page.html", "title": "a",
                              "overwrite": False},
    "Scan.plot": lambda: {"self": scan(), "ax": ax()},
    "Scan.save": lambda: {"self": scan(), "path": "saved.zarr", "overwrite": False},
    "Scan.from_dataset": lambda: {"ds": scan().to_dataset()},
    "Scan.load": lambda: {"path": saved("scan")},
    "sweep.sweep": lambda: {
        "problem": problem(), "lr_ratio": [1.0, 3.0], "seeds": [0], "steps": 5,
        "optimizer": tb.GradientDescent(), "tolerance": 1e-8, "blowup": 1e6, "delta": 1e-3,
        "record": tb.Recording(), "observables": ["sparsity"], "engine": "batched", "span": True,
        "chunk": 2, "workers": 1, "memory": 10**8, "device": "cpu", "checkpoint": "runs",
        "checkpoint_seconds": 5.0, "progress": False,
        "axes": {"optimizer.momentum": [0.5]}},
    "refine.refine": lambda: {
        "ds": grid_of_runs(), "problem": wide(), "runs": 2, "tolerance": 0.1,
        "axes": {"width": [4, 8]}, "checkpoint": None,
        "observables": ["sparsity"], "record": tb.Recording(),
        "execution": tb.Execution(workers=1), "progress": False},
    "summary.table": lambda: {"ds": runs()},
    "top.top_eigen": lambda: {
        **_training(), "operator": "ggn", "k": 1, "rtol": 1e-2, "params": ["0.weight"],
        "mode": "train", "optimizer": "sgd", "warm": None, "vectors": False, "micro_batch": 3,
        "above": 1.0, "reduction": "mean", "convex": True, "method": "auto", "max_products": 50,
        "basis_cap": 8, "failure": 1e-3, "seed": 1, "weights": None, "size_of": None,
        "max_batches": 2, "lanczos": None, "on_step": None, "group": None},
    "TopEigen.from_dataset": lambda: {"ds": top().to_dataset()},
    "TopEigen.worded": lambda: {"self": top(), "digits": 3},
    "TopEigen.worded_rate": lambda: {"self": top(), "digits": 3},
    "TopEigen.vector": lambda: {"self": top(), "i": 0},
    "TwoClassData": _two_class,
    "digits.load_digits01": lambda: {"n_train": 16, "seed": 0, "dtype": "float32"},
    "images.load_images": lambda: {"name": "mnist", "data_root": images(), "n_train": 4, "seed": 0,
                                   "dtype": "float32"},
    "Draws": lambda: {"seed": 1},
    "Draws.normal": lambda: {"self": tb.models.Draws(0), "shape": 2},
    "Draws.uniform": lambda: {"self": tb.models.Draws(0), "shape": 2, "low": 0.0, "high": 1.0},
    "Draws.choice": lambda: {"self": tb.models.Draws(0), "n": 4, "size": 2},
    "Draws.skip_linear_init": lambda: {"self": tb.models.Draws(0), "n_out": 4, "n_in": 2},
    "scaling.scaling": lambda: {"module": torch.nn.Linear(2, 1)},
    "teacher_student.biased_teacher_student": lambda: {
        "n": 4, "p": 3, "d": 2, "masked": 1, "masked_features": 1, "eigenvalues": (1.0, 2.0),
        "elementwise": "tanh", **_drawn()},
    "teacher_student.pure_teacher_student": lambda: {
        "n": 4, "d": 2, "masked": 1, "eigenvalues": (1.0, 2.0), "elementwise": "tanh", **_drawn()},
    "figures.figure": lambda: {"number": 6, "seeds": 1, "quick": True, "dtype": torch.float32,
                               "data_root": ".", "checkpoint": "runs", "workers": 1,
                               "progress": False},
    "problems.paper_problem": lambda: {"setting": tb.paper.FIGURES[6], "seed": 1,
                                       "dtype": torch.float64, "data_root": "."},
    "against_rate.against_rate": lambda: {
        "ds": runs(), "quantities": "loss_final", "ax": ax(), "x": "lr", "edges": edges(),
        "edge_labels": True, "shade": True},
    "edge_lines.draw_edges": lambda: {"ax": ax(), "edges": edges(), "x": "lr", "labels": True},
    "bifurcation.bifurcation": lambda: {"ds": runs(), "quantity": "loss", "ax": ax(), "x": "lr"},
    "bifurcation.map_runs": lambda: {"a": [0.9, 1.1], "steps": 64},
    "bifurcation.cycles_and_chaos": lambda: {
        "a": [0.9, 1.1], "models": ["map", "linear"], "width": 2, "seeds": 1, "steps": 128,
        "exponent_steps": 16, "workers": 1, "checkpoint": "parts", "progress": False},
    "phase_bar.majority_phase": lambda: {"ds": runs()},
    "figure_panels.paper_panels": lambda: {"ds": runs(), "edges": edges(), "title": "t",
                                           "caption": "c", "quick": False},
    "phase_bar.phase_bar": lambda: {"ds": runs(), "ax": ax(), "x": "lr"},
    "phase_diagram.phase_diagram": lambda: {"ds": grid_of_runs(), "x": "lr", "y": "width",
                                           "ax": ax()},
    "phase_bar.shade_phases": lambda: {"ax": ax(), "ds": runs(), "x": "lr", "names": True},
    "sweep_picture.sweep_overview": lambda: {"ds": runs(), "edges": edges(), "title": "t",
                                            "caption": "c"},
    "traces.traces": lambda: {"ds": runs(), "quantity": "loss", "ax": ax(), "rates": [0, 1],
                              "colours": ["red", "blue"]},
    "weight_norm_law.ceiling": lambda: {"degree": 2},
    "edges.critical": lambda: {"top_eigenvalue": 4.0},
    "edges.effective": lambda: {"e": [3.0, 4.0], "features": eye()},
    "edges.omega_dual": lambda: {"psi": [eye()], "zeta": 1.0},
    "edges.pure_quadratic_single": lambda: {"psi_eff": eye(), "theta": [1.0, 2.0], "zeta": 1.0,
                                            "top_eigenvalue": 5.0},
    "edges.pure_quadratic_multi": lambda: {"omega_dual": eye(), "theta": [1.0, 2.0],
                                           "top_eigenvalue": 5.0},
    "edges.quadratic_with_bias": lambda: {
        "phi_eff": [1.0], "psi_eff": eye(), "theta_phi": [2.0], "theta_psi": [1.0, 2.0],
        "zeta": 1.0, "top_eigenvalue": 5.0},
    "edges.quadratic_with_bias_multi": lambda: {
        "phi": [[1.0], [0.5]], "omega_dual": eye(), "theta_phi": [2.0], "theta_psi": [1.0, 2.0],
        "top_eigenvalue": 5.0},
    "edges.two_layer_homogeneous": lambda: {"X": eye(), "theta_norm_sq": 200.0, "width": 100,
                                            "slopes": (1.0, 0.5), "top_eigenvalue": 2.0},
    "edges.span_weight_norm": lambda: {"X": eye(), "U": eye(), "v": [1.0, 2.0]},
    "edges.relu_single_sample": lambda: {"top_eigenvalue": 5.0},
    "weight_norm_law.change_mse": lambda: {
        "H": eye(), "residual": [1.0, 2.0], "labels": [0.0, 1.0], "degree": 2, "lr": 0.1,
        "weight_decay": 0.1, "weight_norm": 3.0},
    "weight_norm_law.change": lambda: {"theta_dot_gradient": 2.0, "gradient_norm": 3.0, "lr": 0.1,
                                       "weight_decay": 0.1, "weight_norm": 3.0},
    "weight_norm_law.relative_violation": lambda: {"before": 4.0, "after": [3.0, 2.0],
                                                   "predicted": -0.7},
    "two_variable_map.step": lambda: {"u": 0.5, "v": 3.0, "label": 0.1},
    "two_variable_map.iterate": lambda: {"u0": 0.5, "v0": 3.0, "steps": 5, "label": 0.1},
    "quadratic_map.step": lambda: {"x": 0.5, "a": 1.1},
    "quadratic_map.iterate": lambda: {"x0": 0.5, "a": 1.1, "steps": 5},
    "quadratic_map.lyapunov_exponent": lambda: {"a": 1.1, "steps": 5, "settle": 1},
    "quadratic_map.period": lambda: {"a": 1.1, "most": 4, "settle": 10, "rtol": 1e-9},
    "quadratic_map.doublings": lambda: {"count": 2},
    "moments.iterate": lambda: {"eigenvalues": [1.0, -1.0], "weights": [1.0, 0.5], "lr": 0.1,
                                "steps": 5, "label": 1.0, "zeta": 1.0},
    "stability.stability_product": _rates,
    "stability.max_stable_curvature": lambda: {**_rates(), "lr": 0.1},
    "stability.critical_lr": lambda: {**_rates(), "top_eigenvalue": 5.0},
    "stability.coefficients": lambda: {
        **_rates(), "dampening": 0.0, "weight_decay": 0.1, "mix": 0.5, "factor": 1.0},
    "stability.earliest_rise": lambda: {"optimizer": "momentum", "momentum": 0.5,
                                        "dampening": 0.1},
    "stability.edge_at": lambda: {"optimizer": "momentum", "curvature": 2.0},
    "stability.empirical_ceiling": lambda: {"activation": "relu"},
    "stability.second_catapult": lambda: {"eigenvalues": [0.5, 0.4]},
    "taylor.taylor_expand": lambda: {"module": net(), "degree": 2},
    "directions.loss_directions": lambda: {"ds": directed(), "rate": 0, "ax": ax()},
    "store.check_writable": lambda: {"path": "saved.zarr", "overwrite": True},
    "schema.make_dataset": lambda: {
        "variables": {"learning_rate": [[0.1]], "loss": [[[1.0, 0.5]]]}, "lr": [0.1], "seed": [0],
        "step": [0, 1], "swept": "lr", "attrs": {"a": 1}, "settings": {"b": 2}},
    "summary.summarise": lambda: {"ds": runs(), "delta": 0.01},
    "schema.validate": lambda: {"ds": runs()},
    "ModelLoss": lambda: {"fn": lambda model, batch: model(batch).sum()},
    "losses.half_mse": lambda: {"outputs": tensor(2, 1), "targets": tensor(2)},
    "held_still.held_still": lambda: {
        "model": net(), "mode": "train", "loader": data(), "optimizer": None,
        "parameters_too": True, "also": nn.BatchNorm1d(2)},
    "progress.progress_line": lambda: {"console": None},
    "early.early_diagram": lambda: {
        "widths": [16], "depths": [2], "seeds": 1, "zero_last": False, "steps": 1, "train_steps": 4,
        "rtol": 0.5, "batch_size": None, "data": "digits", "data_root": ".", "n_train": 8},
    "width.critical_over_width": lambda: {
        "widths": [4], "optimizers": ["sgd"], "seeds": 1, "horizon": 10, "data": "digits",
        "data_root": ".", "n_train": 8},
    "first_rise.first_rise": lambda: {
        "width": 4, "steps": 2, "rates": 3, "seeds": 1, "n_train": 8},
    "edge.divergence_edge": lambda: {
        "activations": ["relu"], "hidden": [1], "widths": [4], "seeds": 1, "steps": 5,
        "start": 1.5, "stop": 8.0, "growth": 2.0, "precision": 0.5, "data": "digits",
        "data_root": ".", "n_train": 8, "workers": 1},
    "ceiling.norm_ceiling": lambda: {"degrees": [2], "width": 4, "seeds": 1, "steps": 4,
                                     "rate_step": 1.0, "samples": 8, "workers": 1},
    "held_out.held_out_over_rates": lambda: {
        "data": "digits", "widths": [4], "lr_ratio": [1.0, 2.0], "seeds": 1, "steps": 4,
        "target": 0.1, "data_root": ".", "n_train": 8, "dtype": torch.float64, "workers": 1},
    "stability.edge_of_stability": lambda: {
        "lr_ratio": [1.0], "seeds": 1, "steps": 6, "every": 2, "width": 4, "hidden": 1,
        "data": "digits", "data_root": ".", "n_train": 8},
    "problems.relu_problem": lambda: {"width": 4, "hidden": 1, "data": "digits", "data_root": ".",
                                      "n_train": 8, "dtype": torch.float64},
    "sparsity.sparsity_over_widths": lambda: {
        "widths": [4], "lr_ratio": [1.0, 2.0], "seeds": 1, "steps": 4, "data": "digits",
        "data_root": ".", "n_train": 8, "workers": 1},
    "problems.tanh_problem": lambda: {"width": 4, "hidden": 1, "data": "digits", "data_root": ".",
                                      "n_train": 8, "dtype": torch.float64},
    "taylor.taylor_models": lambda: {
        "width": 4, "lr_ratio": [1.0, 2.0], "seeds": 1, "steps": 4, "data": "digits",
        "data_root": ".", "n_train": 8, "workers": 1},
    "second.second_catapults": lambda: {"width": 60, "samples": 16, "seeds": [1], "steps": 4,
                                        "workers": 1},
    "export.figure_paths": lambda: {"folder": Path("out"), "number": 6},
    "export.save_figure": lambda: {"result": figure(), "folder": Path("out"), "overwrite": False},
    "export.to_json": lambda: {"result": figure()},
    "traces.choose_rates": lambda: {"ds": runs()},
    "traces.trace_handles": lambda: {"ds": runs(), "rates": [0], "colours": ["red"]},
    "phase_bar.rate_axis": lambda: {"ds": runs(), "x": "lr"},
    "phase_bar.cell_edges": lambda: {"x": [1.0, 2.0]},
    "phase_bar.phase_handles": lambda: {"ds": runs()},
}  # fmt: skip
"""Arguments that work, made afresh; the methods' own object is their `self`."""


def arguments() -> list[tuple[str, str]]:
    """Every (door, argument) whose place junk can take; of keywords, those in `GOOD`."""
    found = []
    for name, door in doors().items():
        taken = inspect.signature(door).parameters
        own = [n for n, p in taken.items() if p.kind is not p.VAR_KEYWORD]
        keywords = [n for n in GOOD[name]() if n not in own] if len(own) < len(taken) else []
        found += [(name, argument) for argument in (*own, *keywords) if argument != "self"]
    return found


class Late(BaseException):
    """A call took longer than it may."""


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Raise `Late` in the block, where the machine has alarms."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise Late

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(name: str, junk: Mapping[str, str], *, seconds: int = 60) -> tuple[str, str]:
    """Call a door with junk for some of its arguments.

    Args:
        name: The door.
        junk: Keys of `JUNK` by argument.
        seconds: After so many the call has hung.

    Returns:
        ``"returned"``, ``"refused"`` or ``"bad"``, and what was said.
    """
    door = doors()[name]
    given = GOOD[name]() | {argument: JUNK[kind]() for argument, kind in junk.items()}
    positional: list[Any] = [given.pop("self")] if "self" in given else []
    if "shape" in given:  # *shape
        positional.append(given.pop("shape"))
    if name == "door.report":  # *results
        several = given.pop("results")
        positional += several if isinstance(several, list) else [several]
    try:
        with at_most(seconds):
            result = door(*positional, **given)
            if name.startswith("held_still") or name.startswith("progress"):
                with result:
                    pass
    except TrebuchetError as error:
        said = str(error)
        return ("refused" if said and "\n" not in said and len(said) < 800 else "bad", said)
    except (Exception, Late) as error:  # whatever came out
        own = any(callable(given.get(argument)) for argument in CALLBACKS & set(junk))
        own |= isinstance(error, (Planted, UserWarning)) and bool(OWN.get(name, set()) & set(junk))
        return ("returned" if own else "bad", f"{type(error).__name__}: {error}")
    return "returned", ""
