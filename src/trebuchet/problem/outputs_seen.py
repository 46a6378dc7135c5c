"""What a loss makes of outputs, seen while its gradient is taken."""

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(slots=True)
class OutputsSeen:
    """Σ z·∂L/∂z over all passes of one gradient, from the backward passes that are made anyway.

    Attributes:
        reason: Why it is not known; empty where it is.
    """

    reason: str = ""
    _sums: list[Tensor] = field(default_factory=list)  # each (2, R)

    def reset(self) -> None:
        """Begin again, as the gradient does."""
        self._sums, self.reason = [], ""

    def add(self, z: Tensor, slope: Tensor, share: float = 1.0) -> None:
        """Take up outputs of R runs and what the loss makes of them.

        Args:
            z: Outputs, ``(R, …)``.
            slope: ∂L/∂z, of the shape of z.
            share: What both sums are multiplied with.
        """
        terms = (z.double() * slope).reshape(z.shape[0], -1)
        self._sums.append(
            share * torch.stack([terms.sum(1), torch.linalg.vector_norm(terms, 1, 1)])
        )

    def sums(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Σ z·∂L/∂z of every run, and the sum of the sizes of its terms, ``(R,)``."""
        both = sum(self._sums[1:], self._sums[0]).cpu().numpy()
        return both[0], both[1]

    def __call__(self, z: object) -> None:
        """Take note of the outputs of one pass of one run, before the loss sees them.

        Args:
            z: What the model returned.
        """
        if not (isinstance(z, Tensor) and z.is_floating_point() and z.requires_grad):
            self.reason = "outputs are not one real tensor with a gradient"
            return
        if z.is_leaf:  # whose hooks would stay, and see the gradients of other passes too
            self.reason = "its outputs are a parameter itself"
            return
        values = z.detach()  # shares memory and version: a hook on z that held z would never die
        version = values._version

        def note(slope: Tensor) -> None:
            if values._version != version:
                self.reason = "the loss writes over the outputs"
                return
            self.add(values.unsqueeze(0), slope.unsqueeze(0))

        z.register_hook(note)  # type: ignore[no-untyped-call]  # torch's

    @property
    def missing(self) -> str:
        """Why there are no sums; empty where there are."""
        return self.reason or ("" if self._sums else "no gradient went through the outputs")
