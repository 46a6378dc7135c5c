"""Which module is meant, and which of its parameters."""

from collections.abc import Callable, Iterable

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from trebuchet._checks import items, one_line, refuse, shown
from trebuchet._torch_checks import module, shaped
from trebuchet.errors import InputError

Selection = Iterable[str | nn.Parameter] | Callable[[str, nn.Parameter], bool] | None
"""Which parameters: names or parameters, a predicate on (name, parameter), or all trainable."""


def unwrap(model: object) -> nn.Module:
    """Return the module inside ``DistributedDataParallel``, ``DataParallel`` or ``torch.compile``.

    Their wrappers compute the same function, but communicate in the backward pass or have no second
    derivative.

    Args:
        model: Any module.

    Returns:
        The innermost module.

    Raises:
        InputError: If `model` is no module.
    """
    model = module("model", model)
    inner: object = model
    while True:
        if isinstance(inner, (DistributedDataParallel, nn.DataParallel)):
            inner = inner.module
        else:
            inner = getattr(model, "_orig_mod", None)  # what torch.compile wraps
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def select(model: nn.Module, params: Selection = None) -> dict[str, nn.Parameter]:
    """Return the parameters that curvature is taken in, by name, tied ones once.

    Args:
        model: The module.
        params: Names, parameters, or a predicate; None is every parameter with ``requires_grad``.

    Returns:
        Name → parameter, in the model's order.

    Raises:
        InputError: If a name is unknown, nothing is selected, or one is frozen, integer or complex.
    """
    named = dict(model.named_parameters())
    shaped("model", named.items())
    if params is None:
        for name, p in named.items():
            _check_real(name, p)
        chosen = {n: p for n, p in named.items() if p.requires_grad}
    elif callable(params):
        try:
            chosen = {n: p for n, p in named.items() if p.requires_grad and params(n, p)}
        except Exception as error:  # the user's function may raise anything
            msg = (
                "params: expected a function of (name, parameter) to True or False, got "
                f"{one_line(error)}; mend it"
            )
            raise InputError(msg) from error
    else:
        one = isinstance(params, (str, nn.Parameter))
        wanted = [params] if one else items(params, lambda item: item)
        good = all(isinstance(item, (str, nn.Parameter)) for item in wanted)
        if not good or not isinstance(params, Iterable):
            advice = "take them from model.named_parameters()"
            refuse("params", "names or parameters, or a function", params, advice)
        # A tied parameter may be asked for by any of its names.
        every = dict(model.named_parameters(remove_duplicate=False))
        ids = set()
        for item in wanted:
            if isinstance(item, str):
                if item not in every:
                    some = ", ".join(list(named)[:10]) + (", ..." if len(named) > 10 else "")
                    msg = f"params: the model has no parameter {shown(item)}; it has {some}"
                    raise InputError(msg)
                ids.add(id(every[item]))
            else:
                ids.add(id(item))
        chosen = {n: p for n, p in named.items() if id(p) in ids}
        if len(chosen) < len(ids):
            msg = "params: some of these are no parameters of the model; take them from it by name"
            raise InputError(msg)
        for name, p in chosen.items():
            if not p.requires_grad:
                msg = f"params: {name!r} is frozen; call requires_grad_() on it to include it"
                raise InputError(msg)
    for name, p in chosen.items():
        _check_real(name, p)
    if sum(p.numel() for p in chosen.values()) == 0:
        if params is None:
            msg = "model: has no trainable parameter; at least one is needed"
        else:
            msg = "params: no trainable parameter is selected; curvature needs at least one"
        raise InputError(msg)
    devices = {str(p.device) for p in chosen.values()}
    if devices == {"meta"}:
        msg = "model: its parameters are on the meta device and have no values; load them first"
        raise InputError(msg)
    if len(devices) > 1:
        msg = f"model: its parameters are on {', '.join(sorted(devices))}; put them on one device"
        raise InputError(msg)
    return chosen


def _check_real(name: str, p: nn.Parameter) -> None:
    if p.is_complex():
        msg = (
            f"model: parameter {name!r} is complex ({p.dtype}); only real parameters are supported"
        )
        raise InputError(msg)
    if not p.is_floating_point():
        msg = (
            f"model: parameter {name!r} has integer type {p.dtype}, which has no derivative; "
            "register it as a buffer"
        )
        raise InputError(msg)
