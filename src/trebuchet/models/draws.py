"""Random numbers in the order the paper drew them."""

import numpy as np
import torch
from torch import Tensor

from trebuchet.errors import InputError


class Draws:
    """A pair of seeded streams, PyTorch's and NumPy's, that leaves the global ones alone.

    The paper's code seeds both libraries' global generators and draws from them in a fixed order.
    ``Draws(seed)`` gives the same numbers from private generators. Real numbers are drawn in
    float32, as there, so that a model in float64 starts from the very same weights.

    Args:
        seed: Seed of both streams; or a ``torch.Generator`` to draw from, whose next number then
            seeds NumPy's stream.

    Example:
        >>> import torch
        >>> torch.equal(Draws(13).normal(3), torch.randn(3, generator=torch.manual_seed(13)))
        True
    """

    def __init__(self, seed: int | torch.Generator) -> None:
        if isinstance(seed, torch.Generator):
            self.torch = seed
            numpy_seed = int(torch.randint(2**31 - 1, (), generator=seed))
        else:
            if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
                msg = f"seed: expected an integer >= 0 or a torch.Generator, got {seed!r}"
                raise InputError(msg)
            self.torch = torch.Generator().manual_seed(int(seed))
            numpy_seed = int(seed) % 2**32
        self.numpy = np.random.RandomState(numpy_seed)  # the paper's stream

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers, float32, of the given shape."""
        return torch.randn(*shape, generator=self.torch)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Numbers uniform on [low, high), float32, of the given shape."""
        return torch.rand(*shape, generator=self.torch) * (high - low) + low

    def choice(self, n: int, size: int) -> Tensor:
        """`size` of the indices 0…n−1 without replacement, in random order; int64 ``(size,)``."""
        return torch.from_numpy(self.numpy.choice(n, size, replace=False).astype(np.int64))

    def skip_linear_init(self, n_out: int, n_in: int) -> None:
        """Use up the numbers that building ``nn.Linear(n_in, n_out, bias=False)`` would."""
        torch.rand(n_out, n_in, generator=self.torch)
