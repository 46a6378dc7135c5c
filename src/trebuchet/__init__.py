"""Learning-rate phases of neural networks: lazy, catapult, divergent.

Three front doors::

    import trebuchet as tb

    scan = tb.scan(model, loss, batch)                       # which rates for your network
    runs = tb.sweep(problem, lr_ratio=[1.0, 2.5], seeds=8)   # many runs as an xarray.Dataset
    figure = tb.paper.figure(4)                              # a figure of the paper

and, beneath them, ``tb.Problem`` (what is trained and how, for every door), ``tb.label`` and
``tb.edges`` (verdicts and theorems), ``tb.top_eigen`` and ``tb.stability`` (curvature, and the
learning rate it implies), ``tb.Observable`` (a number of your own along every run), the paper's
models, ``tb.save`` and ``tb.load``, and ``tb.report``, a page for a colleague.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trebuchet import data, errors, models, observables, paper, plots, theory
    from trebuchet._types import Phase, Status
    from trebuchet.curvature import Lanczos, TopEigen, top_eigen
    from trebuchet.engine.optimizers import GradientDescent
    from trebuchet.engine.recording import Recording
    from trebuchet.engine.stopping import StopRule
    from trebuchet.files import load, save
    from trebuchet.models import MLP, MetaFeature, PureQuadratic, QuadraticWithBias
    from trebuchet.observables.base import Observable
    from trebuchet.phases.early import EarlyConstants, early_constants
    from trebuchet.phases.edges import edges
    from trebuchet.phases.forward_rate import ForwardRate, forward_critical_rate
    from trebuchet.phases.interval import Interval
    from trebuchet.phases.label import label
    from trebuchet.problem.losses import ModelLoss
    from trebuchet.problem.problem import Problem
    from trebuchet.reports import report
    from trebuchet.results.summary import table
    from trebuchet.scans.door import Scan, scan
    from trebuchet.scans.result import Critical, Warmup
    from trebuchet.scans.suggest import Suggestion
    from trebuchet.sweeps.execution import Execution
    from trebuchet.sweeps.refine import refine
    from trebuchet.sweeps.sweep import sweep
    from trebuchet.theory import stability
    from trebuchet.theory.edges import Edge

# What is imported is imported when it is asked for: `import trebuchet` alone is instant.
_HOMES = {
    "MLP": "models", "MetaFeature": "models", "PureQuadratic": "models",
    "QuadraticWithBias": "models",
    "Problem": "problem.problem", "Recording": "engine.recording",
    "GradientDescent": "engine.optimizers", "sweep": "sweeps.sweep", "refine": "sweeps.refine",
    "TopEigen": "curvature", "top_eigen": "curvature", "Lanczos": "curvature",
    "Execution": "sweeps.execution", "StopRule": "engine.stopping",
    "edges": "phases.edges", "label": "phases.label", "Scan": "scans.door", "scan": "scans.door",
    "Suggestion": "scans.suggest", "Interval": "phases.interval", "Critical": "scans.result",
    "Warmup": "scans.result", "Observable": "observables.base",
    "early_constants": "phases.early", "EarlyConstants": "phases.early",
    "forward_critical_rate": "phases.forward_rate", "ForwardRate": "phases.forward_rate",
    "load": "files", "save": "files", "report": "reports", "table": "results.summary",
    "ModelLoss": "problem.losses", "Edge": "theory.edges", "Phase": "_types", "Status": "_types",
}  # fmt: skip
_SUBMODULES = {"data", "errors", "models", "observables", "paper", "plots", "theory"}

__all__ = [
    "MLP",
    "Critical",
    "EarlyConstants",
    "Edge",
    "Execution",
    "ForwardRate",
    "GradientDescent",
    "Interval",
    "Lanczos",
    "MetaFeature",
    "ModelLoss",
    "Observable",
    "Phase",
    "Problem",
    "PureQuadratic",
    "QuadraticWithBias",
    "Recording",
    "Scan",
    "Status",
    "StopRule",
    "Suggestion",
    "TopEigen",
    "Warmup",
    "data",
    "early_constants",
    "edges",
    "errors",
    "forward_critical_rate",
    "label",
    "load",
    "models",
    "observables",
    "paper",
    "plots",
    "refine",
    "report",
    "save",
    "scan",
    "stability",
    "sweep",
    "table",
    "theory",
    "top_eigen",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(f"trebuchet.{_HOMES[name]}"), name)
    elif name in _SUBMODULES:
        value = importlib.import_module(f"trebuchet.{name}")
    elif name == "stability":
        value = importlib.import_module("trebuchet.theory.stability")
    else:
        msg = f"module 'trebuchet' has no attribute {name!r}"
        raise AttributeError(msg)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
