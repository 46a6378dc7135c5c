"""What curvature says in a scan: the critical rate first, ηλ and ReLU sparsity at the end."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from trebuchet.curvature import layer_rule
from trebuchet.curvature.evaluation import Evaluation
from trebuchet.curvature.factor import loss_factor
from trebuchet.curvature.measurement import OperatorName
from trebuchet.curvature.result import TopEigen
from trebuchet.curvature.settings import Method
from trebuchet.curvature.top import top_eigen
from trebuchet.engine.advance import Engine, Run
from trebuchet.errors import InputError
from trebuchet.problem.autocast import Autocast
from trebuchet.problem.batches import Batch
from trebuchet.problem.held_still import MODE, held_still
from trebuchet.problem.losses import ModelLoss, is_convex
from trebuchet.problem.optimizer_edge import OptimizerEdge, edge_of
from trebuchet.problem.optimizers import NO_CLIP, Clip
from trebuchet.problem.risk import Objective, out_of_memory
from trebuchet.problem.selection import select
from trebuchet.problem.stream import Stream
from trebuchet.scans.result import Critical

GRADIENTS_A_PRODUCT = 2
"""What a product with Gauss–Newton or Hessian costs, in gradients on the same samples."""
FEW_PRODUCTS = 8
"""With fewer, Lanczos does not get near the top; the sample is made smaller instead."""
ENOUGH = 1e-3
"""Relative error with which λ₀ is as good as exact: no learning rate can feel it."""
FINAL_GRADIENTS = 50
"""What the exact form may cost at the end of a run: a sixteenth of the usual budget, as before."""

# Small nets cost what their calls cost, not their multiplications: a step takes as long as so many
# multiplications and some, and the layer rule, with its probe, as so many. Measured on one core.
STEP_CALLS, RULE_CALLS, COLUMN_CALLS = 4.6e6, 66e6, 6e6


def critical_rate(
    objective: Objective,
    stream: Stream,
    optimizer: object,
    loss: object,
    *,
    at_most: int,
    clip: Clip = NO_CLIP,
) -> Critical:
    """Measure λ₀ and the critical rate.

    On all samples for full-batch training; on two batches' worth otherwise, since a product with
    the whole data's curvature costs as much as an epoch. By the matrix as a whole where that fits
    into `at_most`, exact to rounding; by Lanczos otherwise.

    Args:
        objective: The model, at the initialisation.
        stream: The data.
        optimizer: As given to ``scan``.
        loss: As given to ``scan``.
        at_most: Gradient evaluations that may be spent.
        clip: Gradient clipping before every step.

    Returns:
        λ₀ and the critical rate; NaN, and why, where double backward is impossible. For an
        optimizer without a closed form λ₀ is the parameters' own, and the rate NaN.
    """
    edge = edge_of(optimizer, objective.params, clip)
    batches = _samples(stream)
    size = sum(b.size for b in batches)
    each = GRADIENTS_A_PRODUCT * max(1.0, size / stream.samples_per_step)
    if FEW_PRODUCTS * each > at_most and not stream.full_batch:
        batches = stream.fixed(stream.samples_per_step)
        size, each = sum(b.size for b in batches), float(GRADIENTS_A_PRODUCT)
    if FEW_PRODUCTS * each > 4 * at_most:
        return _unmeasured(objective, "the budget is too small for curvature products")
    try:
        products = max(FEW_PRODUCTS, int(at_most / each))
        way = _cheapest(objective, batches, edge, max(at_most, FEW_PRODUCTS * each))
        top = _measure(
            objective, batches, edge, way.method, whole=stream.whole,
            rtol=_rtol(objective, stream), products=products,
        )  # fmt: skip
    except InputError as error:
        return _unmeasured(objective, str(error))
    except (RuntimeError, NotImplementedError) as error:
        if out_of_memory(error):
            return _unmeasured(objective, "memory does not suffice for curvature products")
        return _unmeasured(objective, f"no second derivative: {str(error).splitlines()[0]}")
    products = way.products if top.method == "dense" else top.products
    objective.cost.products += products
    spent = way.gradients if top.method == "layer rule" else products * each
    objective.cost.gradients += math.ceil(spent)
    if not math.isfinite(top.residual):
        return _unmeasured(objective, top.note)
    settled = _settled(top, ENOUGH if stream.full_batch else 1e-2)
    if not settled:
        objective.notes.append(
            f"λ₀ had not converged after {top.products} products; it is at least {top.value:.4g}"
        )
    objective.notes += top.remarks
    if edge.missing:
        objective.notes.append(f"λ₀ implies no critical rate here: {edge.missing}")
    part = "all samples" if size == stream.n_samples else f"{size} of {stream.n_samples} samples"
    if stream.whole:
        part = (
            f"{len(batches)} batch{'es' if len(batches) > 1 else ''} of {batches[0].size} samples"
        )
    convention = _convention(top, edge, part, loss)
    lr = math.nan if edge.missing else top.lr_crit
    return Critical(lr, top.value, top.operator, convention, edge.earliest(top.value), settled)


def final_eigenvalues(
    engine: Engine,
    runs: Sequence[Run],
    critical: Critical,
    optimizer: object,
    horizon: int,
) -> None:
    """Set λ at the end of the runs that reached the horizon, measured as λ₀ was.

    For Adam's family each run's own second moments are the coordinates, as its next step's are.

    Args:
        engine: Holds the runs.
        runs: The runs.
        critical: What was measured at the start; nothing is measured if that was not.
        optimizer: As given to ``scan``.
        horizon: Steps of a whole run.
    """
    if math.isnan(critical.top_eigenvalue):
        return
    stream, objective = engine.host.stream, engine.host.objective
    at_start = edge_of(optimizer, objective.params)
    batches = _samples(stream)
    for run in runs:
        if run.steps < horizon or run.dead:
            continue
        if run.kernel is None or run.kernel.state_ is None:
            continue
        if run.engine is not engine:  # λ₀ is not known there, nor is it compared
            continue
        engine.load(run)
        edge = at_start
        if at_start.adaptive:
            edge = edge_of(run.kernel.state_.optimizer, objective.params)
        try:
            way = _cheapest(objective, batches, edge, FINAL_GRADIENTS)
            top = _measure(
                objective, batches, edge, way.method, whole=stream.whole,
                rtol=_rtol(objective, stream), products=200,
            )  # fmt: skip
        except (InputError, RuntimeError) as error:
            first = str(error).splitlines()[0]
            objective.notes.append(f"no λ at the end of the run at {run.rate:.3g} ({first})")
            continue
        objective.cost.products += way.products if top.method == "dense" else top.products
        rows = np.array([run.row])
        engine.history.keep("top_eigenvalue_final", rows, np.array([top.value]))


@dataclass(frozen=True, slots=True)
class _Way:
    """How to measure: ``top_eigen``'s method, and what it costs if it is an exact one.

    Attributes:
        method: For ``top_eigen``. After ``"auto"`` it is the result that tells what was taken.
        gradients: Cost of the layer rule, in gradients of a step's batch.
        products: Products that the dense matrix takes.
    """

    method: Method
    gradients: float = 0.0
    products: int = 0


def _cheapest(
    objective: Objective, batches: Sequence[Batch], edge: OptimizerEdge, at_most: float
) -> _Way:
    """Choose the exact form where it costs at most `at_most` gradients, Lanczos elsewhere."""
    model, params = objective.model, objective.params if edge.held is None else edge.held
    count = sum(p.numel() for p in params)
    whole = len(batches) == 1 and (objective.chunk is None or objective.chunk >= batches[0].size)
    if isinstance(objective.loss, ModelLoss) or not whole:
        return _Way("auto", products=count)  # whole only for a handful of parameters
    batch = batches[0]
    share = batch.size / objective.samples_per_step
    objective.cost.forwards += share
    with held_still(model, mode=MODE, also=objective.loss) as held, objective.autocast():
        autocast = Autocast.ambient(params[0].device)
        chosen = select(model, edge.held)
        evaluation = Evaluation(
            model, chosen, objective.loss, [batch], autocast, [1.0], batch.size, held=held
        )
        with evaluation.in_place():
            barred = edge.adaptive or edge.coupled or autocast.enabled
            run = None if barred else layer_rule.record(evaluation, batch)
            if run is None:
                n = evaluation.outputs(batch).numel()
                few = n if n < count and is_convex(objective.loss) else count
                return _Way("auto", products=few)
            factor = loss_factor(evaluation, run.outputs, batch, 1.0, 0)
    if factor is None:
        return _Way("auto", products=count)
    rank = factor.shape[2]
    gradients = _rule_cost(run, rank, share)
    if gradients > at_most:
        return _Way("lanczos")
    # By the name "dense" the rule is not given up for its multiplications, which are few in small
    # nets. Only where samples might mix could it be given up still, for n products in its place.
    forced = run.trusted and not layer_rule.is_cheaper(run, rank)
    return _Way("dense" if forced else "auto", gradients, products=run.outputs.numel())


def _rule_cost(run: layer_rule.Pass, rank: int, steps: float) -> float:
    """Gradients of a step's batch that the layer rule is worth, `steps` batches at once."""
    twice = 1
    while not layer_rule.is_cheaper(run, rank, twice):
        twice *= 2
    low, high = twice // 2, twice
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if layer_rule.is_cheaper(run, rank, middle) else (middle, high)
    forward = float(sum(c.out.numel() * _fan_in(c.layer) for c in run.calls))
    rule = 4 * high * forward + RULE_CALLS + COLUMN_CALLS * rank
    return rule / (3 * forward / steps + STEP_CALLS)


def _fan_in(layer: nn.Module) -> int:
    """Multiplications for one entry of a layer's output."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return 1 if isinstance(layer, nn.Embedding) or weight.ndim == 1 else weight[0].numel()


def _samples(stream: Stream) -> list[Batch]:
    return stream.fixed(stream.n_samples if stream.full_batch else 2 * stream.samples_per_step)


def _rtol(objective: Objective, stream: Stream) -> float:
    """Tolerance of Lanczos: the value's error is its square, so this is all but exact."""
    if not stream.full_batch:
        return 1e-2  # two batches are not all samples: the sampling error is larger
    return 1e-6 if objective.params[0].dtype == torch.float64 else 1e-5


def _settled(top: TopEigen, rtol: float) -> bool:
    size = abs(top.value)
    return top.converged or (top.residual <= rtol * size and top.upper <= top.value + rtol * size)


def _measure(
    objective: Objective,
    batches: Sequence[Batch],
    edge: OptimizerEdge,
    method: Method,
    *,
    whole: bool,
    rtol: float,
    products: int,
) -> TopEigen:
    closure = isinstance(objective.loss, ModelLoss)
    operator: OperatorName = "hessian" if closure else "ggn"
    data = list(batches)  # as read: they are not interpreted a second time
    if whole:  # of a loss that is no mean over samples, the mean over steps, as training sees it
        data = [replace(b, weight=1.0) for b in data]
    with objective.autocast():
        return top_eigen(
            objective.model, objective.loss, data, operator, rtol=rtol, params=edge.held,
            optimizer=edge.seen, method=method, max_products=products,
            micro_batch=None if closure else objective.chunk, reduction="mean" if whole else None,
        )  # fmt: skip


def _convention(top: TopEigen, edge: OptimizerEdge, part: str, loss: object) -> str:
    name = loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)
    operator = {"ggn": "Gauss–Newton", "hessian": "Hessian", "ntk": "NTK"}[top.operator]
    operator += edge.coordinates()
    if top.statistics:
        part += f", in {top.mode} mode with {top.statistics}"
    if edge.held is not None:
        part += ", in the parameters that the optimizer holds"
    return f"{operator} of {name} as given, a {top.reduction} over {part}; {_formula(edge)}"


def _formula(edge: OptimizerEdge) -> str:
    """The closed form, and where a loss may first rise, if that is another rate."""
    first = edge.earliest(1.0)
    if edge.missing or math.isclose(first, edge.rate(1.0), rel_tol=1e-9):
        return edge.formula()
    if math.isnan(first):
        return f"{edge.formula()}; where the loss first rises is not known from λ₀"
    first *= 1 + edge.settings.get("weight_decay", 0.0)
    top = "(λ₀+w)" if edge.settings.get("weight_decay") else "λ₀"
    return f"{edge.formula()}; from rest the loss may rise from {first:.3g}/{top} on"


def _unmeasured(objective: Objective, why: str) -> Critical:
    objective.notes.append(f"no critical rate from curvature ({why})")
    return Critical(math.nan, math.nan, "", f"not measured: {why}")
