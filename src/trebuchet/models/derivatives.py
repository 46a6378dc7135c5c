"""One module's outputs, and their first and second derivatives, as maps that differentiate again.

With J = ∂f/∂θ and B = ∂²f/∂θ², both at θ₀, the Taylor model is

    z(δ) = f + J δ + ½ B(δ, δ).

Its derivatives of every order are made of two maps, linear in c and in v,

    push: J c + B(c, e),        pull: Jᵀ v + B_v e, where B_v = Σ_a v_a ∂²f_a/∂θ²;

each is the other's adjoint. By e the derivative of both is a pull without Jᵀ, of v along c. So f is
never differentiated more than twice, and nothing larger than its gradient is formed. Reverse over
reverse throughout: Jᵀu is recorded as a function of u and differentiated by it. (Nested forward
derivatives of normalisation layers are wrong in torch 2.13.)
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.overrides import TorchFunctionMode

from trebuchet._checks import one_line, shown
from trebuchet._differentiable import differentiable_kernels, operations
from trebuchet._torch_checks import out_of_memory
from trebuchet.errors import InputError

Parts = Sequence[Tensor | None]


class Derivatives:
    """f at one point and one input, recorded.

    Args:
        net: The module.
        leaves: Its parameters that are moved, with gradients.
        degree: 1 or 2; B is zero for 1.
        evaluate: The forward pass.

    Attributes:
        outputs: f, with its graph.

    Raises:
        InputError: If what the module returns is not one real tensor, or has no derivatives.
    """

    def __init__(
        self, net: nn.Module, leaves: Sequence[Tensor], degree: int, evaluate: Callable[[], Any]
    ) -> None:
        self.net, self.leaves, self.degree = net, list(leaves), degree
        with _recorded(net):
            f = evaluate()
        if not isinstance(f, Tensor) or not f.is_floating_point():
            what = f.dtype if isinstance(f, Tensor) else shown(f)
            msg = (
                f"module: expected one tensor of real numbers as its output, got {what}; wrap it "
                "in a module that returns the tensor that matters"
            )
            raise InputError(msg)
        self.outputs = f
        if not f.requires_grad:
            return
        _check_graph(f)
        with self._differentiating():
            self._u = torch.zeros_like(f, requires_grad=True)
            self._jacobian = self._gradient(f, self._u)

    def value(self, delta: Parts) -> Tensor:
        """Return z(δ), without a graph."""
        with self._differentiating():
            z = self.outputs.detach() + _transposed(self._jacobian, self._u, delta)
            return z if self.degree == 1 else z + self._curved(delta, delta) / 2

    def push(self, c: Parts, e: Parts, linear: bool) -> Tensor:
        """Return J c + B(c, e), or B(c, e) alone where not `linear`."""
        with self._differentiating():
            z = torch.zeros_like(self.outputs)
            if linear:
                z += _transposed(self._jacobian, self._u, c)
            return z if self.degree == 1 else z + self._curved(c, e)

    def pull(self, v: Tensor, e: Parts, linear: bool) -> list[Tensor]:
        """Return Jᵀ v + B_v e, or B_v e alone where not `linear`, one tensor a parameter."""
        with self._differentiating():
            first = self._gradient(self.outputs, v, graph=self.degree > 1)
            parts = [first] if linear else []
            if self.degree > 1:
                parts.append(self._bent(first, e, graph=False))
            return [
                sum((g.detach() for g in each if g is not None), torch.zeros_like(p))
                for p, *each in zip(self.leaves, *parts, strict=True)
            ]

    def _curved(self, c: Parts, e: Parts) -> Tensor:
        """B(c, e): B_u e, recorded as a function of u, transposed."""
        # By the weights first, and by u at the end. The other way round, J e differentiated by the
        # weights, is wrong for layer and batch norm in torch 2.13: their second derivative takes
        # the saved mean and variance for constants.
        return _transposed(self._bent(self._jacobian, e, graph=True), self._u, c)

    def _bent(self, first: Parts, e: Parts, *, graph: bool) -> Parts:
        """B_v e, from Jᵀ v with its graph in θ₀."""
        pairs = _pairs(first, e)
        if not pairs:
            return [None] * len(self.leaves)
        return torch.autograd.grad(
            [g for g, _ in pairs], self.leaves, [t for _, t in pairs], create_graph=graph,
            retain_graph=True, allow_unused=True,
        )  # fmt: skip

    def _gradient(self, z: Tensor, v: Tensor, *, graph: bool = True) -> Parts:
        return torch.autograd.grad(
            z, self.leaves, v, create_graph=graph, retain_graph=True, allow_unused=True
        )

    @contextlib.contextmanager
    def _differentiating(self) -> Iterator[None]:
        try:
            # As a backward pass is taken: outside of autocast.
            with _recorded(self.net), torch.autocast(self.outputs.device.type, enabled=False):
                yield
        except (RuntimeError, NotImplementedError) as error:
            if isinstance(error, InputError) or out_of_memory(error):
                raise
            msg = (
                f"module: cannot be expanded to degree {self.degree}, since a derivative is "
                f"missing ({one_line(error)}); replace the layer"
            )
            raise InputError(msg) from error


def _pairs(recorded: Parts, c: Parts) -> list[tuple[Tensor, Tensor]]:
    return [
        (g, t) for g, t in zip(recorded, c, strict=True)
        if g is not None and t is not None and g.requires_grad
    ]  # fmt: skip


def _transposed(recorded: Parts, by: Tensor, c: Parts) -> Tensor:
    """The transpose of a recorded linear map of `by`, times c."""
    pairs = _pairs(recorded, c)
    if not pairs:
        return torch.zeros_like(by)
    (out,) = torch.autograd.grad(
        [g for g, _ in pairs], by, [t for _, t in pairs], retain_graph=True, materialize_grads=True
    )
    return out.detach()


def _apply(kind: type[torch.autograd.Function], *args: Any) -> Any:
    return kind.apply(*args)  # type: ignore[no-untyped-call]  # torch's


class Value(torch.autograd.Function):
    """δ ↦ z(δ)."""

    @staticmethod
    def forward(ctx: Any, at: Derivatives, *delta: Tensor) -> Tensor:
        """Return z."""
        ctx.at = at
        ctx.save_for_backward(*delta)
        return at.value(delta)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Any:
        """Jᵀ v + B_v δ."""
        return None, *_apply(_Pull, ctx.at, True, v, *ctx.saved_tensors)


class _Pull(torch.autograd.Function):
    """(v, e) ↦ Jᵀ v + B_v e."""

    @staticmethod
    def forward(ctx: Any, at: Derivatives, linear: bool, v: Tensor, *e: Tensor) -> Any:
        ctx.at, ctx.linear = at, linear
        ctx.save_for_backward(v, *e)
        return tuple(at.pull(v, e, linear))

    @staticmethod
    def backward(ctx: Any, *c: Tensor) -> Any:
        v, *e = ctx.saved_tensors
        by_v = _apply(_Push, ctx.at, ctx.linear, *c, *e) if ctx.needs_input_grad[2] else None
        return None, None, by_v, *_by_e(ctx, 3, v, c)


class _Push(torch.autograd.Function):
    """(c, e) ↦ J c + B(c, e)."""

    @staticmethod
    def forward(ctx: Any, at: Derivatives, linear: bool, *both: Tensor) -> Tensor:
        ctx.at, ctx.linear, ctx.n = at, linear, len(both) // 2
        ctx.save_for_backward(*both)
        return at.push(both[: ctx.n], both[ctx.n :], linear)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Any:
        c, e = ctx.saved_tensors[: ctx.n], ctx.saved_tensors[ctx.n :]
        return None, None, *_apply(_Pull, ctx.at, ctx.linear, v, *e), *_by_e(ctx, 2 + ctx.n, v, c)


def _by_e(ctx: Any, start: int, v: Tensor, c: Sequence[Tensor]) -> Any:
    """B_v c for each e that wants it."""
    if ctx.at.degree == 1 or not any(ctx.needs_input_grad[start:]):
        return (None,) * len(c)
    return _apply(_Pull, ctx.at, False, v, *c)


_OURS = {f"{kind.__name__}Backward" for kind in (Value, _Pull, _Push)}
_WRONG = "WeightNormInterfaceBackward0"


def _check_graph(f: Tensor) -> None:
    """Refuse operations whose second derivative cannot be known to be right."""
    for node in operations(f):
        name = node.name()
        if name == _WRONG or (isinstance(node, BackwardCFunction) and name not in _OURS):
            msg = (
                f"module: uses {name.removesuffix('Backward')}, an autograd function whose own "
                "backward pass cannot be known to differentiate right, so it cannot be expanded; "
                "write it with plain operations"
            )
            raise InputError(msg)


class _PlainWeightNorm(TorchFunctionMode):
    """w = g v/‖v‖ by plain operations: the fused one's double backward is wrong in torch 2.13."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch._weight_norm:
            return _weight_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    others = [i for i in range(v.ndim) if dim == -1 or i != dim % v.ndim]
    return v * (g / v.square().sum(others, keepdim=True).sqrt())


@contextlib.contextmanager
def _recorded(net: nn.Module) -> Iterator[None]:
    """With a graph whatever the caller has set, and operations that have second derivatives.

    In backward passes too, in which checkpointing evaluates parts of the module again.
    """
    with (
        torch.inference_mode(mode=False), torch.enable_grad(), differentiable_kernels(net),
        _PlainWeightNorm(),
    ):  # fmt: skip
        yield
