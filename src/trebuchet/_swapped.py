"""Other tensors in the place of parameters and buffers, for a while."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from trebuchet.errors import InputError


@contextlib.contextmanager
def swapped(modules: Iterable[nn.Module], tensors: Mapping[int, Tensor]) -> Iterator[None]:
    """Put other tensors in the place of parameters and buffers; tied ones stay tied.

    What a forward pass hangs onto a module meanwhile (legacy ``weight_norm`` its weight) is taken
    off again.

    Args:
        modules: The modules.
        tensors: New tensors by the ``id`` of those in whose place they stand.

    Yields:
        Nothing.

    Raises:
        InputError: If a module is compiled by TorchScript, whose parameters cannot be replaced.
    """
    parts = {id(m): m for root in modules for m in root.modules()}.values()
    places: list[tuple[Any, str, Tensor]] = []
    for module in parts:
        registries: tuple[Any, ...] = (module._parameters, module._buffers)
        hit = [
            (registry, name, old)
            for registry in registries
            for name, old in registry.items()
            if old is not None and id(old) in tensors
        ]
        if hit and isinstance(module, torch.jit.ScriptModule):
            msg = "model: is compiled by TorchScript, so its weights cannot be moved a little"
            raise InputError(msg)
        places += hit
    attributes = [
        (vars(m), dict(vars(m))) for m in parts if not isinstance(m, torch.jit.ScriptModule)
    ]
    try:
        for registry, name, old in places:
            registry[name] = tensors[id(old)]
        yield
    finally:
        for registry, name, old in places:
            registry[name] = old
        for now, before in attributes:
            for name in now.keys() - before.keys():
                del now[name]
            now.update(before)
