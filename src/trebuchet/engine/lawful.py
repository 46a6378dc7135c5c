"""Whether the weight-norm law can be checked on a training, and why not where it cannot."""

import inspect
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trebuchet.engine.law import Law, Update
from trebuchet.models.scaling import Scaling, scaling_of
from trebuchet.problem.bound import Bound
from trebuchet.problem.losses import ModelLoss
from trebuchet.problem.noise import LOOKS, seed_all
from trebuchet.problem.optimizer_copies import has_hooks
from trebuchet.problem.selection import select
from trebuchet.problem.stream import pieces
from trebuchet.problem.tree import leaves

UNLIKE = "by its gradients its outputs do not scale as it states or is found to"
ALIKE = 1e-4
"""A model whose gradients miss Euler's identity by more is none of the degree; by less, something
is wrong that nobody meant."""


def unlike(law: Law, z: Tensor, params: Sequence[Tensor]) -> str:
    """Ask a model's own gradients for Euler's identity, before anything is held against it.

    A table of operations knows nothing of what an attribute ``degree`` means to somebody else, of
    gradients that are made up, or of a forward pass that later changes its form.

    Args:
        law: The law.
        z: Its outputs, with their graph.
        params: Its weights.

    Returns:
        Why the law does not hold of it; empty where it does, or numbers are not finite.
    """
    values = z.detach()
    mix = torch.rand(z.shape, generator=torch.Generator().manual_seed(LOOKS), dtype=torch.float64)
    v = values / values.abs().max().clamp_min(law.tiny) * (0.5 + mix).to(z)
    slopes = torch.autograd.grad(z, list(params), v, allow_unused=True)
    terms = law.degree * values.double() * v
    missed, size = -terms.sum(), terms.abs().sum()
    for alpha, p, g in zip(law.alphas, params, slopes, strict=True):
        if g is not None and not g.is_sparse:
            each = float(alpha) * p.detach().double() * g
            missed, size = missed + each.sum(), size + each.abs().sum()
    return UNLIKE if float(missed.abs()) > max(ALIKE, law.allowed) * float(size) else ""


def facts(found: Scaling | str, reason: str = "") -> dict[str, float | str]:
    """What a result says of the law.

    Args:
        found: The model's scaling, or why it has none.
        reason: Why a training of a model that has one is not checked.

    Returns:
        Attributes by name.
    """
    if isinstance(found, str):
        return {"weight_norm_degree": math.nan, "weight_norm_law": f"not checked: {found}"}
    return {
        "weight_norm_degree": found.degree,
        "weight_norm_weights": str(found),
        "weight_norm_law": f"not checked: {reason}" if reason else "checked",
    }


def coarse(law: Law, device: torch.device) -> str:
    """Why rounding would hide every violation; empty where it does not.

    Args:
        law: The law.
        device: Where it is trained.

    Returns:
        The reason.
    """
    # Of half precision it is recorded, and allows nearly everything.
    single = law.eps == torch.finfo(torch.float32).eps
    cudnn = law.convolves and device.type == "cuda" and torch.backends.cudnn.allow_tf32
    if single and (cudnn or torch.get_float32_matmul_precision() != "highest"):
        return "float32 products may be taken in fewer digits (TF32 or bfloat16)"
    return ""


def law_of(trained: Bound) -> tuple[Scaling | str, Law | str]:
    """The law that steps on a module's own weights are checked by.

    Args:
        trained: The problem, its model at the start and in the mode that it is trained in.

    Returns:
        The model's scaling and the law, or the reasons why there is none.
    """
    objective, problem = trained.objective, trained.problem
    device = objective.params[0].device
    with torch.autocast(device.type, enabled=False):
        found = scaling_of(objective.model)
    if isinstance(found, str):
        return found, found
    law = Law.of(
        found.degree, [found.weights[n] for n in select(objective.model)], objective.params,
        _inputs(trained),
    )  # fmt: skip
    reason = (
        _of_optimizer(trained)
        or ("gradients are clipped entry by entry" if problem.clip.value is not None else "")
        or ("it is trained in autocast" if objective.autocast.enabled else "")
        or ("its loss is a closure" if isinstance(objective.loss, ModelLoss) else "")
        or ("its passes are random" if objective.randomised else "")
        or (
            "gradients of its parameters have hooks"
            if any(_hooked(p) for p in objective.params)
            else ""
        )
        or coarse(law, device)
        or gradients(trained, law)
    )
    return (reason if reason == UNLIKE else found), reason or law


def _inputs(trained: Bound) -> int:
    """How many numbers go into a step."""
    fixed = trained.fixed[0]
    numbers = sum(t.numel() for t in leaves((fixed.args, fixed.kwargs)))
    return numbers * trained.stream.samples_per_step // max(1, fixed.size)


def _hooked(p: nn.Parameter) -> bool:
    return bool(p._backward_hooks or getattr(p, "_post_accumulate_grad_hooks", None))


def _of_optimizer(trained: Bound) -> str:
    """Why steps are not those of gradient descent; empty where they are."""
    probe = trained.factory(trained.objective.params, 1.0)
    kind = type(probe).__name__
    if type(probe) is not torch.optim.SGD:
        return f"{kind} is not gradient descent"
    if has_hooks(probe):
        return "its optimizer has hooks"
    if not getattr(vars(probe).get("step"), "only_clips", "step" not in vars(probe)):
        return "its optimizer has a step of its own"
    return ""


def gradients(trained: Bound, law: Law) -> str:
    """Why outputs do not tell the gradient, at the weights that the model holds.

    Args:
        trained: The problem; its loss may see the weights in another way.
        law: The law.

    Returns:
        The reason; empty where there is none.
    """
    objective = trained.objective
    batch = pieces(trained.fixed[0], objective.chunk)[0]
    assert not isinstance(objective.loss, ModelLoss)
    required = [
        p
        for p in inspect.signature(objective.model.forward).parameters.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if batch.kwargs or len(batch.args) != len(required):
        return "its forward pass is given optional arguments"
    objective.cost.gradients += 1
    with objective.still(), torch.enable_grad():
        seed_all(LOOKS)
        try:
            z = batch.outputs_of(objective.model)
            if not (isinstance(z, Tensor) and z.is_floating_point()):
                return "it does not return one real tensor"
            if reason := unlike(law, z, objective.params):
                return reason
            loss, alone = objective.loss, z.detach().clone().requires_grad_(True).clone()
            value = loss(alone) if batch.targets is None else loss(alone, batch.targets)
            seen = torch.autograd.grad(value.sum(), objective.params, allow_unused=True)
        except Exception as error:  # the user's model and loss may raise anything
            if "does not require grad" in str(error):
                return "its loss does not depend on its outputs"
            return f"its loss of outputs alone could not be taken ({type(error).__name__})"
    return "its loss sees the weights in another way" if any(g is not None for g in seen) else ""


def updates(
    optimizer: Optimizer, params: Sequence[nn.Parameter], moved: Sequence[bool]
) -> list[Update]:
    """How SGD is about to step one run, from its settings and its state.

    Args:
        optimizer: ``torch.optim.SGD``.
        params: The trained parameters, in the order of the law.
        moved: Which of them have a gradient.

    Returns:
        An update for parameters that are stepped alike.
    """
    place = {id(p): i for i, p in enumerate(params) if moved[i]}
    found = []
    for group in optimizer.param_groups:
        stepped = [p for p in group["params"] if id(p) in place]
        momentum, decay = float(group["momentum"]), float(group["weight_decay"])
        fresh, kept = 1 - float(group["dampening"]), momentum
        if group["nesterov"]:
            fresh, kept = 1 + momentum, momentum**2
        base = Update((), np.array([float(group["lr"])]), decay)
        if momentum == 0:
            found.append(replace(base, index=[place[id(p)] for p in stepped]))
            continue
        buffers = [optimizer.state.get(p, {}).get("momentum_buffer") for p in stepped]
        for begun in (False, True):
            some = [
                (place[id(p)], b)
                for p, b in zip(stepped, buffers, strict=True)
                if (b is not None) == begun
            ]
            if not some:
                continue
            index = [i for i, _ in some]
            if not begun:  # the first velocity is the first gradient, damped by nothing
                first = 1 + momentum if group["nesterov"] else 1.0
                found.append(replace(base, index=index, fresh=first))
            else:
                velocity = [b.unsqueeze(0) for _, b in some if b is not None]
                found.append(replace(base, index=index, fresh=fresh, kept=kept, velocity=velocity))
    return found


def together(each: Sequence[Sequence[Update]]) -> list[Update]:
    """Updates of several runs of one optimizer, which differ by their rates, as those of a stack.

    Args:
        each: Of every run.

    Returns:
        The same, with a row a run.
    """
    found = []
    for of_runs in zip(*each, strict=True):
        velocity = [
            torch.cat(list(rows)) for rows in zip(*(u.velocity for u in of_runs), strict=True)
        ]
        found.append(
            replace(of_runs[0], lr=np.concatenate([u.lr for u in of_runs]), velocity=velocity)
        )
    return found
