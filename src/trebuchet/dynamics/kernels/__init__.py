"""How many runs of one model take a step together: one file a kind of model."""

from trebuchet.dynamics.kernels.base import Kernel
from trebuchet.dynamics.kernels.choose import make_kernel

__all__ = ["Kernel", "make_kernel"]
