"""Ctrl-C at a chosen step, and what it means for two sweeps to be the same."""

import dataclasses
import threading
from typing import Any

import xarray as xr
from torch import Tensor

from trebuchet.engine.kernels import OutputKernel
from trebuchet.engine.optimizers import GradientDescent


class Stopper:
    """Makes the n-th step of a sweep wait until Ctrl-C has come from its progress function."""

    def __init__(self) -> None:
        self.left, self.lock = -1, threading.Lock()
        self.reached, self.raised = threading.Event(), threading.Event()

    def at(self, step: int) -> "Stopper":
        """Stop at the so-many-th step from now; of a chunk of runs, all make it at once."""
        self.left = step
        self.reached.clear()
        self.raised.clear()
        return self

    def stepped(self) -> None:
        """A chunk has made a step."""
        with self.lock:
            self.left -= 1
            here = self.left == 0
        if here:
            self.reached.set()
            assert self.raised.wait(20)

    def __call__(self, done: int, total: int) -> None:
        """The progress function."""
        if self.reached.is_set():
            self.raised.set()
            raise KeyboardInterrupt


STOPPER = Stopper()


@dataclasses.dataclass(frozen=True, slots=True)
class Watched(GradientDescent):
    """Gradient descent that tells the stopper of every step."""

    def step_(self, kernel: OutputKernel, dz: Tensor, lr: Tensor, velocity: Any) -> None:
        GradientDescent.step_(self, kernel, dz, lr, velocity)
        STOPPER.stepped()


def differing(a: xr.Dataset, b: xr.Dataset) -> list[str]:
    """Names of the variables that are not the same to the last bit."""
    names = set(a.variables) ^ set(b.variables)
    for name in set(a.variables) & set(b.variables):
        u, v = a[name].values, b[name].values
        if u.dtype != v.dtype or u.shape != v.shape or u.tobytes() != v.tobytes():
            names.add(name)
    return sorted(map(str, names))
