"""Per-sample gradients of one layer, from its input A and the gradients G at its output.

A is (D, T × n_in) and G is (D, K, T × n_out): T positions of each of D samples, K gradients a
sample. Where T = 1 the layer rule gets by without forming any of these.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv1d_weight, conv2d_weight

CHUNK = 1 << 22
"""Entries of per-sample gradients formed at once on a CPU, 16 MB in float32: they stay near its
caches, and the allocator hands out the same memory again."""

LARGE_CHUNK = 1 << 26
"""The same on an accelerator, 256 MB, where many small kernels would be slower."""

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.LayerNorm)


@dataclass(frozen=True, slots=True)
class Call:
    """One layer as it was called once.

    Attributes:
        layer: The module, of a kind :func:`pieces` knows.
        given: Its input, detached.
        out: Its output, in the graph.
        weight: Whether its weight is selected.
        bias: Whether its bias is selected.
    """

    layer: nn.Module
    given: Tensor
    out: Tensor
    weight: bool
    bias: bool

    def parameters(self) -> list[Tensor]:
        """The selected ones, weight before bias."""
        chosen = (("weight", self.weight), ("bias", self.bias))
        return [getattr(self.layer, name) for name, wanted in chosen if wanted]


def mixes(module: nn.Module) -> bool:
    """Return whether samples meet in this layer: batch statistics, with parameters or without."""
    norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
    return norm and bool(module.training or module.running_mean is None)


def sizes(call: Call, d: int) -> tuple[int, int, int]:
    """Return (T, n_in, n_out) of a layer seen as T matrix-vector products a sample."""
    layer = call.layer
    if isinstance(layer, nn.Linear):
        return call.out[0, ..., 0].numel(), layer.in_features, layer.out_features
    if isinstance(layer, (nn.Conv1d, nn.Conv2d)):
        return call.out[0, 0].numel(), layer.weight[0].numel(), layer.out_channels
    # Norms and embeddings: one multiplication an entry of the output.
    return 1, 1, call.out.numel() // d


def pieces(call: Call, g: Tensor) -> Iterator[Tensor]:
    """Per-sample gradients of weight, then bias, each (D, K, …), in parts of bounded size."""
    layer = call.layer
    if isinstance(layer, nn.Embedding):
        yield _embedding(call, layer, g)
        return
    if isinstance(layer, NORMS):
        a, g = _norm_factors(call, g)
        if call.weight:
            yield (g * a[:, None]).sum(2)
        if call.bias:
            yield g.sum(2)
        return
    d, k = g.shape[:2]
    t, n_in, n_out = sizes(call, d)
    chunk = CHUNK if g.device.type == "cpu" else LARGE_CHUNK
    if isinstance(layer, nn.Linear):
        a, g = call.given.reshape(d, t, n_in), g.reshape(d, k, t, n_out)
    else:
        a, g = call.given, g.movedim(2, -1)  # (D, K, …, n_out)
    rows = max(1, min(n_out, chunk // max(1, d * k * n_in)))
    for at in range(0, n_out, rows) if call.weight else ():
        some = g[..., at : at + rows]
        yield (
            torch.einsum("dkto,dti->dkoi", some, a)
            if isinstance(layer, nn.Linear)
            else _kernels(layer, a, some.movedim(-1, 2), max(1, chunk // (t * n_in)))
        )
    if call.bias:
        yield g.flatten(2, -2).sum(2)


def _kernels(layer: nn.Module, a: Tensor, g: Tensor, samples: int) -> Tensor:
    """Per-sample gradients of a convolution's weight, a group of channels a sample.

    No input is unfolded, which is what takes the time otherwise.

    Args:
        layer: A Conv1d or Conv2d without groups.
        a: Its input, shape (D, C, …).
        g: Gradients at some of its output channels, shape (D, K, rows, …).
        samples: How many samples to take at once.

    Returns:
        Shape (D, K, rows, n_in).
    """
    assert isinstance(layer, (nn.Conv1d, nn.Conv2d))
    of = conv1d_weight if a.ndim == 3 else conv2d_weight
    rows, parts = g.shape[2], []
    for x, signals in zip(torch.split(a, samples), torch.split(g, samples), strict=True):
        d = len(x)
        columns = [
            of(  # type: ignore[no-untyped-call]  # torch's
                x.reshape(1, -1, *x.shape[2:]), (d * rows, *layer.weight.shape[1:]),
                column.reshape(1, -1, *column.shape[2:]),
                layer.stride, layer.padding, layer.dilation, groups=d,
            ).view(d, rows, -1)
            for column in signals.unbind(1)
        ]  # fmt: skip
        parts.append(columns[0][:, None] if len(columns) == 1 else torch.stack(columns, dim=1))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _norm_factors(call: Call, g: Tensor) -> tuple[Tensor, Tensor]:
    # The normalised input x̂ as (D, T, n), and G as (D, K, T, n): with out = weight · x̂ + bias, the
    # weight's gradient is G ∘ x̂ summed over positions.
    layer, a = call.layer, call.given
    if isinstance(layer, nn.LayerNorm):
        x = F.layer_norm(a, layer.normalized_shape, eps=layer.eps)
        n = math.prod(layer.normalized_shape)
        return x.reshape(len(a), -1, n), g.reshape(*g.shape[:2], -1, n)
    if isinstance(layer, nn.GroupNorm):
        x = F.group_norm(a, layer.num_groups, eps=layer.eps)
    else:
        assert isinstance(layer, nn.modules.batchnorm._BatchNorm)
        x = F.batch_norm(a, layer.running_mean, layer.running_var, eps=layer.eps)
    channels = a.shape[1]
    return x.reshape(len(a), channels, -1).mT, g.reshape(*g.shape[:2], channels, -1).mT


def _embedding(call: Call, layer: nn.Embedding, g: Tensor) -> Tensor:
    """Rows of the table that occur in the batch, per sample: (D, K, rows, n)."""
    used, where = torch.unique(call.given, return_inverse=True)
    d, k = g.shape[:2]
    out = g.new_zeros((d, k, len(used), layer.embedding_dim))
    flat = g.reshape(d, k, -1, layer.embedding_dim)
    index = where.reshape(d, 1, -1, 1).expand_as(flat)
    return out.scatter_add_(2, index, flat)
