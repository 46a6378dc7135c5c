"""Random states: seeded in common for what is compared.

Only `seeded` gives the caller's states back; ``problem.held_still`` does, around everything else.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class RandomState:
    """The states of torch's global generators, for a pass that must be made again.

    Attributes:
        torch: On the CPU.
        cuda: On every CUDA device, if CUDA is in use.
    """

    torch: Tensor
    cuda: tuple[Tensor, ...]

    @classmethod
    def now(cls) -> "RandomState":
        """Read them."""
        cuda = tuple(torch.cuda.get_rng_state_all()) if _cuda() else ()
        return cls(torch.get_rng_state(), cuda)

    def put_back(self) -> None:
        """Set them."""
        torch.set_rng_state(self.torch)
        if self.cuda:
            torch.cuda.set_rng_state_all(list(self.cuda))


LOOKS = 90_210
"""The seed of every look: what a model draws there is the same each time."""


def seed_all(seed: int) -> None:
    """Seed every global generator in use, torch's, NumPy's and Python's.

    Args:
        seed: From 0.
    """
    # torch.manual_seed formats a traceback where CUDA is unused.
    torch.default_generator.manual_seed(seed)
    if _cuda():
        torch.cuda.manual_seed_all(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - the global one is what forward passes use
    random.seed(seed)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed every global generator, and give the caller's states back at the end.

    Args:
        seed: From 0.

    Yields:
        Nothing.
    """
    before = RandomState.now()
    of_numpy, of_python = np.random.get_state(), random.getstate()  # noqa: NPY002 - the global one
    try:
        seed_all(seed)
        yield
    finally:
        before.put_back()
        np.random.set_state(of_numpy)  # noqa: NPY002 - users draw from it
        random.setstate(of_python)


def _cuda() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]  # untyped in torch
