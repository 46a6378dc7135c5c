"""Checks of arguments that only torch can tell: tensors, modules, dtypes, devices, generators."""

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from trebuchet._checks import as_index, refuse, shown, whole
from trebuchet.errors import InputError

LARGEST = 2**33
"""Numbers in one tensor that a model may ask for: 64 GiB of them in float64."""


def module(name: str, value: object) -> nn.Module:
    """A module, made."""
    if isinstance(value, nn.Module):
        return value
    advice = "make one: the class alone has no weights" if isinstance(value, type) else ""
    got = shown(value) if isinstance(value, type) else f"a {type(value).__name__}"
    msg = f"{name}: expected a torch.nn.Module, got {got}"
    raise InputError(f"{msg}; {advice}" if advice else msg)


def shaped(owner: str, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Refuse lazy parameters and buffers, which have no shape before the first batch."""
    lazy = [name for name, t in tensors if is_lazy(t)]
    if lazy:
        msg = (
            f"{owner}: has parameters without a shape yet ({', '.join(lazy)}); run one batch "
            "through it first"
        )
        raise InputError(msg)


def tensor(name: str, value: object, *shape: int | None) -> Tensor:
    """A tensor of real floating-point numbers in memory, of a shape whose free sizes are None."""
    wanted = f"({', '.join('…' if size is None else str(size) for size in shape)})"
    if not isinstance(value, Tensor):
        refuse(name, f"a tensor of shape {wanted}", value, "wrap it in torch.tensor(...)")
    plain = value.layout == torch.strided and value.device.type != "meta"
    if not (value.is_floating_point() and plain):
        what = f"{value.dtype} on {value.device}, {value.layout}"
        msg = f"{name}: expected a dense tensor of floating-point numbers, got {what}"
        raise InputError(msg)
    fits = len(shape) == value.ndim and all(
        asked in (None, got) for asked, got in zip(shape, value.shape, strict=True)
    )
    if not fits:
        msg = f"{name}: expected shape {wanted}, got {tuple(value.shape)}"
        raise InputError(msg)
    return value


def finite_tensor(name: str, value: object, *shape: int | None) -> Tensor:
    """The same, without NaN and infinities."""
    given = tensor(name, value, *shape)
    if not bool(torch.isfinite(given).all()):
        msg = f"{name}: expected finite numbers, got NaN or infinity"
        raise InputError(msg)
    return given


def inputs(value: object, width: int, weights: Tensor, *, rows: bool = True) -> None:
    """Refuse what a model of `width` inputs cannot take; cheap, since every forward pass asks.

    Args:
        value: The inputs.
        width: Numbers in one of them.
        weights: What they are multiplied with.
        rows: They have to come as one matrix.

    Raises:
        InputError: If they are no tensor, of another width, dtype or device than the weights.
    """
    if not isinstance(value, Tensor):
        refuse("x", f"a tensor of shape (D, {width})", value, "wrap it in torch.tensor(...)")
    if value.shape[-1:] != (width,) or (rows and value.ndim != 2):
        msg = f"x: expected inputs of shape (D, {width}), got {tuple(value.shape)}"
        raise InputError(msg)
    if value.device != weights.device:
        msg = f"x: is on {value.device} but the model is on {weights.device}; move one of them"
        raise InputError(msg)
    if value.dtype != weights.dtype and not torch.is_autocast_enabled(value.device.type):
        msg = f"x: expected {weights.dtype}, as the weights are, got {value.dtype}; convert it"
        raise InputError(msg)


def dtype(name: str, value: object, *, half: bool = False) -> torch.dtype:
    """A torch dtype that weights can have: float32 or float64, and the half ones where they do."""
    allowed = [torch.float32, torch.float64, *[torch.float16, torch.bfloat16] * half]
    if isinstance(value, torch.dtype) and value in allowed:
        return value
    words = list(map(str, allowed))
    refuse(name, f"{', '.join(words[:-1])} or {words[-1]}", value)


def device(name: str, value: object) -> torch.device:
    """A device that is there, from its name."""
    found: torch.device | None = None
    if isinstance(value, (str, torch.device)):
        try:
            found = torch.device(value)
            torch.empty(0, device=found)
        except Exception:  # torch says so in many ways, whole pages among them
            found = None
    if found is None or found.type == "meta":
        refuse(name, "a device that this machine has, such as 'cpu' or 'cuda'", value)
    return found


def sizes(**named: int) -> None:
    """Refuse tensors that no machine holds, before torch tries.

    Args:
        **named: The tensor's sizes.

    Raises:
        InputError: If their product is too large.
    """
    if math.prod(named.values()) > LARGEST:
        shown_ = " × ".join(f"{name} = {shown(size)}" for name, size in named.items())
        msg = f"{next(iter(named))}: expected sizes whose product is at most 2**33, got {shown_}"
        raise InputError(msg)


def shape(name: str, value: object) -> tuple[int, ...]:
    """Sizes of a tensor, given one by one or as one list of them."""
    given = value if isinstance(value, tuple) else ()
    if len(given) == 1 and isinstance(given[0], (list, tuple, torch.Size)):
        given = tuple(given[0])
    found = tuple(whole(name, item, "sizes >= 0", least=0) for item in given)
    sizes(**{f"{name}[{i}]": item for i, item in enumerate(found)})
    return found


def size(name: str, value: object) -> int:
    """How many of something a model has."""
    return whole(name, value, "a positive number", most=LARGEST)


def depth(name: str, value: object) -> int:
    """How many layers a model has."""
    return whole(name, value, "a positive number", most=10_000)


def generator(name: str, value: object) -> Any:
    """A seed, a generator on the CPU, or draws under way."""
    if isinstance(value, torch.Generator) and value.device.type == "cpu":
        return value
    number = as_index(value)
    if number is None or not 0 <= number < 2**63:
        msg = (
            f"{name}: expected an integer >= 0 or a torch.Generator on the CPU, got {shown(value)}"
        )
        raise InputError(msg)
    return number


def indices(name: str, value: object, below: int) -> Tensor:
    """Different indices of something that has `below`, one or more, as int64."""
    flat = isinstance(value, Tensor) and value.ndim == 1 and value.device.type != "meta"
    found = [as_index(item) for item in value.tolist()] if flat else []  # type: ignore[attr-defined]  # `flat`
    good = [i for i in found if i is not None and 0 <= i < below]
    if not good or len(set(good)) < len(found):
        refuse(name, f"a tensor of different whole numbers from 0 to {below - 1}", value)
    return torch.tensor(good, device=value.device)  # type: ignore[attr-defined]  # refused


def layers(name: str, value: object) -> list[Tensor]:
    """Two or more matrices that follow on, (out, in) each."""
    given = list(value) if isinstance(value, (list, tuple, nn.ParameterList)) else []
    if len(given) < 2 or not all(isinstance(w, Tensor) and w.ndim == 2 for w in given):
        msg = f"{name}: expected two or more matrices of shape (out, in), got {shown(value)}"
        raise InputError(msg)
    for w in given:
        tensor(name, w, None, None)
    if any(above.shape[1] != below.shape[0] for below, above in _pairs(given)) or any(
        not w.numel() for w in given
    ):
        shapes = ", ".join(str(tuple(w.shape)) for w in given)
        msg = f"{name}: expected (out, in) matrices that follow on, got {shapes}"
        raise InputError(msg)
    return given


def _pairs(given: list[Tensor]) -> Iterable[tuple[Tensor, Tensor]]:
    return pairwise(given)


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on the GPU or the CPU."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error).lower()
    return "out of memory" in text or "can't allocate memory" in text
