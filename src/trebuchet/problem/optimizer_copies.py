"""Optimizers that are already made: a copy for every run, several as one, and their modes.

``copy.copy`` of a torch optimizer keeps state, groups and defaults and drops everything else:
hooks, and every attribute that a class of one's own sets (a step counter, slow weights, a base
optimizer). Here a copy is as the original is: everything is copied deeply but the model's
parameters, which copies share because they *are* the model's, and hooks, which are the user's
functions.
"""

import copy
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn
from torch.optim import Optimizer

from trebuchet._checks import one_line
from trebuchet.errors import InputError

_HOOKS = (
    "_optimizer_step_pre_hooks",
    "_optimizer_step_post_hooks",
    "_optimizer_state_dict_pre_hooks",
    "_optimizer_state_dict_post_hooks",
    "_optimizer_load_state_dict_pre_hooks",
    "_optimizer_load_state_dict_post_hooks",
)


class Together(Optimizer):
    """Several optimizers that step one after the other, such as Muon beside AdamW.

    Its groups are theirs, the same objects; its state is theirs too.

    Args:
        members: At least one; no parameter in two of them.

    Raises:
        InputError: If a parameter is in two of them.
    """

    def __init__(self, members: Sequence[Optimizer]) -> None:
        seen: set[int] = set()
        for p in (p for o in members for group in o.param_groups for p in group["params"]):
            if id(p) in seen:
                msg = (
                    "optimizer: expected every parameter in one optimizer of the list, got one of "
                    f"shape {tuple(p.shape)} in two; leave it out of one"
                )
                raise InputError(msg)
            seen.add(id(p))
        groups = [group for o in members for group in o.param_groups]
        super().__init__([{"params": list(g["params"])} for g in groups], {})
        self.members = list(members)
        self.param_groups = groups

    def step(self, closure: Any = None) -> Any:
        """Let every member make its step.

        Args:
            closure: None; the gradients are there.
        """
        del closure
        for member in self.members:
            member.step()


def as_one(optimizers: Iterable[object]) -> Optimizer:
    """Several optimizers as one.

    Args:
        optimizers: At least one.

    Returns:
        The only one, or all `Together`.

    Raises:
        InputError: If one of them is no optimizer, there is none, or a parameter is in two.
    """
    found = list(optimizers)
    if not found or not all(isinstance(o, Optimizer) for o in found):
        others = [type(o).__name__ for o in found if not isinstance(o, Optimizer)]
        msg = (
            f"optimizer: expected a list of optimizers, got {others[0] if others else 'none'} in "
            "it; make each for its parameters, such as [Muon(matrices), AdamW(others)]"
        )
        raise InputError(msg)
    made = cast("list[Optimizer]", found)
    return made[0] if len(made) == 1 else Together(made)


def check_copyable(optimizer: Optimizer) -> None:
    """Refuse an optimizer whose copies would not do what it does.

    Args:
        optimizer: Already made.

    Raises:
        InputError: If its step was replaced on the instance, or it holds a module.
    """
    for inner in _nested(optimizer):
        step = vars(inner).get("step")
        # Schedulers wrap it to count calls; copies have no need of that.
        if step is not None and not hasattr(step, "_wrapped_by_lr_sched"):
            msg = (
                f"optimizer: the step of this {type(inner).__name__} was replaced on the instance, "
                "which a copy for every run would not follow; use register_step_pre_hook, "
                "clip_grad_norm=, a subclass, or a factory(params, rate) that replaces it"
            )
            raise InputError(msg)
        for name, value in vars(inner).items():
            if any(isinstance(x, nn.Module) for x in _parts(value)):
                msg = (
                    f"optimizer: this {type(inner).__name__} holds a module (its {name}), whose "
                    "hooks a copy for every run would miss; give a factory(params, rate)"
                )
                raise InputError(msg)


def copied(optimizer: Optimizer) -> Optimizer:
    """Return a copy that steps the same parameters, from the same state, with the same hooks.

    Args:
        optimizer: Already made; not touched.

    Returns:
        The copy.

    Raises:
        InputError: If an attribute cannot be copied.
    """
    memo: dict[int, Any] = {id(p): p for p in parameters_of(optimizer)}
    return _copied(optimizer, memo)


def _copied(optimizer: Optimizer, memo: dict[int, Any]) -> Optimizer:
    if id(optimizer) in memo:
        return cast(Optimizer, memo[id(optimizer)])
    kind = type(optimizer)
    made: Optimizer = kind.__new__(kind)
    memo[id(optimizer)] = made
    for inner in _held_by(optimizer):
        _copied(inner, memo)
    for registry in (getattr(optimizer, name, {}) for name in _HOOKS):
        for hook in registry.values():
            # A method of an optimizer goes to its copy; every other hook is the user's own.
            if not isinstance(getattr(hook, "__self__", None), Optimizer):
                memo[id(hook)] = hook
    for name, value in vars(optimizer).items():
        if name == "step":
            continue  # a scheduler's wrapper, which would step the original
        try:
            made.__dict__[name] = copy.deepcopy(value, memo)
        except Exception as error:  # what an attribute's copying may raise is the user's
            msg = (
                f"optimizer: the {name} of this {kind.__name__} cannot be copied for every run "
                f"({one_line(error)}); give a factory(params, rate)"
            )
            raise InputError(msg) from error
    return made


def parameters_of(optimizer: Optimizer) -> list[torch.Tensor]:
    """The parameters of an optimizer, and of those that it holds."""
    return [
        p for inner in _nested(optimizer) for group in inner.param_groups for p in group["params"]
    ]


def _nested(optimizer: Optimizer) -> list[Optimizer]:
    """The optimizer and those that it holds, at any depth."""
    found = [optimizer]
    for inner in found:  # grows
        found += [o for o in _held_by(inner) if all(o is not seen for seen in found)]
    return found


def _held_by(optimizer: Optimizer) -> list[Optimizer]:
    return [
        part
        for name, value in vars(optimizer).items()
        if name not in ("state", "param_groups")
        for part in _parts(value)
        if isinstance(part, Optimizer)
    ]


def _parts(value: object, depth: int = 3) -> Iterable[object]:
    """A value, and what lies in it if it is a container."""
    yield value
    if depth and isinstance(value, Mapping):
        for item in value.values():
            yield from _parts(item, depth - 1)
    elif depth and isinstance(value, (list, tuple, set)):
        for item in value:
            yield from _parts(item, depth - 1)
    elif depth and isinstance(value, types.MethodType):
        yield value.__self__


def has_hooks(optimizer: Optimizer) -> bool:
    """Whether something of the user's runs before or after its step."""
    return any(getattr(inner, name, None) for inner in _nested(optimizer) for name in _HOOKS[:2])


def has_modes(optimizer: Optimizer) -> bool:
    """Whether it asks to be put into train and eval modes, as schedule-free optimizers do."""
    return any(
        callable(getattr(inner, "train", None)) and callable(getattr(inner, "eval", None))
        for inner in _nested(optimizer)
    )


def set_mode(optimizer: Optimizer, *, training: bool) -> None:
    """Put a schedule-free optimizer into a mode; it moves the weights that the model holds.

    Args:
        optimizer: Of any kind; one without modes is left alone.
        training: For a gradient and a step; False to evaluate the model.
    """
    made: Any
    for made in optimizer.members if isinstance(optimizer, Together) else [optimizer]:
        if callable(getattr(made, "train", None)) and callable(getattr(made, "eval", None)):
            if training:
                made.train()
            else:
                made.eval()
