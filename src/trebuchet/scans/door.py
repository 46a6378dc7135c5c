"""The front door for practitioners: which rates are lazy, catapult or divergent for your model."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Unpack

import torch
from torch import nn

from trebuchet._checks import anything, checked_seeds, progress as a_bar, seeds as a_list
from trebuchet._doors import door
from trebuchet._environment import environment
from trebuchet._progress import Bar, Progress, progress_bar
from trebuchet._types import Status
from trebuchet.observables.base import Observable
from trebuchet.phases.interval import Interval
from trebuchet.phases.label import label
from trebuchet.problem.held_still import held_still
from trebuchet.problem.how import HOW, How, as_problem
from trebuchet.problem.interrupts import pressed_twice_is_once
from trebuchet.problem.losses import ModelLoss
from trebuchet.problem.problem import ModelFactory, Problem
from trebuchet.problem.schedules import describe_schedule
from trebuchet.problem.selection import unwrap
from trebuchet.scans.arguments import Arguments, Curvature
from trebuchet.scans.bisect import (
    judge_rise,
    judge_training,
    loss_edge,
    narrow,
    quick_training_edge,
    training_edge,
)
from trebuchet.scans.budget import Budget
from trebuchet.scans.critical import final_eigenvalues
from trebuchet.scans.dataset import dataset
from trebuchet.scans.estimate import Estimate
from trebuchet.scans.halving import Course, Plan, finish, rescue, successive_halving
from trebuchet.scans.result import Scan, Warmup
from trebuchet.scans.setup import Setup, check_fresh, prepared
from trebuchet.scans.suggest import Suggestion, suggest
from trebuchet.scans.warmup import warmup

QUICK_RTOL = 0.1
"""Width to which edges are bisected with what the search leaves of the budget."""


class Keywords(How, total=False):
    """Further keywords of `scan`."""

    stacked: bool | None
    check_law: bool
    delta: float | None
    blowup: float


@door(
    model=anything, loss=anything, data=anything, optimizer=anything, horizon=anything,
    seeds=a_list, budget=anything, rates=anything, edge_rtol=anything, curvature=anything,
    observables=anything, progress=a_bar, stacked=anything, check_law=anything,
    delta=anything, blowup=anything, **HOW,
)  # fmt: skip  # what is anything here, `Arguments` and `prepare` look at
def scan(
    model: nn.Module | ModelFactory | Problem,
    loss: str | Callable[..., Any] | ModelLoss | None = None,
    data: object = None,
    optimizer: str
    | torch.optim.Optimizer
    | Sequence[torch.optim.Optimizer]
    | Callable[..., Any]
    | None = None,
    *,
    horizon: int = 200,
    seeds: int | Sequence[int] = 2,
    budget: int | Budget | None = None,
    rates: Sequence[float] | None = None,
    edge_rtol: float | None = None,
    curvature: Curvature = "initial",
    observables: Sequence[str | Observable] = (),
    progress: bool | Progress | None = None,
    **keywords: Unpack[Keywords],
) -> Scan:
    """Find the learning rate to use, and the phases of the rates around it.

    Fresh runs at constant rates, from the model's present weights, started around the forward-only
    critical rate and halved: many short ones, few whole ones (``scans.halving`` has the
    rule). What is left of the budget bisects the edges `lr_loss` and `lr_max`. Nothing
    about the model, its buffers, modes and gradients, the optimizer, the loader or any random state
    changes, also if an exception or Ctrl-C ends the scan. After Ctrl-C a partial scan comes back
    (``settings["interrupted"]``) if any step was made.

    Args:
        model: Any module. It is trained in the modes it is in, or in train mode if it is in eval
            mode as a whole. Or a function of a seed, for the module of the first of `seeds`. Or a
            `Problem`, which says by itself what is trained, on what and how.
        loss: A name, ``loss(outputs, targets)``, a closure ``loss_fn(model, batch)``, or None for
            the model's own: a scalar that it returns, or the ``loss`` in what it returns.
        data: ``(inputs, targets)``, a dict batch, a list of batches or a ``DataLoader``.
        optimizer: A name in any case (``"sgd"``, ``"momentum"``, ``"nesterov"``, ``"adam"``,
            ``"AdamW"``, ``"rmsprop"`` …; ``"sgd"`` unless given), a factory
            ``(params, rate) -> optimizer`` such as ``torch.optim.RMSprop``, or an optimizer already
            made: runs start from its state, with its hooks, and the rate is its first group's, the
            others keeping their ratio. A list of optimizers, or a factory that returns one, steps
            together, such as Muon for the matrices beside AdamW for the rest; the rate is the first
            one's.
        horizon: Steps after which the loss is to be lowest: those you will train for, or the first
            few hundred of them.
        seeds: Orders of the batches, how many or which; the full batch has only one.
        budget: Gradient evaluations in all, curvature included at two a product; or in words
            ``"fast"``, four horizons, as without, ``"default"``, eight, or ``"careful"``, sixteen:
            what is above four goes to more rates near the best, and to other seeds at them. What
            `edge_rtol` needs comes on top of a word, and is within a number.
        rates: Rates to start the search from, in place of eleven around the forward-only critical
            rate. The search gives the best of them neighbours an octave away, and leaves them
            where the best is not inside.
        edge_rtol: Bisect `lr_loss` and `lr_max` to this relative width, with every trial run to the
            horizon. By default to 10 %, with what the search leaves of the budget, and a trial is
            ended when it has settled below its start.
        curvature: ``"initial"``: λ₀ and the critical rate. ``"final"``: also λ at the end of every
            whole run, outside the budget. ``"none"``: neither; the forward-only rate remains.
        observables: What is recorded in `Scan.runs` beside the loss, at every look but that at
            which a run is left, as in ``sweep``; outside the budget.
        progress: A bar on a terminal or in a notebook; True: lines in a log too, False: nothing;
            or a function of (gradients spent, gradients in all). Bar and log say what the scan
            will cost, in gradients and, after the first few, in seconds.
        **keywords: The fields of `Problem`: ``batch_size``, ``schedule``, ``clip_grad_norm``,
            ``accumulate``, ``micro_batch``, ``autocast`` … (beside a `Problem`, in place of its
            own). And ``delta``: a loss above (1 + δ) L₀ has risen; by default 1e-3 for full
            batches, else 1e-2, or twice the noise of a look measured at the start
            (``settings["noise"]``) if that is more. ``blowup``: a loss above so many times its
            start has diverged; 1e8. ``stacked``: train several runs in one forward and backward
            pass, where ``torch.vmap`` takes the module; by default on a GPU only, since on a CPU
            core it gains nothing for most models. ``check_law``: hold every looked-at step against
            the weight-norm law, as ``sweep`` does, for a gradient or two of the budget; False.

    Returns:
        The scan: `Scan.suggestion` is the rate to use, `Scan.table` has one row a rate,
        `Scan.runs` one row a run, `Scan.notes` what to know first.

    Raises:
        InputError: If an argument, the model or the data is not what was expected.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))
        >>> x = torch.randn(32, 4)
        >>> result = scan(net, "mse", (x, x[:, :1] * x[:, 1:2]), horizon=40)
        >>> result.lr_loss.low < result.lr_max.high, result.cost["gradients"] <= 160
        (True, True)
    """
    started = time.monotonic()
    problem = as_problem(model, loss, data, keywords, optimizer=optimizer)
    asked = Arguments(
        problem, horizon, checked_seeds(seeds), budget, rates, edge_rtol, curvature,
        keywords.get("stacked"), keywords.get("delta"), keywords.get("blowup", 1e8),
        observables, keywords.get("check_law", False),
    )  # fmt: skip
    bar = progress_bar("scan", shown=progress)
    net = unwrap(problem.initial(asked.seeds[0]))
    with pressed_twice_is_once(), held_still(
        net, mode="as_is", loader=problem.data, optimizer=problem.instance, parameters_too=True,
        also=problem.loss,
    ):  # fmt: skip
        if not net.training:
            net.train()
        with prepared(net, asked) as setup, _shown(bar, setup):
            found = _search(setup)
    runs = label(dataset(setup))
    forward = Interval(setup.forward.low, setup.forward.high)
    notes = tuple(_notes(setup, found))
    cost = _cost(setup, time.monotonic() - started)
    return Scan(
        found.suggestion, setup.critical, forward, found.lr_loss, found.lr_max, found.advice, runs,
        notes, cost, _settings(setup, interrupted=found.interrupted),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Found:
    """What a search came to, finished or interrupted."""

    suggestion: Suggestion
    lr_loss: Interval
    lr_max: Interval
    advice: Warmup
    course: Course
    interrupted: bool = False


def _search(setup: Setup) -> _Found:
    """Search, bisect and advise; after Ctrl-C keep what there is, if some run was made."""
    course = Course()
    try:
        course = _halve(setup, course)
        lr_loss, lr_max = _edges(setup)
        suggestion = suggest(setup.rates, lr_max)
        advice = warmup(setup, suggestion, lr_max)
        _measure_ends(setup)
        check_fresh(setup)
    except KeyboardInterrupt:
        setup.rates.abandon()
        if not any(run.steps for run in setup.rates.all_runs()):
            raise
        lr_loss, lr_max = loss_edge(setup.rates), training_edge(setup.rates)
        suggestion = suggest(setup.rates, lr_max)
        advice = Warmup(False, math.nan, math.nan, "not known, the scan was interrupted")
        return _Found(suggestion, lr_loss, lr_max, advice, course, interrupted=True)
    return _Found(suggestion, lr_loss, lr_max, advice, course)


def _halve(setup: Setup, course: Course) -> Course:
    plan, given = Plan().within(setup.rates.left(), setup.rates.horizon), setup.asked.rates
    if given is not None:
        plan = Plan(first=setup.rates.name(given))
    successive_halving(setup.rates, plan, course)
    setup.rates.budget = setup.asked.limit
    finish(setup.rates, course)
    rescue(setup.rates, course)
    return course


def _edges(setup: Setup) -> tuple[Interval, Interval]:
    """Bisect the edges: to the horizon if a width is asked for, else quickly, with what is left."""
    rates, rtol = setup.rates, setup.asked.edge_rtol
    horizon, limit = rates.horizon, setup.asked.limit_with_edges
    # What the advice on warm-up needs stays in reserve.
    rates.budget = None if math.isinf(limit) else int(limit) - setup.first_cost
    if rtol is not None:
        edge, judge, ends = training_edge(rates), judge_training(rates), [horizon]
        rising = [horizon // 20, horizon // 5, horizon]
    else:
        rtol, ends = QUICK_RTOL, [max(5, horizon // 10), horizon // 5, horizon // 2]
        edge, judge = quick_training_edge(rates, ends[0]), judge_training(rates, patience=ends[-1])
        rising = [horizon // 20, horizon // 10]
    lr_max = narrow(rates, edge, judge, rtol=rtol, looks=ends)
    # A rise ends the trial, and most come early.
    rise = judge_rise(rates, patience=rising[-1])
    return narrow(rates, loss_edge(rates), rise, rtol=rtol, looks=rising), lr_max


def _measure_ends(setup: Setup) -> None:
    """λ, if it is asked for, of the runs that reached the horizon."""
    if setup.asked.curvature == "final":
        ended = (Status.MAX_STEPS, Status.GRADIENT_ZERO)
        whole = [r for r in setup.rates.all_runs() if r.status in ended]
        optimizer, horizon = setup.asked.problem.optimizer, setup.asked.horizon
        final_eigenvalues(setup.engine, whole, setup.critical, optimizer, horizon)


def _notes(setup: Setup, found: _Found) -> list[str]:
    rates, course, suggestion = setup.asked.rates, found.course, found.suggestion
    lr_loss, lr_max = found.lr_loss, found.lr_max
    notes = list(dict.fromkeys(setup.objective.notes))
    if found.interrupted:
        notes.insert(
            0,
            f"interrupted after {setup.objective.cost.gradients} gradient evaluations: what was "
            "not reached is missing, the edges are those of the runs so far, and warm-up is not "
            "judged",
        )
    elif not course.finished:
        notes.append("the budget ended the search early; a larger one could find a better rate")
    if course.extended > 0:
        where = f"{max(rates):.3g}" if rates is not None else "the first rates"
        notes.append(f"every rate tried at first was too small; the search went above {where}")
    if course.extended < 0:
        notes.append("every rate tried at first was too large; the search went below them")
    if not found.interrupted and not (_bisected(lr_loss) and _bisected(lr_max)):
        notes.append(
            "the edges are only as narrow as the budget allowed; edge_rtol=0.1 bisects them to 10 %"
        )
    fresh = setup.rates.fresh
    if fresh is not None and fresh.seeds:
        drawn = "the problem's own function" if setup.asked.problem.reseeds else "its layers' rules"
        notes.append(
            "rates near the suggestion were trained again from other initialisations, drawn by "
            f"{drawn} (seeds {', '.join(map(str, fresh.seeds))})"
        )
    elif fresh is not None and fresh.why_not:
        notes.append(f"no other initialisation than the model's own was tried: {fresh.why_not}")
    low = _lowest_failure(setup)
    if low < lr_max.low:
        notes.append(f"training is no simple edge here: it already fails at {low:.3g}")
    if not suggestion.reliable:
        notes.append("do not rely on the suggestion: no run ended the horizon below its start")
    if math.isinf(setup.forward.high):
        notes.append(
            "every first step lowers the loss, however long: its forward rate is unbounded"
        )
    return notes


def _bisected(edge: Interval) -> bool:
    return not edge.closed or edge.high <= edge.low * (1 + 1.01 * QUICK_RTOL)


def _lowest_failure(setup: Setup) -> float:
    rates = setup.rates
    whole = [r for r in rates.all_runs() if r.whole]
    return min((r.rate for r in whole if not rates.trained(r)), default=math.inf)


def _cost(setup: Setup, seconds: float) -> dict[str, float]:
    spent = setup.objective.cost
    return {
        "gradients": float(spent.gradients),
        "forwards": float(spent.forwards),
        "products": float(spent.products),
        "seconds": seconds,
    }


def _settings(setup: Setup, *, interrupted: bool) -> dict[str, Any]:
    asked, params = setup.asked, setup.objective.params
    problem = asked.problem
    return {
        "optimizer": problem.optimizer_name,
        "clip_grad_norm": problem.clip_grad_norm,
        "clip_grad_value": problem.clip_grad_value,
        "schedule": describe_schedule(problem.schedule),
        "loss": problem.loss_name,
        "horizon": asked.horizon,
        "batch_size": setup.stream.samples_per_step,
        "accumulate": problem.accumulate,
        "n_samples": setup.stream.n_samples,
        "compared_on": setup.stream.described(setup.fixed),
        "n_parameters": sum(p.numel() for p in params),
        "seeds": list(setup.rates.seeds),
        "budget": asked.limit,
        "budget_name": asked.budget if isinstance(asked.budget, str) else "",
        "rates": None if asked.rates is None else [float(rate) for rate in asked.rates],
        "edge_rtol": asked.edge_rtol,
        "curvature": asked.curvature,
        "stacked": setup.engine.at_once > 1,
        "delta": setup.rates.delta,
        "noise": setup.noise,
        "blowup": asked.blowup,
        "interrupted": interrupted,
        "loss_first": setup.rates.loss_first,
        "dtype": str(params[0].dtype).removeprefix("torch."),
        "device": str(params[0].device),
        **environment(),
    }


@contextmanager
def _shown(update: Progress, setup: Setup) -> Iterator[None]:
    """Tell what is done of the budget, and a bar what the scan will cost."""
    bar = update if isinstance(update, Bar) else None
    if bar is not None and not bar.shown:
        yield
        return
    estimate = Estimate(setup)
    total = estimate.gradients
    if bar is not None:
        bar.cost = estimate.said()

    def on_step(done: int) -> None:
        left = estimate.seconds_left()
        if bar is not None and left is not None:
            bar.expect(left)
        update(min(done, total - 1), total)

    setup.engine.on_step = on_step
    try:
        on_step(setup.objective.cost.gradients)
        yield
    finally:
        setup.engine.on_step = None
        update(total, total)


__all__ = ["Curvature", "Scan", "scan"]
