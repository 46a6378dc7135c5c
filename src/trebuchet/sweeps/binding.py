"""A problem bound for a sweep: its initialisations, λ₀, and what makes kernels of its runs."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trebuchet.engine.kernels.base import Kernel
from trebuchet.errors import InputError
from trebuchet.observables.base import Observable
from trebuchet.problem.problem import Problem


class Binding(ABC):
    """A problem on a device, at the initialisations of its seeds.

    Attributes:
        problem: The problem.
        top: λ₀, one a seed; NaN where it was not measured.
        start: Numbers at the start, a row a seed: what tells another forward pass, or another loss,
            from this one.
        mixes_seeds: Whether runs from different initialisations can share a stack.
        bytes_per_run: Memory of one run.
        most_in_a_stack: Largest chunk; 1 where runs go one by one.
        fingerprint: Of weights and data.
        free_looks: Whether the loss of a step is the loss that runs are judged by.
        facts: Attributes of the result.
    """

    problem: Problem
    top: NDArray[np.float64]
    start: NDArray[np.float64]
    mixes_seeds: bool
    bytes_per_run: int
    most_in_a_stack: int | None
    fingerprint: str
    free_looks: bool
    facts: dict[str, Any]
    device: torch.device
    dtype: torch.dtype

    @abstractmethod
    def kernel(self, rates: Sequence[float], seeds: Sequence[int]) -> Kernel:
        """A kernel with one run for each η and position in the list of seeds."""

    @abstractmethod
    def observables(self) -> tuple[Observable, ...]:
        """What is recorded unless somebody says otherwise."""

    @abstractmethod
    def delta(self, given: float | None) -> float:
        """δ, as given or found out."""

    @property
    @abstractmethod
    def optimizer(self) -> str:
        """What results call it."""

    def trained(self) -> dict[str, Any]:
        """How it is trained, for what must be the same in a sweep that is taken up again."""
        return {}

    def notes(self) -> list[str]:
        """What the user should be told."""
        return []


def usable(top: NDArray[np.float64], *, needed: bool) -> NDArray[np.float64]:
    """λ₀ that learning-rate ratios can be made of.

    Args:
        top: λ₀, one a seed. That of a loss that is linear in the outputs is zero.
        needed: Whether rates are given as ratios.

    Returns:
        The same; NaN where one is not positive.

    Raises:
        InputError: If one is not positive that is needed.
    """
    if not np.all(np.isfinite(top)) or top.min() <= 0:
        if not needed:
            return np.where(np.isfinite(top) & (top > 0), top, np.nan)
        msg = (
            f"model: expected a positive λ₀ at every seed for lr_ratio, got {top.tolist()}; sweep "
            "over lr=, the rates themselves"
        )
        raise InputError(msg)
    return top


def digest_into(into: "hashlib._Hash", t: Tensor) -> None:
    """Add the bytes of a tensor to a digest."""
    into.update(t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
