"""A model, a loss and data, held so that operators can ask for outputs, losses and weights."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from trebuchet.errors import InputError
from trebuchet.problem import losses
from trebuchet.problem.autocast import Autocast
from trebuchet.problem.batches import Batch
from trebuchet.problem.tree import mapped as _map


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
