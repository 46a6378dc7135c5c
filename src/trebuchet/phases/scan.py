"""The front door for practitioners: which rates are lazy, catapult or divergent for your model."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from trebuchet._progress import Progress, progress_bar
from trebuchet._types import Status
from trebuchet.curvature.losses import ModelLoss, resolve
from trebuchet.curvature.policy import held_still
from trebuchet.curvature.problem import Autocast, select, unwrap
from trebuchet.errors import InputError
from trebuchet.phases.forward_rate import ForwardRate, along_first_step
from trebuchet.phases.scan_result import Critical, Scan, Warmup
from trebuchet.phases.scanning.brackets import Interval, loss_edge, narrow, training_edge
from trebuchet.phases.scanning.curvature import critical_rate, final_eigenvalues, sparsity
from trebuchet.phases.scanning.field import Rates
from trebuchet.phases.scanning.objective import Objective, is_finite, out_of_memory
from trebuchet.phases.scanning.optimizers import Factory, describe, make_factory
from trebuchet.phases.scanning.race import Course, Plan, race
from trebuchet.phases.scanning.stream import Stream, make_stream
from trebuchet.phases.scanning.suggest import Suggestion, suggest
from trebuchet.phases.scanning.tables import frames
from trebuchet.phases.scanning.training import Run, Schedule, Trainer

Curvature = Literal["initial", "final", "none"]
"""Where λ is measured: at the initialisation, also at the end of every whole run, or nowhere."""

FIXED_SAMPLES = 256
"""Samples that mini-batch runs are compared on while they train."""
CLOSING_SAMPLES = 4096
"""Samples that they are compared on at the horizon."""


@dataclass(frozen=True, slots=True)
class _Setup:
    """Everything a scan works with, made once the arguments are known to be good."""

    objective: Objective
    stream: Stream
    factory: Factory
    trainer: Trainer
    rates: Rates
    forward: ForwardRate
    critical: Critical


def scan(
    model: nn.Module,
    loss: str | Callable[..., Any],
    data: object,
    optimizer: str | torch.optim.Optimizer | Callable[..., Any] = "sgd",
    *,
    horizon: int = 200,
    batch_size: int | None = None,
    seeds: int | Sequence[int] = 2,
    budget: int | None = None,
    rates: Sequence[float] | None = None,
    edge_rtol: float | None = None,
    curvature: Curvature = "initial",
    accumulate: int = 1,
    micro_batch: int | None = None,
    autocast: torch.dtype | None = None,
    schedule: Schedule | None = None,
    delta: float | None = None,
    blowup: float = 1e8,
    progress: bool | Progress = False,
) -> Scan:
    """Find the learning rate to use, and the phases of the rates around it.

    Fresh runs at constant rates, from the model's present weights, started around the critical
    rate and raced: many short ones, few whole ones (``phases.scanning.race`` has the rule). Nothing
    about the model, its buffers, modes and gradients, the optimizer, the loader or any random state
    changes, also if an exception or Ctrl-C ends the scan.

    Args:
        model: Any module. It is trained in the modes it is in, or in train mode if it is in eval
            mode as a whole.
        loss: A name, ``loss(outputs, targets)``, or a closure ``loss_fn(model, batch)``.
        data: ``(inputs, targets)``, a dict batch, a list of batches or a ``DataLoader``.
        optimizer: ``"sgd"``, ``"momentum"``, ``"nesterov"``, ``"adam"``, ``"adamw"``, a factory
            ``(params, rate) -> optimizer`` such as ``torch.optim.RMSprop``, or an optimizer
            already made: runs start from its state, and the rate is its first group's, the others
            keeping their ratio.
        horizon: Steps after which the loss is to be lowest: those you will train for, or the first
            few hundred of them.
        batch_size: Samples a batch; by default the loader's own, or all of them.
        seeds: Orders of the batches, how many or which; the full batch has only one.
        budget: Gradient evaluations in all, curvature included at two a product; by default four
            horizons, and what `edge_rtol` needs.
        rates: Rates to start the race from, in place of those around the critical rate; the search
            leaves them where the best is not inside.
        edge_rtol: Bisect `lr_loss` and `lr_max` to this relative width. By default they are left as
            wide as the race left them.
        curvature: ``"initial"``: λ₀ and the critical rate. ``"final"``: also λ at the end of every
            whole run, outside the budget. ``"none"``: neither; the forward-only rate remains.
        accumulate: Batches whose mean gradient makes one step.
        micro_batch: At most so many samples in one forward pass.
        autocast: dtype to run the model in; by default as ``torch.autocast`` is set by the caller.
        schedule: Multiplier of the rate at step t, a function of t.
        delta: A loss above (1 + δ) L₀ has risen; by default 1e-3 for full batches, else 1e-2.
        blowup: A loss above so many times its start has diverged.
        progress: True for a bar on the terminal, or a function of (done, in all).

    Returns:
        The scan.

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
    model = unwrap(model)
    seeds = _checked_seeds(seeds)
    _check(horizon, budget, rates, edge_rtol, curvature, delta, blowup)
    resolved = resolve(loss)
    if resolved is None:
        msg = "loss: expected a loss, got None; a scan needs the loss that is trained on"
        raise InputError(msg)
    params = list(select(model).values())
    closure = isinstance(resolved, ModelLoss)
    device = params[0].device
    cast = Autocast.ambient(device) if autocast is None else Autocast(device.type, True, autocast)
    limit = 4 * horizon if budget is None else budget
    held = optimizer if isinstance(optimizer, torch.optim.Optimizer) else None
    with held_still(model, mode="as_is", loader=data, optimizer=held, parameters_too=True):
        if not model.training:
            model.train()
        factory = make_factory(optimizer, params)
        stream = make_stream(
            data, device=device, batch_size=batch_size, accumulate=accumulate, horizon=horizon,
            closure=closure,
        )  # fmt: skip
        objective = Objective(model, resolved, params, cast, stream.samples_per_step, micro_batch)
        if stream.n_samples == 1:
            objective.notes.append("there is only one sample: this is the rate that memorises it")
        setup = _prepare(
            objective, stream, factory, horizon, seeds, limit, delta, blowup, schedule, rates,
            curvature, optimizer, data, loss,
        )  # fmt: skip
        with _shown(progress, setup.trainer):
            course = _race(setup, rates)
            edges = _edges(setup, edge_rtol, None if budget is None else limit)
            suggestion = suggest(setup.rates, edges[1])
            warmup = _warmup(setup, suggestion, edges[1])
            whole = [r for r in setup.rates.all_runs() if r.status is Status.MAX_STEPS]
            for run in whole:
                setup.trainer.load(run)
                run.sparsity = sparsity(objective, setup.trainer.fixed)
            if curvature == "final":
                final_eigenvalues(setup.trainer, whole, setup.critical, loss, optimizer, horizon)
    notes = _notes(setup, course, suggestion, rates)
    first = setup.trainer.loss_first
    settings: dict[str, Any] = {
        "optimizer": describe(optimizer),
        "loss": loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__),
        "horizon": horizon,
        "batch_size": stream.samples_per_step,
        "accumulate": accumulate,
        "n_samples": stream.n_samples,
        "n_parameters": sum(p.numel() for p in params),
        "seeds": list(setup.rates.seeds),
        "budget": limit,
        "delta": setup.rates.delta,
        "blowup": blowup,
        "loss_first": first,
        "dtype": str(params[0].dtype).removeprefix("torch."),
        "device": str(device),
    }
    cost = {
        "gradients": float(objective.cost.gradients),
        "forwards": float(objective.cost.forwards),
        "products": float(objective.cost.products),
        "seconds": time.monotonic() - started,
    }
    runs, looks = frames(setup.rates, setup.critical.top_eigenvalue)
    forward = Interval(setup.forward.low, setup.forward.high)
    return Scan(
        suggestion, setup.critical, forward, *edges, warmup, runs, looks, tuple(notes), cost,
        settings,
    )  # fmt: skip


def _prepare(
    objective: Objective,
    stream: Stream,
    factory: Factory,
    horizon: int,
    seeds: Sequence[int],
    limit: int,
    delta: float | None,
    blowup: float,
    schedule: Schedule | None,
    rates: Sequence[float] | None,
    curvature: Curvature,
    optimizer: object,
    data: object,
    loss: object,
) -> _Setup:
    fixed = stream.fixed(stream.n_samples if stream.full_batch else FIXED_SAMPLES)
    closing = fixed if stream.full_batch else stream.fixed(CLOSING_SAMPLES)
    try:
        first = objective.value(fixed)
    except InputError:
        raise
    except (RuntimeError, ValueError, TypeError) as error:
        if out_of_memory(error):
            raise
        msg = f"model: cannot be evaluated with this loss on this data ({_first_line(error)})"
        raise InputError(msg) from error
    if not is_finite(first):
        msg = (
            f"model: its loss is {first} at the initialisation, before any step; no learning rate "
            "can mend that: check the data for NaN, and the model's outputs"
        )
        raise InputError(msg)
    forward = along_first_step(objective, factory, fixed)
    critical = Critical(math.nan, math.nan, "", "not measured")
    if curvature != "none":
        # A sixteenth of the budget: the race matters more.
        critical = critical_rate(objective, stream, optimizer, loss, at_most=limit // 16)
    trainer = Trainer(
        objective, stream, factory, horizon=horizon, fixed=fixed, closing=closing,
        schedule=schedule, blowup=blowup, budget=limit,
    )  # fmt: skip
    scale = forward.value if rates is None else float(np.exp(np.log(rates).mean()))
    delta = (1e-3 if trainer.free_looks else 1e-2) if delta is None else delta
    # The full batch has no order: without randomness a second seed would be the same run again.
    seeds = seeds[:1] if trainer.free_looks else seeds
    field = Rates(trainer, scale, seeds, delta=delta, smoothing=Plan().smoothing)
    return _Setup(objective, stream, factory, trainer, field, forward, critical)


def _race(setup: _Setup, rates: Sequence[float] | None) -> Course:
    plan = Plan()
    if rates is not None:
        places = {round(2 * math.log2(r / setup.rates.scale)) for r in rates}
        plan = Plan(first=tuple(sorted(places)))
    return race(setup.rates, plan)


def _edges(setup: _Setup, rtol: float | None, limit: int | None) -> tuple[Interval, Interval]:
    rates, trainer = setup.rates, setup.trainer
    if rtol is not None:
        trainer.budget = limit
        horizon = trainer.horizon

        def fails(runs: Sequence[Run]) -> bool:
            return not all(rates.trained(run) for run in runs)

        def rises(runs: Sequence[Run]) -> bool:
            return any(rates.rose(run) for run in runs)

        narrow(rates, training_edge(rates), fails, rtol=rtol, looks=[horizon])
        # A rise ends the trial, and most come early.
        early = [horizon // 20, horizon // 5, horizon]
        narrow(rates, loss_edge(rates), rises, rtol=rtol, looks=early)
    return loss_edge(rates), training_edge(rates)


def _warmup(setup: _Setup, suggestion: Suggestion, lr_max: Interval) -> Warmup:
    """Compare the critical rate at the initialisation with the one after training."""
    forward = setup.forward.value
    # Where curvature was measured it is the stricter of the two: the gradient of the first step
    # need not point along the top eigenvector.
    start = forward if math.isnan(setup.critical.lr) else min(setup.critical.lr, forward)
    if setup.critical.convention.endswith("catapults begin at 2/λ₀"):
        start = min(start, 2 / setup.critical.top_eigenvalue)
    runs = [r for r in setup.rates.all_runs() if r.state is not None and not r.dead and r.steps]
    later = math.nan
    if runs:
        furthest = max(r.steps for r in runs)
        run = min(
            (r for r in runs if r.steps == furthest),
            key=lambda r: abs(math.log(r.rate / suggestion.rate)),
        )
        gradients = setup.objective.cost.gradients
        cost = round(sum(b.size for b in setup.trainer.fixed) / setup.stream.samples_per_step)
        if setup.trainer.left() >= max(1, cost):
            setup.trainer.load(run)
            assert run.state is not None
            try:
                bracket = along_first_step(setup.objective, setup.factory, setup.trainer.fixed)
                later = bracket.value
            except InputError:  # the gradient vanished, or every step rises: there is no such rate
                setup.objective.cost.gradients = gradients + max(1, cost)
    rate = suggestion.rate
    if later > max(lr_max.high, 1.5 * forward):
        reason = (
            f"needed for rates above {lr_max.low:.3g}, which fail from the initialisation though "
            f"after training steps up to {later:.3g} still help; not for the suggested {rate:.3g}"
        )
        return Warmup(True, start, later, reason)
    if rate <= start:
        reason = (
            f"not needed: the suggested {rate:.3g} is below the critical rate at the "
            f"initialisation, {start:.3g}"
        )
    else:
        reason = (
            f"not needed, but smoother: the suggested {rate:.3g} is above the critical rate at the "
            f"initialisation, {start:.3g}, from which to warm up; runs survive without"
        )
    return Warmup(False, start, later, reason)


def _notes(
    setup: _Setup, course: Course, suggestion: Suggestion, rates: Sequence[float] | None
) -> list[str]:
    notes = list(dict.fromkeys(setup.objective.notes))
    if not course.finished:
        notes.append("the budget ended the race early; a larger one could find a better rate")
    if course.extended > 0:
        where = f"{max(rates):.3g}" if rates is not None else "the first rates"
        notes.append(f"every rate tried at first was too small; the search went above {where}")
    if course.extended < 0:
        notes.append("every rate tried at first was too large; the search went below them")
    if not suggestion.reliable:
        notes.append("do not rely on the suggestion: no run ended the horizon below its start")
    if math.isinf(setup.forward.high):
        notes.append(
            "every first step lowers the loss, however long: its forward rate is unbounded"
        )
    return notes


@contextmanager
def _shown(progress: bool | Progress, trainer: Trainer) -> Iterator[None]:
    if progress is False:
        yield
        return
    update = progress_bar("scan") if progress is True else progress
    total = trainer.budget or 0
    trainer.on_step = lambda done: update(min(done, total - 1), total)
    try:
        yield
    finally:
        trainer.on_step = None
        update(total, total)


def _checked_seeds(seeds: int | Sequence[int]) -> tuple[int, ...]:
    found = tuple(range(seeds)) if isinstance(seeds, int) else tuple(int(s) for s in seeds)
    if not found or len(set(found)) < len(found):
        msg = f"seeds: expected a positive number, or different numbers, got {seeds!r}"
        raise InputError(msg)
    return found


def _check(
    horizon: int,
    budget: int | None,
    rates: Sequence[float] | None,
    edge_rtol: float | None,
    curvature: str,
    delta: float | None,
    blowup: float,
) -> None:
    if not isinstance(horizon, int) or horizon < 10:
        msg = f"horizon: expected at least 10 steps, got {horizon!r}"
        raise InputError(msg)
    if budget is not None and budget < 2 * horizon:
        msg = (
            f"budget: expected at least two horizons, {2 * horizon} gradient evaluations, got "
            f"{budget}; shorten the horizon, or give more"
        )
        raise InputError(msg)
    if rates is not None and (
        len(rates) == 0 or not all(math.isfinite(r) and r > 0 for r in rates)
    ):
        msg = f"rates: expected positive finite numbers, got {rates!r}"
        raise InputError(msg)
    if edge_rtol is not None and not 1e-4 <= edge_rtol < 1:
        msg = f"edge_rtol: expected a number from 1e-4 to 1, got {edge_rtol!r}"
        raise InputError(msg)
    if curvature not in ("initial", "final", "none"):
        msg = f"curvature: expected 'initial', 'final' or 'none', got {curvature!r}"
        raise InputError(msg)
    if delta is not None and not (math.isfinite(delta) and delta >= 0):
        msg = f"delta: expected a finite number >= 0, got {delta}"
        raise InputError(msg)
    if not blowup > 1:
        msg = f"blowup: expected a factor above 1, got {blowup}"
        raise InputError(msg)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


__all__ = ["Scan", "scan"]
