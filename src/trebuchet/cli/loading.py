"""A model, its weights and its data, from what a user names on the command line."""

import importlib
import inspect
import re
import sys
import traceback
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from trebuchet.cli.options import did_you_mean, quoted, word
from trebuchet.errors import InputError, TrebuchetError
from trebuchet.problem.loss_names import NAMES as LOSS_NAMES
from trebuchet.problem.optimizer_names import NAMES, lookup

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

INPUT_KEYS = ("x", "inputs", "x_train", "input_ids")
TARGET_KEYS = ("y", "targets", "labels", "y_train")
CLASSES = ("cross_entropy", "nll")
"""Losses whose targets may be class indices."""
MADE = "numpy.savez(path, x=…, y=…) of arrays of numbers makes one"
_SPEC = re.compile(r"(\w+(?:\.\w+)*):(\w+)")


def _check_loss(name: str) -> None:
    from trebuchet.problem.losses import resolve

    resolve(name)


LOSS = word("--loss", _check_loss, lambda: LOSS_NAMES)
OPTIMIZER = word("--optimizer", lookup, lambda: NAMES)


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

    made = imported(spec)
    if not isinstance(made, nn.Module):
        if not callable(made):
            msg = f"--model: {spec} is a {type(made).__name__}, no factory and no nn.Module"
            raise InputError(msg)
        made = _called(made, spec)
    if not isinstance(made, nn.Module):
        if inspect.iscoroutine(made):
            made.close()  # or Python complains that nobody waited for it
        msg = f"--model: {spec} returned a {type(made).__name__}, expected an nn.Module"
        raise InputError(msg)
    return made


def imported(spec: str, option: str = "--model") -> Any:
    """Import ``package.module:name``, from the folder one is in too.

    Args:
        spec: What to import.
        option: What the user calls it.

    Returns:
        Whatever has that name.

    Raises:
        InputError: If there is no such module or name, or the import fails.
    """
    parts = _SPEC.fullmatch(spec)
    if parts is None:
        msg = f"{option}: expected package.module:factory, got {quoted(spec)}"
        raise InputError(msg)
    module_name, name = parts.groups()
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    with users_code(f"{option}: importing {module_name} failed"):
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            msg = (
                f"{option}: cannot import {module_name!r} ({error}); run from its folder, or "
                "install it"
            )
            raise InputError(msg) from error
    if not hasattr(module, name):
        msg = f"{option}: {module_name} has no {name!r}{did_you_mean(name, vars(module))}"
        raise InputError(msg)
    return getattr(module, name)


def _called(factory: Any, spec: str) -> Any:
    try:
        inspect.signature(factory).bind()
    except TypeError as error:
        msg = f"--model: expected a factory that takes no argument, but {spec} has none: {error}"
        raise InputError(msg) from error
    except ValueError:
        pass  # written in C, with no signature to look at
    with users_code(f"--model: {spec} failed"):
        return factory()


@contextmanager
def users_code(what: str) -> Iterator[None]:
    """Turn whatever a user's code does inside into one sentence: it may raise anything, or exit.

    Args:
        what: The beginning of the sentence.

    Raises:
        InputError: In place of every exception but trebuchet's own and Ctrl-C.
    """  # noqa: DOC501 - those two pass
    try:
        yield
    except (TrebuchetError, KeyboardInterrupt):
        raise
    except SystemExit as end:
        msg = f"{what}: SystemExit{_where(end)} (it called sys.exit, and has to return instead)"
        raise InputError(msg) from end
    except BaseException as error:  # the user's module may raise anything
        first = (str(error).strip() or "no message").splitlines()[0]
        msg = f"{what}: {type(error).__name__}{_where(error)} ({first})"
        raise InputError(msg) from error


def _where(error: BaseException) -> str:
    """The last line of the user's own code that an error came through."""
    frames = traceback.extract_tb(error.__traceback__)
    libraries = ("torch", "trebuchet", "numpy")
    own = [f for f in frames if not set(Path(f.filename).parts) & set(libraries)]
    own = [f for f in own if not f.filename.startswith("<frozen")]
    own = [f for f in own if "importlib" not in Path(f.filename).parts]
    return f" at {own[-1].filename}:{own[-1].lineno}" if own else ""


def load_weights(net: "nn.Module", path: Path) -> None:
    """Load a state dict.

    Args:
        net: Into this.
        path: From here.

    Raises:
        InputError: If the file is missing, holds anything but tensors by name, or does not fit;
            nothing of it is loaded then.
    """
    import torch

    _check_file("--weights", path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is wrong is said below, on one line
            held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler and the archive's reader raise whatever they like
        msg = (
            f"--weights: cannot read {path} as a state dict ({_reason(error)}); "
            "torch.save(model.state_dict(), path) makes one"
        )
        raise InputError(msg) from error
    if not isinstance(held, Mapping) or not all(isinstance(t, torch.Tensor) for t in held.values()):
        inside = f"a {type(held).__name__}"
        if isinstance(held, Mapping):
            inside = f"{_listed(map(str, held))}, which are not all tensors"
        msg = f"--weights: expected tensors by name in {path}, got {inside}"
        raise InputError(f"{msg}; torch.save(model.state_dict(), path) makes such a file")
    _check_fits(net.state_dict(), held, path)
    try:
        net.load_state_dict(dict(held))
    except Exception as error:  # the user's module may have a say in it
        msg = f"--weights: {path} does not fit the model ({_reason(error)})"
        raise InputError(msg) from error


def _check_fits(wanted: "Mapping[str, Tensor]", held: "Mapping[str, Tensor]", path: Path) -> None:
    lacking, more = wanted.keys() - held.keys(), held.keys() - wanted.keys()
    wrong = []
    if lacking:
        wrong.append(f"it lacks {_listed(n for n in wanted if n in lacking)}")
    if more:
        wrong.append(f"the model has no {_listed(n for n in held if n in more)}")
    for name in wanted.keys() & held.keys():
        mine, given = wanted[name], held[name]
        if getattr(mine, "shape", None) != given.shape:
            shape = tuple(getattr(mine, "shape", ()))
            wrong.append(f"{name} has shape {tuple(given.shape)}, the model's has {shape}")
        elif mine.is_floating_point() and not given.is_floating_point():
            wrong.append(f"{name} is {str(given.dtype).removeprefix('torch.')}, no real numbers")
        elif given.is_floating_point() and not given.isfinite().all():
            wrong.append(f"{name} holds NaN or infinity")
        elif mine.is_floating_point() and not given.to(mine.dtype).isfinite().all():
            dtype = str(mine.dtype).removeprefix("torch.")
            wrong.append(f"{name} holds numbers that {dtype} does not")
    if wrong:
        msg = f"--weights: {path} does not fit the model: {wrong[0]}"
        raise InputError(msg + (f", and {len(wrong) - 1} more of the kind" * (len(wrong) > 1)))


def _listed(names: Iterable[str]) -> str:
    """The first names of a list, and how many there are beside."""
    every = list(names)
    more = f" and {len(every) - 3} more" if len(every) > 3 else ""
    return (", ".join(every[:3]) or "nothing") + more


def _check_file(option: str, path: Path) -> None:
    """Refuse a path that is no file, or may not be read: a pipe would wait for ever."""
    try:
        there, regular = path.exists(), path.is_file()
        what = "is a folder" if path.is_dir() else "is no regular file"
    except (OSError, ValueError) as error:
        msg = f"{option}: {str(path)[:80]!r} is no path ({getattr(error, 'strerror', '') or error})"
        raise InputError(msg) from error
    if not there:
        msg = f"{option}: there is no file {path}"
        raise InputError(msg)
    if not regular:
        msg = f"{option}: {path} {what}; name a file"
        raise InputError(msg)


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
        InputError: If the file is missing or is none, holds no arrays of numbers under a known
            name, or not as many targets as inputs, or NaN.
    """
    import torch

    _check_file("--data", path)
    if path.suffix != ".npz":
        msg = f"--data: expected a .npz file, got {path}; numpy.savez(path, x=…, y=…) makes one"
        raise InputError(msg)
    (name, first), second = _read(path)
    if len(first) == 0:
        msg = f"--data: {name} of {path} has no samples, shape {first.shape}"
        raise InputError(msg)
    if second is not None and len(second[1]) != len(first):
        msg = (
            f"--data: expected as many targets as inputs in {path}, got {len(first)} in {name} and "
            f"{len(second[1])} in {second[0]}"
        )
        raise InputError(msg)
    parameter = next((p for p in net.parameters() if p.is_floating_point()), torch.zeros(()))
    dtype, device = parameter.dtype, parameter.device
    x = torch.from_numpy(first)[:samples]
    if x.dtype == torch.uint8:
        x = x.to(dtype) / 255
    elif x.is_floating_point():
        x = _finite(path, name, x, dtype)
    if second is None:
        return x.to(device), None
    y = torch.from_numpy(second[1])[:samples]
    if loss in CLASSES and not y.is_floating_point():
        return x.to(device), y.to(device, torch.int64)
    return x.to(device), _finite(path, second[0], y, dtype).to(device)


def _finite(path: Path, name: str, values: "Tensor", dtype: Any) -> "Tensor":
    """The values in the model's dtype, which has to hold them."""
    result = values.to(dtype)
    bad = ~result.isfinite().reshape(len(values), -1).all(1)
    if bad.any():
        row = int(bad.nonzero()[0])
        inside = values[row].reshape(-1)
        what = "NaN or infinity"
        if inside.isfinite().all():
            what = f"numbers that {str(dtype).removeprefix('torch.')} cannot hold"
        msg = (
            f"--data: {name} of {path} has {what} in {int(bad.sum())} of {len(values)} samples, "
            f"the first is sample {row}; mend them or leave them out"
        )
        raise InputError(msg)
    return result


_Named = tuple[str, Any]


def _read(path: Path) -> tuple[_Named, _Named | None]:
    """Read the two arrays that are needed, and no others."""
    import numpy as np

    try:
        with path.open("rb") as opened:
            file = np.load(opened, allow_pickle=False)
            if not isinstance(file, Mapping):  # one array, saved by numpy.save
                msg = f"--data: {path} is no .npz file; numpy.savez(path, x=…, y=…) makes one"
                raise InputError(msg)
            names = list(file)
            key = next((n for n in INPUT_KEYS if n in names), None)
            if key is None:
                msg = f"--data: {path} holds {_listed(names)}; expected an array called x"
                raise InputError(msg)
            target = next((n for n in TARGET_KEYS if n in names), None)
            x = key, _plain(path, key, file[key])
            return x, None if target is None else (target, _plain(path, target, file[target]))
    except InputError:
        raise
    except Exception as error:  # zipfile, its codecs and NumPy raise whatever they like
        _unreadable(path, error)


def _unreadable(path: Path, error: Exception) -> NoReturn:
    first = _reason(error)
    if "pickle" in first:
        first = "no zip file, or an array of Python objects"
    msg = f"--data: cannot read {path} as a .npz file ({first}); {MADE}"
    raise InputError(msg) from error


def _reason(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")[:200]


def _plain(path: Path, name: str, array: Any) -> "np.ndarray[Any, Any]":
    """An array of numbers, in this machine's byte order."""
    import numpy as np

    if not isinstance(array, np.ndarray):  # a file in the archive that is no array
        msg = f"--data: {name} of {path} is no array; {MADE}"
        raise InputError(msg)
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

    if loss in CLASSES or y.ndim != 1:
        return y
    try:
        with held_still(net):  # with gradients, which a forward pass may take itself
            z = net(x[:1])
    except Exception:  # the user's code, and so any
        return y
    return y[:, None] if isinstance(z, torch.Tensor) and z.shape == (1, 1) else y
