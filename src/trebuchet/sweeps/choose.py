"""Which binding serves which problem."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch

from trebuchet.engine.kernels.choose import Engine, written_out
from trebuchet.errors import InputError
from trebuchet.problem.problem import Problem
from trebuchet.sweeps.binding import Binding
from trebuchet.sweeps.modules import ModuleBinding
from trebuchet.sweeps.outputs import OutputBinding, descends


@contextmanager
def binding(
    problem: Problem,
    seeds: Sequence[int],
    *,
    steps: int,
    device: str | torch.device | None,
    engine: Engine,
    span: bool,
    ratios: bool,
    watched: bool,
) -> Iterator[Binding]:
    """Initialise a problem at every seed, measure each λ₀, and check that shapes agree.

    Args:
        problem: The problem.
        seeds: The seeds.
        steps: Of a run.
        device: Where to run; where the model's weights are, if None.
        engine: Which kernels.
        span: Use data-span compression where the model allows it.
        ratios: Whether rates are given as ratios, so that λ₀ is needed.
        watched: Whether λ is recorded, so that λ₀ is measured whatever it costs.

    Yields:
        The bound problem.

    Raises:
        InputError: If labels do not fit the outputs, the engine does not fit the problem, or λ₀ is
            not positive.
    """
    descent = descends(problem)
    models = [problem.initial(seed) for seed in seeds[: None if problem.reseeds else 1]]
    if device is not None:
        models = [copy.deepcopy(m).to(device) for m in models]
    if descent is None and engine in ("batched", "sequential"):
        msg = (
            f"engine: {engine!r} is for full-batch gradient descent on one pair of arrays, with a "
            "loss of outputs and targets; use engine='auto'"
        )
        raise InputError(msg)
    fast = descent is not None and (engine in ("batched", "sequential") or written_out(models[0]))
    if fast and engine != "module":
        assert descent is not None
        models = [models[min(i, len(models) - 1)] for i in range(len(seeds))]
        yield OutputBinding(problem, models, descent, engine, span, ratios=ratios)
        return
    with ExitStack() as stack:
        yield ModuleBinding(
            problem, models, seeds, stack, steps=steps, ratios=ratios, watched=watched
        )
