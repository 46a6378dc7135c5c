"""What curvature says in a scan: the critical rate first, ηλ and ReLU sparsity at the end."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trebuchet.curvature.batches import Batch
from trebuchet.curvature.losses import ModelLoss
from trebuchet.curvature.measurement import OperatorName
from trebuchet.curvature.policy import Mode
from trebuchet.curvature.result import TopEigen
from trebuchet.curvature.top import top_eigen
from trebuchet.errors import InputError
from trebuchet.phases.scan_result import Critical
from trebuchet.phases.scanning.objective import Objective, out_of_memory
from trebuchet.phases.scanning.stream import Stream
from trebuchet.phases.scanning.training import Run, Trainer

GRADIENTS_A_PRODUCT = 2
"""What a product with Gauss–Newton or Hessian costs, in gradients on the same samples."""
FEW_PRODUCTS = 8
"""With fewer, Lanczos does not get near the top; the sample is made smaller instead."""


def critical_rate(
    objective: Objective, stream: Stream, optimizer: object, loss: object, *, at_most: int
) -> Critical:
    """Measure λ₀ and the critical rate.

    On all samples for full-batch training; on two batches' worth otherwise, since a product with
    the whole data's curvature costs as much as an epoch.

    Args:
        objective: The model, at the initialisation.
        stream: The data.
        optimizer: As given to ``scan``.
        loss: As given to ``scan``.
        at_most: Gradient evaluations that may be spent.

    Returns:
        λ₀ and the critical rate; NaN, and why, where double backward is impossible.
    """
    samples = stream.n_samples if stream.full_batch else 2 * stream.samples_per_step
    batches = stream.fixed(samples)
    size = sum(b.size for b in batches)
    each = GRADIENTS_A_PRODUCT * max(1.0, size / stream.samples_per_step)
    products = max(FEW_PRODUCTS, int(at_most / each))
    try:
        top = _measure(
            objective, batches, loss, optimizer, rtol=1e-3 if stream.full_batch else 1e-2,
            products=products,
        )  # fmt: skip
    except InputError as error:
        return _unmeasured(objective, str(error))
    except (RuntimeError, NotImplementedError) as error:
        if out_of_memory(error):
            return _unmeasured(objective, "memory does not suffice for curvature products")
        return _unmeasured(objective, f"no second derivative: {str(error).splitlines()[0]}")
    objective.cost.products += top.products
    objective.cost.gradients += math.ceil(top.products * each)
    if not top.converged:
        objective.notes.append(
            f"λ₀ had not converged after {top.products} products; it is at least {top.value:.4g}"
        )
    return Critical(
        _lr(top, optimizer), top.value, top.operator, _convention(top, size, stream.n_samples, loss)
    )


def final_eigenvalues(
    trainer: Trainer,
    runs: Sequence[Run],
    critical: Critical,
    loss: object,
    optimizer: object,
    horizon: int,
) -> None:
    """Set λ at the end of the runs that reached the horizon.

    Args:
        trainer: Holds the runs.
        runs: The runs.
        critical: What was measured at the start; nothing is measured if that was not.
        loss: As given to ``scan``.
        optimizer: As given to ``scan``.
        horizon: Steps of a whole run.
    """
    if math.isnan(critical.top_eigenvalue):
        return
    stream, objective = trainer.stream, trainer.objective
    samples = stream.n_samples if stream.full_batch else 2 * stream.samples_per_step
    batches = stream.fixed(samples)
    for run in runs:
        if run.steps < horizon or run.dead:
            continue
        trainer.load(run)
        top = _measure(objective, batches, loss, optimizer, rtol=1e-2, products=200)
        objective.cost.products += top.products
        run.top_eigenvalue_final = top.value


def sparsity(objective: Objective, batches: Sequence[Batch]) -> float:
    """The fraction of (sample, unit) inputs of ``nn.ReLU`` modules that are negative.

    Args:
        objective: The model.
        batches: On which samples.

    Returns:
        The fraction, over all such modules; NaN if there are none (a functional ReLU is not seen).
    """
    relus = [m for m in objective.model.modules() if isinstance(m, nn.ReLU)]
    if not relus:
        return math.nan
    negative = total = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal negative, total
        del module
        negative += int((inputs[0] < 0).sum())
        total += inputs[0].numel()

    hooks = [m.register_forward_pre_hook(count) for m in relus]
    try:
        objective.value(batches)
    finally:
        for hook in hooks:
            hook.remove()
    return negative / total if total else math.nan


def _measure(
    objective: Objective,
    batches: Sequence[Batch],
    loss: object,
    optimizer: object,
    *,
    rtol: float,
    products: int,
) -> TopEigen:
    closure = isinstance(objective.loss, ModelLoss)
    operator: OperatorName = "hessian" if closure else "ggn"
    mode: Mode = "train" if objective.has_batch_norm else "eval"
    data: Any = batches[0].raw if len(batches) == 1 else [b.raw for b in batches]
    settings: dict[str, Any] = {
        "operator": operator, "rtol": rtol, "mode": mode, "method": "lanczos",
        "max_products": products, "micro_batch": None if closure else objective.chunk,
    }  # fmt: skip
    given: Any = loss
    with objective.autocast():
        seen = _seen_by_curvature(optimizer)
        return top_eigen(objective.model, given, data, optimizer=seen, **settings)


def _seen_by_curvature(optimizer: object) -> Any:
    """The optimizer in a form that ``top_eigen`` knows, or None: then the edge is not its own."""
    if optimizer in ("sgd", "momentum", "nesterov", "adam", "adamw"):
        return "adam" if optimizer == "adamw" else optimizer
    if isinstance(optimizer, torch.optim.Optimizer):
        known = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)
        return optimizer if isinstance(optimizer, known) else None
    return None


def _lr(top: TopEigen, optimizer: object) -> float:
    seen = optimizer if isinstance(optimizer, (str, torch.optim.Optimizer)) else None
    if seen is None or (isinstance(seen, torch.optim.Optimizer) and top.optimizer == "sgd"
                        and not isinstance(seen, torch.optim.SGD)):  # fmt: skip
        return math.nan
    return top.lr_crit


def _convention(top: TopEigen, size: int, total: int, loss: object) -> str:
    name = loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)
    operator = {"ggn": "Gauss–Newton", "hessian": "Hessian", "ntk": "NTK"}[top.operator]
    if top.optimizer in ("adam", "adamw"):
        operator += " in Adam's coordinates after its first step"
    edge = {
        "sgd": "2/λ₀",
        "momentum": "2(1+β)/λ₀, β = 0.9; catapults begin at 2/λ₀",
        "nesterov": "2(1+β)/((1+2β)λ₀)",
    }.get(top.optimizer, "2(1+β₁)/((1−β₁)λ₀)")
    part = "all samples" if size == total else f"{size} of {total} samples"
    return f"{operator} of {name} as given, a {top.reduction} over {part}; {edge}"


def _unmeasured(objective: Objective, why: str) -> Critical:
    objective.notes.append(f"no critical rate from curvature ({why})")
    return Critical(math.nan, math.nan, "", f"not measured: {why}")
