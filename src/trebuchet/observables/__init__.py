"""Named numbers of a run at a step: one observable a file."""

from trebuchet.observables.base import Observable, Runs, UnavailableError
from trebuchet.observables.lyapunov import Lyapunov
from trebuchet.observables.registry import OBSERVABLES

__all__ = ["OBSERVABLES", "Lyapunov", "Observable", "Runs", "UnavailableError"]
