"""What a page says of each kind of result."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr

from trebuchet.curvature.result import TopEigen
from trebuchet.paper.beyond import EXPERIMENTS
from trebuchet.paper.experiment import Experiment
from trebuchet.paper.figures import Figure
from trebuchet.paper.picture import caption, draw
from trebuchet.phases.interval import Interval
from trebuchet.phases.label import label
from trebuchet.plots.checks import is_descent
from trebuchet.reports import code, facts
from trebuchet.reports.edges import measured, slices
from trebuchet.reports.pictures import as_png
from trebuchet.reports.runs import axes_of, drawn
from trebuchet.reports.section import Picture, Section
from trebuchet.reports.tables import of_rates, of_runs
from trebuchet.scans.rendering import rate_table
from trebuchet.scans.result import Scan
from trebuchet.show.marks import MARKS
from trebuchet.show.numbers import number

Maker = Callable[[int], Section]
"""Makes a section with so many points of traces."""


def of_scan(scan: Scan, points: int) -> Section:
    """The section of a scan."""
    s, settings = scan.suggestion, dict(scan.settings)
    sentences = scan.summary()
    settings_of_runs = {**scan.runs.attrs, **settings}
    model = facts.named(scan.runs.attrs)
    kept, where = facts.rest(scan.runs.attrs, settings)
    lines = [_line(name, edge) for name, edge in _scan_edges(scan).items() if edge.closed]
    if math.isfinite(scan.lr_crit):
        bound = "" if scan.critical.converged else "at most "
        lines.append(_line(f"critical rate {bound}{number(scan.lr_crit)}", scan.lr_crit))
    return Section(
        kind="scan",
        heading=f"Scan of {model}" if model else "Scan",
        headline=f"Use η = {number(s.rate)}" if s.reliable else f"Least bad: η = {number(s.rate)}",
        sure=s.reliable,
        answer=[
            f"About as good: {number(s.low)} to {number(s.high)}."
            # Of a rate that is only the least bad, lazy or catapult would say too much.
            + (f" Its phase: {s.phase}." if s.reliable else ""),
            f"Why: {s.reason}.",
        ],
        asked=facts.asked(scan.runs, settings),
        more=sentences[1:],
        runs=drawn(
            scan.runs, points=points, lines=lines,
            use={"rate": s.rate, "low": s.low, "high": s.high, "sure": s.reliable},
        ),
        table=of_rates(rate_table(scan)),
        code=code.of_scan(settings_of_runs, scan.cost.get("gradients", 0.0)),
        settings=kept,
        versions=where,
    )  # fmt: skip


def of_sweep(ds: xr.Dataset, points: int) -> Section:
    """The section of a sweep, of runs labelled or not."""
    ds = ds if "phase" in ds else label(ds)
    model = facts.named(ds.attrs)
    kept, where = facts.rest(ds.attrs)
    answer, lines = _told(ds)
    if ds.attrs.get("swept") == "lr_ratio" and is_descent(ds):
        lines.append(_line("critical rate, ηλ₀ = 2", 2.0))
    return Section(
        kind="sweep",
        heading=f"Sweep of {model}" if model else "Sweep",
        headline=_counts(ds),
        answer=answer,
        asked=facts.asked(ds),
        more=[str(ds.attrs[name]) for name in ("notes", "note") if ds.attrs.get(name)],
        runs=drawn(ds, points=points, lines=lines),
        table=of_runs(ds),
        code=code.of_sweep(ds),
        settings=kept,
        versions=where,
    )


def of_figure(figure: Figure, points: int) -> Section:
    """The section of a figure of the paper."""
    runs = figure.runs
    kept, where = facts.rest(runs.attrs)
    answer, _ = _told(runs)
    named = {name: edge for name, edge in figure.edges.items() if math.isfinite(edge.lr_ratio)}
    lines = [
        _line(f"{name.replace('_', ' ')} {number(e.lr_ratio)}", e.lr_ratio)
        for name, e in named.items()
    ]
    edges = ", ".join(
        f"{name.replace('_', ' ')} {edge.lr_ratio:.4f}"
        f"{'' if edge.proven or name == 'critical' else ' (as coded, not proven)'}"
        for name, edge in named.items()
    )
    return Section(
        kind="figure",
        heading=f"Figure {figure.number}: {figure.setting.title}",
        headline=_counts(runs),
        answer=[*answer, f"Edges that the theory names, in ηλ₀: {edges}."],
        asked=facts.asked(runs),
        more=[caption(figure)],
        runs=drawn(runs, points=points, lines=lines),
        picture=Picture(as_png(draw(figure)), f"The panels of figure {figure.number}"),
        table=of_runs(runs),
        code=code.of_figure(
            figure.number, figure.seeds, str(runs.attrs.get("dtype", "float32")),
            quick=figure.quick,
        ),
        settings=kept,
        versions=where,
    )  # fmt: skip


def of_experiment(experiment: Experiment, ds: xr.Dataset) -> Section:
    """The section of an experiment beyond the paper."""
    told = [str(line) for line in experiment.tell(ds)]
    kept, where = facts.rest(ds.attrs)
    sizes = [(str(dim), facts.listed(ds[dim].values)) for dim in ds.dims if dim in ds.coords]
    return Section(
        kind="experiment",
        heading=experiment.title,
        headline=experiment.question,
        answer=told,
        asked=[("source", experiment.source), *sizes],
        picture=Picture(as_png(experiment.draw(ds)), experiment.title),
        code=code.of_experiment(experiment.name, quick=bool(ds.attrs.get("quick"))),
        settings=kept,
        versions=where,
    )


def of_top(top: TopEigen) -> Section:
    """The section of a measurement of curvature."""
    name = {"ggn": "Gauss–Newton", "ntk": "NTK ÷ D", "hessian": "Hessian"}[top.operator]
    low, high = top.bounds
    lines = str(top).splitlines()
    values = ", ".join(f"{float(value):.6g}" for value in top.values)
    facts_of_it = [
        ("λ", values), ("residual", f"{top.residual:.3g}"),
        ("λ₁ lies between", f"{number(low)} and {number(high)}"),
        ("method", f"{top.method}, {top.products} products, in the space of {top.side}"),
        ("mode", f"{top.mode} {top.statistics}".strip()), ("reduction", top.reduction),
        ("tolerance", f"{top.rtol:g}"), ("failure probability", f"{top.failure:g}"),
    ]  # fmt: skip
    _, where = facts.rest(top.environment)
    return Section(
        kind="top eigenvalue",
        heading=f"Top eigenvalue of the {name}",
        headline=f"λ = {top.worded(4)}",
        sure=top.converged,
        answer=[f"Critical rate ({top.optimizer}): {top.worded_rate(4)}."],
        asked=[
            ("operator", name),
            ("data", f"{top.n_samples:,} samples"),
            ("model", f"{top.n_parameters:,} parameters, in {top.mode} mode"),
            ("optimizer", str(top.optimizer)),
            ("eigenvalues", str(len(top.values))),
        ],
        more=lines,
        code=code.of_top(
            top.operator, len(top.values), top.rtol,
            samples=top.n_samples, parameters=top.n_parameters,
        ),
        settings=facts_of_it,
        versions=where,
    )  # fmt: skip


def maker(result: Any) -> Maker | None:
    """Who makes the section of a result; None of what is no result."""
    if isinstance(result, Scan):
        return lambda points: of_scan(result, points)
    if isinstance(result, Figure):
        return lambda points: of_figure(result, points)
    if isinstance(result, TopEigen):
        return lambda points: of_top(result)
    if not isinstance(result, xr.Dataset):
        return None
    if "scan" in result.attrs:
        return maker(Scan.from_dataset(result))
    if "top_eigen" in result.attrs:
        return maker(TopEigen.from_dataset(result))
    named = str(result.attrs.get("experiment", ""))
    if named in EXPERIMENTS:
        return lambda points: of_experiment(EXPERIMENTS[named], result)
    if "learning_rate" in result and {"lr", "seed"} <= set(result.dims):
        return lambda points: of_sweep(result, points)
    return None


def _scan_edges(scan: Scan) -> dict[str, Interval]:
    return {"loss first rises": scan.lr_loss, "training ends": scan.lr_max}


def _counts(ds: xr.Dataset) -> str:
    """How many runs there are, and of which phase."""
    phases = ds["phase"].values.astype(str).ravel()
    told = facts.counted(phases[phases != ""], MARKS)
    runs = int((phases != "").sum())
    return f"{runs} run{'s' * (runs != 1)}: {told}" if runs else "no run was made"


def _told(ds: xr.Dataset) -> tuple[list[str], list[dict[str, Any]]]:
    """Where the edges are, in sentences and as lines; of several slices in sentences only."""
    axes = axes_of(ds)
    sign = "ηλ₀" if ds.attrs.get("swept") == "lr_ratio" else "η"
    sentences, lines = [], []
    parts = list(slices(ds, axes))
    for at, part in parts[:12]:
        where = ", ".join(f"{a} {_value(ds, a, i)}" for a, i in at.items())
        found = measured(part)
        told = " ".join(f"{_upper(name)} at {sign} {_worded(e)}." for name, e in found.items())
        sentences += [f"{where}: {told}" if where else told] if told else []
        if not axes:
            lines = [_line(name, edge) for name, edge in found.items() if edge.closed]
    if len(parts) > 12:
        sentences.append(f"The other {len(parts) - 12} combinations are in the table.")
    if sentences and ds.sizes["seed"] > 1:
        sentences.append("What counts at a rate is what most of its seeds do.")
    if int(ds.attrs.get("interrupted", 0)):
        sentences.append("The sweep was interrupted: some runs did not come to their end.")
    return sentences, lines


def _worded(edge: Interval) -> str:
    if edge.low <= 0 and math.isinf(edge.high):
        return "not seen"
    if math.isinf(edge.high):
        return f"above {number(edge.low)}, the largest tried"
    if edge.low <= 0:
        return f"below {number(edge.high)}, the smallest tried"
    return f"{number(edge.low)} to {number(edge.high)}"


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _value(ds: xr.Dataset, axis: str, i: int) -> str:
    if axis not in ds.coords:
        return str(i)
    value = ds[axis].values[i]
    return f"{value:g}" if isinstance(value, (float, np.floating)) else str(value)


def _line(name: str, where: Interval | float) -> dict[str, Any]:
    low, high = (where.low, where.high) if isinstance(where, Interval) else (where, where)
    return {"name": name, "low": low, "high": high}
