"""Edges as labelled vertical lines: what is proven is solid, what is as coded is dashed."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn, Protocol, cast, runtime_checkable

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from trebuchet._checks import as_real, flag, items, refuse, shown
from trebuchet._doors import door
from trebuchet.errors import InputError
from trebuchet.plots import checks
from trebuchet.plots.style import INK


@runtime_checkable
class EdgeLike(Protocol):
    """What a line needs of an edge, as ``trebuchet.theory.edges.Edge`` has it."""

    @property
    def name(self) -> str:
        """Such as "critical" or "upper"."""

    @property
    def lr(self) -> float:
        """The learning rate η."""

    @property
    def lr_ratio(self) -> float:
        """ηλ₀."""

    @property
    def proven(self) -> bool:
        """Whether it is a theorem's."""


Edges = Mapping[str, float] | Mapping[str, EdgeLike] | Iterable[EdgeLike]
"""Names and values in the unit of the x axis; or edges, which know both units."""

_NAMES = {"upper": "upper edge", "upper_omega": "Ω edge"}  # of 4/(|θ₀|²λ_max(Ω))


def an_edges(name: str, value: object) -> Edges | None:
    """Edges of any kind that can be drawn, or None for none."""
    if value is None:
        return None
    if isinstance(value, Mapping):
        for key, edge in value.items():
            if not isinstance(key, str) or not (_is_edge(edge) or as_real(edge) is not None):
                _no_edge(name, edge, key)
        return {key: edge if _is_edge(edge) else as_real(edge) for key, edge in value.items()}
    found = [item[0] for item in items(value, lambda edge: (edge,)) if item]
    if not found and not isinstance(value, (list, tuple)):
        refuse(name, "a dict of numbers, or edges", value, "trebuchet.edges has them")
    for edge in found:
        if not _is_edge(edge):
            _no_edge(name, edge, getattr(edge, "name", "?"))
    return cast("list[EdgeLike]", found)


def _is_edge(edge: object) -> bool:
    if not isinstance(edge, EdgeLike) or not isinstance(edge.name, str):
        return False
    return None not in (as_real(edge.lr), as_real(edge.lr_ratio))


def _no_edge(name: str, edge: object, key: object) -> NoReturn:
    raise InputError(
        f"{name}: expected numbers, or objects with name, lr, lr_ratio and proven, got "
        f"{shown(edge)} for {shown(key)}"
    )


@door(ax=checks.axes, edges=an_edges, x=checks.x_axis, labels=flag)
def draw_edges(ax: Axes, edges: Edges | None, *, x: str | None = None, labels: bool = True) -> Axes:
    """Draw each edge that lies on the axis as it stands; edges that coincide share a label.

    Args:
        ax: Where to draw, with its x limits set.
        edges: A mapping of names to values in the unit of `x` (drawn solid, or dashed where the
            name says "as coded"; "critical" is dash-dotted); or edges. None draws nothing.
        x: "lr_ratio" (also if None) or "lr", the unit of the axis.
        labels: Write name and value along the line.

    Returns:
        The axes.

    Raises:
        InputError: If an argument is not what was expected.
    """
    left, right = ax.get_xlim()
    log = ax.get_xscale() == "log"

    def along(value: float) -> float:
        """How far along the axis a value is, as a share of it."""
        if log:
            return math.log(value / left) / math.log(right / left)
        return (value - left) / (right - left)

    def moved(value: float, share: float) -> float:
        """The value a share of the axis further along."""
        return value * (right / left) ** share if log else value + share * (right - left)

    found = sorted(
        (value, name, kind)
        for name, value, kind in _unpack(edges, x)
        if math.isfinite(value) and left <= value <= right
    )
    groups: list[list[tuple[float, str, str]]] = []
    for edge in found:
        if groups and along(edge[0]) - along(groups[-1][-1][0]) < 0.004:
            groups[-1].append(edge)
        else:
            groups.append([edge])
    previous = 0.0
    for group in groups:
        value = group[0][0]
        for position, _, kind in group:
            ax.axvline(position, color=INK, linewidth=0.9, linestyle=_DASHES[kind], zorder=1.5)
        if labels:
            # where a proven edge coincides with one as coded, it is the one to name
            proven = any(kind == "proven" for _, _, kind in group)
            named = [(n, k) for _, n, k in group if not (proven and k == "coded")]
            text = " = ".join(_name(name, kind) for name, kind in named)
            # to the left of its line, unless that would cover the line before
            crowded = along(value) - previous < 0.035
            ax.text(
                moved(value, 0.004 if crowded else -0.004),
                0.97,
                f"{text} {value:.3g}",
                transform=ax.get_xaxis_transform(),
                rotation=90,
                ha="left" if crowded else "right",
                va="top",
                fontsize=6.5,
                color=INK,
                zorder=4,
                bbox={"facecolor": "white", "alpha": 0.65, "linewidth": 0, "pad": 0.8},
            )
        previous = along(value)
    return ax


def edge_handles(edges: Edges | None, *, x: str | None = None) -> list[Line2D]:
    """Legend entries for the edges, each with its value.

    Args:
        edges: As for `draw_edges`.
        x: "lr_ratio" (also if None) or "lr".

    Returns:
        Lines with labels.
    """
    words = {"critical": "", "proven": ", proven", "coded": ""}
    return [
        Line2D(
            [],
            [],
            color=INK,
            linewidth=0.9,
            linestyle=_DASHES[kind],
            label=f"{_name(name, kind)} {value:.3g}{words[kind]}",
        )
        for name, value, kind in sorted(_unpack(edges, x), key=lambda edge: edge[1])
        if math.isfinite(value)
    ]


_DASHES: dict[str, Any] = {"critical": "-.", "proven": "-", "coded": (0, (4, 2))}


def _unpack(edges: Edges | None, x: str | None) -> list[tuple[str, float, str]]:
    """Name, value and kind of each edge."""
    if edges is None:
        return []
    pairs: list[tuple[str, float | EdgeLike]] = (
        list(edges.items()) if isinstance(edges, Mapping) else [(edge.name, edge) for edge in edges]
    )
    found = []
    for name, edge in pairs:
        if isinstance(edge, EdgeLike):
            value = edge.lr if x == "lr" else edge.lr_ratio
            proven = edge.proven
        else:
            value, proven = float(edge), "as coded" not in name
        kind = "critical" if name == "critical" else "proven" if proven else "coded"
        found.append((name, value, kind))
    return found


def _name(name: str, kind: str) -> str:
    shown = _NAMES.get(name, name.replace("_", " "))
    if kind != "coded" or "as coded" in shown:
        return shown
    return "edge as coded" if name == "upper" else f"{shown}, as coded"
