"""The constants of early training: c_loss, c_sharp, c_barrier, c_max, in units of 1/sharpness.

Kalra & Barkeshli (arXiv 2302.12250) write η = c/λ₀ᴴ with λ₀ᴴ the sharpness at the initialisation,
and find, over random initialisations of a net trained by (stochastic) gradient descent:

- c_loss: the smallest c at which the loss exceeds L₀ in the first steps; 2 for a quadratic loss;
- c_sharp: the smallest c at which the sharpness exceeds λ₀ᴴ within them;
- c_barrier: the smallest c at which the straight line from θ₀ to where training ended rises
  above L₀;
- c_max: the largest c that trains.

Between c_loss and c_sharp the loss catapults while the sharpness only falls; this *sharpness
reduction* opens up as depth and 1/width grow, and closes at 2 for wide nets. At finite width and
depth the loss need not rise right past 2/λ₀: c_loss is measured, not assumed.
"""

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Unpack

import numpy as np
import torch
from torch import nn

from trebuchet._checks import (
    anything,
    checked_seeds,
    from_zero,
    progress as a_bar,
    real,
    seeds as a_list,
    steps as step_count,
)
from trebuchet._content import ByContent
from trebuchet._doors import door, rule
from trebuchet._progress import Progress, close, progress_bar
from trebuchet.curvature.result import TopEigen
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


LARGEST = 1e4
"""Edges above it are none: such as of a dead net, which any rate leaves as it is."""
FAR = 100.0
"""How far the others are looked for where every rate trains."""
LINE = 20
"""Points inside the straight line from the initialisation to the end of training."""


@dataclass(frozen=True, slots=True, eq=False)
class EarlyConstants(ByContent):
    """Edges, as c = ηλ₀ᴴ; of several seeds the medians.

    Attributes:
        c_loss: Smallest c whose loss exceeds (1 + δ) L₀ in the first steps.
        c_sharp: Smallest c whose sharpness exceeds (1 + δ) λ₀ᴴ in them; NaN if none below c_max.
        c_barrier: Smallest c for which the loss exceeds (1 + δ) L₀ somewhere on the straight line
            from θ₀ to where `train_steps` led; NaN if none below c_max.
        c_max: Largest c whose loss is below L₀ after `train_steps`; NaN if all up to 1e4 are.
        sharpness: λ₀ᴴ.
        by_seed: The constants of each seed, where there are several.
    """

    c_loss: float
    c_sharp: float
    c_barrier: float
    c_max: float
    sharpness: float
    by_seed: tuple["EarlyConstants", ...] = ()


_RTOL = rule(real, "a number from 1e-4 to 1", lambda x: 1e-4 <= x <= 1)
NAMES = ("c_loss", "c_sharp", "c_barrier", "c_max", "sharpness")
"""The constants, in the order in which they lie for deep nets, and λ₀ᴴ."""


@door(
    model=anything, loss=anything, data=anything, steps=step_count, train_steps=step_count,
    rtol=_RTOL, delta=from_zero, seeds=a_list, progress=a_bar, **HOW,
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
    seeds: int | Sequence[int] = 1,
    progress: bool | Progress | None = None,
    **keywords: Unpack[How],
) -> EarlyConstants:
    """Measure the constants of early training, with plain gradient descent or SGD.

    Each edge is found by going out and bisecting, every trial a fresh training of the same seed.

    Args:
        model: Any module, of which nothing changes, or a function of a seed; or a `Problem`,
            without loss and data, whose optimizer is replaced by plain gradient descent.
        loss: As for ``scan``.
        data: As for ``scan``.
        steps: What counts as early.
        train_steps: Steps after which a loss below L₀ has trained.
        rtol: Relative width to which each edge is bisected.
        delta: δ.
        seeds: How many initialisations and orders of the batches, or which.
        progress: A bar on a terminal or in a notebook; True: lines in a log too, False: nothing;
            or a function of (done, total).
        **keywords: The fields of `Problem`. ``batch_size`` trains on mini-batches, and losses and
            sharpness are then those of the fixed set that a scan compares runs on; without it all
            data, a loader's too, are one batch.

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
    chosen = checked_seeds(seeds)
    if len(chosen) > 1 and not problem.reseeds and problem.batch_size is None:
        msg = (
            f"seeds: expected one, since a module on all data at once has one training, got "
            f"{len(chosen)}; give a function of the seed that makes the module, or a batch_size"
        )
        raise InputError(msg)
    bar = progress_bar("early constants", shown=progress)
    found = []
    try:
        for position, seed in enumerate(chosen):
            tell = _Share(bar, position, len(chosen))
            found.append(_of_seed(problem, seed, steps, train_steps, rtol, delta, tell))
    finally:
        close(bar)
    if len(found) == 1:
        return found[0]
    medians = {name: _median([getattr(one, name) for one in found]) for name in NAMES}
    return EarlyConstants(**medians, by_seed=tuple(found))


def _of_seed(
    problem: Problem,
    seed: int,
    steps: int,
    train_steps: int,
    rtol: float,
    delta: float,
    tell: Callable[[int], None],
) -> EarlyConstants:
    net = unwrap(problem.initial(seed))
    plain = replace(
        problem, optimizer="sgd", schedule=None, clip_grad_norm=None, clip_grad_value=None,
    )  # fmt: skip
    joint = problem.batch_size is None
    if joint:
        plain = replace(plain, accumulate=1)
    off = WithoutDropout() if may_drop(net) else contextlib.nullcontext()
    still = held_still(net, mode=MODE, loader=problem.data, parameters_too=True, also=problem.loss)
    with still, off, bound(plain, net, steps=train_steps, joint=joint) as trained:
        warn_uncounted(trained.stream.pool)
        run = _Descent(trained, seed, delta)
        if not run.sharpness > 0:
            msg = f"model: its sharpness is {run.sharpness:.3g}; a positive one is needed for c"
            raise InputError(msg)
        tell(0)
        c_max = _edge(lambda c: not run.trains(c, train_steps), rtol)
        tell(1)
        farthest = FAR if math.isnan(c_max) else c_max
        c_loss = _edge(lambda c: run.rises(c, steps), rtol)
        tell(2)
        c_sharp = _edge(lambda c: run.sharpens(c, steps), rtol, at_most=farthest)
        tell(3)
        c_barrier = _edge(lambda c: run.crosses(c, train_steps), rtol, at_most=farthest)
        tell(4)
    return EarlyConstants(c_loss, c_sharp, c_barrier, c_max, run.sharpness)


class _Share:
    """The progress of one seed as that of all."""

    def __init__(self, bar: Progress, position: int, count: int) -> None:
        self._bar, self._position, self._count = bar, position, count

    def __call__(self, edges: int) -> None:
        self._bar(4 * self._position + edges, 4 * self._count)


def _median(values: Sequence[float]) -> float:
    """The median, where a missing edge lies above every other."""
    middle = float(np.median([math.inf if math.isnan(v) else v for v in values]))
    return math.nan if math.isinf(middle) else middle


class _Descent:
    """Gradient descent of one seed, again and again."""

    def __init__(self, trained: Bound, seed: int, delta: float) -> None:
        self.host, self.seed, self.delta = Host(trained, check_law=False), seed, delta
        self.first = self._top(rtol=1e-3)
        self.sharpness = self.first.value

    def _top(self, **given: Any) -> TopEigen:
        objective, batches = self.host.objective, self.host.fixed
        return top_eigen(objective.model, objective.loss, batches, "hessian", **given)

    def _engine(self, steps: int, *, looks: bool = True) -> Engine:
        # Where a look is apart from steps, the last one tells how a run ended, whenever that was.
        schedule = np.arange(steps + 1) if looks or not self.host.free_looks else np.array([0])
        plan = Plan(StopRule(steps, None, BLOWUP), schedule, delta=self.delta, check_law=False)
        return Engine(self.host, plan)

    def _taken(self, c: float, steps: int, *, looks: bool = True) -> tuple[Engine, Run]:
        engine = self._engine(steps, looks=looks)
        run = engine.start(c / self.sharpness, self.seed)
        engine.advance([run], steps)
        return engine, run

    def trains(self, c: float, steps: int) -> bool:
        _, run = self._taken(c, steps, looks=False)
        return not run.dead and run.number("loss_final") < self.host.loss_first

    def rises(self, c: float, steps: int) -> bool:
        _, run = self._taken(c, steps)
        return run.dead or bool(risen(run.peak, self.host.loss_first, self.delta))

    def sharpens(self, c: float, steps: int) -> bool:
        most, top = (1 + self.delta) * self.sharpness, self.first
        engine = self._engine(steps)
        run = engine.start(c / self.sharpness, self.seed)
        for step in range(1, steps + 1):
            engine.advance([run], step)
            if run.kernel is None:  # diverged
                return False
            engine.load(run)
            # That it is above shows within a few products from where its eigenvector was; that it
            # is not takes the certificate, of a number that λ may be well below.
            top = self._top(rtol=1e-4, above=most, warm=top)
            if top.value > most:
                return True
        return False

    def crosses(self, c: float, steps: int) -> bool:
        """Whether the straight line from the start to the end rises above the start."""
        engine, run = self._taken(c, steps, looks=False)
        if run.kernel is None:  # diverged: there is no end to draw a line to
            return True
        engine.load(run)
        params, start = self.host.objective.params, self.host.state.start.weights
        end = [p.detach().clone() for p in params]
        self.host.forget(run.kernel)
        losses = []
        for share in np.linspace(0, 1, LINE + 2)[1:-1].tolist():
            with torch.no_grad():
                for p, a, b in zip(params, start, end, strict=True):
                    p.copy_(torch.lerp(a, b, share))
            losses.append(self.host.objective.value(self.host.fixed))
        self.host.load_start()
        return bool(risen(max(losses), self.host.loss_first, self.delta))


def _edge(beyond: Callable[[float], bool], rtol: float, at_most: float = LARGEST) -> float:
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
