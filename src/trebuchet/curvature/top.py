"""The front door: the top eigenvalues of NTK, Gauss–Newton or Hessian, of any model."""

import contextlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Unpack, get_args

import torch
from torch import Tensor, nn

from trebuchet._checks import (
    anything,
    between_0_and_1,
    choice,
    finite,
    flag,
    function,
    instance,
    whole,
)
from trebuchet._doors import door, grouped, maybe, rule
from trebuchet.curvature.distributed import Ranks
from trebuchet.curvature.evaluation import Evaluation
from trebuchet.curvature.explain import callers_own
from trebuchet.curvature.lanczos import Step
from trebuchet.curvature.measurement import Measurement, OperatorName
from trebuchet.curvature.memory import pieces_that_fit
from trebuchet.curvature.preconditioner import OptimizerView, view_of
from trebuchet.curvature.result import TopEigen
from trebuchet.curvature.settings import Lanczos, LanczosKeywords
from trebuchet.errors import InputError
from trebuchet.problem.autocast import Autocast
from trebuchet.problem.batches import Batch, as_batches, uncounted
from trebuchet.problem.closures import OWN_LOSS, maybe_closure, settled
from trebuchet.problem.divisors import divisors, find_rule
from trebuchet.problem.fitted import fitted
from trebuchet.problem.held_still import MODE, Mode, held_still
from trebuchet.problem.how import HOW, How, as_problem
from trebuchet.problem.losses import LossFn, ModelLoss, Reduction, is_convex, resolve
from trebuchet.problem.problem import ModelFactory, Problem, placed
from trebuchet.problem.selection import Selection, select, unwrap
from trebuchet.problem.tree import mapped


class Keywords(How, LanczosKeywords, total=False):
    """Further keywords of `top_eigen`."""

    max_batches: int | None
    reduction: Reduction | None
    convex: bool | None
    group: Any
    above: float | None


_KEYWORDS = {
    **HOW, **dict.fromkeys(LanczosKeywords.__annotations__, anything),
    "max_batches": maybe(whole, "a positive number of batches"),
    "reduction": maybe(choice, get_args(Reduction)), "convex": maybe(flag), "group": anything,
    "above": maybe(finite),
}  # fmt: skip


@door(
    model=anything, loss=anything, data=anything,
    operator=rule(choice, get_args(OperatorName)),
    k=rule(whole, "a positive integer"),
    rtol=between_0_and_1, params=anything,
    mode=rule(choice, get_args(Mode)),
    optimizer=anything,
    warm=maybe(instance, TopEigen, "an earlier result of top_eigen, or None"),
    vectors=flag,
    lanczos=maybe(instance, Lanczos, "a trebuchet.Lanczos", "Lanczos(max_products=100) is one"),
    on_step=maybe(function, "a function of (products, value, residual, missed)", takes=4),
    **_KEYWORDS,
)  # fmt: skip
def top_eigen(
    model: nn.Module | ModelFactory | Problem,
    loss: str | LossFn | ModelLoss | None = None,
    data: object = None,
    operator: OperatorName = "ggn",
    *,
    k: int = 1,
    rtol: float = 1e-3,
    params: Selection = None,
    mode: Mode = MODE,
    optimizer: torch.optim.Optimizer
    | str
    | Sequence[torch.optim.Optimizer]
    | Callable[..., Any]
    | None = None,
    warm: TopEigen | None = None,
    vectors: bool = False,
    lanczos: Lanczos | None = None,
    on_step: Step | None = None,
    **keywords: Unpack[Keywords],
) -> TopEigen:
    """Measure the largest (algebraic) eigenvalues of a model's curvature, and the rate they imply.

    With outputs z, J = ∂z/∂θ (DK × P) and loss L:

    - ``"ggn"``: Jᵀ (∂²L/∂z²) J, Gauss–Newton, with the loss's own Hessian at the outputs;
    - ``"ntk"``: (1/D) J Jᵀ, the Gauss–Newton spectrum of the half-MSE, whatever the loss;
    - ``"hessian"``: ∂²L/∂θ².

    What is guaranteed when ``converged`` is true: an eigenvalue lies within ``residuals[0]`` ≤
    rtol·λ of ``values[0]``; and, except with probability `failure` over the random start, none lies
    above ``upper`` ≤ (1 + rtol) λ. The second holds for every matrix and every warm start, since at
    least one direction is always fresh (lanczos.py has the argument). Both are up to the rounding
    of the products. ``method="dense"`` results are exact to rounding, without "except".

    Args:
        model: Any module. It is evaluated under `mode`, and nothing about it changes. Or a function
            of a seed, for the module of seed 0. Or a `Problem`, without loss and data, whose
            optimizer and micro-batches are then its own.
        loss: ``loss(outputs, targets) -> scalar``, a name (``"half_mse"``, ``"mse"``,
            ``"cross_entropy"``, ``"bce"``, ``"huber"`` …), or for Hessians a closure
            ``loss_fn(model, batch)``. None is no loss for the NTK, and for the Hessian the model's
            own: a scalar that it returns, or the ``loss`` in what it returns.
        data: ``(inputs, targets)``, a dict batch, or a loader; see ``batches.as_batches``.
        operator: Which curvature.
        k: How many eigenvalues.
        rtol: Relative tolerance. 1e-3 is far below what a learning rate can feel.
        params: Names, parameters or a predicate; by default every parameter that is not frozen.
        mode: ``"train"`` (default, as a scan has it): as the model is trained, with the batch
            statistics of each batch, but without dropout. ``"eval"``: with running statistics.
            ``"as_is"``: as its flags are.
        optimizer: Whose edge ``lr_crit`` is, as ``scan`` takes it: a name, a factory, or an
            instance, whose momentum, dampening and weight decay are read. Adam and others that
            divide by running gradients also precondition the operator.
        warm: The result for nearby parameters or data, to start from.
        vectors: Also return unit eigenvectors in parameter space, (k, P).
        lanczos: How they are looked for, and how surely: a `Lanczos`.
        on_step: Called after every product with (products, value, residual, probability of having
            missed a larger one); ``progress_line()`` makes one that shows them.
        **keywords: The fields of `Lanczos` (``method``, ``max_products``, ``seed`` …) and of
            `Problem` (``micro_batch``, by default what fits, ``weights``, ``size_of`` …); and
            ``max_batches``, the most that are read of a loader; ``reduction``, ``"mean"`` or
            ``"sum"``, by default read off torch's own losses and found out by a trial of any other;
            ``convex``, whether the loss is convex in the outputs, which is known for torch's own
            (say so of yours: for large models that saves most of the memory, since Gauss–Newton is
            then worked on in the space of outputs); ``group``, True or a process group whose
            ranks each hold a shard of the samples; ``above``, for k = 1: ask only whether λ is
            above this number, such as 2/η, at a tenth (it is) to nine tenths (it is not) of the
            products. It ends with a ``value`` > above, or with an ``upper`` ≤ (1 + rtol)·above,
            and rarely converges.

    Returns:
        Values, bounds, ``lr_crit`` and how they were come by.

    Raises:
        InputError: If an argument or the model is not what was expected.

    Example:
        One neuron z = θx with the half-MSE: the curvature is the mean of x², here (1 + 9)/2.

        >>> net = nn.Linear(1, 1, bias=False).double()
        >>> x = torch.tensor([[1.0], [3.0]], dtype=torch.float64)
        >>> top = top_eigen(net, "half_mse", (x, torch.zeros_like(x)))
        >>> round(top.value, 6), round(top.lr_crit, 6), top.converged
        (5.0, 0.4, True)
        >>> round(top_eigen(net, nn.MSELoss(), (x, torch.zeros_like(x))).lr_crit, 6)
        0.2
    """
    above = keywords.get("above")
    if above is not None and k > 1:
        msg = f"above: is asked of the largest eigenvalue alone, got k = {k}; leave one of them out"
        raise InputError(msg)
    search = grouped(Lanczos, "lanczos", lanczos, keywords)
    problem = as_problem(model, loss, data, keywords, optimizer=optimizer)
    model = unwrap(problem.initial(0))
    problem = placed(problem, model)
    resolved = resolve(problem.loss)
    if resolved is None and operator == "hessian":
        resolved = OWN_LOSS
    chosen = select(model, params)
    device = next(iter(chosen.values())).device
    _check(operator, resolved)
    ranks = Ranks(keywords.get("group"), device)
    autocast = Autocast.ambient(device)
    if problem.autocast is not None:
        autocast = Autocast(device.type, True, problem.autocast)
    # The solver's own arithmetic must not be cast down; the model re-enters the caller's autocast.
    still = held_still(model, mode=mode, loader=problem.data, also=problem.loss)
    with (
        still as held,
        torch.autocast(device.type, enabled=False),
        contextlib.ExitStack() as entered,
    ):
        closure = maybe_closure(resolved)
        batches = as_batches(
            problem.data, device=device, model=model, closure=closure,
            max_batches=keywords.get("max_batches"), weights=problem.weights,
            size_of=problem.size_of,
        )  # fmt: skip
        if resolved is not None and closure is None:
            resolved = settled(resolved, model, batches[0], autocast)
            _check_operator(operator, resolved)
        if problem.micro_batch is not None:
            closure = isinstance(resolved, ModelLoss)
            batches = as_batches(
                batches, device=device, micro_batch=problem.micro_batch, closure=closure
            )
        evaluation = Evaluation(model, chosen, resolved, batches, autocast, held=held)
        entered.enter_context(evaluation.in_place())
        versions = [p._version for p in evaluation.leaves]
        # Ranks that cut or did not would take different routes; an explicit size is all of theirs.
        alone = problem.micro_batch is None and ranks.alone
        _prepare(evaluation, ranks, keywords.get("reduction"), may_cut=alone)
        convex = keywords.get("convex")
        measurement = Measurement(
            evaluation=evaluation,
            ranks=ranks,
            view=_view(problem.optimizer, evaluation, ranks),
            operator=operator,
            k=k,
            rtol=rtol,
            vectors=vectors,
            lanczos=search,
            convex=is_convex(resolved) if convex is None else convex,
            on_step=None if on_step is None else callers_own(on_step),
            warm=warm,
            above=above,
        )
        result = measurement.result(mode)
        if versions != [p._version for p in evaluation.leaves]:
            msg = "model: its forward pass writes to its parameters; curvature needs a fixed point"
            raise InputError(msg)
    return result


def _check(operator: str, loss: object) -> None:
    if loss is None and operator != "ntk":
        msg = "loss: only the NTK goes without one; give the loss that is trained on"
        raise InputError(msg)
    _check_operator(operator, loss)


def _check_operator(operator: str, loss: object) -> None:
    if isinstance(loss, ModelLoss) and operator != "hessian":
        msg = (
            f"loss: a closure loss_fn(model, batch) has a Hessian but no {operator}; use 'hessian'"
        )
        raise InputError(msg)


def _prepare(
    evaluation: Evaluation, ranks: Ranks, reduction: Reduction | None, *, may_cut: bool
) -> None:
    """Fit targets and weigh batches, in pieces if memory asks for it and the loss adds up."""
    whole, said = evaluation.batches, list(evaluation.remarks)
    pieces = pieces_that_fit(evaluation) if may_cut else None
    if pieces is not None:
        try:
            evaluation.batches = pieces
            _fit(evaluation)
            evaluation.remarks += _weigh(evaluation, ranks, reduction)
        except InputError:  # the loss does not add up over pieces: whole it is
            evaluation.batches, evaluation.remarks = whole, said
        else:
            most = max(piece.size for piece in pieces)
            evaluation.remarks.append(
                f"the graph of all samples at once would not fit into memory: they were taken "
                f"{most} at a time (micro_batch= says otherwise)"
            )
            return
    _fit(evaluation)
    evaluation.remarks += _weigh(evaluation, ranks, reduction)


def _fit(evaluation: Evaluation) -> None:
    """Give real targets the shape of the outputs (`fitted`), and say so."""
    found = fitted(
        evaluation.loss,
        evaluation.batches[0],
        # With gradients: a forward pass may take derivatives itself.
        lambda batch: mapped(Tensor.detach, evaluation.raw_outputs(batch)),
    )
    if found is not None:
        fit, note = found
        evaluation.batches = fit(evaluation.batches)
        evaluation.remarks.append(note)


def _weigh(evaluation: Evaluation, ranks: Ranks, reduction: Reduction | None) -> tuple[str, ...]:
    """Set the micro-batches' weights and D, over all ranks; return what there is to say."""
    batches = evaluation.batches

    def outputs_of(batch: Batch) -> Any:
        # With gradients: a forward pass may take derivatives itself.
        return mapped(Tensor.detach, evaluation.raw_outputs(batch))

    seeds = itertools.count()
    rule = find_rule(
        evaluation.loss, batches, reduction=reduction, outputs_of=outputs_of,
        value_of=lambda batch: _closure_value(evaluation, batch, next(seeds)),
        always=not ranks.alone,
    )  # fmt: skip
    evaluation.reduction = rule.reduction
    found, total = [1.0], 1.0
    if len(batches) > 1 or not ranks.alone:
        found, total = divisors(rule, batches, outputs_of)
    samples = float(sum(b.size for b in batches))
    total, samples = ranks.total([total, samples])
    if evaluation.reduction == "sum":
        total = 1.0
    if total == 0:
        msg = "data: no target counts (all are ignored), so the mean loss is 0/0"
        raise InputError(msg)
    evaluation.weights = [d / total for d in found]
    evaluation.n_samples = int(samples)
    return tuple(note for note in (uncounted(batches), rule.note) if note)


def _closure_value(evaluation: Evaluation, batch: Batch, seed: int) -> Tensor:
    """A closure's loss on samples of a batch, in evaluation mode: nothing mixes them there."""
    flags = [(m, m.training) for m in evaluation.model.modules()]
    # A batch's place among the others seeds it. Each call has another seed: noise shows itself.
    kept, evaluation.batches = evaluation.batches, [*[replace(batch)] * seed, batch]
    try:
        evaluation.model.eval()
        return evaluation.loss_of(batch).detach()
    finally:
        evaluation.batches = kept
        for module, flag in flags:
            module.training = flag


def _view(optimizer: object, evaluation: Evaluation, ranks: Ranks) -> OptimizerView:
    def gradient() -> Tensor:
        out = torch.zeros(evaluation.n_parameters, dtype=evaluation.dtype, device=evaluation.device)
        for batch, weight in zip(evaluation.batches, evaluation.weights, strict=True):
            grads = torch.autograd.grad(
                evaluation.loss_of(batch), evaluation.leaves, allow_unused=True
            )
            evaluation.add_flat(out, grads, weight)
        return ranks.sum_(out)

    return view_of(optimizer, evaluation, gradient)
