"""What second derivatives need: kernels that have them, and a look at the graph of the others."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextlib.contextmanager
def differentiable_kernels(model: nn.Module) -> Iterator[None]:
    """Only kernels with second derivatives; the recurrent ones are slow, so only when needed."""
    recurrent = any(isinstance(m, nn.RNNBase) for m in model.modules())
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            if recurrent:
                stack.enter_context(torch.backends.cudnn.flags(enabled=False))
                stack.enter_context(_without_onednn())
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


def operations(value: Tensor) -> Iterator[Any]:
    """The nodes of the autograd graph behind a tensor.

    Args:
        value: A tensor with its graph.

    Yields:
        Each node once.
    """
    stack: list[Any] = [value.grad_fn]
    seen: set[Any] = set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        stack += [following for following, _ in node.next_functions]


@contextlib.contextmanager
def _without_onednn() -> Iterator[None]:
    # torch.backends.mkldnn.flags() also sets TF32, which warns where there is no Intel GPU.
    enabled = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(enabled)
