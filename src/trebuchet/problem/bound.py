"""A problem bound to a model: batches read, loss settled, optimizer tried, the start looked at."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn

from trebuchet.problem.autocast import Autocast
from trebuchet.problem.batches import Batch, uncounted
from trebuchet.problem.check_start import check_start
from trebuchet.problem.closures import OWN_LOSS, maybe_closure, settled
from trebuchet.problem.fitted import fitted
from trebuchet.problem.losses import resolve
from trebuchet.problem.optimizer_copies import has_modes
from trebuchet.problem.optimizers import (
    Factory,
    epsilon_lost,
    evaluated_first,
    make_factory,
    unheld,
)
from trebuchet.problem.problem import Problem, placed
from trebuchet.problem.risk import Objective
from trebuchet.problem.schedules import check_scheduler
from trebuchet.problem.selection import select
from trebuchet.problem.stream import Stream, make_stream, pieces

FIXED_SAMPLES = 256
"""Samples that mini-batch runs are compared on while they train."""
CLOSING_SAMPLES = 4096
"""Samples that they are compared on at the end."""
ENDLESS = 10**9
"""Steps of a run that reads all of a loader."""


@dataclass(frozen=True, slots=True)
class Bound:
    """What trains a problem from one model.

    Attributes:
        problem: The problem.
        objective: The model and the loss.
        stream: The batches.
        factory: Makes optimizers.
        modes: Whether the optimizer trains on other weights than those it is evaluated with.
        fixed: The set that runs are compared on while they train.
        closing: The larger set they are compared on at the end.
    """

    problem: Problem
    objective: Objective
    stream: Stream
    factory: Factory
    modes: bool
    fixed: list[Batch]
    closing: list[Batch]

    @property
    def model(self) -> nn.Module:
        """The module, which holds the weights of one run at a time."""
        return self.objective.model

    @property
    def free_looks(self) -> bool:
        """Whether the loss of a step's gradient is the loss that runs are judged by.

        With the full batch and no randomness it is, so that no look costs extra; except for
        schedule-free optimizers, whose gradients are taken elsewhere.
        """
        return self.stream.full_batch and not self.objective.randomised and not self.modes


@contextmanager
def bound(
    problem: Problem, model: nn.Module, *, steps: int = ENDLESS, joint: bool = False
) -> Iterator[Bound]:
    """Look at the model, the loss, the data and the optimizer as they will be trained.

    Args:
        problem: The problem.
        model: Its module, unwrapped, held still and in the mode it is to be trained in.
        steps: Of a run; of a loader no more is read than they need.
        joint: All data are one set, read whole, and make every step.

    Yields:
        What trains it. At the end everything that training moves is brought home.

    Raises:
        InputError: If the model, the loss, the data or the optimizer is not what was expected.
    """
    problem = placed(problem, model)
    params = list(select(model).values())
    factory = make_factory(problem.optimizer, params, clip=problem.clip)
    factory = evaluated_first(problem.optimizer, params, factory, problem.clip)
    probe = factory(params, 1e-3)
    if problem.scheduler is not None:
        check_scheduler(problem.scheduler, factory, params, steps)
    objective, stream = evaluated(problem, model, steps=steps, joint=joint)
    with objective.brought_home():
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
        yield Bound(problem, objective, stream, factory, has_modes(probe), fixed, closing)


def evaluated(
    problem: Problem, model: nn.Module, *, steps: int = ENDLESS, joint: bool = False
) -> tuple[Objective, Stream]:
    """The loss of a problem at a model, and its batches.

    Args:
        problem: The problem.
        model: Its module, unwrapped and held still.
        steps: Of a run; of a loader no more is read than they need.
        joint: All data are one set, read whole, whatever the problem's batches are.

    Returns:
        Both; nothing but what `settled` tries was evaluated.

    Raises:
        InputError: If the loss or the data is not what was expected.
    """
    problem = placed(problem, model)
    loss = resolve(problem.loss) or OWN_LOSS
    params = list(select(model).values())
    device = params[0].device
    autocast = Autocast.ambient(device)
    if problem.autocast is not None:
        autocast = Autocast(device.type, True, problem.autocast)
    stream = make_stream(
        problem.data, device=device, batch_size=None if joint else problem.batch_size,
        accumulate=1 if joint else problem.accumulate, horizon=steps,
        closure=maybe_closure(loss), model=model, weights=problem.weights, size_of=problem.size_of,
    )  # fmt: skip
    loss = settled(loss, model, min(stream.pool, key=lambda b: b.size), autocast)
    per_step = stream.n_samples if joint else stream.samples_per_step
    objective = Objective(model, loss, params, autocast, per_step, problem.micro_batch, joint=joint)
    return objective, replace(_fitted(objective, stream), joint=joint)


def _fitted(objective: Objective, stream: Stream) -> Stream:
    """Give real targets the shape of the outputs (`fitted`); a note is taken of it."""

    def outputs_of(batch: Batch) -> object:
        with objective.as_looked_at(), torch.no_grad(), objective.autocast():
            return batch.outputs_of(objective.model)

    # As it is trained on: the pool may be a whole data set, and a graph takes no part of itself.
    first = stream.pool[0] if stream.batch_size is None else stream.batches(0, 0)[0]
    try:
        found = fitted(objective.loss, pieces(first, objective.chunk)[0], outputs_of)
    except Exception:  # the user's model may raise anything; `check_start` will say so
        return stream
    if found is None:
        return stream
    fit, note = found
    objective.notes.append(note)
    return replace(stream, pool=tuple(fit(stream.pool)), reference=tuple(fit(stream.reference)))
