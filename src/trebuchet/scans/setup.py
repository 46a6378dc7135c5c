"""Everything a scan works with, made once the arguments are known to be good."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import cast

import numpy as np
from torch import nn

from trebuchet.engine.advance import Engine
from trebuchet.engine.kernels.host import Host
from trebuchet.engine.kernels.vmap import can_stack
from trebuchet.engine.looks import least_rise, schedule
from trebuchet.engine.runner import Plan
from trebuchet.engine.stopping import StopRule
from trebuchet.errors import InputError
from trebuchet.observables.base import Observable
from trebuchet.observables.sparsity import Sparsity
from trebuchet.observables.weight_norm import WeightNorm
from trebuchet.phases.forward_rate import ForwardRate, along_first_step
from trebuchet.problem.batches import Batch
from trebuchet.problem.bound import Bound, bound
from trebuchet.problem.optimizers import Factory
from trebuchet.problem.risk import Objective, is_finite
from trebuchet.problem.stream import Stream
from trebuchet.scans.arguments import Arguments
from trebuchet.scans.critical import critical_rate
from trebuchet.scans.fresh import Fresh
from trebuchet.scans.halving import Plan as Halving
from trebuchet.scans.rates import Rates
from trebuchet.scans.result import Critical

FOR_CURVATURE = 1 / 16
"""Share of the budget that λ₀ may cost: the search matters more."""
FOR_FIRST_STEP = 1 / 16
"""Share of the budget that the gradient for the forward rate may cost."""
FOR_EDGES = 0.15
"""Share of a full-batch scan's budget that the search leaves for the edges: it never misses it."""
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
        engine: Takes the runs on.
        rates: The runs.
        forward: The forward-only rate.
        critical: λ₀ and the critical rate.
        first: What the forward rate is measured on.
        noise: Relative noise of a look at the start; 0 where looks have none.
        fixed: The set that runs are compared on.
        loss_in_training: Of the first of them at the start, with its random numbers.
        seconds_of_curvature: What measuring λ₀ took.
    """

    asked: Arguments
    objective: Objective
    stream: Stream
    factory: Factory
    engine: Engine
    rates: Rates
    forward: ForwardRate
    critical: Critical
    first: Sequence[Batch]
    noise: float
    fixed: Sequence[Batch]
    loss_in_training: float
    seconds_of_curvature: float

    @property
    def first_cost(self) -> int:
        """Gradients that one for the forward rate counts as."""
        size = sum(b.size for b in self.first)
        return max(1, round(size / self.stream.samples_per_step))


def prepare(model: nn.Module, asked: Arguments, stack: ExitStack) -> Setup:
    """Look at the model, the loss and the data, and measure what the search starts from.

    Args:
        model: The module, held still and in the mode it is to be trained in.
        asked: The arguments.
        stack: What ends when the model is no longer needed.

    Returns:
        The setup.

    Raises:
        InputError: If the model, the loss or the data is not what was expected.
    """
    problem = asked.problem
    trained = stack.enter_context(bound(problem, model, steps=asked.horizon))
    objective, stream, fixed = trained.objective, trained.stream, trained.fixed
    in_training = objective.in_training(fixed[0])
    first = _for_first_step(stream, fixed, asked)
    forward = along_first_step(objective, trained.factory, first)
    critical = Critical(math.nan, math.nan, "", "not measured")
    started = time.monotonic()
    if asked.curvature != "none":
        critical = critical_rate(
            objective, stream, problem.optimizer, problem.loss,
            at_most=int(FOR_CURVATURE * asked.limit), clip=problem.clip,
        )  # fmt: skip
    seconds_of_curvature = time.monotonic() - started
    host = Host(trained, check_law=asked.check_law)
    if not is_finite(host.loss_first):
        msg = (
            f"loss: was finite at first and is {host.loss_first} now, at the same weights; "
            "check for state that it keeps between calls"
        )
        raise InputError(msg)
    scale = _scale(forward, critical)
    if asked.rates is not None:
        scale = float(np.exp(np.log(asked.rates).mean()))
    delta, noise = least_rise(trained, asked.delta)
    engine = Engine(
        host, _plan(asked, host, delta), at_once=1 if trained.modes else _at_once(trained, asked)
    )
    # The full batch has no order: without randomness a second seed would be the same run again.
    one_order = stream.full_batch and not objective.randomised
    seeds = asked.seeds[:1] if one_order else asked.seeds
    budget = asked.limit
    if host.free_looks and asked.edge_rtol is None:
        budget = round((1 - FOR_EDGES) * asked.limit)
    rates = Rates(
        engine, scale, seeds, smoothing=Halving().smoothing, budget=budget,
        fresh=Fresh(trained, engine, seeds),
    )  # fmt: skip
    return Setup(
        asked, objective, stream, trained.factory, engine, rates, forward, critical, first, noise,
        fixed, in_training, seconds_of_curvature,
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
    setup.engine.host.load_start()
    now, then = setup.objective.in_training(setup.fixed[0]), setup.loss_in_training
    if not abs(now - then) <= 1e-4 * max(abs(now), abs(then)):
        setup.objective.notes.append(
            f"runs were not independent: at the same weights the loss in training was {then:.4g} "
            f"at first and is {now:.4g} now, by state that a scan cannot put back; keep it in "
            "buffers, or in plain attributes of a module"
        )


def _scale(forward: ForwardRate, critical: Critical) -> float:
    """Where the search starts: the forward rate, unless every first step lowers the loss."""
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


def _plan(asked: Arguments, host: Host, delta: float) -> Plan:
    """What the runs have in common: they are looked at as in a sweep, and measured at their end."""
    relus = any(isinstance(m, nn.ReLU) for m in host.model.modules())
    watched = cast("tuple[Observable, ...]", asked.observables)
    at_end = (WeightNorm(), *((Sparsity(),) if relus else ()))
    return Plan(
        stop=StopRule(asked.horizon, None, asked.blowup),
        schedule=schedule(asked.horizon, free=host.free_looks),
        observables=watched,
        only_at_the_end=tuple(o for o in at_end if o.name not in {w.name for w in watched}),
        delta=delta,
        check_law=asked.check_law,
    )


def _at_once(trained: Bound, asked: Arguments) -> int:
    """How many runs to stack."""
    objective = trained.objective
    stacked = objective.params[0].is_cuda if asked.stacked is None else asked.stacked
    if not stacked or objective.chunk is not None:
        return 1
    return AT_ONCE if can_stack(objective, trained.stream.batches(asked.seeds[0], 0)) else 1
