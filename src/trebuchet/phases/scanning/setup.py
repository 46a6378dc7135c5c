"""Everything a scan works with, made once the arguments are known to be good."""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from trebuchet.errors import InputError
from trebuchet.phases.forward_rate import ForwardRate, along_first_step
from trebuchet.phases.scan_result import Critical
from trebuchet.phases.scanning.arguments import Arguments
from trebuchet.phases.scanning.checks import check_start
from trebuchet.phases.scanning.curvature import critical_rate
from trebuchet.phases.scanning.field import Rates
from trebuchet.phases.scanning.race import Plan
from trebuchet.phases.scanning.stack import can_stack
from trebuchet.phases.scanning.training import Trainer
from trebuchet.problem.autocast import Autocast
from trebuchet.problem.batches import Batch, uncounted
from trebuchet.problem.closures import OWN_LOSS, maybe_closure, settled
from trebuchet.problem.losses import resolve
from trebuchet.problem.optimizer_copies import has_modes
from trebuchet.problem.optimizers import (
    Clip,
    Factory,
    epsilon_lost,
    evaluated_first,
    make_factory,
    unheld,
)
from trebuchet.problem.risk import Objective, is_finite
from trebuchet.problem.schedules import check_scheduler
from trebuchet.problem.selection import select
from trebuchet.problem.stream import Stream, make_stream
from trebuchet.results.levels import DELTA

FIXED_SAMPLES = 256
"""Samples that mini-batch runs are compared on while they train."""
CLOSING_SAMPLES = 4096
"""Samples that they are compared on at the horizon."""
FOR_CURVATURE = 1 / 16
"""Share of the budget that λ₀ may cost: the race matters more."""
FOR_FIRST_STEP = 1 / 16
"""Share of the budget that the gradient for the forward rate may cost."""
FOR_EDGES = 0.15
"""Share of a full-batch scan's budget that the race leaves for the edges: it never misses it."""
LEAST_RISE = 1e-2
"""A loss of mini-batch training has risen if it is so far above its start …"""
RISES = 2.0
"""… and so many times the noise of a look above it."""
NOISE_BATCHES, NOISE_SEED = 8, 31_415
"""Batches that the noise is measured on, and their order: a seed that no run is likely to have."""
AT_ONCE = 16
"""Runs that are stacked, at most."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What the parts of a scan share.

    Attributes:
        asked: The arguments.
        objective: The model and the loss.
        stream: The batches.
        factory: Makes optimizers.
        trainer: Trains the runs.
        rates: The runs.
        forward: The forward-only rate.
        critical: λ₀ and the critical rate.
        first: What the forward rate is measured on.
        noise: Relative noise of a look at the start; 0 where looks have none.
        fixed: The set that runs are compared on.
        loss_in_training: Of the first of them at the start, with its random numbers.
    """

    asked: Arguments
    objective: Objective
    stream: Stream
    factory: Factory
    trainer: Trainer
    rates: Rates
    forward: ForwardRate
    critical: Critical
    first: Sequence[Batch]
    noise: float
    fixed: Sequence[Batch]
    loss_in_training: float

    @property
    def first_cost(self) -> int:
        """Gradients that one for the forward rate counts as."""
        size = sum(b.size for b in self.first)
        return max(1, round(size / self.stream.samples_per_step))


def prepare(model: nn.Module, asked: Arguments, stack: ExitStack) -> Setup:
    """Look at the model, the loss and the data, and measure what the race starts from.

    Args:
        model: The module, held still and in the mode it is to be trained in.
        asked: The arguments.
        stack: What ends when the model is no longer needed.

    Returns:
        The setup.

    Raises:
        InputError: If the model, the loss or the data is not what was expected.
    """
    loss = resolve(asked.loss) or OWN_LOSS
    params = list(select(model).values())
    device = params[0].device
    autocast = Autocast.ambient(device)
    if asked.autocast is not None:
        autocast = Autocast(device.type, True, asked.autocast)
    clip = Clip(asked.clip_grad_norm, asked.clip_grad_value)
    factory = make_factory(asked.optimizer, params, clip=clip)
    factory = evaluated_first(asked.optimizer, params, factory, clip)
    probe = factory(params, 1e-3)
    modes = has_modes(probe)
    if asked.scheduler is not None:
        check_scheduler(asked.scheduler, factory, params, asked.horizon)
    stream = make_stream(
        asked.data, device=device, batch_size=asked.batch_size, accumulate=asked.accumulate,
        horizon=asked.horizon, closure=maybe_closure(loss), model=model, weights=asked.weights,
        size_of=asked.size_of,
    )  # fmt: skip
    loss = settled(loss, model, min(stream.pool, key=lambda b: b.size), autocast)
    objective = Objective(
        model, loss, params, autocast, stream.samples_per_step, asked.micro_batch
    )  # fmt: skip
    stack.enter_context(objective.brought_home())
    objective.notes += [note for note in (epsilon_lost(probe), unheld(probe, params)) if note]
    if stream.n_samples == 1:
        objective.notes.append("there is only one sample: this is the rate that memorises it")
    fixed = stream.fixed(stream.n_samples if stream.full_batch else FIXED_SAMPLES)
    closing = fixed if stream.full_batch else stream.fixed(CLOSING_SAMPLES)
    check_start(objective, fixed, stream)
    if not stream.full_batch and not objective.is_mean(max(fixed, key=lambda b: b.size)):
        # Batches of another size have another loss: compare on batches as they are trained on.
        stream = replace(stream, whole=True)
        fixed, closing = stream.fixed(FIXED_SAMPLES), stream.fixed(CLOSING_SAMPLES)
    objective.notes += [note for note in (uncounted(stream.pool),) if note]
    objective.watch_for_randomness(fixed[0])
    in_training = objective.in_training(fixed[0])
    first = _for_first_step(stream, fixed, asked)
    forward = along_first_step(objective, factory, first)
    critical = Critical(math.nan, math.nan, "", "not measured")
    if asked.curvature != "none":
        critical = critical_rate(
            objective, stream, asked.optimizer, asked.loss,
            at_most=int(FOR_CURVATURE * asked.limit), clip=clip,
        )  # fmt: skip
    trainer = Trainer(
        objective, stream, factory, horizon=asked.horizon, fixed=fixed, closing=closing,
        schedule=asked.multiplier, scheduler=asked.scheduler, modes=modes, blowup=asked.blowup,
        budget=asked.limit, at_once=1 if modes else _at_once(objective, stream, asked),
    )  # fmt: skip
    if trainer.free_looks and asked.edge_rtol is None:
        trainer.budget = round((1 - FOR_EDGES) * asked.limit)
    if not is_finite(trainer.loss_first):
        msg = (
            f"loss: was finite at first and is {trainer.loss_first} now, at the same weights; "
            "check for state that it keeps between calls"
        )
        raise InputError(msg)
    scale = _scale(forward, critical)
    if asked.rates is not None:
        scale = float(np.exp(np.log(asked.rates).mean()))
    noise = 0.0 if trainer.free_looks else noise_of_looks(objective, stream, fixed)
    # What the race protects is no verdict, and needs no certainty.
    flight = (DELTA if trainer.free_looks else LEAST_RISE) if asked.delta is None else asked.delta
    delta = max(flight, RISES * noise) if asked.delta is None else asked.delta
    # The full batch has no order: without randomness a second seed would be the same run again.
    one_order = stream.full_batch and not objective.randomised
    seeds = asked.seeds[:1] if one_order else asked.seeds
    rates = Rates(trainer, scale, seeds, delta=delta, smoothing=Plan().smoothing, flight=flight)
    return Setup(
        asked, objective, stream, factory, trainer, rates, forward, critical, first, noise,
        fixed, in_training,
    )  # fmt: skip


@contextmanager
def prepared(model: nn.Module, asked: Arguments) -> Iterator[Setup]:
    """Do what `prepare` does, and bring all the state that training moves home at the end.

    Args:
        model: See `prepare`.
        asked: See `prepare`.

    Yields:
        The setup.
    """
    with ExitStack() as stack:
        yield prepare(model, asked, stack)


def check_fresh(setup: Setup) -> None:
    """Say so if the start no longer gives the loss that it gave: runs are then not independent.

    Args:
        setup: The scan, its runs made.
    """
    setup.trainer.load_start()
    now, then = setup.objective.in_training(setup.fixed[0]), setup.loss_in_training
    if not abs(now - then) <= 1e-4 * max(abs(now), abs(then)):
        setup.objective.notes.append(
            f"runs were not independent: at the same weights the loss in training was {then:.4g} "
            f"at first and is {now:.4g} now, by state that a scan cannot put back; keep it in "
            "buffers, or in plain attributes of a module"
        )


def noise_of_looks(objective: Objective, stream: Stream, fixed: Sequence[Batch]) -> float:
    """How far a look may be off by chance, relative to the loss at the start.

    The standard deviation of the loss of single training batches at the start, in training mode
    with its random numbers, brought from their size to that of the set that looks are taken on: its
    standard error as a sample of the data.

    Args:
        objective: The model, at the start.
        stream: What batches are drawn from.
        fixed: The set that looks are taken on.

    Returns:
        The ratio; 0 where fewer than two batches have a finite loss.
    """
    drawn = [stream.batches(NOISE_SEED, step)[0] for step in range(NOISE_BATCHES)]
    losses = np.array([objective.in_training(batch, k) for k, batch in enumerate(drawn)])
    finite = losses[np.isfinite(losses)]
    if finite.size < 2 or not finite.any():
        return 0.0
    share = float(np.mean([b.size for b in drawn])) / sum(b.size for b in fixed)
    return float(finite.std(ddof=1) * math.sqrt(share) / abs(finite.mean()))


def _scale(forward: ForwardRate, critical: Critical) -> float:
    """Where the race starts: the forward rate, unless every first step lowers the loss."""
    # Outputs that saturate make it unbounded, and far beyond any rate that trains.
    if math.isfinite(forward.high):
        return forward.value
    if math.isfinite(critical.lr) and critical.lr > 0:
        return critical.lr
    return min(forward.value, forward.natural)


def _for_first_step(stream: Stream, fixed: Sequence[Batch], asked: Arguments) -> Sequence[Batch]:
    """The fixed set, or as much of it as the budget allows a gradient of: batches may be tiny."""
    size = max(1, int(FOR_FIRST_STEP * asked.limit)) * stream.samples_per_step
    return fixed if sum(b.size for b in fixed) <= size else stream.fixed(size)


def _at_once(objective: Objective, stream: Stream, asked: Arguments) -> int:
    """How many runs to stack."""
    stacked = objective.params[0].is_cuda if asked.stacked is None else asked.stacked
    if not stacked or objective.chunk is not None:
        return 1
    return AT_ONCE if can_stack(objective, stream.batches(asked.seeds[0], 0)) else 1
