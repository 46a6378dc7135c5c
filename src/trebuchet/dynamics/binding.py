"""A problem bound to a device, a dtype and its initialisations."""

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trebuchet.curvature.gram import top_of_gram
from trebuchet.dynamics.kernels import Kernel, make_kernel
from trebuchet.dynamics.kernels.choose import Engine
from trebuchet.dynamics.problem import Problem
from trebuchet.errors import InputError

DENSE_LIMIT = 4096
"""Largest samples × outputs whose Gram matrix a sweep forms at every recorded step."""


@dataclass(slots=True)
class Bound:
    """A problem on a device, at its initialisations."""

    models: list[nn.Module]
    x: Tensor
    y: Tensor
    test: tuple[Tensor, Tensor] | None
    engine: Engine
    span: bool
    top: NDArray[np.float64]
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
    tops, digest, kernel = [], hashlib.sha256(), None
    for model in models:
        kernel = make_kernel([model], x, engine=engine, span=span)
        with torch.no_grad():
            z = kernel.forward()
            size = z[0].numel()
            if size > DENSE_LIMIT:
                msg = (
                    f"x: samples × outputs is {size}, above the {DENSE_LIMIT} whose Gram matrix a "
                    "sweep can follow; use fewer samples, or trebuchet.scan"
                )
                raise InputError(msg)
            tops.append(float(top_of_gram(kernel.gram())[0]))
        for p in [x, y, *model.parameters()]:
            digest.update(p.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    assert kernel is not None
    if not np.all(np.isfinite(tops)) or min(tops) <= 0:
        msg = f"model: expected a positive top NTK eigenvalue at every seed, got {tops}"
        raise InputError(msg)
    y = _labels(y, z, problem)
    test = None
    if problem.test is not None:
        test_x, test_y = (place(t) for t in problem.test)
        if y.ndim == 1 and test_y.ndim == 2 and test_y.shape[1] == 1:
            test_y = test_y[:, 0]
        test = test_x, test_y
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
        models, x, y, test, engine, span, np.array(tops), kernel.mixes_seeds,
        kernel.sparsity_layers, kernel.bytes_per_run(), digest.hexdigest(), facts,
    )  # fmt: skip


def _labels(y: Tensor, z: Tensor, problem: Problem) -> Tensor:
    """Labels of the shape of one run's outputs, so that nothing broadcasts by accident."""
    if y.shape == z.shape[1:]:
        return y
    if y.is_floating_point() and y.numel() == z[0].numel():
        return y.reshape(z.shape[1:])
    if problem.loss.name == "half_mse":
        msg = f"y: expected the shape of the outputs {tuple(z.shape[1:])}, got {tuple(y.shape)}"
        raise InputError(msg)
    return y
