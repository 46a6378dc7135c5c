"""Hold a model still while it is measured, and put everything back afterwards.

A measurement of curvature evaluates the model many times, so it must (a) always see the same
function and (b) leave no trace. :func:`held_still` promises both. Inside it:

- the model is in evaluation mode unless told otherwise: BatchNorm uses its running statistics,
  dropout is off. With ``mode="train"`` BatchNorm uses batch statistics, while dropout layers stay
  off, because a mask that changes from product to product is no operator at all;
- attention runs through the plain ("math") kernel and cuDNN's and oneDNN's recurrent kernels are
  off: the fused ones have no second derivative;
- gradients are enabled, whatever the caller had set.

Afterwards, also after an exception or Ctrl-C, parameters, buffers, ``.grad``, train/eval flags,
random states (torch on the CPU and on every CUDA device in use, NumPy, Python), the optimizer and
the loader's own state are as they were, bit for bit.
"""

import contextlib
import copy
import random
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from trebuchet.errors import InputError

Mode = Literal["eval", "train", "as_is"]
"""How the model is evaluated: as in evaluation, as in training but without dropout, untouched."""

_DROPOUT = nn.modules.dropout._DropoutNd  # private, but the one base of Dropout, …3d, AlphaDropout


@contextlib.contextmanager
def held_still(
    model: nn.Module,
    *,
    mode: Mode = "eval",
    loader: object = None,
    optimizer: torch.optim.Optimizer | None = None,
    parameters_too: bool = False,
) -> Iterator[None]:
    """Evaluate `model` under one fixed policy, and restore every bit of state afterwards.

    Args:
        model: The module that will be evaluated (or, with `parameters_too`, trained).
        mode: ``"eval"``, ``"train"`` (batch statistics, no dropout) or ``"as_is"``.
        loader: A data loader about to be read; its generators and ``state_dict`` are restored.
        optimizer: An optimizer about to be stepped; its state is copied and restored.
        parameters_too: Copy the parameters as well. A curvature measurement never writes them and
            skips the copy; a learning-rate scan trains, and needs it.

    Yields:
        Nothing; the policy holds inside the block.

    Raises:
        InputError: If `mode` is unknown.

    Example:
        >>> net = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(0.5))
        >>> with held_still(net, mode="train", parameters_too=True):
        ...     _ = net(torch.rand(8, 2))
        >>> int(net[0].num_batches_tracked), net.training
        (0, True)
    """
    if mode not in ("eval", "train", "as_is"):
        msg = f"mode: expected 'eval', 'train' or 'as_is', got {mode!r}"
        raise InputError(msg)
    with (
        _random_states(model),
        _loader_state(loader),
        _optimizer_state(optimizer),
        _tensors(model, parameters_too=parameters_too),
        _flags(model),
        _kernels(model),
        torch.enable_grad(),
    ):
        if mode == "eval":
            model.eval()
        elif mode == "train":
            model.train()
            _silence_dropout(model)
        yield


def _silence_dropout(model: nn.Module) -> None:
    """Switch dropout off where it is a layer or a setting of one; `_flags` restores both."""
    for module in model.modules():
        if isinstance(module, _DROPOUT):
            module.eval()
        elif isinstance(module, (nn.RNNBase, nn.MultiheadAttention)):
            module.dropout = 0.0


@contextlib.contextmanager
def _random_states(model: nn.Module) -> Iterator[None]:
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    python, numpy_ = random.getstate(), np.random.get_state()  # noqa: NPY002 - the global one is the user's
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy_)  # noqa: NPY002


@contextlib.contextmanager
def _loader_state(loader: object) -> Iterator[None]:
    """Restore the generators that shuffle, and a stateful loader's position."""
    holders = [loader, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)]
    holders += [getattr(h, "sampler", None) for h in holders]
    generators = {
        id(g): g
        for g in (getattr(h, "generator", None) for h in holders)
        if isinstance(g, torch.Generator)
    }
    states = [(g, g.get_state()) for g in generators.values()]
    load = getattr(loader, "load_state_dict", None)
    position = (
        copy.deepcopy(loader.state_dict()) if load and hasattr(loader, "state_dict") else None
    )
    try:
        yield
    finally:
        for generator, state in states:
            generator.set_state(state)
        if load is not None and position is not None:
            load(position)


@contextlib.contextmanager
def _optimizer_state(optimizer: torch.optim.Optimizer | None) -> Iterator[None]:
    if optimizer is None:
        yield
        return
    state = {p: _clone(s) for p, s in optimizer.state.items()}
    groups = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    groups = copy.deepcopy(groups)
    try:
        yield
    finally:
        optimizer.state.clear()
        optimizer.state.update(state)
        for group, saved in zip(optimizer.param_groups, groups, strict=True):
            for key in set(group) - set(saved) - {"params"}:
                del group[key]
            group.update(saved)


def _clone(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {k: _clone(v) for k, v in value.items()}
    return copy.deepcopy(value)


@contextlib.contextmanager
def _tensors(model: nn.Module, *, parameters_too: bool) -> Iterator[None]:
    """Copy buffers back, and keep `.grad` out of reach: what is not there cannot be added to."""
    held = {name: b for name, b in model.named_buffers(remove_duplicate=False)}
    copies = {name: b.detach().clone() for name, b in held.items()}
    parameters = list(model.parameters())
    weights = [p.detach().clone() for p in parameters] if parameters_too else None
    wants = [p.requires_grad for p in parameters]
    grads = [p.grad for p in parameters]
    for p in parameters:
        p.grad = None
    try:
        yield
    finally:
        with torch.no_grad():
            for name, buffer in held.items():
                if not torch.equal(buffer, copies[name]):
                    buffer.copy_(copies[name])
                owner, _, leaf = name.rpartition(".")
                # A module may have replaced its buffer by a new tensor rather than written to it.
                model.get_submodule(owner)._buffers[leaf] = buffer
            if weights is not None:
                for p, saved in zip(parameters, weights, strict=True):
                    p.copy_(saved)
        for p, grad, want in zip(parameters, grads, wants, strict=True):
            p.grad = grad
            p.requires_grad_(want)


@contextlib.contextmanager
def _flags(model: nn.Module) -> Iterator[None]:
    flags = [(module, module.training) for module in model.modules()]
    rates = [(m, m.dropout) for m, _ in flags if isinstance(m, (nn.RNNBase, nn.MultiheadAttention))]
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training
        for layer, rate in rates:
            layer.dropout = rate


@contextlib.contextmanager
def _kernels(model: nn.Module) -> Iterator[None]:
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


@contextlib.contextmanager
def _without_onednn() -> Iterator[None]:
    # torch.backends.mkldnn.flags() also sets TF32, which warns where there is no Intel GPU.
    enabled = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(enabled)
