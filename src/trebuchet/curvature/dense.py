"""Small problems whole: form the matrix, take its eigenvalues, nothing left to doubt.

Two ways to the DK × DK matrix N = J Jᵀ:

- nets whose selected parameters all sit in Linear layers fed with (D, n) matrices: the Linear-layer
  rule N = Σ_l (A_l A_lᵀ [+ 1]) ∘ (G_l G_lᵀ), A_l the layer's inputs, G_l the gradients of the
  outputs by the layer's outputs: one forward pass, K backward passes without weight gradients, and
  so less than one gradient evaluation for K = 1;
- any model with few outputs or few parameters: products with the identity, batched.

The Gauss–Newton spectrum is that of S N S with S = √M, M = w ∂²L/∂z².
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trebuchet.curvature.batches import Batch
from trebuchet.curvature.linear_rule import _ELEMENTWISE, combine
from trebuchet.curvature.problem import Problem

LINEAR_RULE_LIMIT = 2048
"""Largest D·K for the Linear-layer rule: above it the DK × DK matrix costs more than Lanczos."""

AUTO_DENSE = 8
"""Up to this many dimensions the dense matrix is never dearer than Lanczos."""

DENSE_LIMIT = 4096
"""Largest P (or D·K) that ``method="dense"`` accepts: its matrix is 128 MB."""

_SAFE = (*_ELEMENTWISE, nn.Linear, nn.Sequential, nn.Flatten, nn.Dropout, nn.Softmax)


@dataclass(frozen=True, slots=True)
class Layers:
    """One pass through a net of Linear layers: what the rule needs.

    Attributes:
        outputs: z, shape (D, …), with its graph.
        inputs: A_l, each (D, n_l).
        results: The layers' outputs, each (D, n_{l+1}), in the graph of z.
        weights: Whether each layer's weight is selected.
        biases: Whether each layer's bias is selected.
        trusted: The model is a plain ``nn.Sequential``: samples cannot mix, so nothing to verify.
    """

    outputs: Tensor
    inputs: list[Tensor]
    results: list[Tensor]
    weights: list[bool]
    biases: list[bool]
    trusted: bool


def linear_layers(problem: Problem, batch: Batch) -> Layers | None:
    """Run the model once and record its Linear layers, or return None where the rule is out.

    Args:
        problem: The problem.
        batch: All of its data.

    Returns:
        The layers, or None if a selected parameter is elsewhere, a layer is used twice or with
        more than (samples, features), or layers share a parameter.
    """
    linears = [m for m in problem.model.modules() if type(m) is nn.Linear]
    slots = [p for m in linears for p in (m.weight, m.bias) if p is not None]
    selected = {id(p) for p in problem.params.values()}
    if len({id(p) for p in slots}) < len(slots) or not selected <= {id(p) for p in slots}:
        return None
    if problem.leaves[0] is not next(iter(problem.params.values())):
        return None  # half precision: the parameters in use are not the modules' own
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []

    def record(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        calls.append((module, args[0], out))

    handles = [m.register_forward_hook(record) for m in linears]
    try:
        z = problem.outputs(batch)
    finally:
        for handle in handles:
            handle.remove()
    if len({id(m) for m, _, _ in calls}) < len(calls) or not z.requires_grad:
        return None
    if z.ndim < 1 or z.shape[0] != batch.size:
        return None
    if any(a.ndim != 2 or len(a) != batch.size or not o.requires_grad for _, a, o in calls):
        return None
    used = [m for m, _, _ in calls]
    return Layers(
        outputs=z,
        inputs=[a.detach() for _, a, _ in calls],
        results=[o for _, _, o in calls],
        weights=[id(m.weight) in selected for m in used],
        biases=[m.bias is not None and id(m.bias) in selected for m in used],
        trusted=all(type(m) in _SAFE for m in problem.model.modules()),
    )


def rule_is_cheaper(layers: Layers, steps: int = 12) -> bool:
    """Compare the rule's multiplications with those of `steps` matrix-free products.

    Args:
        layers: The recorded layers.
        steps: How many products Lanczos is expected to need.

    Returns:
        True if forming the matrix costs less.
    """
    d = layers.outputs.shape[0]
    n = layers.outputs.numel()
    outputs = n // d
    inner = sum(d * d * a.shape[1] + n * n * r.shape[1] for a, r in _pairs(layers))
    matrices = sum(a.shape[1] * r.shape[1] for a, r in _pairs(layers))
    rule = inner + outputs * d * matrices + 4 * n**3
    return n <= LINEAR_RULE_LIMIT and rule < 3 * steps * d * matrices


def _pairs(layers: Layers) -> list[tuple[Tensor, Tensor]]:
    return list(zip(layers.inputs, layers.results, strict=True))


def linear_gram(layers: Layers) -> Tensor:
    """Return N = J Jᵀ by the Linear-layer rule.

    Args:
        layers: From :func:`linear_layers`.

    Returns:
        Shape (D·K, D·K), float64; row a·K + k is output k of sample a.
    """
    d = layers.outputs.shape[0]
    columns = layers.outputs.reshape(d, -1).sum(0).unbind()  # K sums over samples
    per_output = [
        torch.autograd.grad(c, layers.results, retain_graph=True, materialize_grads=True)
        for c in columns
    ]
    signals = [torch.stack(g, dim=1) for g in zip(*per_output, strict=True)]  # (D, K, n)
    kept = [
        (a if weight else torch.zeros_like(a), g, bias)
        for a, g, weight, bias in zip(
            layers.inputs, signals, layers.weights, layers.biases, strict=True
        )
        if weight or bias
    ]
    inputs, signals_, biases = zip(*kept, strict=True)
    return combine(inputs, signals_, bias=biases).double() * d


def loss_hessian(problem: Problem, z: Tensor, batch: Batch) -> Tensor:
    """Return ∂²L_b/∂z², shape (D·K, D·K), float64, by products with the identity.

    Args:
        problem: Gives the loss.
        z: Outputs.
        batch: Their micro-batch.

    Returns:
        The dense matrix.
    """
    z = z.detach().requires_grad_()
    n = z.numel()
    loss = problem.loss_at(z, batch)
    gradient = None
    if loss.requires_grad:
        (gradient,) = torch.autograd.grad(loss, z, create_graph=True, allow_unused=True)
    if gradient is None or not gradient.requires_grad:
        return z.new_zeros((n, n), dtype=torch.float64)
    eye = torch.eye(n, dtype=gradient.dtype, device=z.device).view(n, *z.shape)
    (h,) = torch.autograd.grad(gradient, z, eye, is_grads_batched=True)
    return h.reshape(n, n).double()


def matrix_of(product: Callable[[Tensor], Tensor], n: int, like: Tensor) -> Tensor:
    """Return the n × n matrix of a linear map, column by column, made symmetric, float64.

    Args:
        product: v ↦ A v.
        n: Length of v.
        like: Gives dtype and device.

    Returns:
        (A + Aᵀ)/2.
    """
    columns = [product(e) for e in torch.eye(n, dtype=like.dtype, device=like.device)]
    a = torch.stack(columns).double()
    return (a + a.T) / 2


def root(m: Tensor) -> Tensor | None:
    """Return √M for M ⪰ 0, or None if M has a negative eigenvalue beyond rounding.

    Args:
        m: Symmetric, shape (n, n), float64.

    Returns:
        The symmetric root, shape (n, n); for diagonal M the vector of roots, shape (n,).
    """
    diagonal = torch.diagonal(m)
    if not bool((m - torch.diag(diagonal)).any()):
        return None if bool((diagonal < 0).any()) else diagonal.sqrt()
    values, vectors = torch.linalg.eigh((m + m.T) / 2)
    if float(values[0]) < -1e-6 * float(values[-1].abs()):
        return None
    s: Tensor = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    return s


def sandwich(s: Tensor, n: Tensor) -> Tensor:
    """Return S N S for a symmetric S given whole or by its diagonal."""
    return s[:, None] * n * s if s.ndim == 1 else s @ n @ s
