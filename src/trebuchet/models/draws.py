"""Random numbers in the order the paper drew them."""

import numpy as np
import torch
from torch import Tensor

from trebuchet import _torch_checks as checks
from trebuchet._checks import LONGEST, finite, whole
from trebuchet._doors import door, rule
from trebuchet.errors import InputError


class Draws:
    """A pair of seeded streams, PyTorch's and NumPy's, that leaves the global ones alone.

    The paper's code seeds both libraries' global generators and draws from them in a fixed order.
    ``Draws(seed)`` gives the same numbers from private generators. Real numbers are drawn in
    float32, as there, so that a model in float64 starts from the very same weights.

    Args:
        seed: Seed of both streams; or a ``torch.Generator`` to draw from, whose next number then
            seeds NumPy's stream.

    Raises:
        InputError: If it is neither. The methods raise it for sizes that are none.

    Example:
        >>> import torch
        >>> torch.equal(Draws(13).normal(3), torch.randn(3, generator=torch.manual_seed(13)))
        True
    """

    @door(seed=checks.generator)
    def __init__(self, seed: int | torch.Generator) -> None:
        if isinstance(seed, torch.Generator):
            self.torch = seed
            numpy_seed = int(torch.randint(2**31 - 1, (), generator=seed))
        else:
            self.torch = torch.Generator().manual_seed(seed)
            numpy_seed = seed % 2**32
        self.numpy = np.random.RandomState(numpy_seed)  # the paper's stream

    @door(shape=checks.shape)
    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers, float32, of the given shape."""
        return torch.randn(shape, generator=self.torch, dtype=torch.float32)

    @door(shape=checks.shape, low=finite, high=finite)
    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Numbers uniform on [low, high), float32, of the given shape."""
        drawn = torch.rand(shape, generator=self.torch, dtype=torch.float32)
        return drawn * (high - low) + low

    @door(
        n=rule(whole, "a positive number", most=LONGEST),
        size=rule(whole, "0 or more", least=0, most=LONGEST),
    )
    def choice(self, n: int, size: int) -> Tensor:
        """`size` of the indices 0…n−1 without replacement, in random order; int64 ``(size,)``."""
        if size > n:
            msg = f"size: expected at most n = {n}, got {size}"
            raise InputError(msg)
        return torch.from_numpy(self.numpy.choice(n, size, replace=False).astype(np.int64))

    @door(n_out=checks.size, n_in=checks.size)
    def skip_linear_init(self, n_out: int, n_in: int) -> None:
        """Use up the numbers that building ``nn.Linear(n_in, n_out, bias=False)`` would."""
        checks.sizes(n_out=n_out, n_in=n_in)
        torch.rand(n_out, n_in, generator=self.torch, dtype=torch.float32)


def drawing(name: str, value: object) -> Draws:
    """Draws under way, or new ones from a seed or a generator."""
    return value if isinstance(value, Draws) else Draws(checks.generator(name, value))
