"""Random states: seeded in common for what is compared, and given back afterwards."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class RandomState:
    """The states of every global generator that a forward pass may draw from.

    Attributes:
        torch: On the CPU.
        cuda: On every CUDA device, if CUDA is in use.
        numpy: NumPy's global one.
        python: Python's.
    """

    torch: Tensor
    cuda: tuple[Tensor, ...]
    numpy: Any
    python: Any

    @classmethod
    def now(cls) -> "RandomState":
        """Read them."""
        cuda = tuple(torch.cuda.get_rng_state_all()) if _cuda() else ()
        return cls(torch.get_rng_state(), cuda, np.random.get_state(), random.getstate())  # noqa: NPY002 - the global one is what a forward pass uses

    def put_back(self) -> None:
        """Set them."""
        torch.set_rng_state(self.torch)
        if self.cuda:
            torch.cuda.set_rng_state_all(list(self.cuda))
        np.random.set_state(self.numpy)  # noqa: NPY002
        random.setstate(self.python)


def seed_all(seed: int) -> None:
    """Seed every global generator in use.

    Args:
        seed: From 0.
    """
    # torch.manual_seed formats a traceback where CUDA is unused.
    torch.default_generator.manual_seed(seed)
    if _cuda():
        torch.cuda.manual_seed_all(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    random.seed(seed)


@contextmanager
def common_noise(seed: int = 90210) -> Iterator[None]:
    """Let what happens inside draw the same random numbers every time, and disturb nobody's.

    Args:
        seed: Which numbers.

    Yields:
        Nothing.
    """
    before = RandomState.now()
    seed_all(seed)
    try:
        yield
    finally:
        before.put_back()


def _cuda() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]  # untyped in torch
