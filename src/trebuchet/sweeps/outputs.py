"""A sweep of runs whose outputs and pullbacks are written out, or stacked."""

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trebuchet.curvature.explain import explained
from trebuchet.curvature.gram import curved, top_of_gram
from trebuchet.engine import lawful
from trebuchet.engine.kernels import OutputKernel, make_kernel
from trebuchet.engine.kernels.base import Kernel
from trebuchet.engine.kernels.choose import Engine
from trebuchet.engine.kernels.descent import DescentKernel
from trebuchet.engine.kernels.host import NTK
from trebuchet.engine.kernels.module import DENSE_LIMIT
from trebuchet.engine.losses import HalfMeanSquare, Loss, UserLoss
from trebuchet.engine.optimizers import GradientDescent, full_batch
from trebuchet.engine.threads import one_thread
from trebuchet.errors import InputError
from trebuchet.observables.base import Observable
from trebuchet.observables.sparsity import Sparsity
from trebuchet.observables.top_eigenvalue import TopEigenvalue
from trebuchet.problem.closures import maybe_closure
from trebuchet.problem.losses import ModelLoss, half_mse, resolve
from trebuchet.problem.problem import Problem, finite_table, is_table
from trebuchet.results.levels import DELTA
from trebuchet.sweeps.binding import Binding, digest_into, usable


class OutputBinding(Binding):
    """Runs of gradient descent whose outputs and pullbacks are written out, or stacked.

    Args:
        problem: The problem.
        models: One a seed.
        descent: How they are trained.
        engine: Which kernels.
        span: Use data-span compression where the model allows it.
        ratios: Whether rates are given as ratios.
    """

    most_in_a_stack = None
    free_looks = True

    def __init__(
        self,
        problem: Problem,
        models: Sequence[nn.Module],
        descent: GradientDescent,
        engine: Engine,
        span: bool,
        *,
        ratios: bool,
    ) -> None:
        self.problem, self.models, self.descent = problem, list(models), descent
        self.engine, self.span = engine, span
        weight = next(p for p in models[0].parameters() if p.requires_grad)
        self.device, self.dtype = weight.device, weight.dtype

        def place(t: Tensor) -> Tensor:
            return t.to(weight.device, weight.dtype if t.is_floating_point() else t.dtype)

        self.x, self.y = place(problem.x), place(problem.y)
        finite_table("data", self.x, self.y)
        given = _loss(problem)
        starts, digest = [], hashlib.sha256()
        kernel: OutputKernel | None = None
        with one_thread(weight.device), torch.no_grad():
            for model in {id(m): m for m in models}.values():
                with explained(model, "model", "check model(x) on the problem's data"):
                    kernel = make_kernel([model], self.x, engine=engine, span=span)
                    z = _outputs(kernel)
                self.loss = given.of_column() if kernel.column else given
                # What the function of a user gets, and what a kernel's outputs are compared with.
                shape = (*z.shape[1:], 1) if self.loss is not given else tuple(z.shape[1:])
                self.y = _labels("data[1]", self.y, shape, problem)
                with explained(model, "loss", "check loss(outputs, targets) on the problem's data"):
                    starts.append(_start(kernel, z, self.y, self.loss))
                for t in [self.x, place(problem.y), *model.parameters(), *model.buffers()]:
                    digest_into(digest, t)
        assert kernel is not None
        if len(starts) == 1:
            starts = starts * len(models)
        self.start = np.array(starts, dtype=np.float64)
        self.top = usable(self.start[:, 2].copy(), needed=ratios)
        self.test = None
        if problem.test is not None:
            self.test = _test(problem, place, self.x, shape, digest)
        self.mixes_seeds, self.bytes_per_run = kernel.mixes_seeds, kernel.bytes_per_run()
        self.fingerprint = digest.hexdigest()
        self.facts = {
            "operator": NTK if isinstance(self.loss, HalfMeanSquare) else "ggn",
            "n_parameters": sum(p.numel() for p in models[0].parameters() if p.requires_grad),
            "n_samples": self.x.shape[0],
            "n_outputs": z[0].numel() // self.x.shape[0],
            **lawful.facts(kernel.scaling),
            "dtype": str(weight.dtype).removeprefix("torch."),
            "device": str(weight.device),
            "kernel": type(kernel).__name__,
        }

    @property
    def optimizer(self) -> str:
        """What results call it."""
        return repr(self.descent)

    def observables(self) -> tuple[Observable, ...]:
        """λ and sparsity, which cost about a step."""
        return TopEigenvalue(), Sparsity()

    def delta(self, given: float | None) -> float:
        """δ of a loss without noise."""
        return DELTA if given is None else given

    def net(self, seeds: Sequence[int]) -> OutputKernel:
        """Outputs of one run for each position in the list of seeds."""
        models = [self.models[s] for s in seeds]
        return make_kernel(models, self.x, engine=self.engine, span=self.span)

    def kernel(self, rates: Sequence[float], seeds: Sequence[int]) -> Kernel:
        """A stack.

        Args:
            rates: η of each run.
            seeds: The position of its seed.

        Returns:
            The runs at their start.
        """
        lr = torch.tensor(list(rates), dtype=self.dtype, device=self.device)
        with torch.no_grad():
            return DescentKernel(
                self.problem, self.net(seeds), self.loss, self.y, self.descent, lr, self.x,
                self.test,
            )  # fmt: skip


def descends(problem: Problem) -> GradientDescent | None:
    """The descent that a problem is trained by, if outputs and their pullback are all it needs.

    Args:
        problem: The problem.

    Returns:
        None where batches, clipping, a schedule, another optimizer, or a loss that is no function
        of outputs and targets ask for the module itself.
    """
    loss = resolve(problem.loss)
    plain = (
        problem.is_table
        and (problem.test is None or is_table(problem.test))
        and problem.batch_size in (None, problem.x.shape[0])
        and (problem.accumulate, problem.micro_batch, problem.autocast) == (1, None, None)
        and problem.schedule is None
        and not problem.clip
        and problem.weights is None
        and problem.size_of is None
        and loss is not None
        and maybe_closure(loss) is False
        and not torch.is_autocast_enabled("cpu")
        and not torch.is_autocast_enabled("cuda")
    )
    return full_batch(problem.optimizer) if plain else None


def _test(
    problem: Problem, place: Any, x: Tensor, shape: tuple[int, ...], digest: "hashlib._Hash"
) -> tuple[Tensor, Tensor]:
    pair: Any = problem.test
    test_x, test_y = (place(torch.as_tensor(t)) for t in pair)
    if test_x.shape[0] != test_y.shape[0]:
        msg = f"test: expected one target a row ({test_x.shape[0]}), got {test_y.shape[0]}"
        raise InputError(msg)
    if test_x.shape[1:] != x.shape[1:]:
        msg = (
            f"test: expected rows of shape {tuple(x.shape[1:])}, as in data, got "
            f"{tuple(test_x.shape[1:])}"
        )
        raise InputError(msg)
    for t in (test_x, test_y):
        digest_into(digest, t)
    return test_x, _labels("test[1]", test_y, (test_x.shape[0], *shape[1:]), problem)


def _loss(problem: Problem) -> Loss:
    loss = resolve(problem.loss)
    if loss is half_mse:
        return HalfMeanSquare()
    assert loss is not None
    assert not isinstance(loss, ModelLoss)
    return UserLoss(loss, problem.loss_name)


def _outputs(kernel: OutputKernel) -> Tensor:
    """z at the start, of a model that is a function of its weights."""
    z, again = kernel.forward(), kernel.forward()
    if z[0].numel() > DENSE_LIMIT:
        msg = (
            f"data: samples × outputs is {z[0].numel()}, above the {DENSE_LIMIT} whose Gram matrix "
            "this engine can follow; use fewer samples, or engine='module'"
        )
        raise InputError(msg)
    rounding = torch.finfo(z.dtype).eps ** 0.5
    if not torch.allclose(z, again, rtol=rounding, atol=rounding, equal_nan=True):
        msg = (
            "model: expected a function of weights and inputs alone, but two passes over the same "
            "data gave different outputs (dropout, noise, or a state that forward moves); call "
            "eval() on it first, or use engine='auto'"
        )
        raise InputError(msg)
    return again


def _start(kernel: OutputKernel, z: Tensor, y: Tensor, loss_of: Loss) -> tuple[float, float, float]:
    """L, |∂L/∂z| and λ₀, after ``forward``."""
    loss, dz = loss_of(z, y)
    if loss.shape != z.shape[:1] or dz.shape != z.shape:
        msg = f"loss: expected one number, got shape {tuple(loss.shape[1:])}"
        raise InputError(msg)
    slope = torch.linalg.vector_norm(dz, dtype=torch.float64)
    gram, curvature = kernel.gram(), loss_of.curvature(z, y)
    if curvature is not None:  # of Gauss–Newton, where that is not the NTK
        gram = z.shape[1] * curved(gram, curvature)
    return float(loss[0]), float(slope), float(top_of_gram(gram)[0])


def _labels(name: str, y: Tensor, shape: tuple[int, ...], problem: Problem) -> Tensor:
    """Labels of the shape of one run's outputs, so that nothing broadcasts by accident."""
    squared = resolve(problem.loss) is half_mse
    if (y.is_floating_point() or squared) and y.numel() == math.prod(shape):
        return y.reshape(shape)
    if squared and y.shape != shape:
        msg = f"{name}: expected the shape of the outputs {shape}, got {tuple(y.shape)}"
        raise InputError(msg)
    return y
