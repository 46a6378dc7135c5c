"""The Lyapunov exponent of training: how fast two nearby runs part, from where a run has ended."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from trebuchet._checks import one_line, refuse, seed as one_seed, steps as step_count
from trebuchet.observables.base import FloatArray, Observable, Runs, UnavailableError
from trebuchet.problem.bound import evaluated
from trebuchet.problem.optimizers import make_factory
from trebuchet.problem.problem import Problem
from trebuchet.problem.selection import select

BLOCKS = 16
"""Parts of the measurement, whose scatter is its error."""


class Lyapunov(Observable):
    """The growth of a small separation, log-factor a step, in each of 16 blocks past a run's end.

    The mean is the exponent, and their standard deviation over 4 its error; ``tb.label`` makes both
    of them, and calls a run chaotic by them. Copies of the run go on from its end, so that neither
    the run nor its time is touched. Of gradient descent, with momentum and weight decay too, the
    tangent map is exact: a separation v becomes v − η∂²L v, one Hessian-vector product a step. Of
    other optimizers, or a loss without second derivatives, two runs of copies are kept nearby
    (Benettin's method), their optimizers afresh.

    Args:
        steps: Of the measurement, a multiple of 16.
        settle: Steps before it, in which the separation turns to where it grows most.
        seed: Of its first direction.

    Raises:
        InputError: If a number is none, or `steps` no multiple of 16.

    References:
        Benettin, Galgani, Giorgilli & Strelcyn, Meccanica 15 (1980) 9.
    """

    name = "lyapunov"
    long_name = "log growth of a small separation a step"
    units = "1/step"
    dim = "block"
    size: int | None = BLOCKS
    recorded: ClassVar[bool] = False
    cost = "a thousand steps, each with a Hessian-vector product"

    def __init__(self, steps: int = 1024, settle: int = 256, seed: int = 0) -> None:
        self.steps = step_count("steps", steps, least=BLOCKS)
        if self.steps % BLOCKS:
            refuse("steps", f"a multiple of {BLOCKS}", steps)
        self.settle, self.seed = step_count("settle", settle, least=0), one_seed("seed", seed)

    def of(self, runs: Runs) -> FloatArray:
        """The growth in each block, ``(R, 16)``."""
        rates, descent = runs.descent()
        found = [
            self._growth(model, runs.problem, rate, descent)
            for model, rate in zip(runs.models(), rates.tolist(), strict=True)
        ]
        return np.array(found)

    def _growth(
        self, model: nn.Module, problem: Problem, rate: float, descent: tuple[float, float] | None
    ) -> FloatArray:
        def fresh() -> _Copy:
            return _Copy(model, problem)

        with torch.enable_grad():
            if descent is None:
                return self._means(_nearby(fresh(), fresh(), problem, rate, self.seed))
            if _curves(fresh(), self.seed):
                return self._means(_tangent(fresh(), rate, *descent, self.seed))
            return self._means(_nearby(fresh(), fresh(), problem, rate, self.seed))

    def _means(self, growth: Iterator[float]) -> FloatArray:
        """Means over blocks, NaN where the run does not stay finite."""
        for _ in range(self.settle):
            next(growth)
        logs = np.array([next(growth) for _ in range(self.steps)])
        blocks: FloatArray = logs.reshape(BLOCKS, -1).mean(1)
        return blocks if np.isfinite(blocks).all() else np.full(BLOCKS, np.nan)


class _Copy:
    """A run's model of its own, and its loss on all data."""

    def __init__(self, model: nn.Module, problem: Problem) -> None:
        try:
            self.model = copy.deepcopy(model).train()
        except Exception as error:  # a module of the user's may refuse to be copied
            reason = f"the model cannot be copied: {one_line(error)}"
            raise UnavailableError(reason) from error
        self.params: list[nn.Parameter] = list(select(self.model).values())
        self.objective, stream = evaluated(problem, self.model)
        self.batches = stream.batches(0, 0)

    def loss(self) -> Tensor:
        """With its graph."""
        total = sum(self.objective.value_of(batch) for batch in self.batches) / len(self.batches)
        assert isinstance(total, Tensor)
        return total


def _directions(params: Sequence[Tensor], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in params]
    return [d.to(p.device, p.dtype) for d, p in zip(drawn, params, strict=True)]


def _length(tensors: Sequence[Tensor]) -> float:
    return math.sqrt(sum(float(t.detach().double().square().sum()) for t in tensors))


def _product(run: _Copy, v: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """∇L, and ∂²L v."""
    params = run.params
    slope = torch.autograd.grad(run.loss(), params, create_graph=True, allow_unused=True)
    some = [(g, t) for g, t in zip(slope, v, strict=True) if g is not None and g.requires_grad]
    curved: Sequence[Tensor | None] = [None] * len(params)
    if some:
        curved = torch.autograd.grad(
            [g for g, _ in some], params, [t for _, t in some], allow_unused=True
        )
    both = (slope, curved)
    filled = [
        [
            torch.zeros_like(p) if t is None else t.detach()
            for p, t in zip(params, part, strict=True)
        ]
        for part in both
    ]
    return filled[0], filled[1]


def _curves(run: _Copy, seed: int) -> bool:
    """Whether there is a second derivative, that of the gradients: zeros may stand for none."""
    v = _directions(run.params, seed)
    try:
        slope, product = _product(run, v)
    except (RuntimeError, NotImplementedError):
        return False
    rounding = torch.finfo(v[0].dtype).eps
    reach = rounding ** (1 / 3) * max(_length(run.params), 1.0) / _length(v)
    sides = []
    for sign in (1, -2):  # to one side of where it is, and from there to the other
        with torch.no_grad():
            for p, t in zip(run.params, v, strict=True):
                p.add_(t, alpha=sign * reach)
        sides.append(torch.autograd.grad(run.loss(), run.params, allow_unused=True))
    pairs = zip(*sides, product, strict=True)
    off = [(0 if a is None else a - b) / (2 * reach) - c for a, b, c in pairs]
    noise = 100 * rounding * (_length(slope) + _length(product)) / reach
    return bool(_length(off) <= 1e-2 * _length(product) + noise)


def _tangent(run: _Copy, rate: float, momentum: float, decay: float, seed: int) -> Iterator[float]:
    """Step a run of gradient descent and a tangent vector, of unit length again after each step.

    With the velocity u' = βu + ∇L + wθ and θ' = θ − ηu', tangents are c' = βc + (∂²L + w)v and
    v' = v − ηc'.

    Yields:
        The log of its growth.
    """
    params = run.params
    v = _directions(params, seed)
    u, c = ([torch.zeros_like(p) for p in params] for _ in range(2))
    while True:
        slope, curved = _product(run, v)
        with torch.no_grad():
            for k, p in enumerate(params):
                u[k] = momentum * u[k] + decay * p + slope[k]
                c[k] = momentum * c[k] + decay * v[k] + curved[k]
                p.sub_(rate * u[k])
                v[k] = v[k] - rate * c[k]
            length = _length([*v, *c] if momentum else v)
            v, c = ([t / length for t in part] for part in (v, c))
        yield math.log(length) if 0 < length < math.inf else math.nan


def _nearby(run: _Copy, other: _Copy, problem: Problem, rate: float, seed: int) -> Iterator[float]:
    """Step two nearby runs, put at their first distance again after each step.

    Yields:
        The log of its growth.
    """
    make: Callable[..., torch.optim.Optimizer] = make_factory(problem.optimizer, run.params)
    optimizers = [make(r.params, rate) for r in (run, other)]
    direction = _directions(run.params, seed)
    near = torch.finfo(run.params[0].dtype).eps ** 0.5 * max(_length(run.params), 1e-30)
    with torch.no_grad():
        for p, d in zip(other.params, direction, strict=True):
            p.add_(d * (near / _length(direction)))
    while True:
        for r, optimizer in zip((run, other), optimizers, strict=True):
            optimizer.zero_grad()
            torch.autograd.backward(r.loss())
            optimizer.step()
        with torch.no_grad():
            apart = [q - p for p, q in zip(run.params, other.params, strict=True)]
            length = _length(apart)
            if not 0 < length < math.inf:
                yield math.nan
                continue
            for mine, others in _moving(run, other, optimizers):
                others.copy_(mine + (others - mine) * (near / length))
        yield math.log(length / near)


def _moving(
    run: _Copy, other: _Copy, optimizers: Sequence[torch.optim.Optimizer]
) -> Iterator[tuple[Tensor, Tensor]]:
    """The weights of both runs, and what their optimizers remember of them.

    Yields:
        Pairs.
    """
    one, two = optimizers
    for mine, others in zip(run.params, other.params, strict=True):
        yield mine, others
        for name, value in one.state.get(mine, {}).items():
            if isinstance(value, Tensor) and value.is_floating_point():
                yield value, two.state[others][name]
