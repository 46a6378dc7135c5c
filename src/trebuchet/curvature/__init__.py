"""Curvature of any model: NTK, Gauss–Newton and Hessian operators, and the top of their spectra."""

from trebuchet.curvature.progress import progress_line
from trebuchet.curvature.result import TopEigen
from trebuchet.curvature.settings import Lanczos
from trebuchet.curvature.top import top_eigen
from trebuchet.problem.held_still import held_still
from trebuchet.problem.losses import LOSSES, ModelLoss, half_mse

__all__ = [
    "LOSSES",
    "Lanczos",
    "ModelLoss",
    "TopEigen",
    "half_mse",
    "held_still",
    "progress_line",
    "top_eigen",
]
