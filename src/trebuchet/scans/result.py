"""What a scan returns: numbers with intervals, a table, and a rate to use."""

import dataclasses
import html
import json
import math
import os
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from rich.console import Group, RenderableType
from rich.text import Text

from trebuchet._checks import flag, one_line, path as a_path, place as a_place, text
from trebuchet._content import ByContent, content
from trebuchet._doors import door, maybe
from trebuchet._types import Phase
from trebuchet.errors import InputError
from trebuchet.phases.interval import Interval
from trebuchet.plots.checks import optional_axes
from trebuchet.results import store
from trebuchet.results.record import plain, rebuilt
from trebuchet.results.schema import a_dataset, validated
from trebuchet.scans.legacy import of_old
from trebuchet.scans.rendering import rate_table
from trebuchet.scans.suggest import Suggestion
from trebuchet.scans.tables import DROPPED, by_rate, looks_table, run_table


@dataclass(frozen=True, slots=True, eq=False)
class Warmup(ByContent):
    """Whether warm-up is needed, and from where.

    Attributes:
        needed: Whether rates that fail from the initialisation are fine later in training.
        start: The rate to warm up from: the smaller of the forward-only rate and, where curvature
            was measured, the rate at which catapults begin, at the initialisation.
        later: The forward-only rate after training at the suggestion.
        reason: A sentence.
    """

    needed: bool
    start: float
    later: float
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class Critical(ByContent):
    """λ₀ and the critical rate, with what they are of.

    Attributes:
        lr: Where the optimizer's linear stability ends; NaN if not measured.
        top_eigenvalue: λ₀; NaN if not measured.
        operator: Whose eigenvalue: ``"ggn"``, ``"hessian"`` (of a closure), preconditioned for
            Adam's family; empty if not measured.
        convention: Loss, reduction, samples and formula, in words.
        lr_catapult: Where catapults from the initialisation begin: the smallest rate at which a
            quadratic's loss can rise from rest, at most `lr` (``theory.stability.earliest_rise``);
            NaN where that is not known, as for Adam.
        converged: Whether λ₀ is known to a tolerance; if not, it is a lower bound, and the two
            rates are upper bounds.
    """

    lr: float
    top_eigenvalue: float
    operator: str
    convention: str
    lr_catapult: float = math.nan
    converged: bool = True

    def worded(self) -> str:
        """The critical rate and λ₀, as far as they are known, with what they are of."""
        top = f"λ₀ = {self.top_eigenvalue:.4g}"
        rate = "" if math.isnan(self.lr) else f"critical rate {self.lr:.3g}, "
        if not self.converged:
            top = f"λ₀ not converged, at least {self.top_eigenvalue:.4g}"
            rate = rate and f"critical rate at most {self.lr:.3g}, "
        return f"{rate}{top} ({self.convention})"


@dataclass(frozen=True, repr=False, eq=False)
class Scan(ByContent):
    """The result of ``trebuchet.scan``.

    Two scans are equal if everything in them is, but for the seconds they took.

    Attributes:
        suggestion: One rate to use, with its interval and its reason.
        critical: λ₀ and the critical rate with their conventions; `lr_crit` for short.
        lr_forward: The forward-only rate: where one step no longer lowers the loss, a second
            opinion without curvature.
        lr_loss: Smallest rate whose loss rises above its start, as the interval between two rates
            that were tried.
        lr_max: Largest rate that trains, which is to end the horizon below its start, as such an
            interval; its `high` is infinite if no rate that was tried fails.
        warmup: Whether warm-up is needed.
        runs: The runs as a results dataset like a sweep's, labelled, with dims ``lr, seed, step``;
            cells that were never begun have the status ``not_run``, those that the search left
            behind ``dropped``. `run_table` has one row a run.
        notes: What to know before believing it.
        cost: Gradient evaluations, forward passes, curvature products, seconds.
        settings: What was scanned, and how.
    """

    suggestion: Suggestion
    critical: Critical
    lr_forward: Interval
    lr_loss: Interval
    lr_max: Interval
    warmup: Warmup
    runs: xr.Dataset = field(repr=False)
    notes: tuple[str, ...] = ()
    cost: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row a rate: phase over all seeds and of each seed, losses, peak, norms.

        Columns with long names and units are in ``scans.tables.rate_columns``; where
        seeds disagree, ``by_rate`` there says how they are combined. The runs are in `run_table`.
        """
        return by_rate(self.run_table, self.runs["seed"].values.tolist())

    @cached_property
    def run_table(self) -> pd.DataFrame:
        """One row a run, which is a rate and a seed.

        Columns with long names and units are in ``scans.tables.RUN_COLUMNS``.
        """
        return run_table(self.runs)

    @cached_property
    def traces(self) -> pd.DataFrame:
        """One row a look: rate, seed, step, loss."""
        return looks_table(self.runs)

    @property
    def lr_crit(self) -> float:
        """The critical rate: 2/λ₀ for gradient descent, the optimizer's own edge otherwise.

        NaN where λ₀ was not measured, or where no closed form is known for the optimizer; a note
        then says so.
        """
        return self.critical.lr

    @property
    def top_eigenvalue(self) -> float:
        """λ₀."""
        return self.critical.top_eigenvalue

    @property
    def has_catapult(self) -> bool:
        """Whether any run rose above its start and came back, dropped later or not."""
        return bool((self.runs["recovery_step"] >= 0).any())

    def to_dataframe(self) -> pd.DataFrame:
        """A copy of `table`, one row a rate; `run_table` has one row a run."""
        return self.table.copy()

    def summary(self) -> list[str]:
        """The result in sentences.

        Returns:
            The suggestion first.
        """
        s = self.suggestion
        lines = [f"use {s.rate:.3g} (about as good: {s.low:.3g} to {s.high:.3g}): {s.reason}."]
        known = "" if math.isnan(self.top_eigenvalue) else f"{self.critical.worded()}; "
        lines.append(f"{known}forward-only rate: {self.lr_forward}.")
        lines.append(f"the loss first rises at: {self.lr_loss}; training ends at: {self.lr_max}.")
        if not self.has_catapult:
            lines.append(self._without_catapult())
        lines.append(f"warm-up: {self.warmup.reason}.")
        lines += [f"note: {note}." for note in self.notes]
        lines.append(
            f"cost: {self.cost['gradients']:.0f} gradients, {self.cost['forwards']:.0f} forward "
            f"passes, {self.cost['products']:.0f} curvature products, "
            f"{self.cost['seconds']:.1f} s."
        )
        return lines

    def _without_catapult(self) -> str:
        """That no run is a catapult, and whether one might have become one."""
        rose = self.runs["peak_ratio"] > 1 + float(self.settings.get("delta", 0.0))
        cut = int((rose & (self.runs["status"] == DROPPED)).values.sum())
        # Where training ends with the first rise, no rate is left for one.
        if not cut or (self.lr_max.closed and self.lr_max.high <= self.lr_loss.high):
            return "No catapult exists here: no run rose above its start and came back."
        return (
            f"No catapult was seen: no run rose above its start and came back, but {cut} of those "
            "that rose were dropped before the horizon."
        )

    def __rich__(self) -> RenderableType:
        """For ``rich.print`` and notebooks that use rich."""
        s = self.suggestion
        head = Text(f"suggested learning rate  {s.rate:.3g}", style="bold green")
        if not s.reliable:
            head = Text(f"least bad rate, not reliable  {s.rate:.3g}", style="bold yellow")
        return Group(head, rate_table(self), *(Text(line) for line in self.summary()))

    def __repr__(self) -> str:
        """In one line; ``print`` says more."""
        bound = "" if self.critical.converged else "≤"
        return (
            f"Scan(suggestion={self.suggestion.rate:.4g}, lr_crit={bound}{self.lr_crit:.4g}, "
            f"lr_loss='{self.lr_loss}', lr_max='{self.lr_max}', runs={len(self.run_table)})"
        )

    def __str__(self) -> str:
        return "\n".join(self.summary())

    def _repr_html_(self) -> str:
        """For notebooks."""
        lines = "".join(f"<li>{html.escape(line)}</li>" for line in self.summary())
        s = self.suggestion
        told = "suggested learning rate" if s.reliable else "least bad rate, not reliable:"
        head = f"<b>{told} {s.rate:.3g}</b>"
        return f"<div>{head}{rate_table(self).html()}<ul>{lines}</ul></div>"

    @door(ax=optional_axes)
    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the loss at the last look against the rate, with phases, edges and the suggestion.

        Args:
            ax: Where to draw; a new figure's axes unless given.

        Returns:
            The axes.

        Raises:
            InputError: If it is no axes.
        """
        from trebuchet.scans.picture import draw

        return draw(self, ax)

    @door(path=a_path, title=maybe(text), overwrite=flag)
    def report(
        self, path: str | os.PathLike[str], *, title: str | None = None, overwrite: bool = False
    ) -> Path:
        """Write the scan to one HTML file for somebody else: ``trebuchet.report`` of it alone.

        Args:
            path: The file to make, ``report.html`` say.
            title: Of the page; the scan's own unless given.
            overwrite: Replace a file that is there.

        Returns:
            The path.

        Raises:
            InputError: If there is something, or nothing can be written there.
        """
        import trebuchet  # by its public name: the room of pages lies above this one

        return trebuchet.report(self, path=path, title=title, overwrite=overwrite)

    def to_dataset(self) -> xr.Dataset:
        """The runs, with everything else of the scan in an attribute.

        Returns:
            The dataset that `save` writes.
        """
        rest = {
            field.name: plain(getattr(self, field.name))
            for field in dataclasses.fields(self)
            if field.name != "runs"
        }
        return self.runs.assign_attrs(scan=json.dumps(rest))

    @classmethod
    @door(ds=a_dataset)
    def from_dataset(cls, ds: xr.Dataset) -> "Scan":
        """The scan that `to_dataset` wrote down.

        Args:
            ds: The dataset.

        Returns:
            The scan.

        Raises:
            InputError: If it is none, or parts of it are missing.
        """
        try:
            parts = json.loads(ds.attrs["scan"])
            parts.pop("columns", None)
            for name, part in PARTS.items():
                parts[name] = rebuilt(part, parts[name])
            suggestion = parts["suggestion"]
            phase = Phase(suggestion.phase)
            parts["suggestion"] = dataclasses.replace(suggestion, phase=phase)
            parts["notes"] = (*parts["notes"], *([ds.attrs["note"]] if "note" in ds.attrs else []))
            if "run" in ds.dims:
                critical = parts["critical"]
                runs = of_old(
                    ds, parts["settings"], top_eigenvalue=critical.top_eigenvalue,
                    operator=critical.operator,
                )  # fmt: skip
            else:
                kept = {k: v for k, v in ds.attrs.items() if k not in ("scan", "note")}
                runs = validated(ds.assign_attrs({}).drop_attrs(deep=False).assign_attrs(kept))
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise InputError(str(error)) from error
            msg = f"a part of the scan is missing or is not what it should be ({one_line(error)})"
            raise InputError(msg) from error
        return rebuilt(cls, parts, runs=runs)

    def _content(self) -> Hashable:
        when = {name for name in ("created", "config_hash") if name in self.runs.attrs}
        lasting = {k: v for k, v in self.runs.attrs.items() if k not in when}
        took = {name: value for name, value in self.cost.items() if name != "seconds"}
        besides = {"cost": took, "runs": self.runs.drop_attrs(deep=False).assign_attrs(lasting)}
        return tuple(
            content(besides.get(field.name, getattr(self, field.name)))
            for field in dataclasses.fields(self)
        )

    @door(path=a_place, overwrite=flag)
    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write the scan to a Zarr folder.

        Args:
            path: The folder to make.
            overwrite: Replace what is there.

        Returns:
            The path.

        Raises:
            InputError: If there is something, or nothing can be written there.
        """
        return store.save(self.to_dataset(), path, overwrite=overwrite)

    @classmethod
    @door(path=a_place)
    def load(cls, path: str | os.PathLike[str]) -> "Scan":
        """Read a scan back.

        Args:
            path: A folder made by `save`.

        Returns:
            The scan.

        Raises:
            InputError: If the folder holds something else.
        """
        ds = store.load(path)
        if "scan" not in ds.attrs:
            msg = f"path: {path} holds another result, not a scan; read it with trebuchet.load"
            raise InputError(msg)
        try:
            return cls.from_dataset(ds)
        except InputError as error:
            msg = f"path: {path} holds no scan, or a damaged one: {error}"
            raise InputError(msg) from error


PARTS: dict[str, type[Any]] = {
    "suggestion": Suggestion,
    "critical": Critical,
    "lr_forward": Interval,
    "lr_loss": Interval,
    "lr_max": Interval,
    "warmup": Warmup,
}
"""Fields of a scan that are dataclasses themselves."""
