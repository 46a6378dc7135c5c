"""The forward-only rate, without curvature: how far along the first step the loss comes back up.

Kalra & Barkeshli (arXiv 2406.09405): double η until L(θ₁) ≥ L(θ₀), then bisect until the upper end
has L ≤ (1 + δ) L₀. It costs one gradient and about ten forward passes, needs no second derivative,
and holds for any optimizer whose first step is proportional to its rate. On a quadratic loss and
gradient descent it lies between the 2/λ of the gradient's own directions and infinity: it equals
2/λ_max only if the gradient points along the top eigenvector, and is above it otherwise.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from trebuchet._checks import anything, positive
from trebuchet._content import ByContent
from trebuchet._doors import door
from trebuchet.errors import InputError
from trebuchet.phases.interval import Interval
from trebuchet.problem.batches import Batch, warn_uncounted
from trebuchet.problem.bound import evaluated
from trebuchet.problem.check_start import check_start
from trebuchet.problem.held_still import held_still
from trebuchet.problem.how import HOW, How, as_problem
from trebuchet.problem.losses import ModelLoss
from trebuchet.problem.optimizer_copies import set_mode
from trebuchet.problem.optimizers import Factory, epsilon_lost, make_factory
from trebuchet.problem.problem import ModelFactory, Problem
from trebuchet.problem.risk import Objective, is_finite
from trebuchet.problem.selection import unwrap

WAITING = 10
"""Steps in which an optimizer may only gather gradients, as SOAP in its first."""


@dataclass(frozen=True, slots=True, eq=False)
class ForwardRate(ByContent):
    """A bracket of the forward-only rate: where one step no longer lowers the loss.

    Attributes:
        low: The loss after one step at this rate is below the start.
        high: After one at this rate it is not; infinite if every rate tried lowers the loss.
        natural: The rate whose first step is as long as the weights are.
        forwards: Forward passes over the data.
        gradients: Gradients.
    """

    low: float
    high: float
    natural: float
    forwards: int
    gradients: int = 1

    @property
    def value(self) -> float:
        """The geometric middle."""
        return math.sqrt(self.low * self.high) if math.isfinite(self.high) else self.low

    def __float__(self) -> float:
        return self.value


@door(
    model=anything, loss=anything, data=anything, optimizer=anything, delta=positive, **HOW,
)  # fmt: skip
def forward_critical_rate(
    model: nn.Module | ModelFactory | Problem,
    loss: str | Callable[..., Any] | ModelLoss | None = None,
    data: object = None,
    optimizer: str
    | torch.optim.Optimizer
    | Sequence[torch.optim.Optimizer]
    | Callable[..., Any]
    | None = None,
    *,
    delta: float = 0.01,
    **keywords: Unpack[How],
) -> ForwardRate:
    """Bracket the rate at which one step no longer lowers the loss.

    Args:
        model: Any module, of which nothing changes, or a function of a seed, for that of seed 0; or
            a `Problem`, whose optimizer it is then.
        loss: As for ``top_eigen``, closures included.
        data: As for ``top_eigen``; all of it is used.
        optimizer: A name, a factory or optimizers, as for ``scan``; ``"sgd"`` unless given.
        delta: The upper end's loss is at most (1 + δ) L₀.
        **keywords: The fields of `Problem`: ``micro_batch``, ``clip_grad_norm``, ``weights`` …

    Returns:
        The bracket.

    Raises:
        InputError: If an argument is not what was expected.

    Example:
        For one weight the gradient is along the only direction, and the rate is 2/λ = 0.4:

        >>> net = nn.Linear(1, 1, bias=False).double()
        >>> x = torch.tensor([[1.0], [3.0]], dtype=torch.float64)
        >>> round(forward_critical_rate(net, "half_mse", (x, 0 * x), delta=1e-3).value, 3)
        0.4

    References:
        Kalra & Barkeshli, arXiv 2406.09405, section 4.
    """
    problem = as_problem(model, loss, data, keywords, optimizer=optimizer)
    net = unwrap(problem.initial(0))
    still = held_still(
        net, mode="as_is", loader=problem.data, parameters_too=True, also=problem.loss
    )
    with still:
        objective, stream = evaluated(problem, net, joint=True)
        warn_uncounted(stream.pool)
        with objective.brought_home():
            check_start(objective, list(stream.pool), stream)
            factory = make_factory(problem.optimizer, objective.params, clip=problem.clip)
            return along_first_step(objective, factory, list(stream.pool), delta)


def along_first_step(
    objective: Objective, factory: Factory, batches: Sequence[Batch], delta: float = 0.01
) -> ForwardRate:
    """Bracket the forward-only rate, along the optimizer's first step from the model's weights.

    The optimizer takes one step at a small rate; the others are that step, scaled. So weight decay,
    preconditioning and parameter groups are all in it. The weights are put back.

    Args:
        objective: The model and the loss.
        factory: Makes the optimizer.
        batches: The data, the same for every trial.
        delta: See `forward_critical_rate`.

    Returns:
        The bracket.

    Raises:
        InputError: If the loss at the start is not finite, or the first step is zero.
    """
    start = [p.detach().clone() for p in objective.params]
    first = objective.value(batches)
    if not is_finite(first):
        msg = (
            f"loss: is {first} at the initialisation; there is no rate to look for before the "
            "model gives finite numbers on this data"
        )
        raise InputError(msg)
    # The gradient of the very loss that is compared below: without dropout, in the same mode, with
    # the same random numbers.
    with objective.as_looked_at():
        with_gradients = objective.gradient(batches, equally=False)
    if objective.watch_for_gradients(with_gradients, batches):
        first = objective.value(batches)
    # The batches count as one step's here, whatever their number: what the optimizer would see.
    objective.cost.gradients += max(0, round(_samples(batches) / objective.samples_per_step) - 1)
    moves = any(p.grad is not None and bool((p.grad != 0).any()) for p in objective.params)
    found = None
    if moves:
        # Some optimizers only gather gradients in their first steps.
        found = _direction(objective, factory, start)
        found = found or _direction(objective, factory, start, WAITING)
    if found is None:
        _put(objective, start)
        if moves:
            probe = factory(objective.params, 1e-3)
            msg = (
                f"optimizer: the first step of {type(probe).__name__} is zero or not finite though "
                "the gradient is neither"
            )
            why = epsilon_lost(probe) or "check its settings, and its state if it has one"
            raise InputError(f"{msg}; {why}")
        msg = (
            "loss: its gradient is exactly zero at the initialisation, so every rate leaves the "
            "model where it is; check that the loss depends on the parameters"
        )
        raise InputError(msg)
    direction, natural = found
    count = 1

    def loss_at(rate: float) -> float:
        nonlocal count
        count += 1
        with torch.no_grad():
            for p, w, d in zip(objective.params, start, direction, strict=True):
                p.copy_((w.double() + rate * d).to(p.dtype))
        return objective.value(batches)

    def rises(rate: float) -> bool:
        return not loss_at(rate) < first  # NaN and infinity rise

    try:
        found_rates = _bracket(rises, loss_at, first, delta, natural, lambda: count)
        if found_rates is None and objective.look_in_evaluation():
            # Rounding in training alone, with gradients straight through it, is flat.
            _put(objective, start)
            return along_first_step(objective, factory, batches, delta)
        if found_rates is None:
            raise InputError(_why_it_rises(first, loss_at(0.0)))
        return found_rates
    finally:
        _put(objective, start)


def _direction(
    objective: Objective, factory: Factory, start: list[Tensor], at_most: int = 1
) -> tuple[list[Tensor], float] | None:
    # The optimizer's first step divided by its rate, and the rate that moves the weights by their
    # own size, at which it is measured: a short step drowns in the weights' rounding.
    scale = math.sqrt(sum(float(w.double().square().sum()) for w in start)) or 1.0
    rate = 1e-6
    while rate < 1e30:
        step = _step(objective, factory, start, rate, at_most)
        size = _norm(step)
        if size > 0 and math.isfinite(size):
            rate = scale / size
            step = _step(objective, factory, start, rate, at_most)
            # What does not shrink with the rate (a step back to slow weights) has no rate.
            rest = _step(objective, factory, start, rate / 1000, at_most)
            if _norm(rest) > 10 * _norm(step):
                step = [(s - r / 1000) / (1 - 1 / 1000) for s, r in zip(step, rest, strict=True)]
            return step, rate
        rate *= 1e6
    return None


def _norm(parts: list[Tensor]) -> float:
    return math.sqrt(sum(float(d.square().sum()) for d in parts))


def _step(
    objective: Objective, factory: Factory, start: list[Tensor], rate: float, at_most: int
) -> list[Tensor]:
    # The first step that moves, among so many on the same gradient, divided by the rate.
    _put(objective, start, keep_grad=True)
    # What an optimizer does to gradients (clipping, hooks) is not to be done to them twice.
    grads = [None if p.grad is None else p.grad.clone() for p in objective.params]
    optimizer = factory(objective.params, rate)
    set_mode(optimizer, training=True)
    before = [p.detach().double().clone() for p in objective.params]
    step: list[Tensor] = []
    for _ in range(at_most):
        optimizer.step()
        step = [
            (p.detach().double() - w) / rate for p, w in zip(objective.params, before, strict=True)
        ]
        for p, grad in zip(objective.params, grads, strict=True):
            p.grad = None if grad is None else grad.clone()
        if _norm(step) != 0:
            break
    return step


def _bracket(
    rises: Callable[[float], bool],
    loss_at: Callable[[float], float],
    first: float,
    delta: float,
    natural: float,
    count: Callable[[], int],
) -> ForwardRate | None:
    """The bracket; None if every rate that was tried rises."""
    rate = natural / 100
    edge = Interval(0.0, math.inf).after(rate, beyond=rises(rate))
    while not edge.closed:
        rate = edge.trial(out=4.0)
        if not 1e-12 < rate / natural < 1e12:
            break
        edge = edge.after(rate, beyond=rises(rate))
    if edge.low == 0.0:
        return None
    if math.isinf(edge.high):
        return ForwardRate(edge.low, math.inf, natural, count())
    for _ in range(40):
        middle = edge.trial(out=4.0)
        value = loss_at(middle)
        edge = edge.after(middle, beyond=not value < first)
        landed = not value < first and value <= first + delta * abs(first)
        if (landed and edge.within(0.1)) or edge.within(0.1 * delta):
            break
    return ForwardRate(edge.low, edge.high, natural, count())


def _why_it_rises(first: float, again: float) -> str:
    """Say why every step raises the loss, of which `again` is the value without any step."""
    if abs(again - first) > 1e-6 * max(abs(first), abs(again)):
        return (
            f"loss: was {first:.4g} at first and is {again:.4g} now, at the same weights, by state "
            "that it keeps between calls and that cannot be put back (a counter in a global, or in "
            "an object of its own); keep it in buffers, or in plain attributes of a module"
        )
    return (
        "loss: rises along the first step however short it is; check the loss's sign and whether "
        "it follows from the parameters' gradient, and whether an optimizer given with a state of "
        "its own still steps downhill"
    )


def _samples(batches: Sequence[Batch]) -> int:
    return sum(b.size for b in batches)


def _put(objective: Objective, weights: list[Tensor], *, keep_grad: bool = False) -> None:
    with torch.no_grad():
        for p, w in zip(objective.params, weights, strict=True):
            p.copy_(w)
            if not keep_grad:
                p.grad = None
