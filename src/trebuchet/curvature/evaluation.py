"""A model, a loss and data, held so that operators can ask for outputs, losses and weights."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from trebuchet._swapped import swapped
from trebuchet.curvature.explain import explained
from trebuchet.errors import InputError
from trebuchet.problem import losses
from trebuchet.problem.autocast import Autocast
from trebuchet.problem.batches import Batch
from trebuchet.problem.held_still import Held, WithoutDropout, may_drop
from trebuchet.problem.same import same
from trebuchet.problem.tree import mapped as _map

T = TypeVar("T")


@dataclass
class Evaluation:
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
        held: What is held still around the measurement.
        remarks: What the result should say of how it was come by.
        doubted: Operations of the outputs that are not believed unchecked; None before a look.
        inexact: Whether products are by finite differences somewhere.
        route: Which way to J v works here (push.py).
        why_not: Why the ways before it do not.
    """

    model: nn.Module
    params: dict[str, nn.Parameter]
    loss: losses.LossFn | losses.ModelLoss | None
    batches: Sequence[Batch]
    autocast: Autocast = field(default_factory=Autocast)
    weights: list[float] = field(default_factory=list)
    n_samples: int = 0
    reduction: losses.Reduction = "mean"
    held: Held | None = None
    remarks: list[str] = field(default_factory=list)
    doubted: list[str] | None = None
    inexact: bool = False
    route: int = 0
    why_not: str = ""
    leaves: list[Tensor] = field(default_factory=list)
    _substitutes: dict[str, Tensor] | None = None
    _moving: dict[int, Tensor] = field(default_factory=dict)
    _dropping: bool | None = None
    _entered: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

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

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Hold wide substitutes in the place of half-precision parameters and buffers, if any.

        Throughout, since checkpointing evaluates the model in the middle of a backward pass; and so
        is dropout off where a function does it. Hooks on parameters, which change gradients on
        their way to an optimizer, are off too: a product would meet them in some of its passes.

        Yields:
            Nothing.
        """
        named = [*self.model.named_parameters(), *self.model.named_buffers()]
        wide = self._substitutes or {}
        tensors = {id(t): wide[n] for n, t in named if n in wide}
        hooks = {n: p._backward_hooks for n, p in self.params.items() if p._backward_hooks}
        if hooks:
            self.remarks.append(
                f"hooks on parameters ({', '.join(hooks)}) change gradients in training; the "
                "curvature, and a rate that follows from it, is of the loss without them"
            )
        try:
            for name in hooks:
                self.params[name]._backward_hooks = None
            with swapped([self.model] if wide else [], tensors), self._entered:
                yield
        finally:
            for name, kept in hooks.items():
                self.params[name]._backward_hooks = kept

    @property
    def modules(self) -> list[nn.Module]:
        """The model, and the modules that it or the loss reaches."""
        return [self.model] if self.held is None else self.held.modules

    @cached_property
    def state(self) -> list[tuple[Tensor, Tensor]]:
        """What an evaluation should find as it was, with its values."""
        if self.held is None:
            return []
        free = {i for module in self.modules for i in _statistics(module)}
        wide = {} if self._substitutes is None else self._substitutes
        frozen = [(t, t.detach().clone()) for name, t in wide.items() if name not in self.params]
        values = [*self.held.values, *frozen]
        return [(t, saved) for t, saved in values if id(t) not in free]

    @property
    def moves(self) -> bool:
        """Whether an evaluation was seen to move state that the model depends on."""
        return bool(self._moving)

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

    def raw_outputs(self, batch: Batch) -> Any:
        """Return what the model returns for one micro-batch, of whatever type.

        Args:
            batch: The micro-batch.

        Returns:
            With its graph.
        """
        return self._steadily(lambda: self._call(batch), batch)

    def _call(self, batch: Batch) -> Any:
        with explained(self.model, "model", "check model(inputs) on one batch"), self.autocast():
            if self._substitutes is None:
                return batch.outputs_of(self.model)
            return self.model(*_map(_widen, batch.args), **_map(_widen, batch.kwargs))

    def outputs(self, batch: Batch) -> Tensor:
        """Return z = model(x) for one micro-batch, with its graph.

        Args:
            batch: The micro-batch.

        Returns:
            z, shape (samples, …).

        Raises:
            InputError: If the model does not return one real tensor.
        """
        z = self.raw_outputs(batch)
        if not isinstance(z, Tensor):
            msg = (
                f"model: expected one tensor as output, got a {type(z).__name__}; wrap the model "
                "so that it returns the tensor, or take operator='hessian', which needs the loss "
                "alone"
            )
            raise InputError(msg)
        if not z.is_floating_point():
            msg = f"model: expected real outputs, got {z.dtype}"
            raise InputError(msg)
        return z

    def loss_at(self, z: Any, batch: Batch) -> Tensor:
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
        loss, advice = self.loss, "check loss(model(inputs), targets) on one batch"

        def evaluate() -> Any:
            with explained(self.model, "loss", advice), self.autocast():
                return loss(z) if targets is None else loss(z, targets)

        return losses.check_scalar(self._steadily(evaluate, batch, of_loss=True))

    def loss_of(self, batch: Batch) -> Tensor:
        """Return L_b for one micro-batch, with its graph in the parameters.

        Args:
            batch: The micro-batch.

        Returns:
            A finite scalar.

        Raises:
            InputError: If it is not a finite scalar.
        """
        loss = self.loss
        if not isinstance(loss, losses.ModelLoss):
            return self.loss_at(self.raw_outputs(batch), batch)

        def evaluate() -> Any:
            advice = "check loss(model, batch) on one batch"
            with explained(self.model, "loss", advice), self.autocast():
                raw = batch.raw if self._substitutes is None else _map(_widen, batch.raw)
                return loss.fn(self.model, raw)

        return losses.check_scalar(self._steadily(evaluate, batch))

    def _steadily(self, evaluate: Callable[[], T], batch: Batch, *, of_loss: bool = False) -> T:
        """Evaluate from the state the model is held in, whatever earlier evaluations moved.

        A teacher, a codebook or a memory bank that a forward pass moves would make every
        evaluation one of another function. What is seen to move is put back, and from then on
        each evaluation works on copies of its own.

        Args:
            evaluate: A forward pass.
            batch: Whose.
            of_loss: Of the loss alone, whose noise is not the model's.

        Returns:
            What it returned.
        """
        self.same_noise(batch, of_loss=of_loss)
        if self._dropping is None and not of_loss:
            return self._first(evaluate, batch)
        if self._moving:
            with swapped(self.modules, {i: t.clone() for i, t in self._moving.items()}):
                out = evaluate()
        else:
            out = evaluate()
        moved = {id(t): saved for t, saved in self.state if not _same(t, saved)}
        if not moved:
            return out
        with torch.no_grad():
            for t, saved in self.state:
                if id(t) in moved:
                    t.copy_(saved)
        if moved.keys() <= self._moving.keys():
            return out  # no module's own: a tally that a closure keeps, put back by value
        self._moving |= moved
        return self._steadily(evaluate, batch, of_loss=of_loss)

    def _first(self, evaluate: Callable[[], T], batch: Batch) -> T:
        """Evaluate for the first time, and find out whether dropout is called as a function."""
        held = self.held
        own = isinstance(self.loss, losses.ModelLoss) or may_drop(self.model)
        self._dropping = held is not None and held.mode != "as_is" and own
        if not self._dropping:
            return self._steadily(evaluate, batch)
        with WithoutDropout() as watch:
            out = self._steadily(evaluate, batch)
        if watch.met:
            self._entered.enter_context(WithoutDropout())
        return out

    def same_noise(self, batch: Batch, *, of_loss: bool = False) -> None:
        """Give every evaluation of a batch the same random numbers, should there be any.

        Masks or samples that change from product to product would make the operator random.
        The policy restores the global random state afterwards.

        Args:
            batch: The batch.
            of_loss: For the loss, whose numbers must not be the model's over again.
        """
        index = next((i for i, b in enumerate(self.batches) if b is batch), 0)
        seed = 2 * index + of_loss
        used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # torch's
        if self.device.type != "cpu" or used:
            torch.manual_seed(seed)
        else:  # that would note the call for a GPU to come, which takes as long as a small net
            torch.default_generator.manual_seed(seed)

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
                g = g.to_dense() if g.layout != torch.strided else g  # of a sparse embedding
                out[at : at + p.numel()].add_(g.detach().reshape(-1).to(out.dtype), alpha=scale)
            at += p.numel()
        return out


def _widen(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _same(t: Tensor, saved: Tensor) -> bool:
    return same(t, saved) or bool(torch.isnan(saved).any())


def _statistics(module: nn.Module) -> set[int]:
    """Running statistics of batch norms: in training they move, and nothing depends on them."""
    norms = (m for m in module.modules() if _is_norm(m))
    return {id(b) for m in norms for b in m.buffers(recurse=False)}


def _is_norm(module: nn.Module) -> bool:
    if isinstance(module, torch.jit.ScriptModule):  # a class of its own; the names are kept
        names = {name for name, _ in module.named_buffers(recurse=False)}
        return {"running_mean", "num_batches_tracked"} <= names
    return isinstance(module, nn.modules.batchnorm._NormBase)
