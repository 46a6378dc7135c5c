"""What a results dataset holds: one table of variables, and a builder and a checker that obey it.

A dataset has dims ``lr, seed, step`` (and ``layer``). ``lr`` is the index of what was swept, η or
ηλ₀ (attribute ``swept``); ``step`` is a recording schedule that always holds 0. Traces are taken at
θ_t, before the step. NaN means not recorded, or that the run had ended; it never means zero.
"""

import hashlib
import json
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from trebuchet._checks import as_array, as_real, choice, mapping, refuse
from trebuchet._doors import door, maybe, rule
from trebuchet._environment import FACTS, environment
from trebuchet._types import Phase, Status
from trebuchet.errors import InputError

TRACE = ("lr", "seed", "step")
RUN = ("lr", "seed")
SCHEMA_VERSION = 3
"""3: a scan's runs are a grid of rates and seeds, like a sweep's; they were one row a run.
2: saved with a manifest (results/manifest.py). Version 1 had the same variables."""


@dataclass(frozen=True, slots=True)
class Variable:
    """One row of the table: dims, NumPy kind ("f", "i" or "U"), units, and what it is."""

    dims: tuple[str, ...]
    kind: str
    units: str
    long_name: str
    required: bool = False


# fmt: off
COORDINATES: dict[str, Variable] = {
    "lr":    Variable(("lr",), "f", "1", "swept rate: η, or ηλ₀"),
    "seed":  Variable(("seed",), "i", "1", "seed of the initialisation"),
    "step":  Variable(("step",), "i", "step", "recorded step"),
    "layer": Variable(("layer",), "i", "1", "hidden layer, from 1"),
    "direction": Variable(("direction",), "i", "1", "eigendirection of the kernel, from 1"),
    "proof": Variable(("proof",), "i", "1", "what proved λ: 1 trace, 2 norm, 3 Cholesky, 4 LAPACK"),
    "block": Variable(("block",), "i", "1", "block of steps past the end, from 1"),
}
VARIABLES: dict[str, Variable] = {
    # traces, all at the same θ_t
    "loss":                 Variable(TRACE, "f", "loss", "training loss"),
    "test_loss":            Variable(TRACE, "f", "loss", "test loss"),
    "top_eigenvalue":       Variable(TRACE, "f", "1", "top eigenvalue λ of the operator"),
    "weight_norm":          Variable(TRACE, "f", "1", "squared weight norm |θ|²"),
    "law_residual":         Variable(TRACE, "f", "1", "relative violation of the weight-norm law"),
    "sparsity":             Variable((*TRACE, "layer"), "f", "1", "share of pre-activations < 0"),
    "gradient_norm":        Variable(TRACE, "f", "loss", "gradient norm |∇L|"),
    "accuracy":             Variable(TRACE, "f", "1", "share of samples classified right"),
    "sharpness":            Variable(TRACE, "f", "1", "top eigenvalue of the Hessian"),
    "top_eigenvalues":      Variable((*TRACE, "direction"), "f", "1", "top eigenvalues of the NTK"),
    "loss_directions":      Variable((*TRACE, "direction"), "f", "loss", "loss in eigendirections"),
    "eigenvector_overlap":  Variable(TRACE, "f", "1", "top eigenvector's overlap with the first"),
    # one number a run
    "learning_rate":        Variable(RUN, "f", "1", "learning rate η", required=True),
    "lr_ratio":             Variable(RUN, "f", "1", "learning-rate ratio ηλ₀"),
    "status":               Variable(RUN, "U", "", "why the run stopped"),
    "steps":                Variable(RUN, "i", "step", "updates made"),
    "loss_first":           Variable(RUN, "f", "loss", "loss at the start, L₀"),
    "loss_max":             Variable(RUN, "f", "loss", "largest loss"),
    "loss_max_step":        Variable(RUN, "f", "step", "step of the largest loss"),
    "loss_min":             Variable(RUN, "f", "loss", "smallest loss"),
    "loss_final":           Variable(RUN, "f", "loss", "loss at the end"),
    "loss_closing_first":   Variable(RUN, "f", "loss", "L₀ on the samples of the final loss"),
    "loss_horizon":         Variable(RUN, "f", "loss", "final loss, in the worse of both modes"),
    "last_above":           Variable(RUN, "i", "step", "last step with loss > (1+δ)L₀; -1: never"),
    "test_loss_final":      Variable(RUN, "f", "loss", "test loss at the end"),
    "top_eigenvalue_first": Variable(RUN, "f", "1", "λ at the start"),
    "top_eigenvalue_final": Variable(RUN, "f", "1", "λ at the end"),
    "top_eigenvalue_max":   Variable(RUN, "f", "1", "largest recorded λ"),
    "top_eigenvalue_proofs": Variable((*RUN, "proof"), "f", "1", "how often each proved λ"),
    "weight_norm_first":    Variable(RUN, "f", "1", "|θ|² at the start"),
    "weight_norm_final":    Variable(RUN, "f", "1", "|θ|² at the end"),
    "sparsity_final":       Variable((*RUN, "layer"), "f", "1", "sparsity at the end"),
    "gradient_norm_first":  Variable(RUN, "f", "loss", "|∇L| of the first step"),
    "gradient_norm_final":  Variable(RUN, "f", "loss", "|∇L| of the last step"),
    "accuracy_final":       Variable(RUN, "f", "1", "accuracy at the end"),
    "sharpness_final":      Variable(RUN, "f", "1", "sharpness at the end"),
    "lyapunov_final":       Variable((*RUN, "block"), "f", "1/step", "log growth of a separation"),
    "output_spread":        Variable(RUN, "f", "output", "spread of final outputs over inputs"),
    # one number a seed
    "top_eigenvalue_init":  Variable(("seed",), "f", "1", "λ₀, at initialisation"),
    # verdicts, and the numbers behind them (trebuchet.phases.label)
    "phase":                Variable(RUN, "U", "", "phase of the run"),
    "peak_ratio":           Variable(RUN, "f", "1", "largest loss / L₀"),
    "final_ratio":          Variable(RUN, "f", "1", "final loss / L₀"),
    "recovery_step":        Variable(RUN, "f", "step", "first step back below the start"),
    "kernel_drift":         Variable(RUN, "f", "1", "|λ_T − λ₀|/λ₀"),
    "lr_ratio_max":         Variable(RUN, "f", "1", "largest recorded ηλ_t"),
    "period":               Variable(RUN, "f", "step", "period of the loss's cycle"),
    "amplitude":            Variable(RUN, "f", "loss", "how far the loss swings at the end"),
    "lyapunov_exponent":    Variable(RUN, "f", "1/step", "Lyapunov exponent"),
    "lyapunov_error":       Variable(RUN, "f", "1/step", "standard error of the exponent"),
}
# fmt: on

OF_STEP = "_of_step"
"""Ends the name of a number that the loop of a sweep under way keeps beside an observable's."""

_VOLATILE = {"created", "device", "interrupted", "config_hash", *FACTS}


FACT = "attribute"
"""On a coordinate: which attribute of runs it holds, where that differs along an axis."""

SWEPT = {"lr": "learning rate η", "lr_ratio": "learning-rate ratio ηλ₀"}
"""What ``lr`` may hold, and its long name."""


def a_dataset(name: str, value: object) -> xr.Dataset:
    """A dataset of any content."""
    if isinstance(value, xr.Dataset):
        return value
    advice = "trebuchet.sweep makes one, and trebuchet.load reads one"
    refuse(name, "an xarray.Dataset of results", value, advice)


def results(name: str, value: object) -> xr.Dataset:
    """A dataset of runs whose variables are of the dims (in any order) and kinds of the table."""
    ds = settled(check_runs(value))
    for key, row in VARIABLES.items():
        if key in ds:
            _check_kind(ds, key, row)
            if {dim for dim in ds[key].dims if dim in COORDINATES} != set(row.dims):
                msg = f"{key}: expected dims {row.dims}, got {tuple(map(str, ds[key].dims))}"
                raise InputError(msg)
    _check_words(ds)
    for key in COORDINATES:
        if key in ds.sizes and ds.sizes[key] == 0:
            refuse(name, f"one or more values along {key!r}", ds.sizes)
    for key in TRACE:
        if key in ds.sizes and (key not in ds.coords or ds[key].dtype.kind not in "fiu"):
            msg = f"{name}: expected numbers as the coordinate {key!r}, got none"
            raise InputError(msg)
    for key in ("delta", "blowup", "n_parameters"):
        if key in ds.attrs and as_real(ds.attrs[key]) is None:
            refuse(name, f"a number as its attribute {key!r}", ds.attrs[key])
    return ds


def settled(ds: xr.Dataset) -> xr.Dataset:
    """Attributes that differed along an axis put back, where one place on it was selected.

    Args:
        ds: Runs, such as ``runs.sel(width=64)``.

    Returns:
        The same, with those attributes that its scalar coordinates hold.
    """
    held = {
        str(c.attrs[FACT]): c.values.item()
        for c in ds.coords.values()
        if c.ndim == 0 and FACT in c.attrs
    }
    known = {key: value for key, value in held.items() if value not in ("",) and value == value}
    return ds.assign_attrs(known) if known else ds


def _coordinate(name: str, value: object) -> np.ndarray[Any, Any]:
    """Numbers in one dimension, whole ones for all but the rates."""
    found = as_array(value)
    row = COORDINATES[name]
    if found is None or found.ndim > 1 or found.size == 0:
        refuse(name, f"a list of numbers ({row.long_name})", value)
    found = np.atleast_1d(found)
    if row.kind == "f":
        return found
    if not (np.isfinite(found) & (found == np.floor(found)) & (np.abs(found) < 2.0**63)).all():
        refuse(name, f"whole numbers ({row.long_name})", value)
    given = np.atleast_1d(np.asarray(value))
    return (given if given.dtype.kind in "iu" else found).astype(np.int64)


@door(
    variables=mapping, lr=_coordinate, seed=_coordinate, step=_coordinate,
    swept=rule(choice, SWEPT), attrs=maybe(mapping), settings=maybe(mapping),
)  # fmt: skip
def make_dataset(
    variables: Mapping[str, Any],
    *,
    lr: ArrayLike,
    seed: ArrayLike,
    step: ArrayLike = (0,),
    swept: str = "lr",
    attrs: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> xr.Dataset:
    """Build a results dataset: dims, dtypes, units and names from the table, provenance stamped.

    Args:
        variables: Arrays by name, in the shapes of `VARIABLES`; a name outside the table comes as
            an ``xarray.Variable`` with attributes ``units`` and ``long_name``.
        lr: What was swept, shape ``(n_lr,)``.
        seed: Seeds, shape ``(n_seed,)``.
        step: Recorded steps, shape ``(n_step,)``, increasing from 0.
        swept: "lr" or "lr_ratio": what `lr` holds.
        attrs: Facts about the problem and the runs.
        settings: What determines the numbers, for ``config_hash``; the lasting `attrs` and the
            coordinates unless given.

    Returns:
        A dataset that passes `validate`.

    Raises:
        InputError: If a variable does not fit the table.

    Example:
        >>> ds = make_dataset({"learning_rate": [[0.1]], "loss": [[[1.0, 0.5]]]}, lr=[0.1],
        ...                   seed=[0], step=[0, 1])
        >>> ds.loss.attrs["long_name"], ds.attrs["swept"], dict(ds.sizes)
        ('training loss', 'lr', {'lr': 1, 'seed': 1, 'step': 2})
    """
    coordinates: dict[str, np.ndarray[Any, Any]] = {
        "lr": _coordinate("lr", lr),
        "seed": _coordinate("seed", seed),
        "step": _coordinate("step", step),
    }
    data: dict[str, xr.Variable] = {}
    for name, values in variables.items():
        data[name] = _variable(name, values)
        for dim in ("layer", "direction", "proof", "block"):
            if dim in data[name].dims:
                coordinates[dim] = np.arange(1, data[name].sizes[dim] + 1)
    try:
        ds = xr.Dataset(data, coords={k: ((k,), v) for k, v in coordinates.items()})
    except ValueError as error:
        sizes = {name: len(values) for name, values in coordinates.items()}
        msg = f"variables: expected arrays that fit the coordinates {sizes}: {error}"
        raise InputError(msg) from error
    for name, row in COORDINATES.items():
        if name in ds.coords:
            ds[name].attrs.update(units=row.units, long_name=row.long_name)
    facts = {"swept": swept, **{key: _plain(value) for key, value in (attrs or {}).items()}}
    ds["lr"].attrs["long_name"] = SWEPT[swept]
    if settings is None:
        lasting = {key: value for key, value in facts.items() if key not in _VOLATILE}
        settings = {**lasting, **{k: v.tolist() for k, v in coordinates.items()}}
    ds.attrs = {
        **facts,
        "schema_version": SCHEMA_VERSION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        **environment(),
        "config_hash": config_hash(settings),
    }
    validate(ds)
    return ds


@door(ds=a_dataset)
def validate(ds: xr.Dataset) -> None:
    """Check a dataset against the table; sweep axes beyond it (such as ``width``) are allowed.

    Args:
        ds: The dataset.

    Raises:
        InputError: If a dim, a dtype, units, a required variable or a status is not as it should
            be; the message names the variable.
    """
    _check_version(ds)
    for name in ("lr", "seed"):
        if name not in ds.coords:
            msg = f"dataset: expected a coordinate {name!r}, got {sorted(map(str, ds.coords))}"
            raise InputError(msg)
    for name, row in COORDINATES.items():
        if name in ds.coords:
            _check_row(ds, name, row)
    for name in ("lr", "seed"):
        if np.unique(ds[name].values).size != ds[name].size:
            msg = f"dataset: expected distinct values of {name!r}, got one twice"
            raise InputError(msg)
    for dim in {str(d) for n in VARIABLES if n in ds for d in ds[n].dims} - set(COORDINATES):
        if dim in ds.coords and np.unique(ds[dim].values).size != ds[dim].size:
            msg = f"dataset: expected distinct values of the axis {dim!r}, got one twice"
            raise InputError(msg)
    if not np.isfinite(ds["lr"].values).all():
        msg = f"lr: expected finite rates, got {ds['lr'].values[~np.isfinite(ds['lr'].values)][0]}"
        raise InputError(msg)
    if "step" in ds.coords:
        steps = ds["step"].values
        if steps.size == 0 or steps[0] != 0 or (np.diff(steps) <= 0).any():
            msg = "dataset: expected 'step' to increase from 0"
            raise InputError(msg)
    for name, row in VARIABLES.items():
        if name in ds:
            _check_row(ds, name, row)
        elif row.required:
            msg = f"dataset: expected the variable {name!r} ({row.long_name}), which is missing"
            raise InputError(msg)
    for name_, variable in ds.variables.items():
        missing = {"units", "long_name"} - set(variable.attrs)
        if missing:
            msg = f"{name_}: expected attributes units and long_name, got no {min(missing)}"
            raise InputError(msg)
    _check_words(ds)
    if "steps" in ds and (ds["steps"].values < 0).any():
        msg = f"steps: expected numbers of updates, got {ds['steps'].values.min()}"
        raise InputError(msg)


def validated(ds: xr.Dataset) -> xr.Dataset:
    """The dataset, checked against the table.

    Args:
        ds: The dataset.

    Returns:
        The same.

    Raises:
        InputError: As `validate` says.
    """
    validate(ds)
    return ds


def check_runs(ds: object) -> xr.Dataset:
    """Refuse what is no dataset of runs, such as another result.

    Args:
        ds: What was given as `ds`.

    Returns:
        The dataset.

    Raises:
        InputError: If it is something else; the message says what to use.
    """
    use = "give what trebuchet.sweep returned"
    if isinstance(getattr(ds, "runs", None), xr.Dataset):
        ds = ds.runs  # type: ignore[attr-defined]  # a scan, or a figure of the paper
    if isinstance(ds, xr.Dataset):
        if {"lr", "seed"} <= set(ds.dims) and "learning_rate" in ds:
            return ds
        if "scan" in ds.attrs:
            use = "this is an old scan written down: trebuchet.Scan.from_dataset(ds) reads it"
    got = f"a dataset with dims {tuple(map(str, ds.dims))}" if isinstance(ds, xr.Dataset) else None
    msg = (
        f"ds: expected runs, a dataset with dims lr and seed, got {got or type(ds).__name__}; {use}"
    )
    raise InputError(msg)


def _check_version(ds: xr.Dataset) -> None:
    given = ds.attrs.get("schema_version", SCHEMA_VERSION)
    if not isinstance(given, (int, np.integer)) or not 1 <= given <= SCHEMA_VERSION:
        msg = (
            f"schema_version: expected a number from 1 to {SCHEMA_VERSION}, got {given!r}; results "
            "of a later trebuchet need that one to be read"
        )
        raise InputError(msg)


def _check_row(ds: xr.Dataset, name: str, row: Variable) -> None:
    dims = tuple(dim for dim in ds[name].dims if dim in COORDINATES)
    if dims != row.dims:
        msg = f"{name}: expected dims {row.dims}, got {dims}"
        raise InputError(msg)
    _check_kind(ds, name, row)


def _check_kind(ds: xr.Dataset, name: str, row: Variable) -> None:
    if _kind(ds[name].dtype) != row.kind:
        msg = f"{name}: expected dtype kind {row.kind!r}, got {ds[name].dtype}"
        raise InputError(msg)


def _check_words(ds: xr.Dataset) -> None:
    for name, words in (("status", Status), ("phase", Phase)):
        if name in ds:
            known = {str(word) for word in words}
            values = ds[name]
            if name == "phase" and "status" in ds:  # only what was not run has none
                values = values.where(ds["status"] != str(Status.NOT_RUN), str(Phase.UNSETTLED))
            unknown = set(values.values.ravel().tolist()) - known
            if unknown:
                msg = f"{name}: expected one of {', '.join(words)}, got {min(map(repr, unknown))}"
                raise InputError(msg)


def config_hash(settings: Mapping[str, Any]) -> str:
    """The first 16 hex digits of the SHA-256 of settings as sorted JSON.

    Args:
        settings: Anything JSON can hold, and NumPy numbers and arrays.

    Returns:
        The hash; the same for the same settings in any order.

    Example:
        >>> config_hash({"a": 1, "b": 2}) == config_hash({"b": 2, "a": 1})
        True
    """
    text = json.dumps(_plain(settings), sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def described(name: str, values: xr.DataArray) -> xr.DataArray:
    """The values under the units and the long name the table gives `name`."""
    row = VARIABLES[name]
    result = values.rename(name)
    result.attrs = {"units": row.units, "long_name": row.long_name}
    return result


def _variable(name: str, values: Any) -> xr.Variable:
    if isinstance(values, xr.Variable):
        return values
    if name not in VARIABLES:
        msg = (
            f"variables: {name!r} is not in the table; give it as an xarray.Variable with "
            "attributes units and long_name"
        )
        raise InputError(msg)
    row = VARIABLES[name]
    array = _values(name, values, row)
    if array.ndim != len(row.dims):
        msg = f"{name}: expected dims {row.dims}, got shape {array.shape}"
        raise InputError(msg)
    if row.kind == "i":
        with np.errstate(invalid="ignore"):  # NaN is no whole number, as is said below
            whole = array.astype(np.int64)
        if not np.array_equal(whole, array):
            msg = f"{name}: expected whole numbers, got {array[whole != array].flat[0]}"
            raise InputError(msg)
        array = whole
    return xr.Variable(row.dims, array, {"units": row.units, "long_name": row.long_name})


def _values(name: str, values: Any, row: Variable) -> np.ndarray[Any, Any]:
    """An array of words or of numbers, as the table has it."""
    if row.kind == "U":
        try:
            words = np.asarray(values)
        except ValueError:  # lists of different lengths
            refuse(name, f"an array of strings ({row.long_name})", values)
        if words.dtype.kind in "UTO" and all(isinstance(w, str) for w in words.ravel().tolist()):
            return words.astype(np.str_)
        refuse(name, f"an array of strings ({row.long_name})", values)
    if isinstance(values, np.ndarray) and values.dtype.kind == "f":
        return values
    found = as_array(values)
    if found is None:
        refuse(name, f"an array of numbers ({row.long_name})", values)
    return found


def _kind(dtype: np.dtype[Any]) -> str:
    return {"T": "U", "O": "U", "u": "i"}.get(dtype.kind, dtype.kind)


def _said(value: object) -> str:
    try:
        return repr(value) if isinstance(value, Hashable) else str(value)
    except Exception:  # somebody's __repr__ may raise anything
        return type(value).__name__


def _plain(value: Any) -> Any:
    """The value with NumPy and enum members turned into what JSON holds."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, int) and value.bit_length() > 64:
        return hex(value)  # longer than the numbers that JSON's readers know
    if isinstance(value, bool):
        return int(value)  # Zarr and netCDF hold no booleans
    if value is None or isinstance(value, (str, int, float)):
        return value
    return _said(value)
