"""The constants of early training: c_loss, c_sharp and c_max, in units of the critical rate.

Kalra & Barkeshli (arXiv 2302.12250) write η = c/λ₀ᴴ with λ₀ᴴ the sharpness at the initialisation,
and find, over random initialisations of a net trained by gradient descent on the MSE:

- c_loss: the smallest c at which the loss exceeds L₀ in the first steps; 2 for a quadratic loss;
- c_sharp: the smallest c at which the sharpness exceeds λ₀ᴴ within them;
- c_max: the largest c that trains.

Between c_loss and c_sharp the loss catapults while the sharpness only falls; this *sharpness
reduction* opens up as depth and 1/width grow, and closes at 2 for wide nets.
"""

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Unpack

import numpy as np
from torch import nn

from trebuchet._checks import anything, from_zero, real, steps as step_count
from trebuchet._content import ByContent
from trebuchet._doors import door, rule
from trebuchet.curvature.top import top_eigen
from trebuchet.engine.advance import Engine, Run
from trebuchet.engine.kernels.host import Host
from trebuchet.engine.runner import Plan
from trebuchet.engine.stopping import StopRule
from trebuchet.errors import InputError
from trebuchet.phases.interval import Interval
from trebuchet.problem.batches import warn_uncounted
from trebuchet.problem.bound import Bound, bound
from trebuchet.problem.held_still import MODE, WithoutDropout, held_still, may_drop
from trebuchet.problem.how import HOW, How, as_problem
from trebuchet.problem.losses import ModelLoss
from trebuchet.problem.problem import ModelFactory, Problem
from trebuchet.problem.selection import unwrap
from trebuchet.results.levels import risen

BLOWUP = 1e8
"""A loss above so many times its start has diverged."""


@dataclass(frozen=True, slots=True, eq=False)
class EarlyConstants(ByContent):
    """Edges of one initialisation, as c = ηλ₀ᴴ.

    Attributes:
        c_loss: Smallest c whose loss exceeds (1 + δ) L₀ in the first steps.
        c_sharp: Smallest c whose sharpness exceeds (1 + δ) λ₀ᴴ in them; NaN if none below c_max.
        c_max: Largest c whose loss is below L₀ after `train_steps`.
        sharpness: λ₀ᴴ.
    """

    c_loss: float
    c_sharp: float
    c_max: float
    sharpness: float


_RTOL = rule(real, "a number from 1e-4 to 1", lambda x: 1e-4 <= x <= 1)


@door(
    model=anything, loss=anything, data=anything, steps=step_count, train_steps=step_count,
    rtol=_RTOL, delta=from_zero, **HOW,
)  # fmt: skip
def early_constants(
    model: nn.Module | ModelFactory | Problem,
    loss: str | Callable[..., Any] | ModelLoss | None = None,
    data: object = None,
    *,
    steps: int = 10,
    train_steps: int = 100,
    rtol: float = 0.02,
    delta: float = 1e-2,
    **keywords: Unpack[How],
) -> EarlyConstants:
    """Measure the constants of one initialisation, with full-batch gradient descent.

    Args:
        model: Any module, of which nothing changes, or a function of a seed, for that of seed 0; or
            a `Problem`, without loss and data.
        loss: As for ``scan``.
        data: As for ``scan``; all of it is one batch.
        steps: What counts as early.
        train_steps: Steps after which a loss below L₀ has trained.
        rtol: Relative width to which each edge is bisected.
        delta: δ.
        **keywords: The fields of `Problem`: ``micro_batch``, ``weights``, ``size_of`` …

    Returns:
        The constants.

    Raises:
        InputError: If an argument is not what was expected, `steps` does not fit `train_steps`,
            or the sharpness is not positive.

    Example:
        On a quadratic loss the sharpness stays, and the two other edges are both at 2:

        >>> import torch
        >>> net = nn.Linear(1, 1, bias=False).double()
        >>> x = torch.ones(4, 1, dtype=torch.float64)
        >>> found = early_constants(net, "half_mse", (x, 0 * x), delta=1e-6)
        >>> abs(found.c_loss - 2) < 0.04, abs(found.c_max - 2) < 0.04, found.c_sharp
        (True, True, nan)

    References:
        Kalra & Barkeshli, arXiv 2302.12250, section 3.
    """
    if steps > train_steps:
        msg = f"steps: expected from 1 to train_steps = {train_steps}, got {steps}"
        raise InputError(msg)
    problem = as_problem(model, loss, data, keywords)
    net = unwrap(problem.initial(0))
    plain = replace(
        problem, optimizer="sgd", batch_size=None, accumulate=1, schedule=None,
        clip_grad_norm=None, clip_grad_value=None,
    )  # fmt: skip
    off = WithoutDropout() if may_drop(net) else contextlib.nullcontext()
    still = held_still(net, mode=MODE, loader=problem.data, parameters_too=True, also=problem.loss)
    with still, off, bound(plain, net, joint=True) as trained:
        warn_uncounted(trained.stream.pool)
        run = _Descent(trained, delta)
        if not run.sharpness > 0:
            msg = f"model: its sharpness is {run.sharpness:.3g}; a positive one is needed for c"
            raise InputError(msg)
        c_max = _edge(lambda c: not run.trains(c, train_steps), rtol)
        c_loss = _edge(lambda c: run.rises(c, steps), rtol)
        c_sharp = _edge(lambda c: run.sharpens(c, steps), rtol, at_most=c_max)
    return EarlyConstants(c_loss, c_sharp, c_max, run.sharpness)


class _Descent:
    """Gradient descent from one initialisation, again and again."""

    def __init__(self, trained: Bound, delta: float) -> None:
        self.host, self.delta = Host(trained), delta
        self.sharpness = self._sharpness()

    def _sharpness(self) -> float:
        objective, batches = self.host.objective, self.host.fixed
        return top_eigen(objective.model, objective.loss, batches, "hessian", rtol=1e-3).value

    def _engine(self, steps: int) -> Engine:
        stop, schedule = StopRule(steps, None, BLOWUP), np.arange(steps + 1)
        plan = Plan(stop, schedule, delta=self.delta, check_law=False)
        return Engine(self.host, plan)

    def _taken(self, c: float, steps: int) -> Run:
        engine = self._engine(steps)
        run = engine.start(c / self.sharpness, 0)
        engine.advance([run], steps)
        return run

    def trains(self, c: float, steps: int) -> bool:
        run = self._taken(c, steps)
        return not run.dead and run.last_loss < self.host.loss_first

    def rises(self, c: float, steps: int) -> bool:
        run = self._taken(c, steps)
        return run.dead or bool(risen(run.peak, self.host.loss_first, self.delta))

    def sharpens(self, c: float, steps: int) -> bool:
        engine = self._engine(steps)
        run = engine.start(c / self.sharpness, 0)
        for step in range(1, steps + 1):
            engine.advance([run], step)
            if run.kernel is None:  # diverged
                return False
            engine.load(run)
            if self._sharpness() > (1 + self.delta) * self.sharpness:
                return True
        return False


def _edge(beyond: Callable[[float], bool], rtol: float, at_most: float = 1e4) -> float:
    """The smallest c that is beyond, by going out from 0.7 in steps of 1.3 and then bisecting."""
    edge = Interval(0.0, math.inf).after(0.7, beyond=beyond(0.7))
    if not edge.low <= 0:
        edge = edge.after(1.0, beyond=beyond(1.0))
    while not edge.closed:  # below: such as nets that sharpen from the first step on
        c = edge.trial(out=1.3)
        if c < 1e-3:
            return 0.0
        if c > 1.3 * at_most:
            return math.nan
        edge = edge.after(c, beyond=beyond(c))
    while not edge.within(rtol):
        c = edge.trial(out=1.3)
        edge = edge.after(c, beyond=beyond(c))
    return edge.value
