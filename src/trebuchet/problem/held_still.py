"""Hold a model still while it is measured, and put everything back afterwards.

A measurement of curvature evaluates the model many times, so it must (a) always see the same
function and (b) leave no trace. :func:`held_still` promises both. Inside it:

- dropout layers are off: a mask that changes from product to product is no operator at all
  (:class:`WithoutDropout` is for dropout that is called as a function). With ``mode="train"`` the
  rest is as in training, so that BatchNorm uses batch statistics; with ``mode="eval"`` it uses its
  running ones;
- attention runs through the plain ("math") kernel and cuDNN's and oneDNN's recurrent kernels are
  off: the fused ones have no second derivative;
- gradients are enabled, whatever the caller had set, inference mode included.

Afterwards, also after an exception or Ctrl-C, parameters, buffers, ``.grad``, train/eval flags,
random states (torch on the CPU and on every CUDA device in use, NumPy, Python), the optimizer and
the loader's own state are as they were, bit for bit. What a forward pass registered is gone again.
The same holds for modules and tensors that the model or the loss reaches without owning them, such
as a closure's critic or a teacher in a plain list (captured.py says where they are looked for).
Plain attributes of modules (a counter, a cache) are bound to what they were bound to; the inside of
a list or dict that a forward pass fills stays as it is, since only the module knows what it means.
"""

import contextlib
import copy
import random
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from trebuchet._checks import anything, choice, flag, instance
from trebuchet._differentiable import differentiable_kernels
from trebuchet._doors import door, maybe, rule
from trebuchet._torch_checks import module as a_module, shaped
from trebuchet.errors import InputError
from trebuchet.models.taylor import parts
from trebuchet.problem.captured import captured
from trebuchet.problem.interrupts import Interrupts
from trebuchet.problem.same import same

Mode = Literal["eval", "train", "as_is"]
"""How the model is evaluated: as in evaluation, as in training but without dropout, untouched."""

MODE: Mode = "train"
"""The mode in which curvature is measured, at every door: the one in which the model is trained,
with BatchNorm's batch statistics, and without the noise of dropout."""

COPIED = 1 << 30
"""Of what is not trained (frozen parameters, captured modules and tensors) at most 1 GiB is copied,
the small before the large: a frozen base of many gigabytes is not doubled to guard its values."""

_DROPOUT = nn.modules.dropout._DropoutNd  # private, but the one base of Dropout, …3d, AlphaDropout
_DROPPING = frozenset((
    F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout,
    torch.dropout, torch.alpha_dropout, torch.feature_dropout, torch.feature_alpha_dropout,
))  # fmt: skip


@dataclass(frozen=True, slots=True)
class Held:
    """What is held still.

    Attributes:
        modules: The model, then the modules that it or the loss reaches.
        values: Tensors that no evaluation should move, each with a copy of its values: buffers,
            frozen parameters, what was captured. A copy is a few of them at most where they are
            very large, see `COPIED`.
        mode: How the model is evaluated.
    """

    modules: list[nn.Module]
    values: list[tuple[Tensor, Tensor]]
    mode: Mode


@door(
    model=a_module, mode=rule(choice, get_args(Mode)), loader=anything,
    optimizer=maybe(instance, torch.optim.Optimizer, "a torch.optim.Optimizer, or None"),
    parameters_too=flag, also=anything,
)  # fmt: skip
@contextlib.contextmanager
def held_still(
    model: nn.Module,
    *,
    mode: Mode = "eval",
    loader: object = None,
    optimizer: torch.optim.Optimizer | None = None,
    parameters_too: bool = False,
    also: object = None,
) -> Iterator[Held]:
    """Evaluate `model` under one fixed policy, and restore every bit of state afterwards.

    Parameters, buffers and submodules registered inside the block are taken off again, and plain
    attributes that a forward pass binds are bound to what they were; what it does to the inside of
    such an attribute, say to a list, stays.

    Args:
        model: The module that will be evaluated (or, with `parameters_too`, trained).
        mode: ``"eval"``, ``"train"`` (batch statistics, no dropout) or ``"as_is"``.
        loader: A data loader about to be read; its generators and ``state_dict`` are restored.
        optimizer: An optimizer about to be stepped; its state is copied and restored, and its
            parameters that `model` lacks are held like the model's own.
        parameters_too: Copy the trainable parameters as well. A curvature measurement never writes
            them and skips the copy; a learning-rate scan trains, and needs it.
        also: What else is evaluated: a loss with parameters or buffers, a closure, or a list of
            modules, functions and tensors. What these reach is restored too, and so is what the
            model reaches without having registered it; all of it stays in the mode it is in.

    Yields:
        What is held; the policy holds inside the block.

    Raises:
        InputError: If `mode` is unknown, or if a parameter or buffer has no shape yet or was made
            in inference mode.

    Example:
        >>> net = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(0.5))
        >>> with held_still(net, mode="train", parameters_too=True):
        ...     _ = net(torch.rand(8, 2))
        >>> int(net[0].num_batches_tracked), net.training
        (0, True)
    """
    found = captured(model, also, apart_from=model)
    _check("model", [*model.named_parameters(), *model.named_buffers()])
    if isinstance(also, nn.Module):
        _check("loss", [*also.named_parameters(), *also.named_buffers()])
    _check("optimizer", [(f"#{i}", p) for i, p in enumerate(_parameters_of(optimizer))])
    held = nn.ModuleList([model, *(m for m in found.modules if _usable(m))])
    leaves = [t for t in found.tensors if t.is_leaf and not t.is_inference()]
    ours = {id(p): p for p in [*model.parameters(), *_parameters_of(optimizer)]}
    wanting = [t for t in leaves if t.requires_grad]
    parameters = {id(p): p for p in [*ours.values(), *held.parameters(), *wanting]}
    copied = [p for p in parameters.values() if parameters_too or not _trained(p, ours)]
    copied += [t for t in leaves if not t.requires_grad]
    with (
        _turn(model),
        Interrupts() as interrupts,
        torch.inference_mode(mode=False),  # and so the copies below are ordinary tensors
        _random_states(parameters.values()),
        _loader_state(loader),
        _optimizer_state(optimizer),
        _values(held, parameters.values(), _affordable(copied, ours)) as values,
        _registered(held),
        modes_kept(held),
        differentiable_kernels(held),
        torch.enable_grad(),
        interrupts.held_back(),  # what ends first: everything above is then put back undisturbed
    ):
        if mode == "eval":
            model.eval()
        elif mode == "train":
            set_training(model)
            silence_dropout(model)
        trained = {id(p) for p in model.parameters() if p.requires_grad}
        still = [(t, saved) for t, saved in values if id(t) not in trained]
        yield Held(list(held), still, mode)


_LOCKS: "weakref.WeakKeyDictionary[nn.Module, threading.RLock]" = weakref.WeakKeyDictionary()
_LOCKS_LOCK = threading.Lock()


def _turn(model: nn.Module) -> Any:
    """Threads that hold the same model take turns: one's flags and buffers are the other's."""
    with _LOCKS_LOCK:
        return _LOCKS.setdefault(model, threading.RLock())


def set_training(model: nn.Module) -> None:
    """Put a model into the mode it is trained in.

    A model in training mode stays as it is, layers that its owner keeps in evaluation mode (frozen
    batch statistics) included; one that is in evaluation mode as a whole is put into training.

    Args:
        model: The module.
    """
    if not model.training:
        model.train()


class WithoutDropout(TorchFunctionMode):
    """Turn off dropout that a forward pass calls as a function, where no flag of a layer does.

    Every call of torch passes through it, so it is for models that do (`met` tells), and for all of
    a measurement: checkpointing evaluates parts of a model again in the backward pass.
    """

    met = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in _DROPPING:
            self.met = True
            return args[0] if args else kwargs["input"]
        if func is F.scaled_dot_product_attention and (len(args) > 4 or "dropout_p" in kwargs):
            self.met = True
            if len(args) > 4:
                args = (*args[:4], 0.0, *args[5:])
            else:
                kwargs["dropout_p"] = 0.0
        return func(*args, **kwargs)


def may_drop(model: nn.Module) -> bool:
    """Whether a model may call dropout as a function: torch's own layers have a flag for it.

    Args:
        model: The model.

    Returns:
        True if it has a class of its own.
    """
    return any(type(m).__module__.partition(".")[0] != "torch" for m in model.modules())


def _parameters_of(optimizer: torch.optim.Optimizer | None) -> list[Tensor]:
    if optimizer is None:
        return []
    return [p for group in optimizer.param_groups for p in group["params"]]


def _check(owner: str, tensors: list[tuple[str, Tensor]]) -> None:
    shaped(owner, tensors)
    bare = [name for name, t in tensors if t.is_meta]
    if bare and owner == "model":
        msg = (
            f"model: has parameters or buffers on the meta device ({', '.join(bare[:3])}"
            f"{', …' if len(bare) > 3 else ''}), which hold no values; load or initialise them "
            "first, as with to_empty"
        )
        raise InputError(msg)
    frozen = [name for name, t in tensors if t.is_inference()]
    if frozen:
        msg = (
            f"{owner}: has parameters or buffers made under torch.inference_mode "
            f"({', '.join(frozen)}), which have no gradients; make or load it outside"
        )
        raise InputError(msg)


def _usable(module: nn.Module) -> bool:
    """Whether a module that was found has values to hold: it may lie there without being used."""
    tensors = [*module.parameters(), *module.buffers()]
    return not any(is_lazy(t) or t.is_inference() for t in tensors)


def _trained(p: Tensor, ours: dict[int, Tensor]) -> bool:
    return p.requires_grad and id(p) in ours


def _affordable(tensors: list[Tensor], ours: dict[int, Tensor]) -> list[Tensor]:
    """What is trained, and of the rest as much as may be copied."""
    room, out = COPIED, []
    for t in sorted(tensors, key=lambda t: (not _trained(t, ours), t.numel() * t.element_size())):
        if not _trained(t, ours):
            room -= t.numel() * t.element_size()
        if room >= 0:
            out.append(t)
    return out


def silence_dropout(model: nn.Module) -> None:
    """Switch dropout off where it is a layer or a setting of one; `modes_kept` restores both."""
    for module in parts(model):
        if isinstance(module, _DROPOUT):
            module.eval()
        elif isinstance(module, (nn.RNNBase, nn.MultiheadAttention)):
            module.dropout = 0.0


@contextlib.contextmanager
def _random_states(parameters: Iterable[Tensor]) -> Iterator[None]:
    devices = sorted({p.device.index for p in parameters if p.device.type == "cuda"})
    python, numpy_ = random.getstate(), np.random.get_state()  # noqa: NPY002 - the global one is the user's
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy_)  # noqa: NPY002 - users draw from it


@contextlib.contextmanager
def _loader_state(loader: object) -> Iterator[None]:
    """Restore the generators that shuffle, and a stateful loader's position."""
    if isinstance(loader, Mapping):  # a batch; its attributes are nobody's business
        yield
        return
    loader = None if isinstance(loader, type) else loader  # a class has no state
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
    state = [(p, _kept(s)) for p, s in optimizer.state.items()]
    groups = list(optimizer.param_groups)
    settings = [
        (group, {k: _kept(v) for k, v in group.items() if k != "params"}, list(group["params"]))
        for group in groups
    ]
    try:
        yield
    finally:
        found = [(p, back()) for p, back in state]
        optimizer.state.clear()
        optimizer.state.update(found)
        optimizer.param_groups[:] = groups
        for group, saved, params in settings:
            entries = {"params": params, **{k: back() for k, back in saved.items()}}
            group.clear()
            group.update(entries)


def _kept(value: Any) -> Callable[[], Any]:
    """Copy a value; a tensor's copy goes back into the very object, which may be held elsewhere.

    Args:
        value: Of an optimizer: a tensor that is a rate or a moment, a dict of such, anything else.

    Returns:
        What puts it back and returns it.
    """
    if isinstance(value, Tensor):
        saved, version = value.detach().clone(), value._version

        def put_back() -> Tensor:
            if value.shape != saved.shape or value.dtype != saved.dtype:
                value.data = saved
            elif value._version != version or not same(value, saved):
                with torch.no_grad():
                    value.copy_(saved)
            return value

        return put_back
    if isinstance(value, dict):
        parts = {k: _kept(v) for k, v in value.items()}

        def refilled() -> Any:
            entries = {k: back() for k, back in parts.items()}
            value.clear()
            value.update(entries)
            return value

        return refilled
    copied = copy.deepcopy(value)
    return lambda: copied


@contextlib.contextmanager
def _registered(held: nn.Module) -> Iterator[None]:
    """Put the same objects back under the same names, and take away what was not there.

    A forward pass may register a buffer, or replace one rather than write to it; and one that ends
    in the middle of ``torch.func.functional_call`` leaves what it was called with in the place of
    parameters.
    """
    saved: list[tuple[Any, Any]] = []  # a registry, and what it held
    for module in held.modules():
        if not isinstance(module, torch.jit.ScriptModule):
            saved.append((vars(module), dict(vars(module))))
        for registry in (module._parameters, module._buffers, module._modules):
            saved.append((registry, dict(registry)))
        saved.append((module._non_persistent_buffers_set, set(module._non_persistent_buffers_set)))
    try:
        yield
    finally:
        # The registries' own names are among a module's attributes: those first.
        for registry, before in saved:
            # Untouched is left untouched: registries of compiled modules take no writing.
            if _identities(registry) != _identities(before):
                registry.clear()
                registry.update(before)


def _identities(registry: Any) -> Any:
    if isinstance(registry, set):
        return registry
    return [(name, id(value)) for name, value in registry.items()]


@contextlib.contextmanager
def _values(
    held: nn.Module, parameters: Iterable[Tensor], copied: Iterable[Tensor]
) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Copy tensors back, and keep `.grad` out of reach: what is not there cannot be added to."""
    filled = [t for t in [*held.buffers(), *copied] if not t.is_meta]
    values = [(t, t.detach().clone(), t._version) for t in filled]
    others = [(p, p.requires_grad, p.grad) for p in parameters]
    for p in parameters:
        p.grad = None
    try:
        yield [(t, saved) for t, saved, _ in values]
    finally:
        with torch.no_grad():
            for t, saved, version in values:
                # Writing what is there already would spoil a graph that the user still holds.
                if t._version != version or not same(t, saved):
                    t.copy_(saved)
        for p, wants, grad in others:
            p.grad = grad
            p.requires_grad_(wants)


@contextlib.contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Put train and eval flags, and the dropout rates of layers that have one, back afterwards."""
    flags = [(module, module.training) for module in parts(model)]
    rates = [(m, m.dropout) for m, _ in flags if isinstance(m, (nn.RNNBase, nn.MultiheadAttention))]
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training
        for layer, rate in rates:
            layer.dropout = rate
