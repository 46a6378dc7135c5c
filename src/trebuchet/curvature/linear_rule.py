"""The Linear-layer rule: the NTK of a net of Linear layers without per-sample gradients."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trebuchet.errors import InputError

_ELEMENTWISE = (
    nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.ELU, nn.Softplus,
    nn.Identity, nn.ReLU6, nn.SELU, nn.CELU, nn.Hardtanh, nn.Mish, nn.LogSigmoid, nn.Softsign,
)  # fmt: skip


def combine(inputs: Sequence[Tensor], signals: Sequence[Tensor], *, bias: Sequence[bool]) -> Tensor:
    """H = (1/D) Σ_l (A_l A_lᵀ [+ 1]) ∘ (G_l G_lᵀ), with a G for each output.

    The gradient of output k at sample a with respect to layer l's weight is the outer product of
    G_l[a, k] and A_l[a], so inner products of gradients are products of inner products. A bias
    has the gradient G_l[a, k], hence the 1.

    Args:
        inputs: A_l, the inputs of each layer, shape ``(…, D, n_l)``.
        signals: G_l, the gradient of each output with respect to the layer's own output, shape
            ``(…, D, K, n_{l+1})``.
        bias: Whether the layer has a trainable bias.

    Returns:
        H, shape ``(…, D·K, D·K)``; row a·K + k. Cost D²K²·Σn: no gradient is ever formed.

    Raises:
        InputError: If there is no layer.
    """
    total: Tensor | None = None
    for a, g, has_bias in zip(inputs, signals, bias, strict=True):
        samples, outputs = g.shape[-3:-1]
        flat = g.flatten(-3, -2)  # (…, D·K, n)
        inner = a @ a.mT  # (…, D, D)
        if has_bias:
            inner = inner + 1
        if outputs > 1:
            inner = inner.repeat_interleave(outputs, -1).repeat_interleave(outputs, -2)
        term = (flat @ flat.mT).mul_(inner)
        total = term if total is None else total.add_(term)
    if total is None:
        msg = "inputs: expected at least one layer, got none"
        raise InputError(msg)
    return total.div_(samples)


def linear_rule_gram(model: nn.Module, x: Tensor) -> Tensor:
    """The NTK ÷ D of a sequential net of Linear layers and elementwise activations.

    One forward pass and K backward passes on the whole batch, whatever the number of samples.

    Args:
        model: An ``nn.Sequential`` of ``nn.Linear`` and elementwise activations, nested or not; or
            a single ``nn.Linear``.
        x: Inputs, shape ``(D, d)``.

    Returns:
        H, shape ``(D·K, D·K)``; sample a and output k stand in row a·K + k.

    Raises:
        InputError: If the model holds another kind of layer, or a weight used by two layers.

    Example:
        >>> from trebuchet.curvature.gram import gram
        >>> net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double()
        >>> x = torch.randn(3, 4, dtype=torch.float64)
        >>> bool(torch.allclose(linear_rule_gram(net, x), gram(net, x)))
        True
    """
    inputs: list[Tensor] = []
    results: list[Tensor] = []
    bias: list[bool] = []
    trained: list[bool] = []
    with torch.enable_grad():
        h = x.detach().requires_grad_(True)  # so that every layer's output carries a graph
        layers = _layers(model)
        for layer in layers:
            below, h = h, layer(h)
            if isinstance(layer, nn.Linear):
                inputs.append(below.detach())
                results.append(h)
                h = h.clone()  # an in-place activation would overwrite what G_l belongs to
                trained.append(layer.weight.requires_grad)
                bias.append(layer.bias is not None and layer.bias.requires_grad)
        outputs = h.reshape(x.shape[0], -1)  # (D, K)
        columns = [
            torch.autograd.grad(column.sum(), results, retain_graph=True)
            for column in outputs.unbind(1)
        ]
    signals = [torch.stack(per_output, dim=1) for per_output in zip(*columns, strict=True)]
    inputs = [a if train else torch.zeros_like(a) for a, train in zip(inputs, trained, strict=True)]
    return combine(inputs, signals, bias=bias)


def _layers(model: nn.Module) -> list[nn.Module]:
    layers: list[nn.Module] = []
    stack = [model]
    while stack:
        module = stack.pop()
        if isinstance(module, nn.Sequential):
            stack.extend(reversed(list(module)))  # children() would drop a repeat
        elif isinstance(module, (nn.Linear, *_ELEMENTWISE)):
            layers.append(module)
        else:
            msg = (
                "model: the Linear-layer rule takes nn.Sequential of nn.Linear and elementwise "
                f"activations, got {type(module).__name__}; use trebuchet.curvature.gram.gram"
            )
            raise InputError(msg)
    weights = [id(m.weight) for m in layers if isinstance(m, nn.Linear)]
    if len(set(weights)) < len(weights):
        msg = "model: two Linear layers share a weight; use trebuchet.curvature.gram.gram"
        raise InputError(msg)
    return layers
