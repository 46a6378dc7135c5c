"""The lines that make a result again, with … for what a result cannot know."""

import json
import re
from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any

import numpy as np
import xarray as xr

from trebuchet._checks import as_real
from trebuchet.observables.registry import OBSERVABLES
from trebuchet.problem.loss_names import NAMES as LOSSES
from trebuchet.problem.optimizer_names import NAMES as OPTIMIZERS
from trebuchet.reports.facts import FEW, how_many, named
from trebuchet.reports.runs import axes_of
from trebuchet.scans.budget import HORIZONS

ALWAYS = ("weight_norm", "test_loss")
"""Observed without being asked for, the test loss where there are test data."""
ENDS = ("gradient_norm",)
"""Known at the ends of every run, and along it only where that was asked for."""
_IN = " " * 4
_HEAD = "import trebuchet as tb\n"
_DESCENT = re.compile(r"GradientDescent\(momentum=(\S+), weight_decay=(\S+)\)")


def of_scan(settings: Mapping[str, Any], spent: float) -> str:
    """The lines of a scan.

    Args:
        settings: The scan's, and the facts of its runs.
        spent: Gradients in all.

    Returns:
        Python.
    """
    given = _trained(settings)
    for name in ("clip_grad_norm", "clip_grad_value"):
        if settings.get(name) is not None:
            given.append(f"{name}={settings[name]!r}")
    if int(settings.get("accumulate") or 1) != 1:
        given.append(f"accumulate={settings['accumulate']!r}")
    if settings.get("schedule"):
        given.append("schedule=schedule")
    given.append(f"horizon={settings.get('horizon')!r}")
    given.append(f"seeds={_whole(settings.get('seeds', []))}")
    given += _budget(settings, spent)
    call = _wrapped("scan = tb.scan(", ["model", _loss(settings), "data", *given], ")")
    return f'{_HEAD}\n{_unknown(settings)}{call}\nscan.report("report.html")\n'


def of_sweep(ds: xr.Dataset) -> str:
    """The lines of a sweep.

    Args:
        ds: The runs.

    Returns:
        Python.
    """
    attrs = ds.attrs
    swept = "lr_ratio" if attrs.get("swept") == "lr_ratio" else "lr"
    rates = _rates(ds["lr"].values)
    axes = {axis: _plain(ds[axis].values) for axis in axes_of(ds) if axis in ds.coords}
    given = ["problem", f"{swept}={rates}", f"seeds={_whole(ds['seed'].values)}"]
    if (steps := as_real(attrs.get("max_steps"))) is not None:
        given.append(f"steps={steps:.0f}")
    tolerance = as_real(attrs.get("tolerance"))
    if tolerance is not None and np.isfinite(tolerance):
        given.append(f"tolerance={tolerance:g}")
    if axes:
        given.append(f"axes={axes}")
    trained = _trained(attrs) + (["test=…"] if _holds(ds, "test_loss") else [])
    made = _wrapped("problem = tb.Problem(", ["make", _loss(attrs), "data", *trained], ")")
    if observed := [name for name in OBSERVABLES if name not in ALWAYS and _holds(ds, name)]:
        given.append(f"observables={json.dumps(observed)}")
    call = _wrapped("runs = tb.label(tb.sweep(", given, "))")
    unknown = _unknown(attrs, factory=[*axes, "seed"])
    head = f"import numpy as np\n{_HEAD}" if "np." in rates else _HEAD
    return f'{head}\n{unknown}{made}\n{call}\ntb.report(runs, path="report.html")\n'


def of_figure(number: int, seeds: Sequence[int], dtype: str, *, quick: bool) -> str:
    """The lines of a figure of the paper."""
    given = [str(number), f"seeds={_whole(seeds)}", *(["quick=True"] if quick else [])]
    head = _HEAD
    if dtype != "float32":
        head, given = f"import torch\n{_HEAD}", [*given, f"dtype=torch.{dtype}"]
    call = _wrapped("figure = tb.paper.figure(", given, ")")
    return f'{head}\n{call}\nfigure.report("report.html")\n'


def of_experiment(name: str, *, quick: bool) -> str:
    """The lines of an experiment beyond the paper."""
    return (
        f"{_HEAD}from trebuchet.paper.beyond import EXPERIMENTS\n\n"
        f"found = EXPERIMENTS[{json.dumps(name)}].run(quick={quick})\n"
        'tb.report(found, path="report.html")\n'
    )


def of_top(operator: str, k: int, rtol: float, *, samples: int, parameters: int) -> str:
    """The lines of a measurement of curvature."""
    given = ["model", "loss", "data", f'operator="{operator}"', f"k={k}", f"rtol={rtol:g}"]
    return (
        f"{_HEAD}\nmodel = …  # {parameters:,} parameters\nloss = …\n"
        f"data = …  # {samples:,} samples\n{_wrapped('top = tb.top_eigen(', given, ')')}\n"
        'tb.report(top, path="report.html")\n'
    )


def _budget(settings: Mapping[str, Any], spent: float) -> list[str]:
    """The budget in a word where it is one; what was spent beyond it went into the edges."""
    limit, horizon = settings.get("budget"), settings.get("horizon")
    words = [w for w, times in HORIZONS.items() if horizon and limit == times * horizon]
    given = [f'budget="{words[0]}"' if words else f"budget={limit!r}"]
    return [*given, *(["edge_rtol=…"] if limit and spent > 1.05 * limit else [])]


def _holds(ds: xr.Dataset, name: str) -> bool:
    return name in ds or (name not in ENDS and f"{name}_final" in ds)


def _trained(facts: Mapping[str, Any]) -> list[str]:
    """Optimizer and batch, as arguments."""
    name = str(facts.get("optimizer", "sgd"))
    given = []
    if descent := _DESCENT.fullmatch(name):
        momentum, decay = map(float, descent.groups())
        kept = [f"momentum={momentum:g}"] if momentum else []
        kept += [f"weight_decay={decay:g}"] if decay else []
        given = [f"tb.GradientDescent({', '.join(kept)})"] if kept else []
    else:
        given = [f'"{name}"' if name in OPTIMIZERS else "optimizer"]
    size, samples = as_real(facts.get("batch_size")), as_real(facts.get("n_samples"))
    if size is not None and size != samples:
        given.append(f"batch_size={size:.0f}")
    return given


def _unknown(facts: Mapping[str, Any], factory: Sequence[str] = ()) -> str:
    """A line for each thing that no result holds: yours to fill in."""
    about = [_comment(named(facts)), how_many(facts.get("n_parameters"), "parameter")]
    told = ", ".join(part for part in about if part)
    if factory:
        lines = [f"def make({', '.join(factory)}):", f"    return …  # {told}", ""]
    else:
        lines = [f"model = …  # {told}"]
    lines.append(f"data = …  # {how_many(facts.get('n_samples'), 'sample')}")
    if str(facts.get("loss")) not in LOSSES:
        lines.append(f"loss = …  # {_comment(facts.get('loss', ''))}")
    name = str(facts.get("optimizer", "sgd"))
    if name not in OPTIMIZERS and not _DESCENT.fullmatch(name):
        lines.append(f"optimizer = …  # {_comment(name)}")
    if facts.get("schedule"):
        lines.append(f"schedule = …  # {_comment(facts['schedule'])}")
    return "\n".join(line.removesuffix("  # ") for line in lines) + "\n"


def _loss(facts: Mapping[str, Any]) -> str:
    name = str(facts.get("loss", ""))
    return f'"{name}"' if name in LOSSES else "loss"


def _comment(text: object) -> str:
    """Somebody's words, which must not end the comment they stand in."""
    return " ".join(str(text).split())[:200]


def _whole(values: Any) -> str:
    """Whole numbers, in full, or as a range."""
    found = [int(value) for value in values]
    if len(found) > 4 and found == list(range(found[0], found[-1] + 1)):
        return f"range({found[0]}, {found[-1] + 1})"
    return str(found)


def _rates(values: Any) -> str:
    """Rates, as a grid where they are one, or each."""
    low, high, count = float(values[0]), float(values[-1]), len(values)
    if count > FEW and low > 0:
        for grid in (np.linspace, np.geomspace):
            if np.allclose(values, grid(low, high, count), rtol=1e-12, atol=0):
                return f"np.{grid.__name__}({low!r}, {high!r}, {count})"
    return str(_plain(values))


def _plain(values: Any) -> list[Any]:
    return list(np.asarray(values).tolist())


def _wrapped(head: str, arguments: Sequence[str], tail: str) -> str:
    """A call on one line where it is short enough, or else with its arguments below."""
    line = f"{head}{', '.join(arguments)}{tail}"
    if len(line) <= 88:
        return line
    filled = (
        fill(f"{one},", 88, initial_indent=_IN, subsequent_indent=_IN * 2) for one in arguments
    )
    return f"{head}\n" + "".join(f"{one}\n" for one in filled) + tail
