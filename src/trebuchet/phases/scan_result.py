"""What a scan returns: numbers with intervals, a table, and a rate to use."""

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from trebuchet._types import Phase
from trebuchet.errors import InputError
from trebuchet.phases.scanning.brackets import Interval
from trebuchet.phases.scanning.suggest import Suggestion
from trebuchet.phases.scanning.tables import RUN_COLUMNS
from trebuchet.results import store

PHASE_STYLE = {
    Phase.LAZY: "cyan", Phase.CATAPULT: "yellow", Phase.DIVERGENT: "red",
    Phase.COLLAPSED: "magenta", Phase.UNSETTLED: "dim",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Warmup:
    """Whether warm-up is needed, and from where.

    Attributes:
        needed: Whether rates that fail from the initialisation are fine later in training.
        start: The rate to warm up from: the critical rate at the initialisation.
        later: The critical rate after training at the suggestion.
        reason: A sentence.
    """

    needed: bool
    start: float
    later: float
    reason: str


@dataclass(frozen=True, slots=True)
class Critical:
    """λ₀ and the critical rate, with what they are of.

    Attributes:
        lr: Where the optimizer's linear stability ends; NaN if not measured.
        top_eigenvalue: λ₀; NaN if not measured.
        operator: Whose eigenvalue: ``"ggn"``, ``"hessian"`` (of a closure), preconditioned for
            Adam's family; empty if not measured.
        convention: Loss, reduction, samples and formula, in words.
    """

    lr: float
    top_eigenvalue: float
    operator: str
    convention: str


@dataclass(frozen=True)
class Scan:
    """The result of ``trebuchet.scan``.

    Attributes:
        suggestion: One rate to use, with its interval and its reason.
        critical: λ₀ and the critical rate with their conventions; `lr_crit` for short.
        lr_forward: The forward-only critical rate, a second opinion without curvature.
        lr_loss: Smallest rate whose loss rises above its start.
        lr_max: Largest rate that trains.
        warmup: Whether warm-up is needed.
        table: One row a rate and seed, see `RUN_COLUMNS`.
        traces: One row a look: rate, seed, step, loss.
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
    table: pd.DataFrame = field(repr=False)
    traces: pd.DataFrame = field(repr=False)
    notes: tuple[str, ...] = ()
    cost: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def lr_crit(self) -> float:
        """The critical rate: 2/λ₀ for gradient descent, the optimizer's own edge otherwise."""
        return self.critical.lr

    @property
    def top_eigenvalue(self) -> float:
        """λ₀."""
        return self.critical.top_eigenvalue

    @property
    def has_catapult(self) -> bool:
        """Whether any run rose above its start and came back, dropped later or not."""
        return bool((self.table["recovery_step"] >= 0).any())

    def to_dataframe(self) -> pd.DataFrame:
        """A copy of the table, one row a rate and seed."""
        return self.table.copy()

    def summary(self) -> list[str]:
        """The result in sentences.

        Returns:
            The suggestion first.
        """
        s = self.suggestion
        lines = [f"use {s.rate:.3g} (about as good: {s.low:.3g} to {s.high:.3g}): {s.reason}."]
        if not math.isnan(self.lr_crit):
            lines.append(
                f"critical rate {self.lr_crit:.3g}, λ₀ = {self.top_eigenvalue:.4g} "
                f"({self.critical.convention}); without curvature: {self.lr_forward}."
            )
        else:
            lines.append(f"critical rate without curvature: {self.lr_forward}.")
        lines.append(f"the loss first rises at: {self.lr_loss}; training ends at: {self.lr_max}.")
        if not self.has_catapult:
            lines.append("No catapult exists here: no run rose above its start and came back.")
        lines.append(f"warm-up: {self.warmup.reason}.")
        lines += [f"note: {note}." for note in self.notes]
        lines.append(
            f"cost: {self.cost['gradients']:.0f} gradients, {self.cost['forwards']:.0f} forward "
            f"passes, {self.cost['products']:.0f} curvature products, "
            f"{self.cost['seconds']:.1f} s."
        )
        return lines

    def __rich__(self) -> RenderableType:
        """For ``rich.print`` and notebooks that use rich."""
        table = Table(title="learning rates", title_justify="left")
        for name in ("rate", "seed", "phase", "steps", "loss", "peak / start", "lands at"):
            table.add_column(name, justify="left" if name == "phase" else "right")
        for row in self.table.to_dict("records"):
            dropped = row["status"] == "dropped"
            phase = "dropped early" if dropped else str(row["phase"])
            style = "dim" if dropped else PHASE_STYLE[Phase(row["phase"])]
            table.add_row(
                f"{row['rate']:.3g}", str(row["seed"]), Text(phase, style=style),
                str(row["steps"]), f"{row['loss']:.4g}", f"{row['peak_ratio']:.3g}",
                "" if row["recovery_step"] < 0 else str(row["recovery_step"]),
            )  # fmt: skip
        head = Text(f"suggested learning rate  {self.suggestion.rate:.3g}", style="bold green")
        return Group(head, table, *(Text(line) for line in self.summary()))

    def __str__(self) -> str:
        return "\n".join(self.summary())

    def _repr_html_(self) -> str:
        """For notebooks."""
        lines = "".join(f"<li>{_escape(line)}</li>" for line in self.summary())
        shown = self.table[
            ["rate", "seed", "phase", "steps", "loss", "peak_ratio", "recovery_step"]
        ]
        return (
            f"<b>suggested learning rate {self.suggestion.rate:.3g}</b><ul>{lines}</ul>"
            + shown.to_html(index=False, float_format=lambda v: f"{v:.4g}")
        )

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the loss at the last look against the rate, with phases, edges and the suggestion.

        Args:
            ax: Where to draw; a new figure's axes unless given.

        Returns:
            The axes.
        """
        from trebuchet.phases.scanning.picture import draw

        return draw(self, ax)

    def to_dataset(self) -> xr.Dataset:
        """The scan as labelled arrays: dims run and look; everything else in the attributes.

        Returns:
            The dataset that `save` writes.
        """
        variables: dict[str, Any] = {}
        for name, (long_name, unit) in RUN_COLUMNS.items():
            values = self.table[name].to_numpy()
            if values.dtype == object:
                values = values.astype(str)
            variables[name] = ("run", values, {"long_name": long_name, "units": unit})
        for column in map(str, self.traces):
            attrs = {"long_name": f"{column} of a look", "units": "1"}
            variables[f"trace_{column}"] = ("look", self.traces[column].to_numpy(), attrs)
        parts = {
            name: dataclasses.asdict(getattr(self, name))
            for name in ("suggestion", "critical", "lr_forward", "lr_loss", "lr_max", "warmup")
        }
        rest = {"notes": list(self.notes), "cost": dict(self.cost), "settings": dict(self.settings)}
        return xr.Dataset(variables, attrs={"scan": json.dumps({**parts, **rest})})

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write the scan to a Zarr folder.

        Args:
            path: The folder to make.
            overwrite: Replace what is there.

        Returns:
            The path.
        """
        return store.save(self.to_dataset(), path, overwrite=overwrite)

    @classmethod
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
            msg = f"path: {path} holds a sweep, not a scan; read it with trebuchet.load"
            raise InputError(msg)
        parts = json.loads(ds.attrs["scan"])
        table = pd.DataFrame({name: ds[name].values for name in RUN_COLUMNS})
        for name in ("phase", "status"):
            table[name] = table[name].astype(str).astype(object)
        traces = pd.DataFrame(
            {str(n).removeprefix("trace_"): ds[n].values for n in ds if str(n).startswith("trace_")}
        )
        suggestion = {**parts["suggestion"], "phase": Phase(parts["suggestion"]["phase"])}
        return cls(
            Suggestion(**suggestion),
            Critical(**parts["critical"]),
            Interval(**parts["lr_forward"]),
            Interval(**parts["lr_loss"]),
            Interval(**parts["lr_max"]),
            Warmup(**parts["warmup"]),
            table,
            traces,
            tuple(parts["notes"]),
            parts["cost"],
            parts["settings"],
        )


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
