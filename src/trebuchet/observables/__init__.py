"""Named numbers of a run at a step: one observable a file."""

from trebuchet.observables.base import Observable, Runs, UnavailableError
from trebuchet.observables.loss_directions import LossDirections
from trebuchet.observables.lyapunov import Lyapunov
from trebuchet.observables.registry import OBSERVABLES
from trebuchet.observables.top_eigenvalues import TopEigenvalues

__all__ = [
    "OBSERVABLES",
    "LossDirections",
    "Lyapunov",
    "Observable",
    "Runs",
    "TopEigenvalues",
    "UnavailableError",
]
