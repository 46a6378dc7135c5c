"""Pictures of labelled sweeps: one plot a file, each takes ``ax=`` and returns it; and pages."""

from trebuchet.plots.against_rate import against_rate
from trebuchet.plots.bifurcation import bifurcation
from trebuchet.plots.directions import loss_directions
from trebuchet.plots.edge_lines import draw_edges
from trebuchet.plots.figure_panels import paper_panels
from trebuchet.plots.phase_bar import majority_phase, phase_bar, shade_phases
from trebuchet.plots.phase_diagram import phase_diagram
from trebuchet.plots.style import style
from trebuchet.plots.sweep_picture import sweep_overview
from trebuchet.plots.traces import traces

__all__ = [
    "against_rate",
    "bifurcation",
    "draw_edges",
    "loss_directions",
    "majority_phase",
    "paper_panels",
    "phase_bar",
    "phase_diagram",
    "shade_phases",
    "style",
    "sweep_overview",
    "traces",
]
