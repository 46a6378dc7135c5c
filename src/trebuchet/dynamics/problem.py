"""A problem: a model, a loss with its convention, and the data it is trained on."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from trebuchet._checks import (
    function,
    mapping,
    one_line,
    refuse,
    seed as one_seed,
    shown,
    text,
)
from trebuchet._doors import door, maybe
from trebuchet.dynamics.losses import HalfMeanSquare, Loss, LossFunction, UserLoss
from trebuchet.errors import InputError
from trebuchet.problem.losses import ModelLoss, resolve
from trebuchet.problem.risk import out_of_memory

ModelFactory = Callable[[int], nn.Module]
"""Maps a seed to a freshly initialised module."""


def _model(name: str, value: object) -> Any:
    if isinstance(value, nn.Module):
        return value
    if isinstance(value, type) and issubclass(value, nn.Module):
        cls = value.__name__
        advice = f"make one, or give a function such as lambda seed: {cls}(...)"
        refuse(name, "a module or a function of a seed that makes one", value, advice)
    return function(name, value, "a module or a function of a seed that makes one")


def _made(factory: Any, seed: int) -> object:
    try:
        return factory(seed)
    except InputError:
        raise
    except Exception as error:  # the user's function may raise anything
        if out_of_memory(error):
            raise
        msg = (
            f"model: expected a function of a seed to an nn.Module, at seed {seed} it raised "
            f"{one_line(error)}; mend the function"
        )
        raise InputError(msg) from error


def _loss(name: str, value: object) -> Loss:
    if isinstance(value, Loss):
        return value
    if isinstance(value, str) and value == "half_mse":
        return HalfMeanSquare()
    loss = resolve(value)
    if loss is None or isinstance(loss, ModelLoss):
        refuse(name, "a name or a function of (outputs, labels)", value)
    called = value if isinstance(value, str) else getattr(value, "__name__", type(value).__name__)
    return UserLoss(loss, str(called))


def _tensor(name: str, value: object) -> Tensor:
    """Rows of real numbers as a dense tensor: whole ones may be classes."""
    try:
        tensor = value.detach() if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))
    except Exception as error:  # an array protocol may raise anything
        msg = f"{name}: expected an array of numbers, got {shown(value)} ({one_line(error)})"
        raise InputError(msg) from error
    plain = tensor.layout == torch.strided and tensor.device.type != "meta"
    if tensor.is_complex() or not plain:
        what = f"{tensor.dtype} on {tensor.device}, {tensor.layout}"
        msg = f"{name}: expected a dense array of real numbers, got {what}"
        raise InputError(msg)
    if tensor.ndim == 0 or tensor.numel() == 0:
        msg = f"{name}: expected one or more rows, got shape {tuple(tensor.shape)}"
        raise InputError(msg)
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        bad = int((~torch.isfinite(tensor)).sum())
        msg = f"{name}: expected finite numbers, got {bad} NaN or infinite ones; remove those rows"
        raise InputError(msg)
    return tensor


def _pair(name: str, value: object) -> tuple[Tensor, Tensor]:
    if not (isinstance(value, (tuple, list)) and len(value) == 2):
        refuse(name, "a pair (inputs, labels)", value)
    return _tensor(f"{name}[0]", value[0]), _tensor(f"{name}[1]", value[1])


@dataclass(frozen=True)
class Problem:
    """What is trained, on what, to make which loss small.

    Args:
        model: A module, whose present weights every run starts from; or a function of a seed that
            makes one, for sweeps over several seeds.
        x: Training inputs, D rows; array or tensor.
        y: Labels, D rows.
        loss: ``"half_mse"``, L = (1/2D)Σ|z − y|², another name as for ``scan``, or a function of
            outputs and labels to a scalar (its own reduction is part of it). Outputs come in the
            shape in which the model returns them, real labels of as many numbers in the same.
        test: Test inputs and labels, for a test loss beside the training loss.
        name: What results call it.
        facts: Anything to keep with the results, such as a checksum of the data.

    Raises:
        InputError: If shapes disagree, data hold a NaN or an infinity, or the loss is unknown.

    Example:
        >>> from trebuchet.models import PureQuadratic
        >>> problem = Problem(lambda seed: PureQuadratic.draw(10, generator=seed), [[1.0]], [0.0])
        >>> problem.x.dtype
        torch.float64
    """

    model: nn.Module | ModelFactory
    x: Tensor
    y: Tensor
    loss: Loss
    test: tuple[Tensor, Tensor] | None
    name: str
    facts: Mapping[str, str]

    @door(
        model=_model, x=_tensor, y=_tensor, loss=_loss, test=maybe(_pair), name=text,
        facts=maybe(mapping),
    )  # fmt: skip
    def __init__(
        self,
        model: nn.Module | ModelFactory,
        x: ArrayLike | Tensor,
        y: ArrayLike | Tensor,
        *,
        loss: str | LossFunction | Loss = "half_mse",
        test: tuple[ArrayLike | Tensor, ArrayLike | Tensor] | None = None,
        name: str = "",
        facts: Mapping[str, str] | None = None,
    ) -> None:
        x, y = _tensor("x", x), _tensor("y", y)
        _check_pair("x", x, "y", y)
        pair = None if test is None else _pair("test", test)
        if pair is not None:
            _check_pair("test[0]", pair[0], "test[1]", pair[1])
            if pair[0].shape[1:] != x.shape[1:]:
                msg = (
                    f"test[0]: expected rows of shape {tuple(x.shape[1:])}, as in x, got "
                    f"{tuple(pair[0].shape[1:])}"
                )
                raise InputError(msg)
        if not name:
            name = type(model).__name__ if isinstance(model, nn.Module) else "model"
        for field, value in {
            "model": model, "x": x, "y": y, "loss": _loss("loss", loss), "test": pair, "name": name,
            "facts": dict(facts or {}),
        }.items():  # fmt: skip
            object.__setattr__(self, field, value)

    @property
    def reseeds(self) -> bool:
        """Whether a seed makes a new initialisation."""
        return not isinstance(self.model, nn.Module)

    @door(seed=one_seed)
    def initial(self, seed: int) -> nn.Module:
        """The model at its initialisation for this seed.

        Args:
            seed: The seed; a problem that was given a module has one initialisation only.

        Returns:
            The module.

        Raises:
            InputError: If the factory does not return a module, or its weights are not finite.
        """
        # object, since a factory may return anything
        model: object = self.model if isinstance(self.model, nn.Module) else self._made(seed)
        if not isinstance(model, nn.Module):
            msg = f"model: expected a function of a seed to an nn.Module, it made {shown(model)}"
            raise InputError(msg)
        trainable = [p for p in model.parameters() if p.requires_grad]
        if not trainable:
            msg = "model: expected at least one trainable parameter, got none"
            raise InputError(msg)
        if not all(bool(torch.isfinite(p).all()) for p in trainable):
            msg = "model: expected finite weights, got NaN or infinity"
            raise InputError(msg)
        return model

    def _made(self, seed: int) -> object:
        factory: Any = self.model
        try:
            inspect.signature(factory).bind(seed)
        except TypeError as error:
            msg = (
                f"model: expected a function of one argument, the seed, got one that cannot be "
                f"called so ({error}); write lambda seed: ..., and draw the weights by that seed"
            )
            raise InputError(msg) from error
        except ValueError:
            pass  # written in C, with no signature to look at
        return _made(factory, seed)


def _check_pair(x_name: str, x: Tensor, y_name: str, y: Tensor) -> None:
    if x.shape[0] != y.shape[0]:
        msg = (
            f"{y_name}: expected one label a row of {x_name} ({x.shape[0]}), got {y.shape[0]}; "
            "check that both come from the same samples"
        )
        raise InputError(msg)
