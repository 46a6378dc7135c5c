"""Stacked runs of bias-free MLPs, with the gradient written out."""

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from trebuchet.curvature.linear_rule import combine
from trebuchet.curvature.warm_top import SplitGram
from trebuchet.engine.kernels.outputs import OutputKernel, nbytes, norm_squared
from trebuchet.engine.span import Span
from trebuchet.models.mlp import MLP
from trebuchet.models.scaling import scaling_of


class MLPKernel(OutputKernel):
    """R runs of a bias-free MLP, on span-compressed data where there is a span.

    Weights are kept transposed, ``(R, in, out)``, so that a layer is A @ W. With one output the
    backward signals for a unit residual, G_l, serve both the gradient (rows scaled by ∂L/∂z) and
    the NTK (the Linear-layer rule), and the update is added to W inside the matrix product.

    Buffers are allocated once: on a CPU a run whose weights and activations stay in cache is
    what is fast.

    Args:
        models: One network a run, all of one shape, with slopes a₊ > 0 and a₋ ≥ 0.
        x: Training inputs, shape ``(D, d)``.
        span: Of x, to train in; None to train on x itself.
    """

    def __init__(self, models: Sequence[MLP], x: Tensor, span: Span | None = None) -> None:
        first = models[0]
        self.slopes, self.scale, self.depth = first.slopes, first.scale, first.degree
        self.scaling = scaling_of(first)
        self.span = span
        self.x = x if self.span is None else self.span.coordinates  # (D, r)
        self.initial = list(models)
        with torch.no_grad():
            self.params = [
                torch.stack([m.weights[i].T for m in models]).contiguous()
                for i in range(self.depth)
            ]
            if self.span is not None:
                first_layer = self.params[0]
                self.params[0] = (self.span.basis.T @ first_layer).contiguous()  # (R, r, n)
                outside = norm_squared(first_layer) - norm_squared(self.params[0])
                self.outside = outside.clamp_min_(0)  # |U − QQᵀU|², float64 (R,)
                # The part of U outside the span feels no gradient; weight decay shrinks it as a
                # whole, so one number a run, an ordinary parameter, holds all of it. Its roundings
                # do not average out, as those of many weights do.
                one = torch.ones(len(models), 1, dtype=torch.float64, device=x.device)
                self.params.append(one)
        self._allocate()

    def _allocate(self) -> None:
        runs, samples = self.runs, self.x.shape[0]
        widths = [w.shape[2] for w in self._layers()[:-1]]
        self._a = [self.x.new_empty(runs, samples, n) for n in widths]
        self._g = [self.x.new_empty(runs, samples, n) for n in widths]
        self._signals_are_unit = False

    def _layers(self) -> list[Tensor]:
        return self.params[: self.depth]

    @property
    def sparsity_layers(self) -> int:
        """The hidden layers, where they are ReLUs."""
        return len(self._a) if self.slopes[1] == 0 else 0

    def alphas(self) -> list[float | Tensor]:
        """1 of every layer; of what the span leaves out, its squared norm at a factor of 1."""
        layers: list[float | Tensor] = [1.0] * self.depth
        return layers if self.span is None else [*layers, self.outside]

    def forward(self, *, sparsity: bool = False) -> Tensor:
        """z, shape ``(R, D)`` or ``(R, D, K)``."""
        layers, shares = self._layers(), []
        for i, (a, spare) in enumerate(zip(self._a, self._g, strict=True)):
            h = torch.bmm(self._a[i - 1], layers[i], out=a) if i else self._first()
            if sparsity:
                # Ones of a row are counted exactly in any dtype's sum; booleans take four times
                # as long, and the signals' buffers are free until the backward pass.
                rows = torch.lt(h, 0, out=spare).sum(2, dtype=torch.float32)
                shares.append(rows.double().sum(1) / h[0].numel())
            self._activate(h, out=a)
        if sparsity and self.sparsity_layers:
            self.sparsity = torch.stack(shares, dim=1)
        self._signals_are_unit = False
        # (R, D, K). A stack's products with few columns take up to ten times as long as with few
        # rows, where the sum runs along memory.
        z = torch.bmm(layers[-1].mT.contiguous(), self._a[-1].mT).mT.mul_(self.scale)
        return z.squeeze(2) if z.shape[2] == 1 else z

    def _first(self) -> Tensor:
        """Pre-activations of the first layer, ``(R, D, n)``; they may be written over."""
        return torch.bmm(self.x.expand(self.runs, -1, -1), self.params[0], out=self._a[0])

    def add_vjp_(self, into: Sequence[Tensor], dz: Tensor) -> None:
        """Add Jᵀdz layer by layer; every signal is formed before any weight moves."""
        outputs = self._layers()[-1].shape[2]
        dz = dz.reshape(self.runs, -1, outputs)  # (R, D, K)
        if outputs == 1:
            self._unit_signals()
        else:
            self._backward(dz)
        rows = dz if outputs == 1 else None  # of unit signals; others hold ∂L/∂z already
        self._pull_first(into[0], self._g[0], rows)
        for w, a, g in zip(into[1:], self._a, self._g[1:], strict=False):
            self._pull(w, a, g, rows)
        # In rows as well: (dzᵀA)ᵀ.
        into[len(self._a)].add_(torch.bmm(dz.mT, self._a[-1]).mT, alpha=self.scale)

    def _pull_first(self, into: Tensor, g: Tensor, rows: Tensor | None) -> None:
        """Add Jᵀdz of the first layer: of signals g whose rows, if given, are yet to be scaled."""
        self._pull(into, self.x.expand(self.runs, -1, -1), g, rows)

    @staticmethod
    def _pull(into: Tensor, a: Tensor, g: Tensor, rows: Tensor | None) -> None:
        """Add Aᵀ diag(rows) G; scaling the narrower factor costs least."""
        if rows is not None and a.shape[2] <= g.shape[2]:
            a = a * rows
        elif rows is not None:
            g = g * rows
        torch.baddbmm(into, a.mT, g, out=into)

    def gram(self) -> Tensor:
        """H by the Linear-layer rule, shape ``(R, D·K, D·K)``."""
        outputs = self._layers()[-1].shape[2]
        samples = self.x.shape[0]
        inputs = [self.x.expand(self.runs, -1, -1), *self._a]
        per_output: list[list[Tensor]] = []
        for k in range(outputs):
            if outputs == 1:
                self._unit_signals()
                per_output.append(self._g)
            else:
                one = self.x.new_zeros(self.runs, samples, outputs)
                one[:, :, k] = 1
                self._backward(one)
                per_output.append([g.clone() for g in self._g])
        signals = [
            layer[0].unsqueeze(2) if outputs == 1 else torch.stack(layer, dim=2)
            for layer in zip(*per_output, strict=True)
        ]  # each (R, D, K, n)
        eye = self.scale * torch.eye(outputs, dtype=self.x.dtype, device=self.x.device)
        signals.append(eye.expand(self.runs, samples, outputs, outputs))
        return combine(inputs, signals, bias=[False] * len(inputs))

    def split_gram(self) -> SplitGram:
        """With one output the last layer's part of H is AAᵀ, up to a factor."""
        if self._layers()[-1].shape[2] > 1:
            return SplitGram(self.gram())
        self._unit_signals()
        samples = self.x.shape[0]
        dense: Tensor | None = None
        for a, g in zip([None, *self._a[:-1]], self._g, strict=True):
            # The inputs of the first layer are those of every run at every step.
            term = torch.bmm(g, g.mT).mul_(self._inner if a is None else torch.bmm(a, a.mT))
            dense = term if dense is None else dense.add_(term)
        assert dense is not None
        # G holds the factor of the outputs as its dtype has it: 10⁻⁷ of H, were it left in.
        rounded = float(torch.tensor(self.scale, dtype=self.x.dtype))
        dense.mul_((self.scale / rounded) ** 2 / samples)
        return SplitGram(dense, self._a[-1], self.scale**2 / samples)

    @cached_property
    def _inner(self) -> Tensor:
        return self.x @ self.x.T  # (D, D)

    def _unit_signals(self) -> None:
        if not self._signals_are_unit:
            self._backward(None)
            self._signals_are_unit = True

    def _backward(self, dz: Tensor | None) -> None:
        """Fill G_l for ∂L/∂z = dz, shape ``(R, D, K)``; of ones, with one output, where None."""
        *_, last = layers = self._layers()
        g = self._g[-1]
        if dz is None:
            row = (last * self.scale).mT  # (R, 1, n)
            self._chain_(row.expand_as(g), self._a[-1], g)
        else:
            torch.bmm(dz * self.scale, last.mT, out=g)
            self._chain_(g, self._a[-1], g)
        for i in range(len(self._g) - 2, -1, -1):
            below = self._g[i]
            torch.bmm(self._g[i + 1], layers[i + 1].mT, out=below)
            self._chain_(below, self._a[i], below)
        self._signals_are_unit = False

    def _activate(self, h: Tensor, out: Tensor) -> None:
        """out = σ(h), which may be h."""
        plus, minus = self.slopes
        if minus == 0:
            torch.clamp(h, min=0, out=out)
        elif minus != plus:
            torch.ops.aten.leaky_relu.out(h, minus / plus, out=out)
        elif h is not out:
            out.copy_(h)
        if plus != 1:
            out.mul_(plus)

    def _chain_(self, gradient: Tensor, a: Tensor, out: Tensor) -> None:
        """out = σ'(h) ∘ gradient, read off a = σ(h), whose sign is that of h."""
        plus, minus = self.slopes
        if minus == 0:
            torch.ops.aten.threshold_backward.grad_input(gradient, a, 0, grad_input=out)
        elif minus != plus:
            torch.ops.aten.leaky_relu_backward.grad_input(
                gradient, a, minus / plus, True, grad_input=out
            )
        elif gradient is not out:
            out.copy_(gradient)
        if plus != 1:
            out.mul_(plus)

    def weight_norm(self) -> Tensor:
        """|θ|², the part of U outside the span of the data included."""
        total = sum((norm_squared(w) for w in self._layers()), start=torch.zeros(()))
        if self.span is not None:
            total = total + self.outside * self.params[-1][:, 0].double().square()
        return total

    def outputs(self, x: Tensor) -> Tensor:
        """z on other inputs, shape ``(R, B)`` or ``(R, B, K)``."""
        h = self._first_of(x)
        for w in self._layers()[1:]:
            self._activate(h, out=h)
            h = h @ w
        z = h.mul_(self.scale)
        return z.squeeze(2) if z.shape[2] == 1 else z

    def _first_of(self, x: Tensor) -> Tensor:
        """Pre-activations of the first layer on other inputs, ``(R, B, n)``."""
        if self.span is None:
            return x @ self.params[0]
        h = (x @ self.span.basis) @ self.params[0]
        return h.add_(self._factor() * self._from_outside(x))

    def _factor(self) -> Tensor:
        """Of what the span leaves out, ``(R, 1, 1)``."""
        return self.params[-1].unsqueeze(2).to(self.x)

    def _from_outside(self, x: Tensor) -> Tensor:
        """x(U − QQᵀU) at the initial U of every run, shape ``(R, B, n)``."""
        assert self.span is not None
        return self._at_start(x - (x @ self.span.basis) @ self.span.basis.T)

    def _at_start(self, x: Tensor) -> Tensor:
        """xU at the initial U of every run, shape ``(R, B, n)``."""
        distinct = {id(m): x @ m.weights[0].detach().T.to(x) for m in self.initial}
        return torch.stack([distinct[id(m)] for m in self.initial])

    def subset(self, index: Sequence[int]) -> "MLPKernel":
        """The runs `index`, with buffers of their size."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        index = list(index)
        other.params = [p[index].contiguous() for p in self.params]
        other.initial = [self.initial[i] for i in index]
        if self.span is not None:
            other.outside = self.outside[index]
        other._allocate()
        return other

    def model_of(self, run: int) -> nn.Module:
        """The net on the data as they were, the span undone."""
        weights = [w[run].T.clone() for w in self._layers()]
        if self.span is not None:
            u = self.initial[run].weights[0].detach()
            rest = u - (u @ self.span.basis) @ self.span.basis.T
            inside = weights[0] @ self.span.basis.T
            weights[0] = inside + self._factor()[run] * rest
        return MLP(weights, self.slopes)

    def bytes_per_run(self) -> int:
        """Weights, activations, signals and the matrices of H."""
        dtype, samples = self.x.dtype, self.x.shape[0]
        outputs = self._layers()[-1].shape[2]
        weights = sum(nbytes(*w.shape[1:], dtype=dtype) for w in self._layers())
        buffers = sum(nbytes(samples, w.shape[2], dtype=dtype) for w in self._layers()[:-1])
        return (
            weights
            + (3 + outputs) * buffers
            + 4 * nbytes(samples * outputs, samples * outputs, dtype=dtype)
        )
