"""What the runner asks of runs that take a step together."""

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trebuchet._types import Status
from trebuchet.engine import law
from trebuchet.observables.base import FloatArray, Runs, UnavailableError

__all__ = ["LAW", "FloatArray", "Kernel", "UnavailableError"]

LAW = "law_residual"
"""What the check is called among what is watched, and in results."""


class Kernel(Runs):
    """R runs of one problem that take a step together.

    A turn of the runner is ``losses(t)`` and then ``step_(t)``. In between, observables ask for
    what `Runs` lists.

    Attributes:
        free_looks: Whether ``losses`` are the losses that runs are judged by; where they are those
            of a batch, or noisy, runs are judged by ``look`` instead, at the recorded steps.
        resumable: Whether ``state`` is all there is to the runs, so that they can be saved halfway.
        autograd: Whether it differentiates, and is called with gradients enabled.
    """

    resumable: ClassVar[bool] = True
    autograd: ClassVar[bool] = False
    free_looks: bool = True

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """Of the weights."""

    @abstractmethod
    def losses(self, step: int, *, last: bool = False, watched: Collection[str] = ()) -> FloatArray:
        """L(θ_t) of every run, ``(R,)``, with what a step needs unless it is the `last`.

        Args:
            step: t.
            last: Whether no step follows.
            watched: Names of the observables that will be asked for at this step.

        Returns:
            The losses.
        """

    def ready(self, watched: Collection[str]) -> None:
        """Get ready for observables at the end of runs, of which only some were evaluated last."""
        del watched

    @abstractmethod
    def step_(self, step: int) -> NDArray[np.bool_]:
        """Move every run to θ_{t+1}; False for those that no step moves any more."""

    def norms(self) -> FloatArray | None:
        """|∇L| of the last ``losses`` where gradients are formed anyway; None elsewhere."""
        return None

    def look(self) -> FloatArray:
        """L(θ_t) on the set that runs are compared on, where ``losses`` are not that."""
        raise UnavailableError("its losses are free")

    def at_rest(self, step: int, losses: FloatArray, previous: FloatArray) -> list[int]:
        """Runs that are known before the step to make no further one, by position."""
        del step, losses, previous
        return []

    def finals(self, statuses: Sequence[Status]) -> dict[str, FloatArray]:
        """Numbers of runs that have ended, beside the observables, by name, each ``(R,)``."""
        del statuses
        return {}

    def tallies(self) -> dict[str, FloatArray]:
        """What was counted of every run so far, by name, each ``(R, k)``."""
        return {}

    @abstractmethod
    def subset(self, index: Sequence[int]) -> "Kernel":
        """A kernel of the runs `index` only, in that order."""

    def state(self) -> dict[str, Tensor | NDArray[Any]]:
        """Arrays that say where the runs are, of a kernel that is `resumable`."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go to where ``state`` was.

        Args:
            state: As ``state`` returned it.

        Raises:
            KeyError: If an array is missing.
            ValueError: If one does not fit.
        """

    def predict(self, step: int) -> law.Prediction | None:
        """What the weight-norm law says of the next step; None where there is no law.

        Args:
            step: t, whose ``losses`` were asked for with `LAW` among what is watched.

        Returns:
            The prediction, before the step is made.

        Raises:
            UnavailableError: If it cannot be told at this step, with the reason.
        """
        del step
        return None

    def violation(self, prediction: law.Prediction, step: int) -> FloatArray:
        """By how much the step just made breaks the law, relative to what it moved, ``(R,)``.

        Args:
            prediction: As made before it.
            step: t.

        Returns:
            The violation.
        """
        raise NotImplementedError
