"""The matrix J Jᵀ layer by layer, from one forward pass and R ≤ K backward passes.

For a layer with input A_a (T × n_in: T positions of sample a, one for a plain Linear layer) and
G_{ak} (T × n_out) the gradient of output k of sample a by the layer's output, the gradient by its
weight is G_{ak}ᵀ A_a. So J Jᵀ, DK × DK, is a sum over layers of Gram matrices of

    T = 1:  (A_a·A_b) (G_{ak}·G_{bl}), no gradient is ever formed;
    T > 1:  ⟨G_{ak}ᵀ A_a, G_{bl}ᵀ A_b⟩, formed for one layer, or part of one, at a time.

For Gauss–Newton, outputs are first mixed by a factor B of the loss's Hessian (factor.py), R ≤ K
columns a sample. G for all samples comes from one backward pass, without weight gradients, provided
sample a's outputs depend on sample a's inputs alone. Nets assembled from known layers in an
``nn.Sequential`` cannot do otherwise; for any other module it is verified: Jᵀ r for random r, by
plain backward pass, must be Σ r_{ak} G_{ak}ᵀ A_a.

Few outputs make this cheap: K = 1 costs about as much as one gradient, where Lanczos needs ten
products of one and a third each.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trebuchet.curvature.evaluation import Evaluation
from trebuchet.curvature.linear_rule import _ELEMENTWISE
from trebuchet.curvature.per_sample import NORMS, Call, mixes, pieces, sizes
from trebuchet.curvature.suspects import suspects
from trebuchet.problem.batches import Batch

OUTPUTS_LIMIT = 2048
"""Largest D·K: a matrix of 32 MB in float64, whose eigenvalues take a second or two."""

_PLAIN = (
    *_ELEMENTWISE, nn.Linear, nn.Conv1d, nn.Conv2d, nn.Sequential, nn.Flatten, nn.Dropout,
    nn.Dropout2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, *NORMS,
    nn.Embedding,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward pass, recorded.

    Attributes:
        outputs: z, shape (D, …), with its graph.
        calls: The layers with selected parameters.
        others: Selected parameters that no call accounts for; their gradient has to be zero.
        trusted: Samples cannot mix, so nothing needs to be verified.
    """

    outputs: Tensor
    calls: list[Call]
    others: list[Tensor]
    trusted: bool

    @property
    def samples(self) -> int:
        """D."""
        return self.outputs.shape[0]


def record(evaluation: Evaluation, batch: Batch) -> Pass | None:
    """Run the model once and record its layers, or return None where the rule is out.

    Args:
        evaluation: The evaluation.
        batch: All of its data.

    Returns:
        The pass, or None if a selected parameter is in another kind of layer, or in a layer that
        is used twice, or shared, or if there are too many outputs.
    """
    named = dict(evaluation.model.named_parameters(remove_duplicate=False))
    selected = {id(p) for p in evaluation.params.values()}
    owners = [
        m for m in evaluation.model.modules()
        if any(id(p) in selected for p in m.parameters(recurse=False))
    ]  # fmt: skip
    if not all(_known(m) for m in owners) or len({id(p) for p in named.values()}) < len(named):
        return None
    if evaluation.leaves[0] is not next(iter(evaluation.params.values())):
        return None  # half precision: the parameters in use are not the modules' own
    inplace = any(getattr(m, "inplace", False) for m in evaluation.model.modules())
    calls: list[Call] = []

    def hook(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor | None:
        bias = getattr(module, "bias", None)
        chosen = [p is not None and id(p) in selected for p in (module.weight, bias)]
        calls.append(Call(module, args[0].detach(), out, *chosen))
        return out.clone() if inplace else None  # or an in-place ReLU would overwrite `out`

    handles = [m.register_forward_hook(hook) for m in owners]
    try:
        z = evaluation.outputs(batch)
    finally:
        for handle in handles:
            handle.remove()
    once = len({id(c.layer) for c in calls}) == len(calls)
    if not once or z.ndim < 1 or z.shape[0] != batch.size or z.numel() > OUTPUTS_LIMIT:
        return None
    d = batch.size
    if any(c.out._version or c.given.shape[:1] != (d,) or c.out.shape[:1] != (d,) for c in calls):
        return None
    calls = [c for c in calls if c.out.requires_grad]
    if not z.requires_grad or not calls:
        return None
    evaluation.doubted = suspects(z)  # or says what is wrong with a reentrant checkpoint
    covered = [p for c in calls for p in c.parameters()]
    others = [p for p in evaluation.leaves if not any(p is q for q in covered)]
    plain = all(
        type(m) in _PLAIN and not (m._forward_hooks or m._forward_pre_hooks) and not mixes(m)
        for m in evaluation.model.modules()
    )
    return Pass(z, calls, others, trusted=plain and not others)


def _known(module: nn.Module) -> bool:
    """Whether per-sample gradients of this layer are known here."""
    if type(module) in (nn.Conv1d, nn.Conv2d):
        return bool(module.groups == 1 and module.padding_mode == "zeros") and not isinstance(
            module.padding, str
        )
    if isinstance(module, NORMS):
        return type(module) in NORMS and not mixes(module)
    if type(module) is nn.Embedding:
        return module.padding_idx is None and module.max_norm is None
    return type(module) is nn.Linear


def is_cheaper(run: Pass, rank: int, steps: int = 10) -> bool:
    """Compare the rule's multiplications with those of `steps` matrix-free products.

    Args:
        run: The recorded pass.
        rank: R.
        steps: How many products Lanczos is expected to need; each is worth four forward passes.

    Returns:
        True if forming the matrix costs less.
    """
    d = run.samples
    n = float(d * rank)
    forward = rule = 0.0
    for call in run.calls:
        t, n_in, n_out = sizes(call, d)
        work = float(d * t * n_in * n_out)
        forward += work
        if t == 1:
            rule += d * d * n_in + n * n * n_out
        else:
            rule += rank * work + n * n * n_in * n_out
    return rule + (1 + rank) * forward + 4 * n**3 < 4 * steps * forward


def gram(run: Pass, factor: Tensor, probe: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return (Bᵀ J)(Bᵀ J)ᵀ, and Jᵀ B r for one r by the same rule, for verification.

    Args:
        run: From :func:`record`.
        factor: B, shape (D, K, R).
        probe: r, shape (D, R); None where nothing needs to be verified.

    Returns:
        The matrix, shape (D·R, D·R), float64, row a·R + j; and the gradients of the selected
        parameters, flat, in the order of the calls, weight before bias; empty without r.
    """
    z, d, rank = run.outputs, run.samples, factor.shape[2]
    outs = [c.out for c in run.calls]
    # Column j for all samples at once: the gradient of Σ_a Σ_k B_a[k, j] z_a[k].
    per_column = [
        torch.autograd.grad(
            z, outs, factor[:, :, j].reshape(z.shape), retain_graph=True, materialize_grads=True
        )
        for j in range(rank)
    ]
    signals = [
        g[0][:, None] if rank == 1 else torch.stack(g, dim=1)  # (D, R, …)
        for g in zip(*per_column, strict=True)
    ]
    total = z.new_zeros((d * rank, d * rank), dtype=torch.float64)
    pulled: list[Tensor] = []
    for call, g in zip(run.calls, signals, strict=True):
        linear = isinstance(call.layer, nn.Linear)
        if linear and probe is not None:
            mixed = torch.einsum("dk,dk...->d...", probe, g).flatten(0, -2)  # (D T, n_out)
            pulled += [(mixed.T @ call.given.flatten(0, -2)).reshape(-1)] * call.weight
            pulled += [mixed.sum(0)] * call.bias
        if linear and call.out.ndim == 2:
            total += _linear_term(call, g)
            continue
        for piece in pieces(call, g):
            flat = piece.reshape(d * rank, -1)
            # Single-precision sums over millions of entries lose digits: add parts in float64.
            for part in torch.split(flat, 1 << 15, dim=1):
                total += part @ part.T
            if probe is not None and not linear:
                pulled.append(probe.reshape(-1) @ flat)
    return total, torch.cat(pulled) if pulled else total.new_zeros(0)


def plain_gradients(run: Pass, r: Tensor) -> Tensor | None:
    """Jᵀ r by a plain backward pass, in the order of :func:`gram`.

    Args:
        run: The recorded pass.
        r: Shape (D, K), at the outputs.

    Returns:
        Flat gradients; of an embedding, the rows that occur. None if a selected parameter has a
        gradient that no recorded layer accounts for (a weight that is used by itself somewhere).
    """
    wanted, rows = [], []
    for call in run.calls:
        table = torch.unique(call.given) if isinstance(call.layer, nn.Embedding) else None
        for parameter in call.parameters():
            wanted.append(parameter)
            rows.append(table)
    grads = torch.autograd.grad(
        run.outputs,
        [*wanted, *run.others],
        r.view(run.outputs.shape),
        retain_graph=True,
        materialize_grads=True,
    )
    if any(bool(g.any()) for g in grads[len(wanted) :]):
        return None
    parts = zip(grads, rows, strict=False)  # the others have no rows
    return torch.cat([(g if table is None else g[table]).reshape(-1) for g, table in parts])


def _linear_term(call: Call, g: Tensor) -> Tensor:
    """The contribution of a layer with T = 1, (DR, DR), no gradient formed; g is (D, R, n)."""
    d, rank = g.shape[:2]
    inner = call.given @ call.given.T if call.weight else call.given.new_zeros((d, d))
    if call.bias:
        inner = inner + 1
    if rank > 1:
        inner = inner.repeat_interleave(rank, 0).repeat_interleave(rank, 1)
    flat = g.reshape(d * rank, -1)
    return (flat @ flat.T).mul_(inner)
