"""How many runs of one model take a step together: one file a kind of model."""

from trebuchet.engine.kernels.choose import make_kernel
from trebuchet.engine.kernels.outputs import OutputKernel

__all__ = ["OutputKernel", "make_kernel"]
