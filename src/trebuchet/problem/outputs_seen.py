"""What a loss makes of outputs, seen while its gradient is taken."""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(slots=True)
class OutputsSeen:
    """Σ z·∂L/∂z over all passes of one gradient, from the backward passes that are made anyway.

    Attributes:
        dot: The sum.
        size: The sum of the sizes of its terms.
        reason: Why it is not known; empty where it is.
    """

    dot: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    size: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    reason: str = ""

    def reset(self) -> None:
        """Begin again, as the gradient does."""
        self.dot, self.size, self.reason = torch.zeros_like(self.dot), torch.zeros_like(self.dot), ""

    def __call__(self, z: object) -> None:
        """Take note of the outputs of one pass, before the loss sees them.

        Args:
            z: What the model returned.
        """
        if not (isinstance(z, Tensor) and z.is_floating_point() and z.requires_grad):
            self.reason = "outputs are not one real tensor with a gradient"
            return
        values = z.detach()  # shares memory and version: a hook on z that held z would never die
        version = values._version

        def add(slope: Tensor) -> None:
            if values._version != version:
                self.reason = "the loss writes over the outputs"
                return
            product = values.double() * slope.double()
            self.dot = self.dot.to(product.device) + product.sum()
            self.size = self.size.to(product.device) + product.abs().sum()

        z.register_hook(add)
