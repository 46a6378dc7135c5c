"""A model, its weights and its data, from what a user names on the command line."""

import importlib
import inspect
import sys
import traceback
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trebuchet.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

INPUT_KEYS = ("x", "inputs", "x_train", "input_ids")
TARGET_KEYS = ("y", "targets", "labels", "y_train")


def load_model(spec: str) -> "nn.Module":
    """Import ``package.module:factory`` and call it.

    Args:
        spec: Where the model is.

    Returns:
        The model.

    Raises:
        InputError: If there is no such module or name, if it cannot be imported or called without
            arguments, or if it gives no ``nn.Module``.
    """
    from torch import nn

    module_name, colon, name = spec.partition(":")
    if not (module_name and colon and name):
        msg = f"--model: expected package.module:factory, got {spec!r}"
        raise InputError(msg)
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        msg = (
            f"--model: cannot import {module_name!r} ({error}); run from its folder, or install it"
        )
        raise InputError(msg) from error
    except Exception as error:  # the user's code, and so any
        msg = f"--model: importing {module_name} failed: {_said(error)}"
        raise InputError(msg) from error
    if not hasattr(module, name):
        msg = f"--model: {module_name} has no {name!r}"
        raise InputError(msg)
    made: Any = getattr(module, name)
    if not isinstance(made, nn.Module):
        if not callable(made):
            msg = f"--model: {spec} is a {type(made).__name__}, no factory and no nn.Module"
            raise InputError(msg)
        made = _called(made, spec)
    if not isinstance(made, nn.Module):
        msg = f"--model: {spec} returned a {type(made).__name__}, expected an nn.Module"
        raise InputError(msg)
    return made


def _called(factory: Any, spec: str) -> Any:
    try:
        inspect.signature(factory).bind()
    except TypeError as error:
        msg = f"--model: expected a factory that takes no argument, but {spec} has a {error}"
        raise InputError(msg) from error
    except ValueError:
        pass  # written in C, with no signature to look at
    try:
        return factory()
    except Exception as error:  # the user's code, and so any
        msg = f"--model: {spec} failed: {_said(error)}"
        raise InputError(msg) from error


def _said(error: Exception) -> str:
    """What an error of the user's own code said, and where, on one line."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    first = (str(error).strip() or "no message").splitlines()[0]
    return f"{type(error).__name__} at {frame.filename}:{frame.lineno} ({first})"


def load_weights(net: "nn.Module", path: Path) -> None:
    """Load a state dict.

    Args:
        net: Into this.
        path: From here.

    Raises:
        InputError: If the file is missing or does not fit.
    """
    import torch

    if not path.exists():
        msg = f"--weights: there is no file {path}"
        raise InputError(msg)
    try:
        net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except (RuntimeError, AttributeError, TypeError) as error:
        first = str(error).strip().splitlines()[0]
        msg = f"--weights: {path} does not fit the model ({first})"
        raise InputError(msg) from error


def load_data(
    path: Path, net: "nn.Module", loss: str, samples: int | None
) -> "tuple[Tensor, Tensor | None]":
    """Read inputs and targets, in the model's dtype and on its device.

    Args:
        path: A ``.npz`` file.
        net: The model.
        loss: Its name: class indices become int64, everything else the model's dtype.
        samples: Keep the first so many.

    Returns:
        Inputs and targets (None where the file has none).

    Raises:
        InputError: If the file is missing or is none, or holds no arrays of numbers under a known
            name.
    """
    import torch

    if not path.exists():
        msg = f"--data: there is no file {path}"
        raise InputError(msg)
    if path.suffix != ".npz":
        msg = f"--data: expected a .npz file, got {path}; numpy.savez(path, x=…, y=…) makes one"
        raise InputError(msg)
    first, second = _read(path)
    parameter = next((p for p in net.parameters() if p.is_floating_point()), torch.zeros(()))
    dtype, device = parameter.dtype, parameter.device
    x = torch.from_numpy(first)[:samples]
    if x.dtype == torch.uint8:
        x = x.to(dtype) / 255
    elif x.is_floating_point():
        x = x.to(dtype)
    if second is None:
        return x.to(device), None
    y = torch.from_numpy(second)[:samples]
    classes = loss in ("cross_entropy", "nll") and not y.is_floating_point()
    return x.to(device), y.to(device, torch.int64 if classes else dtype)


def _read(path: Path) -> "tuple[np.ndarray[Any, Any], np.ndarray[Any, Any] | None]":
    """Read the two arrays that are needed, and no others."""
    import numpy as np

    try:
        with path.open("rb") as opened:
            file = np.load(opened)
            if not isinstance(file, Mapping):  # one array, saved by numpy.save
                msg = f"--data: {path} is no .npz file; numpy.savez(path, x=…, y=…) makes one"
                raise InputError(msg)
            names = list(file)
            key = next((n for n in INPUT_KEYS if n in names), None)
            if key is None:
                held = ", ".join(names) or "nothing"
                msg = f"--data: {path} holds {held}; expected an array called x"
                raise InputError(msg)
            target = next((n for n in TARGET_KEYS if n in names), None)
            x = _plain(path, key, file[key])
            return x, None if target is None else _plain(path, target, file[target])
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, InputError):
            raise
        hint = "numpy.savez(path, x=…, y=…) of arrays of numbers makes one"
        first = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        if "pickle" in first:
            first = "no zip file, or an array of Python objects"
        msg = f"--data: cannot read {path} as a .npz file ({first}); {hint}"
        raise InputError(msg) from error


def _plain(path: Path, name: str, array: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    if array.ndim == 0 or array.dtype.kind not in "fiub" or array.itemsize > 8:
        msg = (
            f"--data: expected {name} of {path} to be an array of numbers, samples first, "
            f"got shape {array.shape} and dtype {array.dtype}"
        )
        raise InputError(msg)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def shaped(net: "nn.Module", loss: str, x: "Tensor", y: "Tensor") -> "Tensor":
    """Give targets of shape (D,) the outputs' shape (D, 1), which broadcasting would spoil.

    Args:
        net: The model.
        loss: Its name; targets that are class indices stay as they are.
        x: Inputs, D of them.
        y: Targets.

    Returns:
        The targets, shape (D, 1) if the model's outputs have it; as they came where the model does
        not take the inputs, which whatever evaluates it next will say.
    """
    import torch

    from trebuchet.curvature import held_still

    if loss in ("cross_entropy", "nll") or y.ndim != 1:
        return y
    try:
        with held_still(net):  # with gradients, which a forward pass may take itself
            z = net(x[:1])
    except (RuntimeError, ValueError, TypeError, IndexError):
        return y
    return y[:, None] if isinstance(z, torch.Tensor) and z.shape == (1, 1) else y
