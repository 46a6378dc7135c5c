"""J v, the outputs' derivative along v: four routes to it, and how they are chosen.

Jᵀ u is a backward pass and always there. J v is not, and these are tried in turn:

1. *reverse over reverse*: Jᵀ u is recorded as a function of u and differentiated by it. Needs a
   second derivative of every operation, though only by its incoming gradient.
2. *forward mode*: one level of dual numbers. (Nested levels are wrong in torch 2.13 for batch and
   layer norm; one is not.)
3. *rows*: J whole, by a backward pass an output, where it is small.
4. *differences*: (z(θ + h v) − z(θ − h v)) / 2h in float64.

On a CPU, nets with convolutions take the second before the first.

Whatever the route, ⟨u, J v⟩ = ⟨Jᵀ u, v⟩ must hold; it is tried on random u and v wherever the
operations are not torch's own or the route is not the first.
"""

import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch
import torch.autograd.forward_ad as fwd
from torch import Tensor

from trebuchet._differentiable import operations
from trebuchet._swapped import swapped
from trebuchet.curvature.basis import normal
from trebuchet.curvature.explain import NoDerivativeError, missing
from trebuchet.curvature.twin import Twin
from trebuchet.errors import InputError

if TYPE_CHECKING:
    from trebuchet.curvature.linearised import Linearised

ROWS_BYTES = 1 << 28
"""J is formed whole up to 256 MB a micro-batch."""
DIFFERENCE = 1e-6
"""h as a fraction of ‖θ‖."""

Parts = Sequence[Tensor | None]


class Push(Protocol):
    """One route to J v; `name` says which and `exact` to how many units of rounding."""

    name: str
    tolerance: float

    def __init__(self, at: "Linearised") -> None: ...

    def __call__(self, v: Parts) -> Tensor:
        """Return J v, flat, length D·K."""
        ...


class Reverse:
    """Reverse over reverse: one graph, recorded once, serves every product."""

    name, tolerance = "", 0.0

    def __init__(self, at: "Linearised") -> None:
        self.seed = torch.zeros_like(at.outputs, requires_grad=True)
        self.recorded: Parts = torch.autograd.grad(
            at.outputs, at.evaluation.leaves, self.seed, create_graph=True, allow_unused=True
        )

    def __call__(self, v: Parts) -> Tensor:
        """Return J v, flat, length D·K."""
        pairs = [
            (g, t)
            for g, t in zip(self.recorded, v, strict=True)
            if g is not None and t is not None and g.requires_grad
        ]
        if not pairs:
            return torch.zeros_like(self.seed).reshape(-1)
        (out,) = torch.autograd.grad(
            [g for g, _ in pairs], self.seed, [t for _, t in pairs], retain_graph=True,
            materialize_grads=True,
        )  # fmt: skip
        return out.reshape(-1)


class Forward:
    """One level of forward mode: a forward pass a product."""

    name, tolerance = "forward mode", 0.0

    def __init__(self, at: "Linearised") -> None:
        self.at = at

    def __call__(self, v: Parts) -> Tensor:
        """Return J v, flat, length D·K."""
        evaluation, batch = self.at.evaluation, self.at.batch
        with fwd.dual_level(), warnings.catch_warnings():
            # torch's own, of formulas that it compiles when the first dual number is made
            warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
            duals = [
                fwd.make_dual(p.detach(), torch.zeros_like(p) if t is None else t.to(p.dtype))  # type: ignore[no-untyped-call]  # torch's
                for p, t in zip(evaluation.leaves, v, strict=True)
            ]
            placed = {id(p): d for p, d in zip(evaluation.leaves, duals, strict=True)}
            with swapped(evaluation.modules, placed):
                z = evaluation.outputs(batch)
            tangent = fwd.unpack_dual(z).tangent  # type: ignore[no-untyped-call]  # torch's
        return (torch.zeros_like(z) if tangent is None else tangent).detach().reshape(-1)


class Rows:
    """J whole, a backward pass an output, where that is small enough."""

    name, tolerance = "the Jacobian, row by row", 0.0

    def __init__(self, at: "Linearised") -> None:
        evaluation = at.evaluation
        each = at.size * evaluation.n_parameters * at.outputs.element_size()
        if each * len(evaluation.batches) > ROWS_BYTES:
            msg = "model: its Jacobian is too large to be formed whole"
            raise NoDerivativeError(msg)
        eye = torch.eye(at.size, dtype=at.outputs.dtype, device=at.outputs.device)
        zero = at.outputs.new_zeros(evaluation.n_parameters)
        rows = [evaluation.add_flat(zero.clone(), at.vjp(e)) for e in eye]
        self.jacobian, self.shapes = torch.stack(rows), [p.numel() for p in evaluation.leaves]

    def __call__(self, v: Parts) -> Tensor:
        """Return J v, flat, length D·K."""
        j = self.jacobian
        flat = torch.cat([
            j.new_zeros(n) if t is None else t.reshape(-1).to(j.dtype)
            for n, t in zip(self.shapes, v, strict=True)
        ])  # fmt: skip
        return j @ flat


class Differences:
    """A central difference of the outputs in float64: two forward passes a product."""

    name, tolerance = "finite differences in float64", 1e-6

    def __init__(self, at: "Linearised") -> None:
        self.at, self.twin = at, Twin(at.evaluation)

    def __call__(self, v: Parts) -> Tensor:
        """Return J v, flat, length D·K."""
        leaves = self.at.evaluation.leaves
        parts = [torch.zeros_like(p) if t is None else t for p, t in zip(leaves, v, strict=True)]
        norm = math.sqrt(sum(float(t.double().square().sum()) for t in parts))
        if norm == 0.0:
            return self.at.outputs.new_zeros(self.at.size)
        h = DIFFERENCE * self.twin.reach / norm
        with torch.no_grad():
            ends = [
                self.twin.outputs(self.at.batch, self.twin.leaves(parts, step)) for step in (h, -h)
            ]
        out = (ends[0] - ends[1]) / (2 * h)
        return out.reshape(-1).to(self.at.outputs.dtype)


ROUTES: tuple[type[Push], ...] = (Reverse, Forward, Rows, Differences)

CONVOLUTIONS: tuple[type[Push], ...] = (Forward, Reverse, Rows, Differences)
"""On a CPU, where the second derivatives of convolutions and batch norms take twice as long."""


def pushed(at: "Linearised", v: Parts) -> Tensor:
    """Return J v by the first route that exists and is right, and remember which that is.

    Args:
        at: The linearisation; `at.push` keeps the route.
        v: A tensor, or None for zero, a parameter.

    Returns:
        Flat, length D·K.

    Raises:
        InputError: If there is no route.
    """
    evaluation = at.evaluation
    if at.push is not None:
        return at.push(v)
    doubted = evaluation.doubted or []
    routes = CONVOLUTIONS if _convolves(at) else ROUTES
    while evaluation.route < len(routes):
        kind = routes[evaluation.route]
        try:
            push = kind(at)
            out = push(v)
            wrong = (doubted or kind is not Reverse) and not _is_adjoint(at, push)
            why = f"the second derivative of {', '.join(doubted)} is wrong" if wrong else ""
        except (RuntimeError, NotImplementedError) as error:
            why = f"{missing(error, evaluation.model)} has no second derivative"
        except InputError as error:
            why = str(error)
        if not why:
            at.push = push
            evaluation.inexact = evaluation.inexact or push.tolerance > 0
            if kind.name and evaluation.why_not:
                remark = f"products with the Jacobian are by {kind.name}: {evaluation.why_not}"
                if remark not in evaluation.remarks:
                    evaluation.remarks.append(remark)
            return out
        if routes is ROUTES or evaluation.route > 0:  # else the second choice is as good
            evaluation.why_not = evaluation.why_not or why
        evaluation.route += 1
    msg = (
        f"model: there is no way to take the product with its Jacobian ({evaluation.why_not}); "
        "give fewer samples, so that the Jacobian can be formed whole, or run it in float64"
    )
    raise InputError(msg)


def _convolves(at: "Linearised") -> bool:
    cpu = at.outputs.device.type == "cpu"
    return cpu and any(node.name().startswith("Convolution") for node in operations(at.outputs))


def _is_adjoint(at: "Linearised", push: Push) -> bool:
    """Try ⟨u, J v⟩ = ⟨Jᵀ u, v⟩ on random vectors, to rounding."""
    generator = torch.Generator("cpu").manual_seed(0)
    u = normal((at.size,), at.outputs, generator=generator)
    v = [normal(p.shape, p, generator=generator) for p in at.evaluation.leaves]
    jv, back = push(v), at.vjp(u)
    ours = float(torch.dot(u.double(), jv.double()))
    pairs = [(g.double(), t.double()) for g, t in zip(back, v, strict=True) if g is not None]
    theirs = sum(float((g * t).sum()) for g, t in pairs)
    size = float(u.double().norm() * jv.double().norm())
    size += math.sqrt(sum(float(g.square().sum()) for g, _ in pairs) * sum(t.numel() for t in v))
    eps = float(torch.finfo(jv.dtype).eps)
    return abs(ours - theirs) <= max(1e2 * eps, push.tolerance) * size
