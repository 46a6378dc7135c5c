"""Samples shared among processes: each rank holds a shard, products are added up.

The Lanczos vectors are the same on all ranks (one seed, and float sums that all ranks receive
alike), so nothing but the products, of length P, and the divisors of the loss are communicated.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from trebuchet.errors import InputError


class Ranks:
    """The processes of one measurement.

    Args:
        group: ``None`` is this process alone, ``True`` the default group, else a process group.
        device: Where the tensors are.

    Example:
        >>> Ranks(None, torch.device("cpu")).total([2.0, 3.0])
        [2.0, 3.0]
    """

    def __init__(self, group: Any, device: torch.device) -> None:
        self.alone = group is None or group is False
        self.device = device
        self.group = None if group is True else group
        if not self.alone and not (dist.is_available() and dist.is_initialized()):
            msg = "group: torch.distributed is not initialised; call init_process_group first"
            raise InputError(msg)

    def sum_(self, x: Tensor) -> Tensor:
        """Add `x` over all ranks, in place, and return it."""
        if not self.alone:
            dist.all_reduce(x, group=self.group)
        return x

    def total(self, numbers: list[float]) -> list[float]:
        """Return each number summed over all ranks."""
        if self.alone:
            return numbers
        return [
            float(x)
            for x in self.sum_(torch.tensor(numbers, dtype=torch.float64, device=self.device))
        ]

    def same(self, x: Tensor) -> Tensor:
        """Give every rank the first rank's `x`, in place, and return it."""
        if not self.alone:
            source = 0 if self.group is None else dist.get_global_rank(self.group, 0)
            dist.broadcast(x, src=source, group=self.group)
        return x
