"""A model, a loss and data, held so that operators can ask for outputs, losses and weights."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from trebuchet.curvature import losses
from trebuchet.curvature.batches import Batch, _map
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
    if not isinstance(model, nn.Module):
        msg = f"model: expected a torch.nn.Module, got a {type(model).__name__}"
        raise InputError(msg)
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
    if params is None:
        for name, p in named.items():
            _check_real(name, p)
        chosen = {n: p for n, p in named.items() if p.requires_grad}
    elif callable(params):
        chosen = {n: p for n, p in named.items() if p.requires_grad and params(n, p)}
    else:
        wanted = [params] if isinstance(params, (str, nn.Parameter)) else list(params)
        # A tied parameter may be asked for by any of its names.
        every = dict(model.named_parameters(remove_duplicate=False))
        ids = set()
        for item in wanted:
            if isinstance(item, str):
                if item not in every:
                    msg = f"params: the model has no parameter {item!r}; it has {', '.join(named)}"
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
        msg = "params: no trainable parameter is selected; curvature needs at least one"
        raise InputError(msg)
    devices = {str(p.device) for p in chosen.values()}
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


@dataclass(frozen=True, slots=True)
class Autocast:
    """The caller's ``torch.autocast``: the model runs in it, the solver around it does not."""

    device_type: str = "cpu"
    enabled: bool = False
    dtype: torch.dtype = torch.bfloat16

    @classmethod
    def ambient(cls, device: torch.device) -> "Autocast":
        """Return what is switched on where this is called."""
        kind = device.type
        return cls(kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))

    def __call__(self) -> torch.autocast:
        """Enter it; without its cache, whose casts belong to somebody else's graph."""
        return torch.autocast(
            self.device_type, enabled=self.enabled, dtype=self.dtype, cache_enabled=False
        )


@dataclass(slots=True)
class Problem:
    """What an operator needs to know.

    Half-precision parameters (bfloat16, float16) are exact in float32, so the same function is
    evaluated there: its curvature comes out to 1e-6 rather than to the 1e-2 of half precision.

    Attributes:
        model: The unwrapped module.
        params: The selected parameters, by name.
        loss: The resolved loss.
        batches: The micro-batches.
        autocast: The caller's autocast.
        weights: What each micro-batch's loss is multiplied with in the total.
        n_samples: D, over all micro-batches (and ranks).
        reduction: ``"mean"`` or ``"sum"``.
    """

    model: nn.Module
    params: dict[str, nn.Parameter]
    loss: losses.LossFn | losses.ModelLoss | None
    batches: Sequence[Batch]
    autocast: Autocast = field(default_factory=Autocast)
    weights: list[float] = field(default_factory=list)
    n_samples: int = 0
    reduction: losses.Reduction = "mean"
    leaves: list[Tensor] = field(default_factory=list)
    _substitutes: dict[str, Tensor] | None = None

    def __post_init__(self) -> None:
        half = any(p.dtype in (torch.bfloat16, torch.float16) for p in self.params.values())
        if not half:
            self.leaves = list(self.params.values())
            return
        named = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        self._substitutes = {
            name: _widen(t.detach()).requires_grad_(name in self.params)
            for name, t in named.items()
        }
        self.leaves = [self._substitutes[name] for name in self.params]

    @property
    def n_parameters(self) -> int:
        """P, the number of selected parameters."""
        return sum(p.numel() for p in self.leaves)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype products are computed in."""
        return torch.float64 if self.leaves[0].dtype == torch.float64 else torch.float32

    @property
    def device(self) -> torch.device:
        """Where everything is."""
        return self.leaves[0].device

    def outputs(self, batch: Batch) -> Tensor:
        """Return z = model(x) for one micro-batch, with its graph.

        Args:
            batch: The micro-batch.

        Returns:
            z, shape (samples, …).

        Raises:
            InputError: If the model does not return one real tensor.
        """
        self._same_noise(batch)
        with self.autocast():
            if self._substitutes is None:
                z = batch.outputs_of(self.model)
            else:
                args, kwargs = _map(_widen, batch.args), _map(_widen, batch.kwargs)
                z = torch.func.functional_call(self.model, self._substitutes, args, kwargs)
        if not isinstance(z, Tensor):
            msg = (
                f"model: expected one tensor as output, got a {type(z).__name__}; wrap the model "
                "so that it returns the tensor, or give a closure loss_fn(model, batch)"
            )
            raise InputError(msg)
        if not z.is_floating_point():
            msg = f"model: expected real outputs, got {z.dtype}"
            raise InputError(msg)
        return z

    def loss_at(self, z: Tensor, batch: Batch) -> Tensor:
        """Return L_b at outputs `z`, a scalar.

        Args:
            z: Outputs.
            batch: The micro-batch they belong to.

        Returns:
            The loss, with its graph in z.

        Raises:
            InputError: If the loss is missing, a closure, or not a finite scalar.
        """
        if self.loss is None or isinstance(self.loss, losses.ModelLoss):
            msg = "loss: a loss(outputs, targets) is needed here; a closure only has a Hessian"
            raise InputError(msg)
        targets = batch.targets
        if self._substitutes is not None:
            targets = _map(_widen, targets)
        with self.autocast():
            value = self.loss(z) if targets is None else self.loss(z, targets)
        return losses.check_scalar(value)

    def loss_of(self, batch: Batch) -> Tensor:
        """Return L_b for one micro-batch, with its graph in the parameters.

        Args:
            batch: The micro-batch.

        Returns:
            A finite scalar.

        Raises:
            InputError: If it is not a finite scalar.
        """
        if not isinstance(self.loss, losses.ModelLoss):
            return self.loss_at(self.outputs(batch), batch)
        self._same_noise(batch)
        if self._substitutes is None:
            with self.autocast():
                return losses.check_scalar(self.loss.fn(self.model, batch.raw))
        raw = _map(_widen, batch.raw)
        with self.autocast(), _swapped(self.model, self._substitutes):
            return losses.check_scalar(self.loss.fn(self.model, raw))

    def _same_noise(self, batch: Batch) -> None:
        """Give every evaluation of a batch the same random numbers, should the model draw any.

        Masks or samples that change from product to product would make the operator random.
        The policy restores the global random state afterwards.
        """
        torch.manual_seed(next(i for i, b in enumerate(self.batches) if b is batch))

    def unflatten(self, v: Tensor) -> list[Tensor]:
        """Return a flat vector of length P as tensors of the parameters' shapes and dtypes."""
        out, at = [], 0
        for p in self.leaves:
            out.append(v[at : at + p.numel()].view(p.shape).to(p.dtype))
            at += p.numel()
        return out

    def add_flat(self, out: Tensor, grads: Sequence[Tensor | None], scale: float = 1.0) -> Tensor:
        """Add ``scale`` times the parts of a gradient to a flat vector; None counts as zero."""
        at = 0
        for p, g in zip(self.leaves, grads, strict=True):
            if g is not None:
                out[at : at + p.numel()].add_(g.detach().reshape(-1).to(out.dtype), alpha=scale)
            at += p.numel()
        return out


def _widen(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


@contextlib.contextmanager
def _swapped(model: nn.Module, tensors: dict[str, Tensor]) -> Iterator[None]:
    """Put other tensors in the place of parameters and buffers; tied ones stay tied."""
    tied: dict[int, Tensor] = {}
    named: list[tuple[str, Any]] = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    for name, old in named:
        if name in tensors:
            tied[id(old)] = tensors[name]
    places = [(*name.rpartition("."), old) for name, old in named]
    try:
        for owner, _, leaf, old in places:
            module = model.get_submodule(owner)
            registry: Any = module._parameters if leaf in module._parameters else module._buffers
            registry[leaf] = tied[id(old)]
        yield
    finally:
        for owner, _, leaf, old in places:
            module = model.get_submodule(owner)
            registry = module._parameters if leaf in module._parameters else module._buffers
            registry[leaf] = old
