"""What an observable is, and what it may ask of runs."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trebuchet._checks import as_array, shown
from trebuchet.errors import InputError
from trebuchet.problem.problem import Problem

FloatArray = NDArray[np.float64]


class UnavailableError(Exception):
    """Runs cannot say what an observable asks for; the message says why."""


class ObservableError(InputError):
    """An observable of the user's raised something, or gave no numbers that fit."""


class Runs(ABC):
    """R runs of one problem at one step, as an observable sees them.

    What a kind of runs cannot give raises `UnavailableError`; the observable is NaN then, and the
    result says why.

    Attributes:
        problem: What is trained.
        samples: D.
        layers: How many hidden layers have a sparsity of their own.
    """

    problem: Problem
    samples: int
    layers: int = 0

    @property
    @abstractmethod
    def runs(self) -> int:
        """R."""

    @abstractmethod
    def models(self) -> Iterator[nn.Module]:
        """Each run as a module with its weights, one after the other; not to be kept."""

    @abstractmethod
    def weight_norm(self) -> FloatArray:
        """|θ|² of every run, ``(R,)``, summed in float64."""

    def gram(self) -> Tensor:
        """H = JJᵀ/D, the dense NTK of every run, ``(R, D·K, D·K)``."""
        raise UnavailableError("these runs have no dense kernel matrix")

    def gram_along(self, vectors: Tensor) -> FloatArray:
        """eᵀHe of every run along each column of ``(R, D·K, k)``: ``(R, k)``, float64."""
        e, gram = vectors.double(), self.gram().double().cpu()
        found: FloatArray = torch.einsum("rmk,rmn,rnk->rk", e, gram, e).numpy()
        return found

    def top_eigenvalue(self) -> FloatArray:
        """λ of every run, ``(R,)``, of the operator that the result names."""
        raise UnavailableError("these runs have no operator")

    def residual(self) -> Tensor:
        """∂L/∂z of every run, ``(R, D·K)``."""
        raise UnavailableError("these runs have no outputs of their own")

    def sparsity(self) -> FloatArray:
        """Share of pre-activations < 0 of each hidden layer, ``(R, layers)``."""
        raise UnavailableError("there are no ReLU layers that can be seen")

    def gradient_norm(self) -> FloatArray:
        """|∇L| of every run, ``(R,)``."""
        raise UnavailableError("gradients are not formed here")

    def test_loss(self) -> FloatArray:
        """The loss on the problem's test data, ``(R,)``."""
        raise UnavailableError("the problem has no test data")

    def descent(self) -> tuple[FloatArray, tuple[float, float] | None]:
        """η of every run, ``(R,)``, and momentum and weight decay where it is gradient descent.

        Of runs whose steps all follow one rule without noise; None for another optimizer.

        Raises:
            UnavailableError: If they do not.
        """
        raise UnavailableError("their steps are not those of all data, without noise, at one rate")

    def outputs_and_targets(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Of each run on the test data, or else the training data, in evaluation mode."""
        raise UnavailableError("the data are no pairs of inputs and targets")


class Observable(ABC):
    """A named number, or one row of numbers, of a run at a step.

    A class of your own needs a name and ``measure``; see docs/extending.md. To be measured for many
    runs at once it may override ``of`` instead. It is measured once before a sweep begins, so that
    a mistake in it costs no training.

    Attributes:
        name: Of the variable in results.
        long_name: What it is, for labels of axes.
        units: Its units.
        dim: Name of its own dimension, if it is a row of numbers.
        size: Of that dimension.
        final: Whether it is measured at the end of a run too, recorded or not, as ``name_final``.
        first: Whether its value at the start is a variable too, ``name_first``.
        largest: Whether its largest recorded value is, ``name_max``.
        recorded: Whether it is measured at recorded steps; if not, at the end alone.
        cheap: Whether it costs no more than a step, and means something of a run that diverged.
        cost: What measuring it once costs, in words.
    """

    name: str
    long_name: str = ""
    units: str = "1"
    dim: str | None = None
    size: int | None = None
    final: ClassVar[bool] = True
    first: ClassVar[bool] = False
    largest: ClassVar[bool] = False
    recorded: ClassVar[bool] = True
    cheap: ClassVar[bool] = False
    cost: str = "unknown"

    def measure(self, model: nn.Module, problem: Problem) -> Any:
        """One run's value: a number, or as many as `size` says; called without gradients.

        Args:
            model: The run's module, with its weights.
            problem: What is trained.

        Returns:
            The value.
        """
        raise NotImplementedError

    def of(self, runs: Runs) -> FloatArray:
        """The value of every run, ``(R,)`` or ``(R, size)``.

        Args:
            runs: The runs.

        Returns:
            The values.
        """
        with torch.no_grad():
            return np.asarray([self._number(self.measure(m, runs.problem)) for m in runs.models()])

    def _number(self, value: object) -> FloatArray:
        """What was measured, as numbers: None and words would be read as missing ones."""
        given = value.detach().double() if isinstance(value, Tensor) else value
        found = np.float64(given) if isinstance(given, (bool, np.bool_)) else as_array(given)
        if found is None:
            msg = (
                f"observables: expected a number from measure() of {self.name!r}, got "
                f"{shown(value)}; return NaN for what is missing"
            )
            raise ObservableError(msg)
        return np.asarray(found)

    def extent(self, runs: Runs) -> int | None:
        """The size of its own dimension for these runs; None where it has none."""
        del runs
        return self.size if self.dim is not None else None

    def start(self, runs: Runs) -> FloatArray | None:
        """What must be remembered of the start of every run, ``(R, …)``; None for nothing."""
        del runs
        return None

    def since(self, runs: Runs, start: FloatArray) -> FloatArray:
        """As ``of``, for an observable that compares with the start."""
        del start
        return self.of(runs)
