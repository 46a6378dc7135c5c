"""The loss of a model on some batches: its value, or its value and gradient."""

import contextlib
import dataclasses
import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from trebuchet._checks import one_line
from trebuchet._torch_checks import out_of_memory as out_of_memory  # where it was
from trebuchet.errors import InputError
from trebuchet.problem.autocast import Autocast
from trebuchet.problem.batches import Batch
from trebuchet.problem.divisors import find_rule
from trebuchet.problem.held_still import modes_kept, silence_dropout
from trebuchet.problem.losses import LossFn, ModelLoss
from trebuchet.problem.noise import LOOKS, RandomState, seed_all
from trebuchet.problem.outputs_seen import OutputsSeen
from trebuchet.problem.state import ModelState, Snapshot
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
        seen: Called with the outputs of every pass, where a loss is made of outputs.
        state: Everything that training may move, the model's and what the loss reaches.
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
    seen: Callable[[object], None] | None = None
    _rule: Rule | NotAdditiveError | None = None
    _shapes: dict[Any, Any] = field(default_factory=dict)
    _seen_random: bool = False
    _quiet_in_training: bool = False
    _own_noise: bool = False
    _ways: dict[bool, tuple[bool, bool]] = field(default_factory=dict)
    _graded: bool = False
    _plain_backward: bool = False
    state: ModelState = field(init=False)

    def __post_init__(self) -> None:
        loss = self.loss.fn if isinstance(self.loss, ModelLoss) else self.loss
        self.state = ModelState(self.model, self.params, loss)

    @property
    def has_batch_norm(self) -> bool:
        """Whether the loss in training and in evaluation differ through batch statistics."""
        return any(
            isinstance(m, _BATCH_NORM) and m.track_running_stats for m in self.model.modules()
        )

    @property
    def randomised(self) -> bool:
        """Whether the loss in training is random, or depends on batch statistics."""
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

    @property
    def looks_need_gradients(self) -> bool:
        """Whether the loss takes gradients itself, so that looks are taken with them enabled."""
        return self._graded

    @property
    def _asks_for_evaluation(self) -> bool:
        """Whether looks are to be taken in evaluation mode, the last way to be rid of noise."""
        return not (self.has_batch_norm or self._quiet_in_training)

    def looks_in_evaluation(self) -> bool:
        """Whether looks are taken in evaluation mode."""
        asked = self._asks_for_evaluation
        return self._ways.get(asked, (asked, False))[0]

    def watch_for_randomness(self, batch: Batch) -> None:
        """Find out whether the loss in training is random where no layer says so.

        Functional dropout and noise in a forward pass are no modules. Two passes from different
        random states tell.

        Where training is not random, or no longer once dropout layers are off, looks are taken in
        training mode from now on: the loss that is trained is the training mode's. A model may
        return probabilities instead of logits in evaluation mode, or leave a penalty out; one whose
        modes agree at the start need not do so later (a teacher that follows in training only).

        Args:
            batch: On which samples.
        """
        if self.has_batch_norm:
            return
        if self.randomised:  # by layers, which can be off
            self._quiet_in_training = not self._random(batch, silent=True)
        else:
            self._seen_random = self._random(batch, silent=False)
            self._quiet_in_training = not self._seen_random

    def look_in_evaluation(self) -> bool:
        """Take looks in evaluation mode after all, as where training mode's loss has no descent.

        Returns:
            Whether that changes anything.
        """
        changes = self._quiet_in_training
        if changes:
            # Training's losses are then no looks.
            self._quiet_in_training, self._seen_random = False, True
        return changes

    def _random(self, batch: Batch, *, silent: bool) -> bool:
        values = [self.in_training(batch, seed, silent=silent) for seed in (0, 1)]
        if self._own_noise:  # put back with all state, and the same in both passes
            return True
        # Sums on a GPU may differ in their last digits; noise that small is none.
        return abs(values[0] - values[1]) > 1e-5 * max(map(abs, values))

    def in_training(self, batch: Batch, seed: int = 0, *, silent: bool = False) -> float:
        """Return the loss of a batch as training sees it, dropout and all; nothing changes.

        Args:
            batch: On which samples.
            seed: Of its random numbers.
            silent: Without the dropout of layers, as looks are taken.

        Returns:
            The loss.
        """

        def passes() -> float:
            found = sum(float(self.value_of(p).detach()) * w for p, w in self._weighted(batch))
            # Layers that are silent have another flag than at the start, and have not moved.
            if silent or self.state.moved_beside():
                self._own_noise |= self.state.drew()
            return found

        self.cost.forwards += batch.size / self.samples_per_step
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.still())
            stack.enter_context(torch.set_grad_enabled(self._graded))
            if silent:
                stack.enter_context(self.flags(evaluation=False))
            seed_all(seed)
            return self._shrinking(passes, batch.size)

    def watch_for_gradients(self, with_gradients: float, batches: Sequence[Batch]) -> bool:
        """Find out whether the loss leaves a term out where gradients are switched off.

        Args:
            with_gradients: What `gradient` returned, as looked at.
            batches: For which batches.

        Returns:
            Whether it does: looks are taken with gradients enabled from now on.
        """
        if self._graded:
            return False

        def passes() -> float:  # weighted and in the order as the gradient has them
            parts = [pair for batch in batches for pair in self._weighted(batch)]
            return sum(float(self.value_of(p).detach()) * w for p, w in parts) / len(batches)

        evaluation = self._asks_for_evaluation
        without = self._look(passes, max(b.size for b in batches), evaluation=evaluation)
        self.cost.forwards += sum(b.size for b in batches) / self.samples_per_step
        if is_finite(without) and is_finite(with_gradients):
            # Kernels differ with and without gradients in their last digits.
            size = max(abs(without), abs(with_gradients))
            self._graded = abs(without - with_gradients) > 1e-3 * size
        return self._graded

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
            with self.autocast():
                for part in pieces(batch, self.chunk):
                    other = dataclasses.replace(
                        part, args=mapped(scaled, part.args), kwargs=mapped(scaled, part.kwargs)
                    )
                    outputs += [part.outputs_of(self.model), other.outputs_of(self.model)]
            if not all(isinstance(z, Tensor) and z.ndim for z in outputs):
                return False
            z = torch.cat([z.detach() for z in outputs])
            return bool((z == z[:1]).all())

        return self._look(passes, batch.size, evaluation=self._asks_for_evaluation)

    def value_of(self, batch: Batch) -> Tensor:
        """Return the loss on one micro-batch, as it comes: it may be infinite or NaN."""
        with self.autocast():
            if isinstance(self.loss, ModelLoss):
                value = self.loss.fn(self.model, batch.raw)
            else:
                z = batch.outputs_of(self.model)
                if self.seen is not None:
                    self.seen(z)
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

        Only the trained parameters get one: other modules that a closure uses keep theirs. Memory
        running out halves the chunk and starts the gradient again: state and random numbers are
        put back first, so that the result is that of one undisturbed evaluation.

        Args:
            batches: The step's batches.
            equally: They count equally, as in ``(loss / accumulate).backward()``; otherwise by
                what the loss divides by, as in `value`.

        Returns:
            The mean of their losses.

        Raises:
            RuntimeError: As the user's model or loss raised it.
        """
        # Where nothing else was seen to move, only buffers are copied at every step.
        before = self.state.snapshot() if self.state.moving else None
        buffers = [(b, b.detach().clone()) for b in self.model.buffers()] if not before else []
        again = False

        def attempt() -> float:
            nonlocal again
            if again:
                self._undo(before, buffers)
            again = True
            for p in self.params:
                p.grad = None
            if isinstance(self.seen, OutputsSeen):
                self.seen.reset()
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
                    self._backward(value)
                    total += float(value.detach())
            return total

        self.cost.gradients += 1
        self._try_on_all(batches)
        size = max(b.size for b in batches)
        random_state = RandomState.now()
        try:
            return self._shrinking(attempt, size)
        except RuntimeError as error:
            if self._plain_backward or _REENTRANT not in str(error):
                raise
        # Reentrant checkpoints take no list of inputs: others' gradients are put back instead.
        self._plain_backward = True
        random_state.put_back()
        return self._shrinking(attempt, size)

    def _backward(self, value: Tensor) -> None:
        try:
            torch.autograd.backward(value, inputs=None if self._plain_backward else self.params)
        except RuntimeError as error:
            if "backward through the graph a second time" not in str(error):
                raise
            msg = (
                "loss: expected a loss to take the gradient of, got one whose graph is used up "
                "already; let it return the loss without calling backward() on it, or stepping "
                "the model's optimizer: the scan does both"
            )
            raise InputError(msg) from error

    def _undo(self, before: Snapshot | None, buffers: Sequence[tuple[Tensor, Tensor]]) -> None:
        if before is not None:
            self.state.restore(before)
        with torch.no_grad():
            for b, saved in buffers:
                b.copy_(saved)

    def value(self, batches: Sequence[Batch], *, evaluation: bool | None = None) -> float:
        """Return the loss on a fixed set of batches, weighted by their samples; nothing changes.

        Dropout is off. BatchNorm uses the batches' own statistics as in training, unless
        `evaluation` asks for its running ones. All else is as in training, except where only
        evaluation mode is without noise (`watch_for_randomness`). A model that draws random numbers
        all the same draws the same ones at every look, whatever the caller's random state, so that
        looks differ by the weights and by nothing else. Gradients are enabled where the loss cannot
        do without, and a model that has no loss in evaluation mode is looked at in training mode.

        Args:
            batches: The fixed set.
            evaluation: In evaluation mode; by default where that makes no difference.

        Returns:
            The loss, which may be infinite or NaN.
        """
        if evaluation is None:
            evaluation = self._asks_for_evaluation

        def passes() -> float:
            self._try_on_all(batches)
            values = [
                sum(float(self.value_of(p).detach()) * weight for p, weight in self._weighted(b))
                for b in batches
            ]
            shares = self.shares(batches)
            return sum(v * share for v, share in zip(values, shares, strict=True))

        self.cost.forwards += sum(b.size for b in batches) / self.samples_per_step
        return self._look(passes, max(b.size for b in batches), evaluation=evaluation)

    def _look(self, passes: Callable[[], T], size: int, *, evaluation: bool) -> T:
        """Run passes that leave no trace, in the first way that works, which is remembered."""
        known = self._ways.get(evaluation)
        if known is not None:
            return self._in_way(passes, size, known)
        failed: list[Exception] = []
        for mode in (True, False) if evaluation else (False,):
            for graded in (self._graded, True):
                try:
                    found = self._in_way(passes, size, (mode, graded))
                except Exception as error:  # the user's model and loss may raise anything
                    failed.append(error)
                    if out_of_memory(error):
                        raise
                    if graded or not needs_gradients(error):
                        break
                else:
                    if mode != evaluation and not self._fails(passes, size, (True, graded)):
                        raise failed[0]
                    if mode != evaluation:
                        self.notes.append(
                            "looks are taken in training mode: in evaluation mode there is no loss "
                            f"({one_line(failed[0])})"
                        )
                    self._graded |= graded
                    self._ways[evaluation] = (mode, graded)
                    return found
        raise failed[0]

    def _fails(self, passes: Callable[[], Any], size: int, way: tuple[bool, bool]) -> bool:
        """Whether it is the mode that fails, and not one call of the user's function."""
        try:
            self._in_way(passes, size, way)
        except Exception:  # as above
            return True
        return False

    def _in_way(self, passes: Callable[[], T], size: int, way: tuple[bool, bool]) -> T:
        evaluation, graded = way
        with (
            self.still(), self.flags(evaluation=evaluation),
            torch.set_grad_enabled(graded or self._graded),
        ):  # fmt: skip
            seed_all(LOOKS)
            return self._shrinking(passes, size)

    @contextlib.contextmanager
    def as_looked_at(self) -> Iterator[None]:
        """What `value` evaluates, for a gradient of it: same mode, same random numbers, no trace.

        Yields:
            Nothing.
        """
        with self.still(), self.flags(evaluation=self.looks_in_evaluation()):
            seed_all(LOOKS)
            yield

    @contextlib.contextmanager
    def brought_home(self) -> Iterator[None]:
        """Put everything back to the start at the end, in the memory where it lay.

        Yields:
            Nothing.
        """
        try:
            yield
        finally:
            self.state.bring_home()

    @contextlib.contextmanager
    def still(self) -> Iterator[None]:
        """Put everything that forward passes move back afterwards, weights included.

        Random states are not among it: every pass that matters seeds them first.

        Yields:
            Nothing.
        """
        before = self.state.snapshot()
        try:
            yield
        finally:
            self.state.restore(before)

    def _weighted(self, batch: Batch) -> list[tuple[Batch, float]]:
        """Micro-batches of a batch, with what their losses are multiplied with."""
        if isinstance(self.loss, ModelLoss) or self.chunk is None or batch.size <= self.chunk:
            return [(batch, 1.0)]
        parts = pieces(batch, self.chunk)
        rule = self.rule(parts)
        found = [rule.divisor(part, self._shapes_of) for part in parts]
        total = 1.0 if rule.reduction == "sum" else sum(found)
        return [(part, d / total) for part, d in zip(parts, found, strict=True)]

    def _try_on_all(self, batches: Sequence[Batch]) -> None:
        """Find the rule out on all micro-batches, not on those of the first batch alone."""
        if self._rule is not None or self.chunk is None or len(batches) == 1:
            return
        if any(b.size > self.chunk for b in batches) and not isinstance(self.loss, ModelLoss):
            with contextlib.suppress(NotAdditiveError):  # raised again where it matters
                self.rule([part for b in batches for part in pieces(b, self.chunk)])

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
                with self.as_looked_at(), torch.set_grad_enabled(self._graded):
                    self._rule = find_rule(
                        self.loss, batches, reduction=None, outputs_of=self.outputs,
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

    def outputs(self, batch: Batch) -> Any:
        """What the model returns for a batch, as looks are taken, without a graph."""

        def passes() -> Any:
            with self.autocast():
                return mapped(Tensor.detach, batch.outputs_of(self.model))

        return self._look(passes, batch.size, evaluation=True)

    def _shapes_of(self, batch: Batch) -> Any:
        key = batch.shapes
        if key not in self._shapes:
            self._shapes[key] = as_shapes(self.outputs(batch))
        return self._shapes[key]

    def _shrinking(self, attempt: Callable[[], T], size: int) -> T:
        state = RandomState.now()
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
            state.put_back()
            self.notes.append(f"out of memory: went on with {self.chunk} samples at a time")

    @contextlib.contextmanager
    def flags(self, *, evaluation: bool) -> Iterator[None]:
        """Hold the modes in which fixed sets are evaluated; see `value`.

        Args:
            evaluation: Whether in evaluation mode.

        Yields:
            Nothing; modes are put back.
        """
        with modes_kept(self.model):
            if evaluation:
                self.model.eval()
            else:
                silence_dropout(self.model)
            yield


_REENTRANT = "checkpoint"
"""A word of how torch says that reentrant checkpoints cannot be told which gradients to take."""


def needs_gradients(error: BaseException) -> bool:
    """Whether an exception says that gradients were wanted where they were switched off."""
    text = str(error)
    return isinstance(error, RuntimeError) and ("require grad" in text or "grad_fn" in text)


def is_finite(x: Any) -> bool:
    """Whether a number is neither NaN nor infinite."""
    return bool(abs(x) < float("inf"))
