"""Optimizers made fresh for every run, at that run's rate."""

import inspect
import math
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn, cast

import torch
from torch import nn
from torch.optim import Optimizer

from trebuchet._checks import one_line
from trebuchet.errors import InputError
from trebuchet.problem.optimizer_copies import (
    Together,
    as_one,
    check_copyable,
    copied,
    has_modes,
    parameters_of,
    set_mode,
)
from trebuchet.problem.optimizer_names import lookup
from trebuchet.problem.optimizer_rows import NAMED
from trebuchet.problem.risk import out_of_memory

Factory = Callable[[Sequence[nn.Parameter], float], Optimizer]
"""``factory(params, rate) -> optimizer``; an optimizer class, or a ``partial`` of one, is one."""


@dataclass(frozen=True, slots=True)
class Clip:
    """Gradient clipping, before every step, over all trainable parameters.

    Attributes:
        norm: Gradients longer than this are scaled down to it; None leaves them.
        value: Their entries are cut off at ± this; None leaves them.
    """

    norm: float | None = None
    value: float | None = None

    def __bool__(self) -> bool:
        return self.norm is not None or self.value is not None

    def __call__(self, params: Sequence[nn.Parameter]) -> None:
        """Clip, in place, as ``torch.nn.utils`` does."""
        if self.value is not None:
            nn.utils.clip_grad_value_(params, self.value)
        if self.norm is not None:
            nn.utils.clip_grad_norm_(params, self.norm)


NO_CLIP = Clip()


def make_factory(
    optimizer: object,
    params: Sequence[nn.Parameter],
    *,
    check: bool = True,
    clip: Clip = NO_CLIP,
) -> Factory:
    """Return a function that makes an optimizer at a rate, and check that a scan can use it.

    One step with zero gradients is tried. The parameters are put back, and nothing is left of it.

    Args:
        optimizer: A name, a factory, or an optimizer already made: then every run starts from its
            state, with its hooks, and the rate is that of its first group, the others' keeping
            their ratio to it. Several, in a list or from a factory, step one after the other.
        params: The trainable parameters.
        check: False where it was checked before.
        clip: Done before everything else in a step.

    Returns:
        The factory.

    Raises:
        InputError: If `optimizer` is unknown, makes no optimizer, ignores the rate, maximises, is
            not for the model's parameters and only them, cannot make a step by itself, or cannot
            be copied for every run.
    """
    factory = _unclipped(optimizer, params, check=check)
    return _clipped(factory, clip) if clip else factory


def _unclipped(optimizer: object, params: Sequence[nn.Parameter], *, check: bool) -> Factory:
    optimizer = given(optimizer)
    if isinstance(optimizer, Optimizer):
        factory = _from_instance(optimizer)
        if check:
            check_copyable(optimizer)
            _check_parameters(optimizer, params)
            _check_step(factory(params, 1e-3), params)
        return factory
    factory = called(optimizer)
    if check:
        made = _check_heeds(factory, params, named=isinstance(optimizer, str))
        _check_parameters(made, params)
        _check_step(made, params)
    return factory


def evaluated_first(
    optimizer: object, params: Sequence[nn.Parameter], factory: Factory, clip: Clip = NO_CLIP
) -> Factory:
    """Let runs of a schedule-free optimizer start from the weights that it is evaluated with.

    One that is made already, and is in train mode, has the model hold other weights: they are put
    into the model, and later runs go on from there. The caller puts the model's own back.

    Args:
        optimizer: As given to ``scan``.
        params: The trainable parameters.
        factory: What `make_factory` made of it.
        clip: As for `make_factory`.

    Returns:
        The factory; of any other optimizer it is the same.
    """
    made = given(optimizer)
    if not isinstance(made, Optimizer) or not has_modes(made):
        return factory
    made = copied(made)
    set_mode(made, training=False)
    return make_factory(made, params, check=False, clip=clip)


def given(optimizer: object) -> object:
    """An optimizer as it was given, several in a list as one; anything else as it is.

    Args:
        optimizer: As given to ``scan``.

    Returns:
        The same, or one that stands for the list.
    """
    return as_one(optimizer) if isinstance(optimizer, (list, tuple)) else optimizer


def called(optimizer: object) -> Factory:
    """A factory from a name, a class, a partial or a function.

    Args:
        optimizer: No optimizer that is made already.

    Returns:
        The factory, not checked.

    Raises:
        InputError: If the name is unknown, or it is none of these.
    """
    if isinstance(optimizer, str):
        make = NAMED.get(lookup(optimizer))
        if make is None:
            msg = f"optimizer: {optimizer!r} is not in torch {torch.__version__}; use a newer one"
            raise InputError(msg)
        return lambda p, rate: make(p, lr=rate)
    if not callable(optimizer):
        msg = (
            "optimizer: expected a name, an optimizer, or a factory(params, rate), got a "
            f"{type(optimizer).__name__}"
        )
        raise InputError(msg)
    function = optimizer
    inner = function.func if isinstance(function, partial) else function
    by_name = isinstance(inner, type) and issubclass(inner, Optimizer)

    def factory(params: Sequence[nn.Parameter], rate: float) -> Optimizer:
        made: Any = function(params, lr=rate) if by_name else function(params, rate)
        return as_one(made) if isinstance(made, (list, tuple)) else made

    return factory


def _clipped(factory: Factory, clip: Clip) -> Factory:
    def clipping(params: Sequence[nn.Parameter], rate: float) -> Optimizer:
        made: Any = factory(params, rate)
        theirs = vars(made).get("step")  # a factory may have given its optimizer one

        # Not a hook, which an optimizer may lack; first of all, as clipping follows the backward.
        def step(self: Any, *args: Any, **kwargs: Any) -> Any:
            clip(params)
            return theirs(*args, **kwargs) if theirs else type(self).step(self, *args, **kwargs)

        step.only_clips = theirs is None  # type: ignore[attr-defined]  # a note on it
        made.step = types.MethodType(step, made)
        return cast(Optimizer, made)

    return clipping


def _check_heeds(factory: Factory, params: Sequence[nn.Parameter], *, named: bool) -> Optimizer:
    """Make two optimizers, and return one if their rates are those asked for."""
    made = made_at((1e-3, 2e-3), factory, params, named=named)
    low, high = (_rates(o) for o in made)
    if len(low) != len(high) or not all(
        abs(b - 2 * a) <= 1e-6 * abs(b) and b != 0 for a, b in zip(low, high, strict=True)
    ):
        msg = (
            "optimizer: the factory ignores the rate it is given (at rates 0.001 and 0.002 its "
            f"groups have lr {low} and {high}); pass the second argument on as lr, of every group"
        )
        raise InputError(msg)
    return made[0]


def made_at(
    rates: Sequence[float], factory: Factory, params: Sequence[nn.Parameter], *, named: bool
) -> list[Optimizer]:
    """Make an optimizer at each of some rates.

    Args:
        rates: The rates.
        factory: What makes them.
        params: The trainable parameters.
        named: Whether the factory is trebuchet's own, from a name.

    Returns:
        The optimizers.

    Raises:
        InputError: If it cannot, or what it makes is none.
    """
    try:
        made = [factory(params, rate) for rate in rates]
    except InputError:
        raise
    except Exception as error:  # the user's factory may raise anything
        advice = "expected a name or a factory(params, rate) that returns an optimizer"
        if named:
            advice = "choose another, or several in a list, each for the parameters that it takes"
        _explain("could not be made for this model", advice, error)
    if not all(isinstance(o, Optimizer) for o in made):
        msg = (
            "optimizer: the factory must return a torch.optim.Optimizer, got a "
            f"{type(made[0]).__name__}"
        )
        raise InputError(msg)
    return made


def _check_parameters(optimizer: Optimizer, params: Sequence[nn.Parameter]) -> None:
    known = {id(p) for p in params}
    held = {id(p): p for p in parameters_of(optimizer)}.values()
    if not any(id(p) in known for p in held):
        msg = (
            "optimizer: holds none of the model's parameters; make it for this model's (a copy "
            "has others), or give a factory(params, rate)"
        )
        raise InputError(msg)
    # Frozen parameters of the model may be among them: no step moves those.
    others = sum(id(p) not in known and p.requires_grad for p in held)
    if others:
        msg = (
            f"optimizer: holds {others} parameters that are not the model's (a loss's own?); put "
            "them into one module with the model and give a closure loss(model, batch)"
        )
        raise InputError(msg)
    if any(group.get("maximize") for group in optimizer.param_groups):
        msg = (
            "optimizer: expected one that lowers the loss, got maximize=True; scan minus the loss "
            "with maximize=False"
        )
        raise InputError(msg)


def _check_step(made: Optimizer, params: Sequence[nn.Parameter]) -> None:
    """Try one step; the parameters and their gradients are put back."""
    rules = inspect.signature(made.step).parameters.values()
    if any(r.default is r.empty and r.kind is r.POSITIONAL_OR_KEYWORD for r in rules):
        _refuse_closure(made)
    kept = [(p, p.detach().clone(), p.grad) for p in params]
    try:
        for p in params:
            p.grad = torch.zeros_like(p)
        set_mode(made, training=True)
        made.step()
    except Exception as error:  # an optimizer may raise anything
        if "closure" in str(error):
            _refuse_closure(made, error)
        what = f"{type(made).__name__} cannot make a step on this model"
        _explain(what, "change its settings, or give a factory(params, rate)", error)
    finally:
        with torch.no_grad():
            for p, value, grad in kept:
                p.copy_(value)
                p.grad = grad


def _refuse_closure(made: Optimizer, error: Exception | None = None) -> NoReturn:
    msg = (
        f"optimizer: its step needs a closure ({type(made).__name__}), which a scan cannot give; "
        "choose one whose step() works from the gradients alone"
    )
    raise InputError(msg) from error


def _explain(what: str, advice: str, error: Exception) -> NoReturn:
    if out_of_memory(error):
        raise error
    msg = f"optimizer: {what} ({one_line(error)}); {advice}"
    raise InputError(msg) from error


def _rates(optimizer: Optimizer) -> list[float]:
    return [float(group.get("lr", math.nan)) for group in optimizer.param_groups]


def _from_instance(optimizer: Optimizer) -> Factory:
    rates = _rates(optimizer)
    if not (rates[0] > 0 and all(map(math.isfinite, rates))):
        msg = (
            f"optimizer: its first group has lr {rates[0]:g}, so the other groups' ratio to it is "
            "undefined; give the groups finite rates, the first a positive one"
        )
        raise InputError(msg)

    def factory(params: Sequence[nn.Parameter], rate: float) -> Optimizer:
        del params  # it has its own
        made = copied(optimizer)
        for group, lr in zip(made.param_groups, rates, strict=True):
            group["lr"] = rate * lr / rates[0]
            group.pop("initial_lr", None)  # a scheduler's, of the original's rate
        return made

    return factory


def epsilon_lost(optimizer: Optimizer) -> str:
    """Say so where an optimizer's ε is zero in its parameters' dtype; empty where it is not.

    Args:
        optimizer: Already made.

    Returns:
        A sentence without its full stop.
    """
    for group in optimizer.param_groups:
        eps = group.get("eps")
        if not isinstance(eps, float) or eps == 0:
            continue
        lost = [p.dtype for p in group["params"] if not float(torch.tensor(eps, dtype=p.dtype))]
        if lost:
            return (
                f"the optimizer's ε = {eps:g} is zero in {str(lost[0]).removeprefix('torch.')}, so "
                f"its step is 0/0 where squared gradients vanish too; give ε of 1e-4 or so, such "
                f"as partial({type(optimizer).__name__}, eps=1e-4), or train float32 weights"
            )
    return ""


def unheld(optimizer: Optimizer, params: Sequence[nn.Parameter]) -> str:
    """Say so where an optimizer leaves out parameters; empty where it holds all.

    Args:
        optimizer: Already made.
        params: The trainable parameters.

    Returns:
        A sentence without its full stop.
    """
    held = {id(p) for p in parameters_of(optimizer)}
    missed = [p for p in params if id(p) not in held]
    if not missed:
        return ""
    count = sum(p.numel() for p in missed)
    of = f"{len(params) - len(missed)} of the model's {len(params)} parameter tensors"
    return f"the optimizer holds {of}; the other {count} numbers are not trained"


def describe(optimizer: object) -> str:
    """Return a name for tables and files, with the settings that are not the class's defaults.

    Args:
        optimizer: As a `Problem` takes it.

    Returns:
        The name.

    Example:
        >>> describe("Adam"), describe(partial(torch.optim.SGD, momentum=0.5))
        ('adam', 'SGD(momentum=0.5)')
    """
    optimizer = given(optimizer)
    if isinstance(optimizer, str):
        return lookup(optimizer)
    if isinstance(optimizer, Together):
        return " + ".join(describe(o) for o in optimizer.members)
    if isinstance(optimizer, Optimizer):
        return _named(type(optimizer), optimizer.defaults)
    if isinstance(optimizer, partial):
        return _named(optimizer.func, optimizer.keywords)
    return _named(optimizer, {})


def _named(kind: object, settings: Mapping[str, Any]) -> str:
    name = str(getattr(kind, "__name__", type(kind).__name__))
    try:
        known = inspect.signature(kind).parameters  # type: ignore[arg-type]  # or TypeError
    except (TypeError, ValueError):
        return name
    others = [
        f"{key}={value}"
        for key, value in settings.items()
        if key != "lr" and key in known and isinstance(value, (bool, int, float, str, tuple))
        and known[key].default != value
    ]  # fmt: skip
    return f"{name}({', '.join(others)})" if others else name
