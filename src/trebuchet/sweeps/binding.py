"""A problem bound for a sweep: its initialisations, λ₀, and what makes kernels of its runs."""

import copy
import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trebuchet._checks import shown
from trebuchet.curvature.explain import explained
from trebuchet.curvature.gram import curved, top_of_gram
from trebuchet.curvature.top import top_eigen
from trebuchet.engine.kernels import OutputKernel, make_kernel
from trebuchet.engine.kernels.base import Kernel
from trebuchet.engine.kernels.choose import Engine, written_out
from trebuchet.engine.kernels.descent import DescentKernel
from trebuchet.engine.kernels.module import DENSE_LIMIT, NTK, Host
from trebuchet.engine.looks import least_rise
from trebuchet.engine.losses import HalfMeanSquare, Loss, UserLoss
from trebuchet.engine.optimizers import GradientDescent, full_batch
from trebuchet.engine.threads import one_thread
from trebuchet.errors import InputError
from trebuchet.observables.base import Observable, UnavailableError
from trebuchet.observables.sparsity import Sparsity
from trebuchet.observables.top_eigenvalue import TopEigenvalue
from trebuchet.problem.bound import bound
from trebuchet.problem.closures import maybe_closure
from trebuchet.problem.held_still import held_still
from trebuchet.problem.losses import ModelLoss, half_mse, resolve
from trebuchet.problem.problem import Problem, finite_table
from trebuchet.problem.schedules import describe_schedule
from trebuchet.problem.selection import unwrap
from trebuchet.problem.tree import leaves
from trebuchet.results.levels import DELTA

Pair = tuple[int, int]
"""(position of the rate, position of the seed)."""

TOP_RTOL = 1e-4
"""To how much of itself λ₀ is measured where there is no dense matrix."""


class Binding(ABC):
    """A problem on a device, at the initialisations of its seeds.

    Attributes:
        problem: The problem.
        top: λ₀, one a seed; NaN where it was not measured.
        start: Numbers at the start, a row a seed: what tells another forward pass, or another loss,
            from this one.
        mixes_seeds: Whether runs from different initialisations can share a stack.
        bytes_per_run: Memory of one run.
        most_in_a_stack: Largest chunk; 1 where runs go one by one.
        fingerprint: Of weights and data.
        free_looks: Whether the loss of a step is the loss that runs are judged by.
        facts: Attributes of the result.
    """

    problem: Problem
    top: NDArray[np.float64]
    start: NDArray[np.float64]
    mixes_seeds: bool
    bytes_per_run: int
    most_in_a_stack: int | None
    fingerprint: str
    free_looks: bool
    facts: dict[str, Any]
    device: torch.device
    dtype: torch.dtype

    @abstractmethod
    def kernel(self, rates: Sequence[float], seeds: Sequence[int]) -> Kernel:
        """A kernel with one run for each η and position in the list of seeds."""

    @abstractmethod
    def observables(self) -> tuple[Observable, ...]:
        """What is recorded unless somebody says otherwise."""

    @abstractmethod
    def delta(self, given: float | None) -> float:
        """δ, as given or found out."""

    @property
    @abstractmethod
    def optimizer(self) -> str:
        """What results call it."""

    def trained(self) -> dict[str, Any]:
        """How it is trained, for what must be the same in a sweep that is taken up again."""
        return {}

    def notes(self) -> list[str]:
        """What the user should be told."""
        return []


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
        and (problem.test is None or _is_table(problem.test))
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
    if not plain:
        return None
    try:
        return full_batch(problem.optimizer)
    except InputError:
        return None


def _is_table(data: Any) -> bool:
    pair = type(data) in (tuple, list) and len(data) == 2
    return pair and all(isinstance(part, (Tensor, np.ndarray)) for part in data)


@contextmanager
def binding(
    problem: Problem,
    seeds: Sequence[int],
    *,
    steps: int,
    device: str | torch.device | None,
    engine: Engine,
    span: bool,
    needs_top: bool,
) -> Iterator[Binding]:
    """Initialise a problem at every seed, measure each λ₀, and check that shapes agree.

    Args:
        problem: The problem.
        seeds: The seeds.
        steps: Of a run.
        device: Where to run; where the model's weights are, if None.
        engine: Which kernels.
        span: Use data-span compression where the model allows it.
        needs_top: Whether λ₀ must be measured, whatever it costs.

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
        yield OutputBinding(problem, models, descent, engine, span)
        return
    with ExitStack() as stack:
        yield ModuleBinding(problem, models, seeds, stack, steps=steps, needs_top=needs_top)


class OutputBinding(Binding):
    """Runs of gradient descent whose outputs and pullbacks are written out, or stacked.

    Args:
        problem: The problem.
        models: One a seed.
        descent: How they are trained.
        engine: Which kernels.
        span: Use data-span compression where the model allows it.
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
                    _digest(digest, t)
        assert kernel is not None
        if len(starts) == 1:
            starts = starts * len(models)
        self.start = np.array(starts, dtype=np.float64)
        self.top = self.start[:, 2].copy()
        _check_top(self.top)
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
            "weight_norm_degree": math.nan if kernel.degree is None else kernel.degree,
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


class ModuleBinding(Binding):
    """Runs of any module, loss, optimizer and batches, one by one on the module itself.

    Args:
        problem: The problem.
        models: One a seed, or one for all.
        seeds: The seeds: initialisations where the problem has a function of the seed, and orders
            of the batches.
        stack: What ends when the modules are no longer needed.
        steps: Of a run.
        needs_top: Whether λ₀ must be measured, whatever it costs.
    """

    mixes_seeds = False
    bytes_per_run = 0
    most_in_a_stack = 1

    def __init__(
        self,
        problem: Problem,
        models: Sequence[nn.Module],
        seeds: Sequence[int],
        stack: ExitStack,
        *,
        steps: int,
        needs_top: bool,
    ) -> None:
        self.problem, self.seeds = problem, list(seeds)
        digest = hashlib.sha256()
        hosts: list[Host] = []
        for model in models:
            net = unwrap(model)
            problem = _typed(self.problem, net)
            stack.enter_context(
                held_still(
                    net, mode="as_is", loader=problem.data, optimizer=problem.instance,
                    parameters_too=True, also=problem.loss,
                )
            )  # fmt: skip
            if not net.training:
                net.train()
            hosts.append(Host(stack.enter_context(bound(problem, net, steps=steps))))
            for t in [*net.parameters(), *net.buffers()]:
                _digest(digest, t)
        self.hosts = [hosts[min(i, len(hosts) - 1)] for i in range(len(seeds))]
        first = self.hosts[0]
        for batch in first.stream.pool:
            for t in leaves((batch.args, batch.kwargs, batch.targets)):
                _digest(digest, t)
        weight = first.objective.params[0]
        self.device, self.dtype = weight.device, weight.dtype
        self.free_looks = first.free_looks
        self._check_seeds()
        self.cheap = cheap = first.operator == NTK and _dense(first)
        self._delta: float | None = None
        top = {id(h): (_top(h) if cheap or needs_top else math.nan) for h in hosts}
        self.top = np.array([top[id(h)] for h in self.hosts])
        if cheap or needs_top:
            _check_top(self.top)
        self.start = np.array(
            [[h.loss_first, t] for h, t in zip(self.hosts, self.top, strict=True)]
        )
        self.fingerprint = digest.hexdigest()
        degree = getattr(first.model, "degree", None)
        self.facts = {
            "operator": first.operator,
            "n_parameters": sum(p.numel() for p in first.objective.params),
            "n_samples": first.stream.n_samples,
            "batch_size": first.stream.samples_per_step,
            "compared_on": first.stream.described(first.fixed),
            "weight_norm_degree": degree if isinstance(degree, int) else math.nan,
            "dtype": str(weight.dtype).removeprefix("torch."),
            "device": str(weight.device),
            "kernel": "ModuleKernel",
        }

    def _check_seeds(self) -> None:
        """One module, one order: a second seed would be the same run again."""
        first = self.hosts[0]
        ordered = first.stream.full_batch and not first.objective.randomised
        if len(self.seeds) > 1 and not self.problem.reseeds and ordered:
            msg = (
                "seeds: expected one, since the problem's model is a module with one "
                f"initialisation, and its data one batch, got {len(self.seeds)}; give Problem a "
                "function of the seed instead"
            )
            raise InputError(msg)

    def kernel(self, rates: Sequence[float], seeds: Sequence[int]) -> Kernel:
        """One run.

        Args:
            rates: Its η.
            seeds: The position of its seed.

        Returns:
            The run at its start.
        """
        ((rate,), (seed,)) = rates, seeds
        return self.hosts[seed].start(rate, self.seeds[seed])

    @property
    def optimizer(self) -> str:
        """What results call it."""
        return self.problem.optimizer_name

    def observables(self) -> tuple[Observable, ...]:
        """λ where it is the NTK of a batch small enough, and sparsity where there are ReLUs."""
        relus = self.free_looks and any(
            isinstance(m, nn.ReLU) for m in self.hosts[0].model.modules()
        )
        return (*((TopEigenvalue(),) if self.cheap else ()), *((Sparsity(),) if relus else ()))

    def delta(self, given: float | None) -> float:
        """As a scan has it."""
        if given is None and self._delta is None:
            self.hosts[0].load_start()
            self._delta = least_rise(self.hosts[0].trained, None)[0]
        return cast(float, self._delta if given is None else given)

    def trained(self) -> dict[str, Any]:
        """Batches, clipping and schedule."""
        p = self.problem
        return {
            "batch_size": self.hosts[0].stream.samples_per_step, "accumulate": p.accumulate,
            "micro_batch": p.micro_batch, "clip": [p.clip_grad_norm, p.clip_grad_value],
            "schedule": describe_schedule(p.schedule), "autocast": str(p.autocast),
        }  # fmt: skip

    def notes(self) -> list[str]:
        """Of all seeds."""
        return list(dict.fromkeys(n for h in self.hosts for n in h.objective.notes))


def _typed(problem: Problem, model: nn.Module) -> Problem:
    """The problem with a table of the model's type, and where it is, as arrays have it."""

    def placed(data: Any) -> Any:
        if not _is_table(data):
            return data
        return tuple(
            t.to(weight.device, weight.dtype if t.is_floating_point() else t.dtype)
            if isinstance(t, Tensor)
            else t
            for t in data
        )

    weight = next(p for p in model.parameters() if p.requires_grad)
    if isinstance(weight, nn.parameter.UninitializedParameter):
        return problem
    return replace(problem, data=placed(problem.data), test=placed(problem.test))


def _dense(host: Host) -> bool:
    kernel = host.start(1.0, 0)
    try:
        return kernel.residual().numel() <= DENSE_LIMIT
    except (UnavailableError, InputError):
        return False


def _top(host: Host) -> float:
    """λ₀ of a module at its start."""
    if host.operator == NTK:
        kernel = host.start(1.0, 0)
        try:
            return float(kernel.top_eigenvalue()[0])
        except UnavailableError:  # too large
            pass
    host.load_start()
    operator: Any = "hessian" if isinstance(host.objective.loss, ModelLoss) else "ggn"
    with host.objective.autocast():
        found = top_eigen(host.model, host.objective.loss, host.closing, operator, rtol=TOP_RTOL)
    if not found.converged:
        msg = (
            f"lr_ratio: λ₀ was not found to {TOP_RTOL:g} ({shown(found)}); sweep over lr=, the "
            "rates themselves"
        )
        raise InputError(msg)
    return float(found.value)


def _check_top(top: NDArray[np.float64]) -> None:
    if not np.all(np.isfinite(top)) or top.min() <= 0:
        msg = f"model: expected a positive top NTK eigenvalue at every seed, got {top.tolist()}"
        raise InputError(msg)


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
        _digest(digest, t)
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


def _digest(into: "hashlib._Hash", t: Tensor) -> None:
    into.update(t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


def _labels(name: str, y: Tensor, shape: tuple[int, ...], problem: Problem) -> Tensor:
    """Labels of the shape of one run's outputs, so that nothing broadcasts by accident."""
    squared = resolve(problem.loss) is half_mse
    if (y.is_floating_point() or squared) and y.numel() == math.prod(shape):
        return y.reshape(shape)
    if squared and y.shape != shape:
        msg = f"{name}: expected the shape of the outputs {shape}, got {tuple(y.shape)}"
        raise InputError(msg)
    return y


__all__ = ["Binding", "ModuleBinding", "OutputBinding", "binding"]
