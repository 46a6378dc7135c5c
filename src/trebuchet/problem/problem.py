"""A problem: a model, a loss with its convention, the data it is trained on, and how."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trebuchet._checks import (
    anything,
    function,
    mapping,
    one_line,
    positive,
    refuse,
    seed as one_seed,
    shown,
    text,
    whole,
)
from trebuchet._doors import door, maybe, rule
from trebuchet._torch_checks import out_of_memory
from trebuchet.errors import InputError
from trebuchet.problem.batches import SizeOf
from trebuchet.problem.losses import LossFn, ModelLoss, resolve
from trebuchet.problem.noise import seeded
from trebuchet.problem.optimizer_names import lookup
from trebuchet.problem.optimizers import Clip, describe, given
from trebuchet.problem.schedules import (
    MakeScheduler,
    Multiplier,
    Schedule,
    check_multiplier,
    makes_scheduler,
)
from trebuchet.problem.selection import select

ModelFactory = Callable[..., nn.Module]
"""Maps a seed to a freshly initialised module; and what a sweep's axes give it by keyword."""

MOST_BATCHES = 1_000_000
"""Batches that one step may accumulate."""


A_MODEL = "a torch.nn.Module, or a function of a seed that makes one"
OR_A_PROBLEM = "a torch.nn.Module, a function of a seed that makes one, or a trebuchet.Problem"


def _model(name: str, value: object, expected: str = A_MODEL) -> Any:
    if isinstance(value, nn.Module):
        return value
    if isinstance(value, type) and issubclass(value, nn.Module):
        cls = value.__name__
        advice = f"make one, or give a function such as lambda seed: {cls}(...)"
        refuse(name, expected, value, advice)
    return function(name, value, expected)


def _loss(name: str, value: object) -> Any:
    if isinstance(value, (Tensor, np.ndarray, list, tuple)):
        advice = "Problem takes (model, loss, data), data being the pair (inputs, targets)"
        refuse(name, "a name or a function", value, advice)
    resolve(value)
    return value


def _optimizer(name: str, value: object) -> Any:
    del name
    if isinstance(value, str):
        lookup(value)  # a name that is none is told with its neighbours
    return value


def _autocast(name: str, value: object) -> Any:
    if value is None or (isinstance(value, torch.dtype) and value.is_floating_point):
        return value
    msg = (
        f"{name}: expected a floating dtype such as torch.bfloat16, got {shown(value)}; leave it "
        "out to run as torch.autocast is set around the call"
    )
    raise InputError(msg)


def _schedule(name: str, value: object) -> Any:
    del name
    if value is not None:
        makes_scheduler(value)  # refuses what is neither
    return value


def _data(name: str, value: object) -> Any:
    """Data as they are, lists of numbers as arrays; a table is looked at right away."""
    if value is None:
        msg = f"{name}: expected tensors, a dict, or a loader of batches, got None"
        raise InputError(msg)
    if not (type(value) in (tuple, list) and len(cast(Sequence[Any], value)) == 2):
        return value
    pair = [_numbers(part) for part in cast(Sequence[Any], value)]
    _check_table(name, *pair)
    return tuple(pair) if isinstance(value, tuple) or pair[0] is not value[0] else value  # type: ignore[index]  # a pair


def _numbers(part: Any) -> Any:
    """A list of numbers as an array, which takes the model's type; anything else as it is."""
    if not isinstance(part, (list, tuple)) or _holds_tensors(part):
        return part
    try:
        array = np.asarray(part)
    except (TypeError, ValueError):
        return part
    return array if array.dtype.kind in "biufOU" else part


def _holds_tensors(part: Any) -> bool:
    return isinstance(part, (list, tuple)) and any(
        isinstance(x, (Tensor, Mapping)) or _holds_tensors(x) for x in part
    )


def _check_table(name: str, x: Any, y: Any) -> None:
    """Look at a pair of plain tables, rows by columns: there is one target a row, all numbers."""
    if not all(isinstance(part, (Tensor, np.ndarray)) for part in (x, y)):
        return
    for which, part in ((f"{name}[0]", x), (f"{name}[1]", y)):
        _tensor(which, part)
    if x.ndim > 2 or not _floating(x):
        return  # sequences, images and tokens have their own ways
    _one_target_a_row(name, x, y)


def _one_target_a_row(name: str, x: Any, y: Any) -> None:
    if x.shape[0] != y.shape[0]:
        msg = (
            f"{name}: expected one target a row of inputs ({x.shape[0]}), got {y.shape[0]}; check "
            "that both come from the same samples"
        )
        raise InputError(msg)


def finite_table(name: str, x: Tensor, y: Tensor) -> None:
    """Refuse inputs and targets that are not as many, or not finite.

    Args:
        name: What the pair is called.
        x: Inputs, a row a sample.
        y: Targets.

    Raises:
        InputError: If there is not one target a row, or there are NaN or infinities.
    """
    _one_target_a_row(name, x, y)
    for which, t in ((f"{name}[0]", x), (f"{name}[1]", y)):
        if t.is_floating_point() and not bool(torch.isfinite(t).all()):
            bad = int((~torch.isfinite(t)).sum())
            msg = f"{which}: expected finite numbers, got {bad} NaN or infinite; remove those rows"
            raise InputError(msg)


def _floating(x: Any) -> bool:
    return x.is_floating_point() if isinstance(x, Tensor) else x.dtype.kind == "f"


def _writable(value: object) -> NDArray[Any]:
    """An array that torch can share without a warning."""
    array = np.asarray(value)
    if array.dtype.kind in "biufc":
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
    return np.require(array, requirements=["C", "W"])


def _tensor(name: str, value: object) -> Tensor:
    """Rows of real numbers as a dense tensor: whole ones may be classes."""
    try:
        tensor = value.detach() if isinstance(value, Tensor) else torch.as_tensor(_writable(value))
    except Exception as error:  # an array protocol may raise anything
        msg = f"{name}: expected an array of numbers, got {shown(value)} ({one_line(error)})"
        raise InputError(msg) from error
    if tensor.is_complex() or tensor.device.type == "meta":
        msg = f"{name}: expected an array of real numbers, got {tensor.dtype} on {tensor.device}"
        raise InputError(msg)
    if tensor.ndim == 0 or tensor.numel() == 0:
        msg = f"{name}: expected one or more rows, got shape {tuple(tensor.shape)}"
        raise InputError(msg)
    return tensor


@door(
    model=_model, loss=_loss, data=_data, optimizer=_optimizer,
    batch_size=maybe(whole, "a positive number of samples"), test=maybe(_data),
    accumulate=rule(whole, "a positive number of batches a step", most=MOST_BATCHES),
    micro_batch=maybe(whole, "a positive number of samples"), autocast=_autocast,
    schedule=_schedule, clip_grad_norm=maybe(positive), clip_grad_value=maybe(positive),
    weights=anything, size_of=anything, name=text, facts=maybe(mapping),
)  # fmt: skip
@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """What is trained, on what, to make which loss small, and how: what every door takes.

    Args:
        model: A module, whose present weights every run starts from; or a function of a seed that
            makes one, for sweeps over several seeds; the global generators are seeded before.
        loss: A name (``"half_mse"``, ``"mse"``, ``"cross_entropy"`` …), ``loss(outputs, targets)``,
            a closure ``loss_fn(model, batch)``, or None for the model's own.
        data: ``(inputs, targets)``, a dict batch, a list of batches or a ``DataLoader``. Arrays and
            lists of numbers take the model's type.
        optimizer: A name, a factory ``(params, rate) -> optimizer``, an optimizer already made, or
            a list of these.
        batch_size: Samples a batch; by default the loader's own, or all of them.
        test: Held-out data in any of the forms of `data`, for a test loss beside the training loss.
        accumulate: Batches whose mean gradient makes one step.
        micro_batch: At most so many samples in one forward pass.
        autocast: dtype to run the model in; by default as ``torch.autocast`` is set by the caller.
        schedule: Multiplier of the rate at step t, or a function of an optimizer that makes one of
            torch's schedulers.
        clip_grad_norm: Gradients longer than this are scaled down to it before every step.
        clip_grad_value: Entries of gradients are cut off at ± this before every step.
        weights: What each batch of a list counts in the mean loss, where it cannot be told.
        size_of: The same as a function of a batch.
        name: What results call it; the model's class unless given.
        facts: Anything to keep with the results, such as a checksum of the data.

    Raises:
        InputError: If an argument is not what was expected. What only an evaluation can tell, such
            as whether model and data fit together, is said by the door that is asked.

    Example:
        >>> from trebuchet.models import PureQuadratic
        >>> problem = Problem(lambda s: PureQuadratic.draw(10, generator=s), "half_mse",
        ...                   ([[1.0]], [0.0]))
        >>> problem.x.shape, problem.reseeds, problem.loss_name
        (torch.Size([1, 1]), True, 'half_mse')
    """

    model: nn.Module | ModelFactory
    loss: str | LossFn | ModelLoss | None
    data: object
    optimizer: (
        str | torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | Callable[..., Any]
    ) = "sgd"
    batch_size: int | None = field(default=None, kw_only=True)
    test: object = field(default=None, kw_only=True)
    accumulate: int = field(default=1, kw_only=True)
    micro_batch: int | None = field(default=None, kw_only=True)
    autocast: torch.dtype | None = field(default=None, kw_only=True)
    schedule: Schedule | None = field(default=None, kw_only=True)
    clip_grad_norm: float | None = field(default=None, kw_only=True)
    clip_grad_value: float | None = field(default=None, kw_only=True)
    weights: Sequence[float] | None = field(default=None, kw_only=True)
    size_of: SizeOf | None = field(default=None, kw_only=True)
    name: str = field(default="", kw_only=True)
    facts: Mapping[str, str] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if not self.name:
            kind = type(self.model).__name__ if isinstance(self.model, nn.Module) else "model"
            object.__setattr__(self, "name", kind)
        object.__setattr__(self, "facts", dict(self.facts or {}))

    @property
    def reseeds(self) -> bool:
        """Whether a seed makes a new initialisation."""
        return not isinstance(self.model, nn.Module)

    @property
    def loss_name(self) -> str:
        """What to call the loss."""
        if isinstance(self.loss, str):
            return self.loss
        if self.loss is None:
            return "the model's own"
        return str(getattr(self.loss, "__name__", type(self.loss).__name__))

    @property
    def optimizer_name(self) -> str:
        """What to call the optimizer."""
        return describe(self.optimizer)

    @property
    def instance(self) -> torch.optim.Optimizer | None:
        """The optimizer, if it was given ready made."""
        made = given(self.optimizer)
        return made if isinstance(made, torch.optim.Optimizer) else None

    @property
    def clip(self) -> Clip:
        """Gradient clipping."""
        return Clip(self.clip_grad_norm, self.clip_grad_value)

    @property
    def unchanging(self) -> bool:
        """Whether every step is made by one rule, exactly: no schedule, and no autocast.

        Only then can a loss that repeats be told from one that is made to.
        """
        return self.schedule is None and self.autocast is None

    @property
    def scheduler(self) -> MakeScheduler | None:
        """What makes a scheduler for each run's optimizer, if that is what the schedule is."""
        if self.schedule is None or not makes_scheduler(self.schedule):
            return None
        return cast("MakeScheduler", self.schedule)

    @property
    def multiplier(self) -> Multiplier | None:
        """The schedule, if it is a function of the step."""
        if self.schedule is None or makes_scheduler(self.schedule):
            return None
        return cast("Multiplier", self.schedule)

    @property
    def x(self) -> Tensor:
        """The inputs of a pair of arrays, as a tensor.

        Raises:
            InputError: If the data are something else.
        """
        return self._part(0)

    @property
    def y(self) -> Tensor:
        """The targets of a pair of arrays, as a tensor.

        Raises:
            InputError: If the data are something else.
        """
        return self._part(1)

    @property
    def is_table(self) -> bool:
        """Whether the data are one pair of arrays, inputs and targets."""
        return is_table(self.data)

    def _part(self, which: int) -> Tensor:
        if not self.is_table:
            msg = f"data: expected a pair of arrays here, got a {type(self.data).__name__}"
            raise InputError(msg)
        return _tensor(f"data[{which}]", cast(Sequence[Any], self.data)[which])

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
        return initial(self.model, seed)


def initial(given: nn.Module | ModelFactory, seed: int) -> nn.Module:
    """A module, or the one that a function of the seed makes, whose weights can be trained.

    Args:
        given: What a problem holds as its model.
        seed: The seed.

    Returns:
        The module.

    Raises:
        InputError: If the function does not make a module, or it has no trainable weights, or not
            all of them are finite real numbers in memory.
    """
    # object, since a factory may return anything
    model: object = given if isinstance(given, nn.Module) else _made(given, seed)
    if not isinstance(model, nn.Module):
        msg = f"model: expected a function of a seed to a torch.nn.Module, it made {shown(model)}"
        raise InputError(msg)
    if not all(bool(torch.isfinite(p).all()) for p in select(model).values()):
        msg = "model: expected finite weights, got NaN or infinity"
        raise InputError(msg)
    return model


def _made(factory: ModelFactory, seed: int) -> object:
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
    try:
        with seeded(seed):  # for a function that draws from the global generators
            return factory(seed)
    except InputError:
        raise
    except Exception as error:  # the user's function may raise anything
        if out_of_memory(error):
            raise
        msg = (
            f"model: expected a function of a seed to a torch.nn.Module, at seed {seed} it raised "
            f"{one_line(error)}; mend the function"
        )
        raise InputError(msg) from error


def check_schedule(problem: Problem, steps: int) -> None:
    """Try a schedule that is a function of the step, before any step is made.

    Args:
        problem: Whose schedule.
        steps: Of a run.

    Raises:
        InputError: If it is no multiplier at one of them.
    """
    if problem.multiplier is not None:
        check_multiplier(problem.multiplier, steps)


def is_table(data: object) -> bool:
    """Whether data are one pair of arrays, inputs and targets."""
    pair: Any = data
    return (
        type(data) in (tuple, list)
        and len(pair) == 2
        and all(isinstance(part, (Tensor, np.ndarray)) for part in pair)
    )


def placed(problem: Problem, model: nn.Module) -> Problem:
    """The problem with a pair of tensors as an array would be: of the model's type, where it is.

    Args:
        problem: The problem.
        model: Its module.

    Returns:
        The problem, or the same with other data.
    """
    weight = next((p for p in model.parameters() if p.requires_grad), None)
    if weight is None or isinstance(weight, nn.parameter.UninitializedParameter):
        return problem

    def moved(data: Any) -> Any:
        if not is_table(data):
            return data
        return tuple(
            t.to(weight.device, weight.dtype if t.is_floating_point() else t.dtype)
            if isinstance(t, Tensor)
            else t
            for t in data
        )

    return replace(problem, data=moved(problem.data), test=moved(problem.test))


def a_model(name: str, value: object) -> Any:
    """A module, or a function of a seed that makes one, where a `Problem` would do too."""
    return _model(name, value, OR_A_PROBLEM)


__all__ = [
    "ModelFactory",
    "Problem",
    "a_model",
    "check_schedule",
    "finite_table",
    "initial",
    "placed",
]
