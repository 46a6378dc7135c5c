"""The loss of a model on some batches: its value, or its value and gradient."""

import contextlib
import dataclasses
import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from trebuchet.errors import InputError
from trebuchet.problem.autocast import Autocast
from trebuchet.problem.batches import Batch
from trebuchet.problem.divisors import find_rule
from trebuchet.problem.losses import LossFn, ModelLoss
from trebuchet.problem.stream import pieces
from trebuchet.problem.tree import mapped
from trebuchet.problem.trial import NotAdditiveError, Rule, as_shapes

T = TypeVar("T")
_DROPOUT = nn.modules.dropout._DropoutNd
_BATCH_NORM = nn.modules.batchnorm._BatchNorm


@dataclass(slots=True)
class Cost:
    """What a scan has spent.

    Attributes:
        gradients: Gradient evaluations, one for each step's whole batch, as an optimizer step is.
        forwards: Forward passes without a gradient, in batches of the training size.
        products: Products with a curvature operator, each about two gradients on its samples.
    """

    gradients: int = 0
    forwards: float = 0.0
    products: int = 0


@dataclass(slots=True)
class Objective:
    """A model and a loss, evaluated as in training.

    Attributes:
        model: The user's module; callers hold it still (``problem.held_still.held_still``).
        loss: The resolved loss.
        params: The trainable parameters.
        autocast: The autocast the model runs in.
        samples_per_step: Samples of one gradient, the unit of cost.
        chunk: At most so many samples in one forward pass; halved when memory runs out.
        joint: Several batches are one data set, whose loss a sum is over all of; they are those of
            several steps otherwise, whose sums count equally.
        cost: What was spent.
        notes: What the user should be told.
    """

    model: nn.Module
    loss: LossFn | ModelLoss
    params: list[nn.Parameter]
    autocast: Autocast
    samples_per_step: int
    chunk: int | None = None
    cost: Cost = field(default_factory=Cost)
    notes: list[str] = field(default_factory=list)
    joint: bool = False
    _rule: Rule | NotAdditiveError | None = None
    _shapes: dict[Any, Any] = field(default_factory=dict)
    _seen_random: bool = False

    @property
    def has_batch_norm(self) -> bool:
        """Whether the loss in training and in evaluation differ through batch statistics."""
        return any(
            isinstance(m, _BATCH_NORM) and m.track_running_stats for m in self.model.modules()
        )

    @property
    def randomised(self) -> bool:
        """Whether the loss in training is random, or differs from the one in evaluation."""
        return (
            self._seen_random
            or self.has_batch_norm
            or any(
                (isinstance(m, _DROPOUT) and m.p > 0)
                or float(getattr(m, "dropout", 0.0) or 0.0) > 0  # recurrent layers, attention
                for m in self.model.modules()
                if isinstance(m, (_DROPOUT, nn.RNNBase, nn.MultiheadAttention))
            )
        )

    def watch_for_randomness(self, batch: Batch) -> None:
        """Find out whether the loss in training is random where no layer says so.

        Functional dropout and noise in a forward pass are no modules. Two passes from different
        random states tell; a third, in evaluation mode, tells a model that differs between modes.

        Args:
            batch: On which samples.
        """
        if self.randomised:
            return
        buffers = [b.detach().clone() for b in self.model.buffers()]

        def passes() -> list[float]:
            parts = pieces(batch, self.chunk)
            values = []
            with torch.no_grad():
                for seed in (0, 1):
                    torch.manual_seed(seed)
                    values.append(sum(float(self.value_of(part)) for part in parts))
                with self.flags(evaluation=True):
                    values.append(sum(float(self.value_of(part)) for part in parts))
            return values

        values = self._shrinking(passes, batch.size)
        with torch.no_grad():
            for b, saved in zip(self.model.buffers(), buffers, strict=True):
                b.copy_(saved)
        self.cost.forwards += 3 * batch.size / self.samples_per_step
        # Sums on a GPU may differ in their last digits; noise that small is none.
        self._seen_random = max(values) - min(values) > 1e-5 * max(map(abs, values))

    def ignores_input(self, batch: Batch) -> bool:
        """Whether the outputs are the same for every sample, and for samples scaled by two.

        Args:
            batch: On which samples.

        Returns:
            False also where it cannot be known: for a closure, or outputs that are no tensor.
        """
        if isinstance(self.loss, ModelLoss):
            return False

        def scaled(x: Tensor) -> Tensor:
            return 2 * x if x.is_floating_point() else x

        def passes() -> bool:
            outputs = []
            with self.flags(evaluation=not self.has_batch_norm), torch.no_grad(), self.autocast():
                for part in pieces(batch, self.chunk):
                    other = dataclasses.replace(
                        part, args=mapped(scaled, part.args), kwargs=mapped(scaled, part.kwargs)
                    )
                    outputs += [part.outputs_of(self.model), other.outputs_of(self.model)]
            if not all(isinstance(z, Tensor) and z.ndim for z in outputs):
                return False
            z = torch.cat(outputs)
            return bool((z == z[:1]).all())

        return self._shrinking(passes, batch.size)

    def value_of(self, batch: Batch) -> Tensor:
        """Return the loss on one micro-batch, as it comes: it may be infinite or NaN."""
        with self.autocast():
            if isinstance(self.loss, ModelLoss):
                value = self.loss.fn(self.model, batch.raw)
            else:
                z = batch.outputs_of(self.model)
                value = self.loss(z) if batch.targets is None else self.loss(z, batch.targets)
        if not isinstance(value, Tensor) or value.numel() != 1:
            got = (
                f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            )
            msg = f"loss: expected a tensor with one number, got {got}; use a mean or a sum"
            raise InputError(msg)
        return value.reshape(())

    def gradient(self, batches: Sequence[Batch], *, equally: bool = True) -> float:
        """Set ``.grad`` to the mean gradient over the batches, and return the mean loss.

        Memory running out halves the chunk and starts the gradient again: buffers and random
        states are put back first, so that the result is that of one undisturbed evaluation.

        Args:
            batches: The step's batches.
            equally: They count equally, as in ``(loss / accumulate).backward()``; otherwise by
                what the loss divides by, as in `value`.

        Returns:
            The mean of their losses.
        """
        buffers = [b.detach().clone() for b in self.model.buffers()]

        def attempt() -> float:
            with torch.no_grad():
                for b, saved in zip(self.model.buffers(), buffers, strict=True):
                    b.copy_(saved)
            for p in self.params:
                p.grad = None
            total = 0.0
            even = [1 / len(batches)] * len(batches)
            for batch, share in zip(
                batches, even if equally else self.shares(batches), strict=True
            ):
                for piece, weight in self._weighted(batch):
                    value = self.value_of(piece) * (weight * share)
                    if not value.requires_grad:
                        msg = (
                            "loss: has no gradient in any trainable parameter; check for "
                            "detach(), no_grad() or .item() on the way from the model to the loss"
                        )
                        raise InputError(msg)
                    value.backward()  # type: ignore[no-untyped-call]  # untyped in torch
                    total += float(value.detach())
            return total

        self.cost.gradients += 1
        return self._shrinking(attempt, max(b.size for b in batches))

    def value(self, batches: Sequence[Batch], *, evaluation: bool | None = None) -> float:
        """Return the loss on a fixed set of batches, weighted by their samples; nothing changes.

        Dropout is off. BatchNorm uses the batches' own statistics as in training, unless
        `evaluation` asks for its running ones.

        Args:
            batches: The fixed set.
            evaluation: In evaluation mode; by default where that makes no difference.

        Returns:
            The loss, which may be infinite or NaN.
        """
        if evaluation is None:
            evaluation = not self.has_batch_norm

        def attempt() -> float:
            with self.flags(evaluation=evaluation), torch.no_grad():
                values = [
                    sum(float(self.value_of(piece)) * weight for piece, weight in self._weighted(b))
                    for b in batches
                ]
                shares = self.shares(batches)
            return sum(v * share for v, share in zip(values, shares, strict=True))

        self.cost.forwards += sum(b.size for b in batches) / self.samples_per_step
        return self._shrinking(attempt, max(b.size for b in batches))

    def _weighted(self, batch: Batch) -> list[tuple[Batch, float]]:
        """Micro-batches of a batch, with what their losses are multiplied with."""
        if isinstance(self.loss, ModelLoss) or self.chunk is None or batch.size <= self.chunk:
            return [(batch, 1.0)]
        parts = pieces(batch, self.chunk)
        rule = self.rule(parts)
        found = [rule.divisor(part, self._shapes_of) for part in parts]
        total = 1.0 if rule.reduction == "sum" else sum(found)
        return [(part, d / total) for part, d in zip(parts, found, strict=True)]

    def rule(self, batches: Sequence[Batch]) -> Rule:
        """How the losses of batches add up; found out once, leaving no trace.

        Args:
            batches: Some batches.

        Returns:
            The rule, of which a note is taken.

        Raises:
            NotAdditiveError: If the loss is unknown, and a trial finds it neither mean nor sum.
        """
        if isinstance(self._rule, NotAdditiveError):
            raise self._rule
        if self._rule is None:
            try:
                with self._untouched():
                    self._rule = find_rule(
                        self.loss, batches, reduction=None, outputs_of=self._outputs_of,
                        value_of=self.value_of, always=True,
                    )  # fmt: skip
            except NotAdditiveError as error:
                self._rule = error
                raise
            if self._rule.note and len(batches) > 1:
                self.notes.append(self._rule.note)
        return self._rule

    def is_mean(self, batch: Batch) -> bool:
        """Whether the loss is a mean over samples, so that its batches may be put together.

        Args:
            batch: To try it on.

        Returns:
            False for sums, and for losses of a batch as a whole.
        """
        try:
            return self.rule([batch]).reduction == "mean"
        except NotAdditiveError:
            return False

    def shares(self, batches: Sequence[Batch]) -> list[float]:
        """What each batch of a fixed set counts in its mean loss.

        Args:
            batches: The fixed set.

        Returns:
            What the loss divides by, over the total.

        Raises:
            NotAdditiveError: If the batches are one data set, whose loss theirs do not make up.
        """
        if len(batches) == 1:
            return [1.0]
        found = [1.0] * len(batches)
        try:
            rule = self.rule(batches)
            if rule.reduction == "mean":
                found = [rule.divisor(b, self._shapes_of) for b in batches]
            elif self.joint:
                return found
        except NotAdditiveError:
            if self.joint:
                raise
        total = sum(found)
        return [x / total for x in found]

    def _outputs_of(self, batch: Batch) -> Any:
        with torch.no_grad(), self.autocast():
            return batch.outputs_of(self.model)

    def _shapes_of(self, batch: Batch) -> Any:
        key = batch.shapes
        if key not in self._shapes:
            with self._untouched():
                self._shapes[key] = as_shapes(self._outputs_of(batch))
        return self._shapes[key]

    @contextlib.contextmanager
    def _untouched(self) -> Iterator[None]:
        """Evaluation mode, and the random state put back: for looking, not for training."""
        devices = sorted({p.device.index for p in self.params if p.is_cuda})
        with torch.random.fork_rng(devices=devices), self.flags(evaluation=True):
            yield

    def _shrinking(self, attempt: Callable[[], T], size: int) -> T:
        state = torch.get_rng_state()
        while True:
            try:
                return attempt()
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                chunk = min(self.chunk or size, size)
                # BatchNorm has no statistics of a single sample, not as a remainder either.
                least = 2 if self.has_batch_norm else 1
                if chunk <= least or isinstance(self.loss, ModelLoss):
                    raise
                half = max(least, (chunk + 1) // 2)
                self.chunk = half + (self.has_batch_norm and half < size and size % half == 1)
            # Outside the handler: its traceback keeps the failed graph alive.
            for p in self.params:
                p.grad = None
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            torch.set_rng_state(state)
            self.notes.append(f"out of memory: went on with {self.chunk} samples at a time")

    @contextlib.contextmanager
    def flags(self, *, evaluation: bool) -> Iterator[None]:
        """Hold the modes in which fixed sets are evaluated; see `value`.

        Args:
            evaluation: Whether in evaluation mode.

        Yields:
            Nothing; modes and buffers are put back.
        """
        flags = [(m, m.training) for m in self.model.modules()]
        buffers: list[tuple[Tensor, Tensor]] = []
        try:
            if evaluation:
                self.model.eval()
            else:
                buffers = [(b, b.detach().clone()) for b in self.model.buffers()]
                for m, _ in flags:
                    if isinstance(m, _DROPOUT):
                        m.training = False
            yield
        finally:
            for m, flag in flags:
                m.training = flag
            for b, saved in buffers:
                b.copy_(saved)


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on the GPU or the CPU."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error).lower()
    return "out of memory" in text or "can't allocate memory" in text


def is_finite(x: Any) -> bool:
    """Whether a number is neither NaN nor infinite."""
    return bool(abs(x) < float("inf"))
