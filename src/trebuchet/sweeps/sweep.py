"""Many runs of one problem, over learning rates × seeds."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from torch import nn

from trebuchet._checks import (
    anything,
    checked_seeds,
    choice,
    factor,
    flag,
    from_zero,
    instance,
    path as a_path,
    positive,
    progress as a_bar,
    rate_array,
    seeds as a_list,
    steps as step_count,
    whole,
    workers as at_once,
)
from trebuchet._doors import door, maybe, rule
from trebuchet._progress import Progress, progress_bar
from trebuchet._torch_checks import device as a_device
from trebuchet.engine.assemble import assemble
from trebuchet.engine.checkpoint import Checkpoint, Identity, hold
from trebuchet.engine.history import together
from trebuchet.engine.kernels.choose import Engine
from trebuchet.engine.looks import looks
from trebuchet.engine.optimizers import GradientDescent
from trebuchet.engine.recording import Recording
from trebuchet.engine.runner import Plan, asked
from trebuchet.engine.stopping import StopRule
from trebuchet.engine.threads import one_thread
from trebuchet.errors import InputError
from trebuchet.observables.base import Observable, UnavailableError
from trebuchet.observables.held_out_loss import HeldOutLoss
from trebuchet.observables.registry import (
    OBSERVABLES,
    described,
    observables as named_observables,
)
from trebuchet.observables.weight_norm import WeightNorm
from trebuchet.problem.losses import LossFn, ModelLoss
from trebuchet.problem.problem import (
    ModelFactory,
    Problem,
    as_problem,
    check_schedule,
    trained_with,
)
from trebuchet.sweeps import chunking
from trebuchet.sweeps.binding import Binding
from trebuchet.sweeps.choose import binding
from trebuchet.sweeps.outputs import OutputBinding
from trebuchet.sweeps.pool import Job

MOST_NUMBERS = 2**32
"""Recorded steps of all runs together: 32 GiB an observable."""


@door(
    problem=anything, loss=anything, data=anything,
    lr_ratio=maybe(rate_array), lr=maybe(rate_array), seeds=a_list, steps=step_count,
    optimizer=anything, tolerance=maybe(positive), blowup=factor, delta=maybe(from_zero),
    record=maybe(instance, Recording, "a trebuchet.Recording", "Recording(every=10) is one"),
    observables=maybe(named_observables), engine=rule(choice, get_args(Engine)), span=flag,
    chunk=maybe(whole, "a positive number"), workers=at_once,
    memory=rule(whole, "a positive number of bytes"), device=maybe(a_device),
    checkpoint=maybe(a_path), checkpoint_seconds=from_zero, progress=a_bar,
)  # fmt: skip
def sweep(
    problem: Problem | nn.Module | ModelFactory,
    loss: str | LossFn | ModelLoss | None = None,
    data: object = None,
    *,
    lr_ratio: ArrayLike | None = None,
    lr: ArrayLike | None = None,
    seeds: int | Sequence[int] = 1,
    steps: int = 1000,
    optimizer: GradientDescent
    | str
    | torch.optim.Optimizer
    | Callable[..., torch.optim.Optimizer]
    | None = None,
    tolerance: float | None = None,
    blowup: float = 1e8,
    delta: float | None = None,
    record: Recording | None = None,
    observables: Sequence[str | Observable] | None = None,
    engine: Engine = "auto",
    span: bool = True,
    chunk: int | None = None,
    workers: int | None = None,
    memory: int = chunking.MEMORY_BYTES,
    device: str | torch.device | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_seconds: float = 5.0,
    progress: bool | Progress = False,
) -> xr.Dataset:
    """Train a problem at many learning rates, from many seeds, every run to its end.

    Any module, loss, optimizer and form of batches: full-batch gradient descent of the theory's
    models runs in stacks with the gradient written out, all else one run at a time on the module
    itself, by the same loop as a scan.

    Args:
        problem: What is trained, and how: a `Problem`; or a model, beside `loss` and `data`.
        loss: As for `Problem`, beside a model.
        data: As for `Problem`, beside a model.
        lr_ratio: Rates as ηλ₀, with λ₀ each seed's own top eigenvalue at the initialisation, of the
            operator that the result names: the NTK divided by the number of samples, which for the
            half mean squared error is Gauss–Newton, or the curvature of another loss.
        lr: Rates as η, instead of `lr_ratio`.
        seeds: How many seeds (0, 1, …), or which: initialisations where the problem has a function
            of the seed, and orders of the batches.
        steps: Most updates a run may make.
        optimizer: In place of the problem's.
        tolerance: A run has converged when its loss changes by less than this in a step.
        blowup: A run has blown up when its loss passes this many times its start.
        delta: A loss is above its start when it exceeds (1 + δ) times it; as for ``scan`` unless
            given: 1e-3 where losses are those of all data without noise.
        record: Which steps are recorded; unless given every one, or those at which a scan looks at
            runs where a look costs extra.
        observables: What is recorded beside the loss and the weight norm: names in
            :data:`trebuchet.observables.OBSERVABLES`, or `Observable` s of your own; unless given
            ``"top_eigenvalue"`` and ``"sparsity"`` where they cost little. A test loss at the end
            is always measured where the problem has test data.
        engine: ``"auto"``: the theory's models by their own kernels, others on the module itself;
            ``"batched"``: runs of any module that ``torch.vmap`` takes, stacked; ``"sequential"``:
            outputs one run at a time; ``"module"``: never a kernel of its own. All give the same
            runs to rounding; the two in the middle are for full-batch gradient descent.
        span: Use data-span compression where the model allows it.
        chunk: Runs stacked together; measured unless given. Give it where digits must repeat
            exactly, since another stack rounds differently.
        workers: Chunks in flight together; a core each unless given, one on a GPU.
        memory: Bound, in bytes, on all chunks in flight.
        device: Where to run; where the model's weights are unless given.
        checkpoint: A folder to save to and to resume from: the same sweep called again goes on
            where it was, and equals the uninterrupted one bit for bit (on another kind of machine
            or another torch: to rounding). One process at a time may use it.
        checkpoint_seconds: How often an unfinished chunk is saved.
        progress: Show a progress bar once the work has taken two seconds; or a function of
            (steps done, steps in all).

    Returns:
        A dataset with dims ``lr, seed, step`` (:mod:`trebuchet.results.schema`). Interrupted by
        Ctrl-C, it holds what was finished, with status ``interrupted`` on what was not.

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
    problem = as_problem(problem, loss, data, called="problem")
    if optimizer is not None:
        problem = trained_with(problem, optimizer=optimizer)
    check_schedule(problem, steps)
    swept, rates = _rates(lr_ratio, lr)
    seed_list = list(checked_seeds(seeds))
    with binding(
        problem, seed_list, steps=steps, device=device, engine=engine, span=span,
        ratios=swept == "lr_ratio", watched=_asks_for_top(observables),
    ) as bound:  # fmt: skip
        chosen = (
            bound.observables()
            if observables is None
            else named_observables("observables", observables)
        )
        plan = _plan(
            bound, StopRule(steps, tolerance, blowup), record, chosen, delta, checkpoint_seconds
        )
        kept = rates.size * len(seed_list) * plan.schedule.size
        if kept > MOST_NUMBERS:
            msg = (
                f"record: expected at most {MOST_NUMBERS} recorded steps of all runs together, got "
                f"{kept}; thin them out with Recording(dense=1000)"
            )
            raise InputError(msg)
        _try(bound, chosen, 1.0 if swept == "lr_ratio" else float(rates[0]))
        inline = bound.most_in_a_stack == 1
        workers = 1 if inline else workers or _cores(bound)
        settings: dict[str, Any] = {
            "problem": problem.name, "loss": problem.loss_name, "swept": swept,
            "rates": rates.tolist(), "seeds": seed_list, "steps": steps, "tolerance": tolerance,
            "blowup": blowup, "delta": plan.delta, "optimizer": bound.optimizer,
            "schedule": plan.schedule.tolist(), "observables": described(chosen),
            "engine": engine, "span": span, "initial": bound.fingerprint,
            "dtype": str(bound.dtype).removeprefix("torch."), "trained": bound.trained(),
        }  # fmt: skip
        rounding = float(torch.finfo(bound.dtype).eps) ** 0.5
        identity = Identity(settings, bound.device.type, bound.start, rounding)
        held = nullcontext() if checkpoint is None else hold(Path(checkpoint), identity)
        alone = nullcontext() if inline else one_thread(bound.device)
        with alone, held as folder:
            chunk, top = _begun(chunk, bound, rates.size, memory, workers, folder)
            scale = top[None, :] if swept == "lr_ratio" else np.ones((1, len(seed_list)))
            learning_rate = rates[:, None] / scale
            chunks = _split(rates.size, len(seed_list), chunk, bound.mixes_seeds)
            bar = progress if callable(progress) else progress_bar("sweep", shown=progress)
            job = Job(bound, plan, learning_rate, chunks, folder, bar)
            histories, interrupted = job.run(0 if inline else workers)
        notes = bound.notes()
        return assemble(
            together(histories),
            [pair for part in chunks for pair in part],
            plan,
            swept=swept,
            rates=rates,
            seeds=seed_list,
            learning_rate=learning_rate,
            top_eigenvalue_init=top,
            wanted=() if observables is None else plan.watched,
            attrs={
                **bound.facts,
                **(problem.facts or {}),
                "model": problem.name,
                "loss": problem.loss_name,
                "optimizer": bound.optimizer,
                "chunk": chunk,
                "workers": workers,
                "interrupted": int(interrupted),
                **({"notes": "; ".join(notes)} if notes else {}),
            },
            settings=settings,
        )


def _try(bound: Binding, chosen: Sequence[Observable], rate: float) -> None:
    """Measure once, at a start, what others defined, before anything is made or spent."""
    theirs = [o for o in chosen if type(o) is not OBSERVABLES.get(o.name)]
    if not theirs:
        return
    runs = 1 if bound.most_in_a_stack == 1 else 2  # a stack, where there are any
    kernel = bound.kernel([rate] * runs, [0] * runs)
    kernel.ready(frozenset(o.name for o in theirs))
    for observable in theirs:
        with suppress(UnavailableError):
            start = observable.start(kernel)
            rows = np.arange(runs)
            asked(observable, kernel, observable.extent(kernel), start, rows)


def _asks_for_top(observables: Sequence[str | Observable] | None) -> bool:
    names = [getattr(o, "name", o) for o in observables or ()]
    return "top_eigenvalue" in names


def _cores(bound: Binding) -> int:
    return torch.get_num_threads() if bound.device.type == "cpu" else 1


def _plan(
    bound: Binding,
    stop: StopRule,
    record: Recording | None,
    chosen: Sequence[Observable],
    delta: float | None,
    checkpoint_seconds: float,
) -> Plan:
    """What all runs have in common; where looks are apart from steps, as a scan has it."""
    if not bound.free_looks and stop.tolerance is not None:
        msg = (
            "tolerance: expected None, since a loss of batches, or one with noise, changes in "
            "every step; give a number of steps instead"
        )
        raise InputError(msg)
    if record is None and not bound.free_looks:
        schedule = looks(stop.max_steps)
    else:
        schedule = (record or Recording()).steps(stop.max_steps)
    beside = [o for o in chosen if o.name != "weight_norm"]
    at_end = [HeldOutLoss()] if bound.problem.test is not None else []
    return Plan(
        stop=stop,
        schedule=schedule,
        observables=(WeightNorm(), *beside),
        only_at_the_end=tuple(o for o in at_end if o.name not in {c.name for c in chosen}),
        delta=bound.delta(delta),
        checkpoint_seconds=checkpoint_seconds,
    )


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
    chunk: int | None,
    bound: Binding,
    rates: int,
    memory: int,
    workers: int,
    folder: Checkpoint | None,
) -> tuple[int, NDArray[np.float64]]:
    """Chunk size and λ₀: those the checkpoint was begun with, or those asked for and measured.

    Both decide how numbers round, and neither need come out the same twice.

    Returns:
        Both.

    Raises:
        InputError: If the chunk size is not the one the checkpoint was begun with.
    """
    begun = None if folder is None else folder.pinned()
    if folder is not None and begun is not None:
        if chunk is not None and chunk != begun["chunk"]:
            msg = (
                f"chunk: {folder.folder} was begun with chunk={begun['chunk']}, got {chunk}; leave "
                "it out to go on, or name another checkpoint"
            )
            raise InputError(msg)
        return int(begun["chunk"]), np.array(begun["top_eigenvalue_init"], dtype=np.float64)
    if not isinstance(bound, OutputBinding):
        chunk = 1
    elif chunk is None:
        runs = rates * (len(bound.models) if bound.mixes_seeds else 1)
        sizes = chunking.candidates(runs, bound.bytes_per_run, memory, workers)
        with torch.no_grad():
            chunk = chunking.fastest(lambda size: bound.net([0] * size), sizes)
    if folder is not None:
        folder.pin({"chunk": chunk, "top_eigenvalue_init": bound.top.tolist()})
    return chunk, bound.top
