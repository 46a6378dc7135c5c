"""What a result knows of itself, as names and values for people."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from trebuchet._checks import as_real
from trebuchet._environment import FACTS
from trebuchet.plots.checks import is_descent
from trebuchet.reports.runs import axes_of
from trebuchet.show.numbers import number

Pairs = Sequence[tuple[str, str]]
_BESIDE = {*FACTS, "scan", "top_eigen", "schema_version", "created", "config_hash", "note"}
FEW = 8
"""So many numbers are listed; of more, the ends and how many there are."""


def asked(ds: xr.Dataset, settings: Mapping[str, Any] | None = None) -> list[tuple[str, str]]:
    """What was asked for, as far as runs, and a scan's settings, tell.

    Args:
        ds: Runs.
        settings: A scan's.

    Returns:
        Names and values, those that are not known left out.
    """
    attrs = {**ds.attrs, **(settings or {})}
    steps = ("horizon", "horizon") if settings else ("max_steps", "at most")
    swept = "ηλ₀" if attrs.get("swept") == "lr_ratio" else "η"
    pairs = [
        ("model", _model(attrs)),
        ("loss", str(attrs.get("loss", ""))),
        ("data", how_many(attrs.get("n_samples"), "sample")),
        ("optimizer", trained_by(ds)),
        ("batch", _batch(attrs)),
        ("schedule", str(attrs.get("schedule") or "")),
        (f"rates {swept}", _searched(settings) if settings else listed(ds["lr"].values)),
        *((axis, listed(_values(ds, axis))) for axis in axes_of(ds)),
        ("seeds", listed(ds["seed"].values)),
        (steps[1] if settings else "steps", _steps(attrs, steps)),
        ("budget", how_many(attrs.get("budget"), "gradient") if settings else ""),
        ("edges", f"bisected to {100 * rtol:g} %" if (rtol := attrs.get("edge_rtol")) else ""),
        ("precision", " on ".join(str(attrs[k]) for k in ("dtype", "device") if k in attrs)),
    ]
    return [(name, value) for name, value in pairs if value]


def rest(
    attrs: Mapping[str, Any], settings: Mapping[str, Any] | None = None
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Every fact of a result, those of the environment apart.

    Args:
        attrs: Of its dataset.
        settings: A scan's.

    Returns:
        Settings, and versions and the like.
    """
    every = {**attrs, **(settings or {})}
    plain = [(str(k), _said(v)) for k, v in every.items() if k not in _BESIDE]
    where = [(k, _said(every[k])) for k in (*FACTS, "created", "config_hash") if k in every]
    return [pair for pair in plain if pair[1]], [pair for pair in where if pair[1]]


def trained_by(ds: xr.Dataset) -> str:
    """The optimizer, in words where it is the theory's."""
    name = str(ds.attrs.get("optimizer", ""))
    return "gradient descent" if name.startswith("GradientDescent(") and is_descent(ds) else name


def listed(values: Iterable[Any]) -> str:
    """A few values, or how many there are and between which ends.

    Args:
        values: Numbers or words.

    Returns:
        The text.

    Example:
        >>> listed([1, 2, 3]), listed(range(1, 40)), listed([0.5, 0.25])
        ('1, 2, 3', '39 from 1 to 39', '0.5, 0.25')
    """
    found = list(values)
    told = [_said(value) for value in found]
    if len(told) <= FEW:
        return ", ".join(told)
    return f"{len(told)} from {told[0]} to {told[-1]}"


def counted(names: Iterable[str], order: Iterable[str]) -> str:
    """How many of each name there are: "12 lazy, 1 catapult"."""
    found = list(names)
    counts = [(found.count(name), name) for name in order]
    return ", ".join(f"{count} {name}" for count, name in counts if count)


def _model(attrs: Mapping[str, Any]) -> str:
    size = how_many(attrs.get("n_parameters"), "parameter")
    return ", ".join(part for part in (named(attrs), size) if part)


def named(attrs: Mapping[str, Any]) -> str:
    """The model's name, where it has one of its own."""
    name = str(attrs.get("model", ""))
    return "" if name == "model" else name


def _searched(settings: Mapping[str, Any]) -> str:
    given = settings.get("rates")
    return "searched for" + (f", from {listed(given)} on" if given else "")


def _batch(attrs: Mapping[str, Any]) -> str:
    size, samples = as_real(attrs.get("batch_size")), as_real(attrs.get("n_samples"))
    if size is None or (samples is not None and size >= samples):
        return "all samples at once" if samples is not None else ""
    return how_many(size, "sample")


def _steps(attrs: Mapping[str, Any], names: tuple[str, str]) -> str:
    told = how_many(attrs.get(names[0]), "step")
    tolerance = as_real(attrs.get("tolerance"))
    if told and names[0] == "max_steps":
        stop = tolerance is not None and math.isfinite(tolerance)
        told = f"at most {told}" + (f", stopped when |ΔL| < {number(tolerance or 0)}" * stop)
    return told


def how_many(value: object, what: str) -> str:
    """A number with its noun; empty where it is not known."""
    found = as_real(value)
    if found is None or not math.isfinite(found):
        return ""
    return f"{found:,.0f} {what}" + "s" * (found != 1)


def _values(ds: xr.Dataset, axis: str) -> Iterable[Any]:
    return ds[axis].values if axis in ds.coords else range(ds.sizes[axis])


def _said(value: object) -> str:
    """A value on one line; missing ones are empty."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple, np.ndarray)):
        return listed(value)
    text = " ".join(str(value).split())
    return text if len(text) <= 400 else text[:397] + "..."
