"""Labelled runs as what a page draws them from: plain lists, thinned so that they fit."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from trebuchet._types import Status
from trebuchet.plots.phase_bar import spread_out
from trebuchet.plots.style import PHASE_COLOURS
from trebuchet.reports.thinning import FEWEST, every, kept
from trebuchet.results.schema import COORDINATES
from trebuchet.scans.tables import last_look
from trebuchet.show.marks import DROPPED, MARKS, NOTEBOOK

MOST_RUNS = 3000
"""Runs of one result on a page."""
MOST_POINTS = 400
"""Points of one trace: more than a screen has to give it."""
TRACES = {"loss": "loss", "test_loss": "test loss", "top_eigenvalue": "ηλ"}
"""What is drawn over the steps, where it was recorded."""


def axes_of(ds: xr.Dataset) -> list[str]:
    """The dims that a sweep has beside rate and seed, such as width."""
    return [str(dim) for dim in ds["learning_rate"].dims if dim not in COORDINATES]


def in_part(ds: xr.Dataset) -> tuple[xr.Dataset, str]:
    """As much of the runs as fits on a page, and a sentence on what was left out.

    Args:
        ds: Runs, in any order of dims.

    Returns:
        Some of the rates, and of the seeds where those are many; the sentence is empty if that is
        all of them.
    """
    combined = int(np.prod([ds.sizes[axis] for axis in axes_of(ds)], initial=1))
    rates, seeds = ds.sizes["lr"], ds.sizes["seed"]
    most = max(MOST_RUNS // combined, 4)
    if rates * seeds <= most:
        return ds, ""
    few = max(min(seeds, most // min(rates, 40)), 1)
    lr = every(rates, max(most // few, 2))
    told = [f"{len(lr)} of {rates} rates"] if len(lr) < rates else []
    told += [f"the first {few} of {seeds} seeds"] if few < seeds else []
    said = f"drawn are {' and '.join(told)}; the counts above are of all runs"
    return ds.isel(lr=lr, seed=slice(few)), said


def drawn(
    ds: xr.Dataset,
    *,
    points: int,
    lines: Sequence[Mapping[str, Any]] = (),
    use: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Everything that the page draws of runs.

    Args:
        ds: Labelled runs.
        points: How many points of traces there may be in all.
        lines: Edges, each with ``name``, ``low`` and ``high`` (equal for a line).
        use: ``rate``, ``low`` and ``high`` of a suggestion, and whether it is ``sure``.

    Returns:
        For JSON: missing numbers are None.
    """
    axes = axes_of(ds)
    ds, left_out = in_part(ds)
    ds = ds.transpose(*axes, "lr", "seed", ...)
    shape = ds["learning_rate"].shape
    ran = np.ones(shape, bool)
    if "status" in ds:
        ran = (ds["status"] != str(Status.NOT_RUN)).values
    index = np.argwhere(ran)
    rates = np.asarray(ds["lr"].values, np.float64)
    traces, thinned = _traces(ds, ran, points)
    return {
        "swept": "ηλ₀" if ds.attrs.get("swept") == "lr_ratio" else "η",
        "log": spread_out(rates),
        "rates": _numbers(rates, 6),
        "seeds": [int(seed) for seed in ds["seed"].values],
        "axes": [{"name": axis, "values": _labels(ds, axis)} for axis in axes],
        "at": index[:, : len(axes)].tolist(),
        "rate": index[:, len(axes)].tolist(),
        "seed": index[:, len(axes) + 1].tolist(),
        "lr": _numbers(ds["learning_rate"].values[ran], 4),
        "ratio": _numbers(_of(ds, "lr_ratio", shape)[ran], 4),
        "phase": _phases(ds)[ran].tolist(),
        "status": ds["status"].values[ran].astype(str).tolist() if "status" in ds else None,
        "steps": _numbers(_of(ds, "steps", shape)[ran], 9),
        "final": _numbers(_final(ds)[ran], 4),
        "first": _number(float(np.nanmedian(_of(ds, "loss_first", shape)[ran])), 4)
        if "loss_first" in ds and np.isfinite(ds["loss_first"].values[ran]).any()
        else None,
        "step": [int(step) for step in ds["step"].values] if "step" in ds else [],
        "traces": traces,
        "lines": list(lines),
        "use": dict(use) if use else None,
        "said": [sentence for sentence in (left_out, thinned) if sentence],
    }


def look() -> dict[str, Any]:
    """How each phase looks, in the order of a key; dropped runs are not filled."""
    return {
        str(name): {
            "mark": mark,
            "fill": PHASE_COLOURS.get(name, "#FFFFFF"),
            "text": NOTEBOOK[name],
        }
        for name, mark in MARKS.items()
    }


def _traces(ds: xr.Dataset, ran: np.ndarray, points: int) -> tuple[dict[str, Any], str]:
    """The traces of each run, as positions along the schedule and values."""
    names = [name for name in TRACES if name in ds and "step" in ds[name].dims]
    names = [name for name in names if np.isfinite(ds[name].values).any()]
    if not names:
        return {}, ""
    most = int(np.clip(points // max(int(ran.sum()) * len(names), 1), FEWEST, MOST_POINTS))
    rate = ds["learning_rate"].values[ran]
    cut, found = 0, {}
    for name in names:
        values = ds[name].transpose(*ds["learning_rate"].dims, "step").values[ran]
        rows = []
        for i, trace in enumerate(values):
            at = kept(trace, most)
            cut = max(cut, int(np.isfinite(trace).sum()) - len(at))
            shown = trace[at] * (rate[i] if name == "top_eigenvalue" else 1.0)
            rows.append([at.tolist(), _numbers(shown, 4)])
        found[name] = {"label": TRACES[name], "runs": rows}
    if not cut:
        return found, ""
    return found, (
        f"each trace is thinned to at most {most} points: its ends, and the largest and smallest "
        "value of every stretch between, at their own steps"
    )


def _final(ds: xr.Dataset) -> np.ndarray:
    if "loss" in ds and "loss_final" in ds:
        return last_look(ds.transpose(*ds["learning_rate"].dims, ...))
    return _of(ds, "loss_final", ds["learning_rate"].shape)


def _phases(ds: xr.Dataset) -> np.ndarray:
    found = ds["phase"].transpose(*ds["learning_rate"].dims).values.astype(np.str_)
    if "status" not in ds:
        return found
    left = (ds["status"].values == DROPPED) & (found == "unsettled")
    return np.where(left, DROPPED, found)


def _of(ds: xr.Dataset, name: str, shape: tuple[int, ...]) -> np.ndarray:
    if name not in ds:
        return np.full(shape, np.nan)
    return np.broadcast_to(ds[name].broadcast_like(ds["learning_rate"]).values, shape)


def _labels(ds: xr.Dataset, axis: str) -> list[str]:
    values = ds[axis].values if axis in ds.coords else np.arange(ds.sizes[axis])
    return [f"{v:g}" if isinstance(v, float) else str(v) for v in values.tolist()]


def _numbers(values: Any, digits: int) -> list[float | None]:
    return [_number(float(value), digits) for value in np.asarray(values).ravel()]


def _number(value: float, digits: int) -> float | None:
    """To so many digits; what JSON has no word for is None."""
    if not np.isfinite(value):
        return None
    short = float(f"{value:.{digits}g}")
    return int(short) if short.is_integer() and abs(short) < 1e9 else short
