"""A problem bound to a device, a dtype and its initialisations."""

import copy
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trebuchet.curvature.explain import explained
from trebuchet.curvature.gram import top_of_gram
from trebuchet.dynamics.kernels import Kernel, make_kernel
from trebuchet.dynamics.kernels.choose import Engine
from trebuchet.dynamics.losses import Loss
from trebuchet.dynamics.problem import Problem
from trebuchet.dynamics.threads import one_thread
from trebuchet.errors import InputError

DENSE_LIMIT = 4096
"""Largest samples × outputs whose Gram matrix a sweep forms at every recorded step."""


@dataclass(slots=True)
class Bound:
    """A problem on a device, at its initialisations.

    Attributes:
        start: L(θ_0), |∂L/∂z| and λ₀, a row a seed: what tells another forward pass, or another
            loss, from this one.
    """

    models: list[nn.Module]
    loss: Loss
    x: Tensor
    y: Tensor
    test: tuple[Tensor, Tensor] | None
    engine: Engine
    span: bool
    top: NDArray[np.float64]
    start: NDArray[np.float64]
    mixes_seeds: bool
    layers: int
    bytes_per_run: int
    fingerprint: str
    facts: dict[str, Any]

    def kernel(self, seed_positions: Sequence[int]) -> Kernel:
        """A kernel with one run for each position in the list of seeds."""
        models = [self.models[s] for s in seed_positions]
        return make_kernel(models, self.x, engine=self.engine, span=self.span)


def bind(
    problem: Problem,
    seeds: Sequence[int],
    device: str | torch.device | None,
    engine: Engine,
    span: bool,
) -> Bound:
    """Initialise a problem at every seed, measure each λ₀, and check that shapes agree.

    Args:
        problem: The problem.
        seeds: The seeds.
        device: Where to run; where the model's weights are, if None.
        engine: Which kernels.
        span: Use data-span compression where the model allows it.

    Returns:
        The bound problem.

    Raises:
        InputError: If labels do not fit the outputs, the Gram matrix would be too large, or λ₀ is
            not positive.
    """
    models = [problem.initial(seed) for seed in seeds]
    if device is not None:
        models = [copy.deepcopy(m).to(device) for m in models]
    weight = next(p for p in models[0].parameters() if p.requires_grad)

    def place(t: Tensor) -> Tensor:
        return t.to(weight.device, weight.dtype if t.is_floating_point() else t.dtype)

    x, y = place(problem.x), place(problem.y)
    starts, digest, kernel, loss = [], hashlib.sha256(), None, problem.loss
    with one_thread(weight.device), torch.no_grad():
        for model in models:
            with explained(model, "model", "check model(x) on the problem's data"):
                kernel = make_kernel([model], x, engine=engine, span=span)
                z = _outputs(kernel)
            loss = problem.loss.of_column() if kernel.column else problem.loss
            # What the function of a user gets, and what a kernel's own outputs are compared with.
            shape = (*z.shape[1:], 1) if loss is not problem.loss else tuple(z.shape[1:])
            y = _labels("y", y, shape, problem)
            with explained(model, "loss", "check loss(outputs, labels) on the problem's data"):
                starts.append(_start(kernel, z, y, loss))
            for t in [x, place(problem.y), *model.parameters(), *model.buffers()]:
                _digest(digest, t)
    assert kernel is not None
    start = np.array(starts, dtype=np.float64)
    top = start[:, 2].copy()
    if not np.all(np.isfinite(top)) or top.min() <= 0:
        msg = f"model: expected a positive top NTK eigenvalue at every seed, got {top.tolist()}"
        raise InputError(msg)
    test = None
    if problem.test is not None:
        test_x, test_y = (place(t) for t in problem.test)
        for t in (test_x, test_y):
            _digest(digest, t)
        test = test_x, _labels("test[1]", test_y, (test_x.shape[0], *shape[1:]), problem)
    facts = {
        "operator": "NTK / D",
        "n_parameters": sum(p.numel() for p in models[0].parameters() if p.requires_grad),
        "n_samples": x.shape[0],
        "n_outputs": z[0].numel() // x.shape[0],
        "weight_norm_degree": float("nan") if kernel.degree is None else kernel.degree,
        "dtype": str(weight.dtype).removeprefix("torch."),
        "device": str(weight.device),
        "kernel": type(kernel).__name__,
    }
    return Bound(
        models, loss, x, y, test, engine, span, top, start, kernel.mixes_seeds,
        kernel.sparsity_layers, kernel.bytes_per_run(), digest.hexdigest(), facts,
    )  # fmt: skip


def _outputs(kernel: Kernel) -> Tensor:
    """z at the start, of a model that is a function of its weights."""
    z, again = kernel.forward(), kernel.forward()
    if z[0].numel() > DENSE_LIMIT:
        msg = (
            f"x: samples × outputs is {z[0].numel()}, above the {DENSE_LIMIT} whose Gram matrix a "
            "sweep can follow; use fewer samples, or trebuchet.scan"
        )
        raise InputError(msg)
    rounding = torch.finfo(z.dtype).eps ** 0.5
    if not torch.allclose(z, again, rtol=rounding, atol=rounding, equal_nan=True):
        msg = (
            "model: expected a function of weights and inputs alone, but two passes over the same "
            "data gave different outputs (dropout, noise, or a state that forward moves); call "
            "eval() on it first, or use trebuchet.scan"
        )
        raise InputError(msg)
    return again


def _start(kernel: Kernel, z: Tensor, y: Tensor, loss_of: Loss) -> tuple[float, float, float]:
    """L, |∂L/∂z| and λ₀, after ``forward``."""
    loss, dz = loss_of(z, y)
    if loss.shape != z.shape[:1] or dz.shape != z.shape:
        msg = f"loss: expected one number, got shape {tuple(loss.shape[1:])}"
        raise InputError(msg)
    slope = torch.linalg.vector_norm(dz, dtype=torch.float64)
    return float(loss[0]), float(slope), float(top_of_gram(kernel.gram())[0])


def _digest(into: "hashlib._Hash", t: Tensor) -> None:
    into.update(t.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())


def _labels(name: str, y: Tensor, shape: tuple[int, ...], problem: Problem) -> Tensor:
    """Labels of the shape of one run's outputs, so that nothing broadcasts by accident."""
    squared = problem.loss.name == "half_mse"
    if (y.is_floating_point() or squared) and y.numel() == math.prod(shape):
        return y.reshape(shape)
    if squared and y.shape != shape:
        msg = f"{name}: expected the shape of the outputs {shape}, got {tuple(y.shape)}"
        raise InputError(msg)
    return y
