"""The lines that make a result again, with … for what a result cannot know."""

import ast
import json
import re
from collections.abc import Collection, Mapping, Sequence
from keyword import iskeyword
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
from trebuchet.sweeps.axes import DIMS, FIELDS, OPTIMIZER

ALWAYS = ("weight_norm", "test_loss")
"""Observed without being asked for, the test loss where there are test data."""
ENDS = ("gradient_norm",)
"""Known at the ends of every run, and along it only where that was asked for."""
_IN = " " * 4
_HEAD = "import trebuchet as tb\n"
_LITERAL = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""")
"""A string in Python, which no line may end in."""
_OF_DIM = {dim: name for name, dim in DIMS.items()}
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
    axes = _axes(ds)
    facts = _facts(ds, axes)
    given = ["problem", f"{swept}={rates}", f"seeds={_whole(ds['seed'].values)}"]
    if (steps := as_real(attrs.get("max_steps"))) is not None:
        given.append(f"steps={steps:.0f}")
    tolerance = as_real(attrs.get("tolerance"))
    if tolerance is not None and np.isfinite(tolerance):
        given.append(f"tolerance={tolerance:g}")
    if axes:
        given.append(f"axes={{{', '.join(f'{name!r}: {told}' for name, told in axes.items())}}}")
    trained = _trained(facts) + (["test=…"] if _holds(ds, "test_loss") else [])
    made = _wrapped("problem = tb.Problem(", ["make", _loss(facts), "data", *trained], ")")
    if observed := [name for name in OBSERVABLES if name not in ALWAYS and _holds(ds, name)]:
        given.append(f"observables={json.dumps(observed)}")
    call = _wrapped("runs = tb.label(tb.sweep(", given, "))")
    unknown = _unknown(facts, factory=["seed", *_of_factory(axes)])
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
    """The budget, in a word where it was one, and what was asked for of rates and edges."""
    limit, horizon = settings.get("budget"), settings.get("horizon")
    if "edge_rtol" not in settings:  # an older scan: what was spent beyond went into the edges
        words = [w for w, times in HORIZONS.items() if horizon and limit == times * horizon]
        given = [f'budget="{words[0]}"' if words else f"budget={limit!r}"]
        return [*given, *(["edge_rtol=…"] if limit and spent > 1.05 * limit else [])]
    word = settings.get("budget_name")
    given = [f'budget="{word}"' if word else f"budget={limit!r}"]
    given += [
        f"{name}={settings[name]!r}"
        for name in ("rates", "edge_rtol") if settings.get(name) is not None
    ]  # fmt: skip
    curvature = settings.get("curvature", "initial")
    return [*given, *([f'curvature="{curvature}"'] if curvature != "initial" else [])]


def _axes(ds: xr.Dataset) -> dict[str, str]:
    """Values of each axis, as Python, by the name that a sweep takes."""
    dims = [dim for dim in axes_of(ds) if dim in ds.coords]
    return {_OF_DIM.get(dim, dim): _on_axis(_OF_DIM.get(dim, dim), ds[dim].values) for dim in dims}


def _on_axis(name: str, values: Any) -> str:
    """In a list; or, where names do not tell what they stand for, by these names."""
    if values.dtype.kind in "iufb":
        return str(_plain(values))
    names = [str(value) for value in values]
    told = [_meant(name, text) for text in names]
    if "…" in told:
        pairs = (f"{text!r}: {value}" for text, value in zip(names, told, strict=True))
        return f"{{{', '.join(pairs)}}}"
    return f"[{', '.join(told)}]"


def _meant(name: str, text: str) -> str:
    """What a name stands for, on an axis; … where results do not tell."""
    known = {"loss": LOSSES, "optimizer": OPTIMIZERS}.get(name)
    if known is not None:
        return repr(text) if text in known else "…"
    try:
        value = ast.literal_eval(text[:200])
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        value = text
    if not isinstance(value, str):  # None, or a pair of numbers
        return repr(value)
    return "…" if name in FIELDS or name.startswith(OPTIMIZER) else repr(text)


def _of_factory(axes: Mapping[str, str]) -> list[str]:
    """Arguments of the model's function: axes that are no setting of how it is trained."""
    own = [name for name in axes if name not in FIELDS and not name.startswith(OPTIMIZER)]
    named = [name for name in own if name.isidentifier() and not iskeyword(name)]
    return [*named, *(["**others"] if len(named) < len(own) else [])]


def _facts(ds: xr.Dataset, axes: Mapping[str, str]) -> dict[str, Any]:
    """Attributes of a sweep, with what stands for those that axes vary."""
    facts = {name: value for name, value in ds.attrs.items() if name not in axes}
    if "loss" in axes:
        facts["loss"] = str(ds[DIMS["loss"]].values[0])
    varied = {name.removeprefix(OPTIMIZER) for name in axes if name.startswith(OPTIMIZER)}
    if "optimizer" in axes:
        facts["optimizer"] = "sgd"  # any: each cell has its own
    elif varied:
        told = ds["optimizer"].values.ravel() if "optimizer" in ds.coords else [facts["optimizer"]]
        facts["optimizer"] = _without([str(one) for one in told], varied)
    return facts


def _without(told: Sequence[str], varied: Collection[str]) -> str:
    """An optimizer less the settings that vary, of which `told` has all that there were."""
    if descent := _DESCENT.fullmatch(told[0]):
        kept = dict(zip(("momentum", "weight_decay"), descent.groups(), strict=True))
        kept |= {name: "0.0" for name in varied if name in kept}
        return f"GradientDescent({', '.join(f'{name}={value}' for name, value in kept.items())})"
    known = {text.partition("(")[0].lower() for text in told}
    rest = {key for text in told for key in re.findall(r"(\w+)=", text)} - set(varied)
    plain = len(known) == 1 and known <= set(OPTIMIZERS) and not rest
    return known.pop() if plain else told[0]


def _holds(ds: xr.Dataset, name: str) -> bool:
    return name in ds or (name not in ENDS and f"{name}_final" in ds)


def _trained(facts: Mapping[str, Any]) -> list[str]:
    """Optimizer, batch and the like, as arguments."""
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
    together = int(facts.get("accumulate") or 1)
    if size is not None and (size != samples or together > 1):
        given.append(f"batch_size={size / together:.0f}")  # results hold what a step sees
    for clip in ("clip_grad_norm", "clip_grad_value"):
        if facts.get(clip) is not None:
            given.append(f"{clip}={facts[clip]!r}")
    if together > 1:
        given.append(f"accumulate={together}")
    if facts.get("schedule"):
        given.append("schedule=schedule")
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
        fill(
            _LITERAL.sub(lambda found: found[0].replace(" ", "\0"), f"{one},"), 88,
            initial_indent=_IN, subsequent_indent=_IN * 2,
            break_long_words=False, break_on_hyphens=False,
        )
        for one in arguments
    )  # fmt: skip
    return f"{head}\n" + "".join(f"{one}\n" for one in filled).replace("\0", " ") + tail
