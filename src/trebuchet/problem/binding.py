"""Which part of a batch goes into the model, and how: by position, by name, or as one argument."""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from trebuchet.problem.tree import children, is_data_class, is_named_tuple

TARGET_KEYS = ("labels", "label", "targets", "target", "y")
"""Keys of a dict batch that hold the targets; all other keys are passed to the model by name."""

Parsed = tuple[tuple[Any, ...], dict[str, Any], Any]
"""Positional inputs, inputs by name, targets."""


def parsed(item: Any, model: nn.Module | None) -> Parsed:
    """Tell inputs from targets.

    Args:
        item: One batch.
        model: Whose signature tells what it takes by name.

    Returns:
        What ``model(*args, **kwargs)`` is called with, and the targets.
    """
    if isinstance(item, (Tensor, PackedSequence)):
        return (item,), {}, None
    if isinstance(item, Mapping):
        return _by_name(dict(item), item, model)
    if is_data_class(item):
        return _by_name({k[1:]: v for k, v in children(item) or ()}, item, model)
    if is_named_tuple(item):
        key = next((k for k in TARGET_KEYS if k in item._fields), item._fields[-1])
        if len(item) > 1:
            rest = tuple(v for k, v in zip(item._fields, item, strict=True) if k != key)
            return _inputs(rest, getattr(item, key), model)
    if isinstance(item, (tuple, list)) and len(item) == 1:
        return parsed(item[0], model)
    if isinstance(item, (tuple, list)) and item:
        return _inputs(tuple(item[:-1]), item[-1], model)
    return (item,), {}, None


def _inputs(inputs: tuple[Any, ...], targets: Any, model: nn.Module | None) -> Parsed:
    if len(inputs) == 1:
        only = inputs[0]
        if isinstance(only, Mapping):
            args, kwargs = _bound(dict(only), only, model)
            return args, kwargs, targets
        packed = isinstance(only, PackedSequence)
        if isinstance(only, (tuple, list)) and not packed and _takes(model, tuple(only)):
            return tuple(only), {}, targets
    return inputs, {}, targets


def _by_name(named: dict[Any, Any], whole: Any, model: nn.Module | None) -> Parsed:
    key = next((k for k in TARGET_KEYS if k in named), None)
    inputs = {k: v for k, v in named.items() if k != key}
    args, kwargs = _bound(inputs, whole, model)
    return args, kwargs, None if key is None else named[key]


def _bound(
    named: dict[Any, Any], whole: Any, model: nn.Module | None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """By name where the model takes these names; all of it as one argument where it takes none."""
    names = {str(k): v for k, v in named.items()}
    signature = _signature(model)
    if signature is None or _binds(signature, (), names):
        return (), names
    if set(names) & set(signature.parameters) or not _binds(signature, (whole,), {}):
        return (), names  # some fit: the model's own error says which does not
    return (whole,), {}


def _takes(model: nn.Module | None, args: tuple[Any, ...]) -> bool:
    """Whether so many inputs can be passed by position; if not, one may be."""
    signature = _signature(model)
    return signature is None or _binds(signature, args, {}) or not _binds(signature, (args,), {})


def _signature(model: nn.Module | None) -> inspect.Signature | None:
    if model is None:
        return None
    try:
        return inspect.signature(model.forward)
    except (TypeError, ValueError):  # compiled ones have none
        return None


def _binds(signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        return False
    return True


def called_with(item: Any, model: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a model that computes its own loss is called with: the whole batch, targets too.

    Args:
        item: One batch, as it came.
        model: The model.

    Returns:
        Positional inputs, and inputs by name.
    """
    if isinstance(item, Mapping):
        return _bound(dict(item), item, model)
    if is_data_class(item):
        return _bound({k[1:]: v for k, v in children(item) or ()}, item, model)
    if not isinstance(item, (tuple, list)) or isinstance(item, PackedSequence):
        return (item,), {}
    args, kwargs, targets = parsed(item, model)
    if targets is None:
        return args, kwargs
    signature = _signature(model)
    key = next((k for k in TARGET_KEYS if signature and k in signature.parameters), None)
    if key is not None and signature and _binds(signature, args, {**kwargs, key: targets}):
        return args, {**kwargs, key: targets}
    if signature is None or _binds(signature, (*args, targets), kwargs):
        return (*args, targets), kwargs
    return args, kwargs  # a loss of the inputs alone, such as an autoencoder's
