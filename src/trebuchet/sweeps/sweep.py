"""Many runs of one problem, over learning rates × seeds."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Unpack, cast

import numpy as np
import torch
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from torch import nn

from trebuchet._checks import (
    anything,
    checked_seeds,
    from_zero,
    instance,
    progress as a_bar,
    rate_array,
    seeds as a_list,
    steps as step_count,
)
from trebuchet._doors import door, grouped, maybe
from trebuchet._progress import Progress, close, progress_bar
from trebuchet.engine.assemble import assemble
from trebuchet.engine.checkpoint import Identity, hold
from trebuchet.engine.history import together
from trebuchet.engine.optimizers import GradientDescent
from trebuchet.engine.recording import Recording
from trebuchet.engine.stopping import StopRule
from trebuchet.engine.threads import one_thread
from trebuchet.errors import InputError
from trebuchet.observables.base import Observable
from trebuchet.observables.registry import (
    described,
    observables as named_observables,
)
from trebuchet.problem.how import HOW, How, as_problem
from trebuchet.problem.interrupts import pressed_twice_is_once
from trebuchet.problem.losses import LossFn, ModelLoss
from trebuchet.problem.problem import ModelFactory, Problem, check_schedule
from trebuchet.sweeps import chunking
from trebuchet.sweeps.axes import Axis, axes_given, cells
from trebuchet.sweeps.binding import Binding
from trebuchet.sweeps.choose import binding
from trebuchet.sweeps.elsewhere import Errand, made, set_by_caller
from trebuchet.sweeps.execution import Execution, ExecutionKeywords
from trebuchet.sweeps.grid import over_axes
from trebuchet.sweeps.outputs import OutputBinding
from trebuchet.sweeps.plan import plan_of, try_out
from trebuchet.sweeps.pool import Job

MOST_NUMBERS = 2**32
"""Recorded steps of all runs together: 32 GiB an observable."""


class Keywords(How, ExecutionKeywords, total=False):
    """Further keywords of `sweep`."""

    tolerance: float | None
    blowup: float
    delta: float | None
    record: Recording | None


_KEYWORDS = {
    **HOW, **dict.fromkeys(ExecutionKeywords.__annotations__, anything),
    "tolerance": anything, "blowup": anything, "delta": maybe(from_zero),
    "record": maybe(instance, Recording, "a trebuchet.Recording", "Recording(every=10) is one"),
}  # fmt: skip


@door(
    problem=anything, loss=anything, data=anything, optimizer=anything,
    lr_ratio=maybe(rate_array), lr=maybe(rate_array), seeds=a_list, steps=maybe(step_count),
    observables=maybe(named_observables),
    stop=maybe(instance, StopRule, "a trebuchet.StopRule", "StopRule(max_steps=100) is one"),
    execution=maybe(instance, Execution, "a trebuchet.Execution", "Execution(workers=1) is one"),
    axes=maybe(axes_given), progress=a_bar, **_KEYWORDS,
)  # fmt: skip
def sweep(
    problem: Problem | nn.Module | ModelFactory,
    loss: str | LossFn | ModelLoss | None = None,
    data: object = None,
    optimizer: GradientDescent
    | str
    | torch.optim.Optimizer
    | Sequence[torch.optim.Optimizer]
    | Callable[..., Any]
    | None = None,
    *,
    lr_ratio: ArrayLike | None = None,
    lr: ArrayLike | None = None,
    seeds: int | Sequence[int] = 1,
    steps: int | None = None,
    observables: Sequence[str | Observable] | None = None,
    stop: StopRule | None = None,
    execution: Execution | None = None,
    axes: Mapping[str, Iterable[Any] | Mapping[str, Any]] | None = None,
    progress: bool | Progress | None = None,
    **keywords: Unpack[Keywords],
) -> xr.Dataset:
    """Train a problem at many learning rates, from many seeds, every run to its end.

    Any module, loss, optimizer and form of batches: full-batch gradient descent of the theory's
    models runs in stacks with the gradient written out, all else one run at a time on the module
    itself, by the same loop as a scan.

    Args:
        problem: What is trained, and how: a `Problem`; or a model, beside `loss` and `data`.
        loss: As for `Problem`, beside a model.
        data: As for `Problem`, beside a model.
        optimizer: As for `Problem`; beside one, in place of its own.
        lr_ratio: Rates as ηλ₀, with λ₀ each seed's own top eigenvalue at the initialisation, of the
            operator that the result names: the NTK divided by the number of samples, which for the
            half mean squared error is Gauss–Newton, or the curvature of another loss.
        lr: Rates as η, instead of `lr_ratio`.
        seeds: How many seeds (0, 1, …), or which: initialisations where the problem has a function
            of the seed, and orders of the batches.
        steps: Most updates a run may make; 1000 unless given.
        observables: What is recorded beside the loss and the weight norm: names in
            :data:`trebuchet.observables.OBSERVABLES`, or `Observable` s of your own; unless given
            ``"top_eigenvalue"`` and ``"sparsity"`` where they cost little. A test loss at the end
            is always measured where the problem has test data.
        stop: When runs end: a `StopRule`, in place of `steps`, ``tolerance`` and ``blowup``.
        execution: How runs are computed, and where they are saved: an `Execution`.
        axes: What else is varied, each name with its values: a keyword of the model's function
            (``lambda seed, width: ...``), a field of the problem (``batch_size``, ``optimizer``,
            ``loss``, ``clip_grad_norm`` …), or ``"optimizer.momentum"``, a setting of the
            optimizer. Every combination is a cell: its runs are those of a sweep of that problem,
            and λ₀ is measured in each. Values that are no numbers go by their names, or by those
            that they are given in a dict.
        progress: A bar on a terminal or in a notebook; True: lines in a log too, False: nothing;
            or a function of (steps done, steps in all).
        **keywords: The fields of `StopRule` (``tolerance``, ``blowup``), of `Execution`
            (``checkpoint``, ``workers``, ``chunk``, ``engine``, ``device`` …) and of `Problem`
            (``batch_size``, ``schedule``, ``test`` …; beside a `Problem`, in place of its own);
            ``record``, a `Recording` of the steps that are recorded: unless given every one, or
            those at which a scan looks at runs where a look costs extra; and ``delta``: a loss is
            above its start when it exceeds (1 + δ) times it, as for ``scan`` unless given, 1e-3
            where losses are those of all data without noise.

    Returns:
        A dataset with dims ``lr, seed, step`` (:mod:`trebuchet.results.schema`), the axes before
        them. Interrupted by Ctrl-C, it holds what was finished, with status ``interrupted`` on what
        was not, and ``not_run`` in cells that were not reached. Attributes that differ between
        cells are coordinates along the axes.

    Raises:
        InputError: If an argument is not what was expected, both or neither of the two scales are
            given, the problem has one initialisation and several seeds are asked, or
            the checkpoint is another sweep's, in use, damaged, or cannot be written.
        LawViolationError: If a homogeneous model breaks the weight-norm law beyond rounding.

    Example:
        >>> from trebuchet.models import PureQuadratic
        >>> problem = Problem(lambda seed: PureQuadratic.draw(50, generator=seed), "half_mse",
        ...                   ([[1.0]], [0.0]))
        >>> runs = sweep(problem, lr_ratio=[1.0, 2.5, 5.0], seeds=2, steps=100)
        >>> (runs.loss_final < runs.loss_first).values.tolist()
        [[True, True], [True, True], [False, False]]
        >>> runs.status.sel(lr=5.0).values.tolist()
        ['blew_up', 'blew_up']
    """
    problem = as_problem(problem, loss, data, keywords, optimizer=optimizer, called="problem")
    ends = grouped(StopRule, "stop", stop, _renamed(keywords, steps))
    how = grouped(Execution, "execution", execution, keywords)
    swept, rates = _rates(lr_ratio, lr)
    seed_list = list(checked_seeds(seeds))
    delta = keywords.get("delta")

    def one(problem: Problem, checkpoint: Path | None, bar: Progress) -> xr.Dataset:
        return _runs(
            problem, ends, replace(how, checkpoint=checkpoint), swept, rates, seed_list,
            observables, keywords.get("record"), delta, bar, len(grid),
        )  # fmt: skip

    def attempt(problem: Problem) -> None:
        check_schedule(problem, ends.max_steps)
        with binding(
            problem, seed_list[:1], steps=ends.max_steps, device=how.device, engine=how.engine,
            span=how.span, ratios=False, watched=False,
        ):  # fmt: skip
            pass

    names = [str(getattr(o, "name", o)) for o in observables or ()]
    over = cast("Sequence[Axis]", axes or ())  # made of what was given, in front of the door
    grid = cells(problem, over, names)
    bar = progress_bar("sweep", shown=progress)
    place = cast("Path | None", how.checkpoint)  # as Execution has checked it
    try:
        with pressed_twice_is_once():
            if not over:
                return one(problem, place, bar)
            return over_axes(grid, over, one, attempt=attempt, checkpoint=place, progress=bar)
    finally:
        close(bar)


def _runs(
    problem: Problem,
    ends: StopRule,
    how: Execution,
    swept: str,
    rates: NDArray[np.float64],
    seed_list: Sequence[int],
    observables: Sequence[str | Observable] | None,
    record: Recording | None,
    delta: float | None,
    bar: Progress,
    of: int,
) -> xr.Dataset:
    """The runs of one problem, of so many that are swept together."""
    check_schedule(problem, ends.max_steps)
    with binding(
        problem, seed_list, steps=ends.max_steps, device=how.device, engine=how.engine,
        span=how.span,
        ratios=swept == "lr_ratio", watched=_asks_for_top(observables),
    ) as bound:  # fmt: skip
        chosen = (
            bound.observables()
            if observables is None
            else named_observables("observables", observables)
        )
        plan = plan_of(bound, ends, record, chosen, delta, how.checkpoint_seconds)
        kept = of * rates.size * len(seed_list) * plan.schedule.size
        if kept > MOST_NUMBERS:
            msg = (
                f"record: expected at most {MOST_NUMBERS} recorded steps of all runs together, got "
                f"{kept}; thin them out with Recording(dense=1000)"
            )
            raise InputError(msg)
        try_out(bound, chosen, 1.0 if swept == "lr_ratio" else float(rates[0]))
        remote = how.backend not in (None, "threads") or (how.backend is None and set_by_caller())
        inline = bound.most_in_a_stack == 1 and not remote
        workers = 1 if inline else how.workers or _cores(bound)
        settings: dict[str, Any] = {
            "problem": problem.name, "loss": problem.loss_name, "swept": swept,
            "rates": rates.tolist(), "seeds": seed_list, "steps": ends.max_steps,
            "tolerance": ends.tolerance, "blowup": ends.blowup, "delta": plan.delta,
            "optimizer": bound.optimizer,
            "schedule": plan.schedule.tolist(), "observables": described(chosen),
            "engine": how.engine, "span": how.span, "initial": bound.fingerprint,
            "dtype": str(bound.dtype).removeprefix("torch."), "trained": bound.trained(),
        }  # fmt: skip
        rounding = float(torch.finfo(bound.dtype).eps) ** 0.5
        identity = Identity(settings, bound.device.type, bound.start, rounding)
        place = cast("Path | None", how.checkpoint)
        held = nullcontext() if place is None else hold(place, identity)
        alone = nullcontext() if inline else one_thread(bound.device)
        # Results say how many threads the caller has, not how many a product was made by.
        with held as folder, ExitStack() as within:
            within.enter_context(alone)
            begun = None if folder is None else folder.pinned()
            chunk, top = _begun(how, bound, rates.size, workers, begun)
            scale = top[None, :] if swept == "lr_ratio" else np.ones((1, len(seed_list)))
            learning_rate = rates[:, None] / scale
            chunks = _split(rates.size, len(seed_list), chunk, bound.mixes_seeds)
            job = Job(bound, plan, learning_rate, chunks, folder, bar)
            lay_out = partial(
                assemble,
                plan=plan,
                swept=swept,
                rates=rates,
                seeds=seed_list,
                learning_rate=learning_rate,
                top_eigenvalue_init=top,
                wanted=() if observables is None else plan.watched,
                settings=settings,
            )
            facts = {
                **bound.facts,
                **(problem.facts or {}),
                "model": problem.name,
                "loss": problem.loss_name,
                "optimizer": bound.optimizer,
                "chunk": chunk,
                "workers": workers,
                "interrupted": 1,
                "deterministic": int(bound.free_looks and problem.unchanging),
            }
            if folder is not None and begun is None:
                blank = lay_out(job.blank(), [], attrs=facts, whole=True)
                folder.pin({"chunk": chunk, "top_eigenvalue_init": top.tolist()}, blank)
            elsewhere = None
            if remote:
                errand = Errand(
                    problem, seed_list, how.device, how.engine, how.span, plan, learning_rate,
                    chunks, bound.fingerprint,
                )  # fmt: skip
                elsewhere = partial(made, errand, backend=how.backend, workers=how.workers)
            histories, interrupted = job.run(0 if inline else workers, elsewhere)
            within.close()
            notes = bound.notes()
            facts["interrupted"] = int(interrupted)
            if notes:
                facts["notes"] = "; ".join(notes)
            places = [pair for part in chunks for pair in part]
            runs = lay_out(together(histories), places, attrs=facts)
            if folder is not None:
                folder.finish(runs)
        return runs


def _renamed(keywords: Mapping[str, Any], steps: int | None) -> dict[str, Any]:
    """Keywords, with the number of steps by the name it has in a `StopRule`."""
    return {**keywords, **({} if steps is None else {"max_steps": steps})}


def _asks_for_top(observables: Sequence[str | Observable] | None) -> bool:
    names = [getattr(o, "name", o) for o in observables or ()]
    return "top_eigenvalue" in names


def _cores(bound: Binding) -> int:
    return torch.get_num_threads() if bound.device.type == "cpu" else 1


def _rates(lr_ratio: ArrayLike | None, lr: ArrayLike | None) -> tuple[str, NDArray[np.float64]]:
    if (lr_ratio is None) == (lr is None):
        got = "neither" if lr is None else "both"
        msg = f"lr_ratio: expected either lr_ratio (ηλ₀) or lr (η), got {got}"
        raise InputError(msg)
    name, given = ("lr_ratio", lr_ratio) if lr is None else ("lr", lr)
    return name, rate_array(name, given)


def _split(rates: int, seeds: int, chunk: int, mixes_seeds: bool) -> list[list[tuple[int, int]]]:
    """(rate, seed) positions of each chunk; the costly small rates, which stop last, first."""
    pools = [[(i, s) for i in range(rates)] for s in range(seeds)]
    if mixes_seeds:
        pools = [[pair for pool in pools for pair in pool]]
    return [pool[i : i + chunk] for pool in pools for i in range(0, len(pool), chunk)]


def _begun(
    how: Execution, bound: Binding, rates: int, workers: int, begun: Mapping[str, Any] | None
) -> tuple[int, NDArray[np.float64]]:
    """Chunk size and λ₀: those the checkpoint was begun with, or those asked for and measured.

    Both decide how numbers round, and neither need come out the same twice.

    Returns:
        Both.

    Raises:
        InputError: If the chunk size is not the one the checkpoint was begun with.
    """
    chunk = how.chunk
    if begun is not None:
        if chunk is not None and chunk != begun["chunk"]:
            msg = (
                f"chunk: {how.checkpoint} was begun with chunk={begun['chunk']}, got {chunk}; "
                "leave it out to go on, or name another checkpoint"
            )
            raise InputError(msg)
        return int(begun["chunk"]), np.array(begun["top_eigenvalue_init"], dtype=np.float64)
    if not isinstance(bound, OutputBinding):
        chunk = 1
    elif chunk is None:
        runs = rates * (len(bound.models) if bound.mixes_seeds else 1)
        sizes = chunking.candidates(runs, bound.bytes_per_run, how.memory, workers)
        with torch.no_grad():
            chunk = chunking.fastest(lambda size: bound.net([0] * size), sizes)
    return chunk, bound.top
