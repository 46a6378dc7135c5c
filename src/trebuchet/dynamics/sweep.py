"""Many runs of one problem, over learning rates × seeds."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from trebuchet._checks import (
    anything,
    checked_seeds,
    choice,
    factor,
    flag,
    from_zero,
    instance,
    items,
    nearest,
    path as a_path,
    positive,
    progress as a_bar,
    rate_array,
    refuse,
    seeds as a_list,
    steps as step_count,
    whole,
    workers as at_once,
)
from trebuchet._doors import door, maybe, rule
from trebuchet._progress import Progress, progress_bar
from trebuchet._torch_checks import device as a_device
from trebuchet.dynamics import chunking
from trebuchet.dynamics.assemble import assemble
from trebuchet.dynamics.binding import Bound, bind
from trebuchet.dynamics.checkpoint import Checkpoint, Identity, hold
from trebuchet.dynamics.kernels.choose import Engine
from trebuchet.dynamics.optimizers import GradientDescent, full_batch
from trebuchet.dynamics.pool import Job
from trebuchet.dynamics.problem import Problem
from trebuchet.dynamics.recording import Recording
from trebuchet.dynamics.runner import Plan
from trebuchet.dynamics.stopping import StopRule
from trebuchet.dynamics.threads import one_thread
from trebuchet.errors import InputError

OBSERVABLES = frozenset({"top_eigenvalue", "sparsity", "test_loss"})


MOST_NUMBERS = 2**32
"""Recorded steps of all runs together: 32 GiB an observable."""


def _observables(name: str, value: object) -> tuple[str, ...]:
    found = items(value, lambda item: (item,))
    names = [item[0] for item in found if item]
    listed = isinstance(value, Iterable) and not isinstance(value, (str, bytes))
    if not listed or not all(isinstance(n, str) and n in OBSERVABLES for n in names):
        near = next((hint for n in names or [value] if (hint := nearest(n, OBSERVABLES))), "")
        refuse(name, f"a list of any of {sorted(OBSERVABLES)}", value, near)
    return tuple(map(str, names))


@door(
    problem=rule(instance, Problem, "a trebuchet.Problem", "Problem(model, x, y) makes one"),
    lr_ratio=maybe(rate_array), lr=maybe(rate_array), seeds=a_list, steps=step_count,
    optimizer=anything, tolerance=maybe(positive), blowup=factor, delta=from_zero,
    record=maybe(instance, Recording, "a trebuchet.Recording", "Recording(every=10) is one"),
    observables=_observables, engine=rule(choice, get_args(Engine)), span=flag,
    chunk=maybe(whole, "a positive number"), workers=at_once,
    memory=rule(whole, "a positive number of bytes"), device=maybe(a_device),
    checkpoint=maybe(a_path), checkpoint_seconds=from_zero, progress=a_bar,
)  # fmt: skip
def sweep(
    problem: Problem,
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
    delta: float = 1e-3,
    record: Recording | None = None,
    observables: Sequence[str] = ("top_eigenvalue", "sparsity"),
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
    """Train a problem by full-batch descent at many learning rates, from many seeds.

    Args:
        problem: What is trained.
        lr_ratio: Rates as ηλ₀, with λ₀ each seed's own top NTK eigenvalue at initialisation.
        lr: Rates as η, instead of `lr_ratio`.
        seeds: How many seeds (0, 1, …), or which.
        steps: Most updates a run may make.
        optimizer: Gradient descent unless given: ``"sgd"``, ``"momentum"``, a `GradientDescent`, or
            torch's ``SGD`` (class, partial or instance), whose momentum and weight decay are read.
        tolerance: A run has converged when its loss changes by less than this in a step.
        blowup: A run has blown up when its loss passes this many times its start.
        delta: A loss is above its start when it exceeds (1 + δ) times it.
        record: Which steps are recorded; every one unless given.
        observables: Any of ``"top_eigenvalue"``, ``"sparsity"`` and ``"test_loss"``, to be recorded
            beside the loss and the weight norm. A test loss at the end is always measured where
            the problem has test data.
        engine: ``"auto"``, ``"batched"`` or ``"sequential"``; all give the same runs to rounding.
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
        >>> problem = Problem(lambda seed: PureQuadratic.draw(50, generator=seed), [[1.0]], [0.0])
        >>> runs = sweep(problem, lr_ratio=[1.0, 2.5, 5.0], seeds=2, steps=100)
        >>> (runs.loss_final < runs.loss_first).values.tolist()
        [[True, True], [True, True], [False, False]]
        >>> runs.status.sel(lr=5.0).values.tolist()
        ['blew_up', 'blew_up']
    """
    descent = full_batch(optimizer)
    swept, rates = _rates(lr_ratio, lr)
    seed_list = _seeds(seeds, problem)
    schedule = (record or Recording()).steps(steps)
    kept = rates.size * len(seed_list) * schedule.size
    if kept > MOST_NUMBERS:
        msg = (
            f"record: expected at most {MOST_NUMBERS} recorded steps of all runs together, got "
            f"{kept}; thin them out with Recording(dense=1000)"
        )
        raise InputError(msg)
    bound = bind(problem, seed_list, device, engine, span)
    plan = Plan(
        loss=bound.loss,
        y=bound.y,
        optimizer=descent,
        stop=StopRule(steps, tolerance, blowup),
        schedule=schedule,
        observables=frozenset(observables),
        delta=delta,
        x=bound.x,
        test=bound.test,
        checkpoint_seconds=checkpoint_seconds,
    )
    device_ = bound.x.device
    workers = workers or (torch.get_num_threads() if device_.type == "cpu" else 1)
    settings: dict[str, Any] = {
        "problem": problem.name, "loss": problem.loss.name, "swept": swept,
        "rates": rates.tolist(), "seeds": seed_list, "steps": steps, "tolerance": tolerance,
        "blowup": blowup, "delta": delta, "optimizer": repr(plan.optimizer),
        "schedule": plan.schedule.tolist(), "observables": sorted(observables),
        "engine": engine, "span": span, "initial": bound.fingerprint,
        "dtype": str(bound.x.dtype).removeprefix("torch."),
    }  # fmt: skip
    rounding = float(torch.finfo(bound.x.dtype).eps) ** 0.5
    identity = Identity(settings, device_.type, bound.start, rounding)
    held = nullcontext() if checkpoint is None else hold(Path(checkpoint), identity)
    with one_thread(device_), held as folder:
        chunk, top = _begun(chunk, bound, rates.size, memory, workers, folder)
        scale = top[None, :] if swept == "lr_ratio" else np.ones((1, len(seed_list)))
        learning_rate = rates[:, None] / scale
        chunks = _split(rates.size, len(seed_list), chunk, bound.mixes_seeds)
        bar = progress if callable(progress) else progress_bar("sweep", shown=progress)
        job = Job(bound, plan, learning_rate, chunks, folder, bar)
        histories, interrupted = job.run(workers)
    return assemble(
        histories,
        chunks,
        plan,
        swept=swept,
        rates=rates,
        seeds=seed_list,
        learning_rate=learning_rate,
        top_eigenvalue_init=top,
        attrs={
            **bound.facts,
            **problem.facts,
            "model": problem.name,
            "loss": problem.loss.name,
            "optimizer": repr(plan.optimizer),
            "chunk": chunk,
            "workers": workers,
            "interrupted": int(interrupted),
        },
        settings=settings,
    )


def _rates(lr_ratio: ArrayLike | None, lr: ArrayLike | None) -> tuple[str, NDArray[np.float64]]:
    if (lr_ratio is None) == (lr is None):
        got = "neither" if lr is None else "both"
        msg = f"lr_ratio: expected either lr_ratio (ηλ₀) or lr (η), got {got}"
        raise InputError(msg)
    name, given = ("lr_ratio", lr_ratio) if lr is None else ("lr", lr)
    return name, rate_array(name, given)


def _seeds(seeds: int | Sequence[int], problem: Problem) -> list[int]:
    result = list(checked_seeds(seeds))
    if len(result) > 1 and not problem.reseeds:
        msg = (
            f"seeds: expected one, since the problem's model is a module with one initialisation, "
            f"got {len(result)}; give Problem a function of the seed instead"
        )
        raise InputError(msg)
    return result


def _split(rates: int, seeds: int, chunk: int, mixes_seeds: bool) -> list[list[tuple[int, int]]]:
    """(rate, seed) positions of each chunk; the costly small rates, which stop last, first."""
    pools = [[(i, s) for i in range(rates)] for s in range(seeds)]
    if mixes_seeds:
        pools = [[pair for pool in pools for pair in pool]]
    return [pool[i : i + chunk] for pool in pools for i in range(0, len(pool), chunk)]


def _begun(
    chunk: int | None,
    bound: Bound,
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
    if chunk is None:
        runs = rates * (len(bound.models) if bound.mixes_seeds else 1)
        sizes = chunking.candidates(runs, bound.bytes_per_run, memory, workers)
        with torch.no_grad():
            chunk = chunking.fastest(lambda size: bound.kernel([0] * size), sizes)
    if folder is not None:
        folder.pin({"chunk": chunk, "top_eigenvalue_init": bound.top.tolist()})
    return chunk, bound.top
