"""The experiments of Meltzer & Liu, arXiv 2301.07737, at their own settings and seeds."""

from trebuchet.paper.figures import Figure, figure
from trebuchet.paper.problems import paper_problem
from trebuchet.paper.settings import FIGURES, Setting

__all__ = ["FIGURES", "Figure", "Setting", "figure", "paper_problem"]
