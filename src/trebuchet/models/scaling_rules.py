"""What each operation does to the degree of what it gets: a degree is linear in unknown weights α.

A tensor has degree d if it is multiplied with cᵈ whenever every parameter i is multiplied with
c^{α_i}, c > 0. Inputs, buffers and frozen parameters have none (None): they stay.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

Form = Mapping[str, int]
"""A degree: Σ count · α of the named parameters. None is a constant, which does not scale."""


class NotFollowedError(Exception):
    """An operation is not homogeneous, or nobody knows whether it is."""


@dataclass(slots=True)
class Equations:
    """Forms that must be zero for the net to scale, and parameters that are only ever added."""

    zero: list[Form] = field(default_factory=list)
    biases: set[str] = field(default_factory=set)
    factors: set[str] = field(default_factory=set)

    def same(self, values: Sequence[Form | None]) -> Form | None:
        """The degree of a sum, whose terms must all have it."""
        forms = [v for v in values if v is not None]
        if not forms:
            return None
        for form in forms:
            self.biases |= _alone(form)
        if len(forms) < len(values):
            forms.insert(0, {})  # a constant term has degree 0
        # A bias takes the degree of what it is added to, not the other way round.
        forms.sort(key=lambda form: bool(_alone(form)))
        for other in forms[1:]:
            self.zero.append(total(forms[0], other, signs=(1, -1)))
        return forms[0]

    def product(self, *values: Form | None) -> Form | None:
        """The degree of a product: the sum of those of its factors."""
        forms = [v for v in values if v is not None]
        for form in forms:
            self.factors |= _alone(form)
        return total(*forms) if forms else None

    def affine(self, x: Form | None, weight: Form | None, *bias: Form | None) -> Form | None:
        """The degree of x · weight + bias."""
        return self.same([self.product(x, weight), *bias])


def total(*forms: Form, signs: Sequence[int] | None = None) -> Form:
    """The sum of forms."""
    found: dict[str, int] = {}
    for form, sign in zip(forms, signs or [1] * len(forms), strict=True):
        for name, count in form.items():
            found[name] = found.get(name, 0) + sign * count
    return {name: count for name, count in found.items() if count}


def _alone(form: Form) -> set[str]:
    """The parameter that a form is, if it is one by itself."""
    return set(form) if len(form) == 1 and set(form.values()) == {1} else set()


Rule = Callable[[Equations, Sequence[Any], Mapping[str, Any]], Form | None]
"""From equations to add to, and arguments in which degrees stand for tensors, to the degree."""


@dataclass(frozen=True, slots=True)
class Value:
    """A degree among the arguments of an operation, which may be numbers and text too."""

    degree: Form | None


def _degree(value: Any) -> Form | None:
    return value.degree if isinstance(value, Value) else None


def _is_zero(value: Any) -> bool:
    return not isinstance(value, Value) and value is not None and value == 0


def _keeps(_: Equations, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Form | None:
    """Linear, or positively homogeneous of degree 1, in its first argument, with no other."""
    if any(_degree(v) is not None for v in [*args[1:], *kwargs.values()]):
        raise NotFollowedError("more than its first argument depends on parameters")
    return _degree(args[0])


def _sum(eq: Equations, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Form | None:
    del kwargs
    return eq.same([_degree(v) for v in args[:2] if not _is_zero(v)])


def _added(eq: Equations, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Form | None:
    """In place: other names of a constant would keep no degree."""
    if _degree(args[0]) is None and isinstance(args[0], Value):
        raise NotFollowedError("it adds what depends on parameters to a constant, in place")
    return _sum(eq, args, kwargs)


def _joined(eq: Equations, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Form | None:
    del kwargs
    return eq.same([_degree(v) for v in args[0]])


def _chosen(eq: Equations, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Form | None:
    del kwargs
    if len(args) != 3 or _degree(args[0]) is not None:
        raise NotFollowedError("its condition depends on parameters")
    return eq.same([_degree(v) for v in args[1:] if not _is_zero(v)])


def _product(eq: Equations, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Form | None:
    del kwargs
    return eq.product(*(_degree(v) for v in args))


def _scaled(eq: Equations, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Form | None:
    """In place: only by a constant, since other names of the tensor keep their degree."""
    del eq, kwargs
    if _degree(args[1]) is not None:
        raise NotFollowedError("it multiplies in place with something that depends on parameters")
    return _degree(args[0])


def _quotient(eq: Equations, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Form | None:
    if kwargs.get("rounding_mode") is not None:
        raise NotFollowedError("it rounds")
    if _degree(args[1]) is not None:
        raise NotFollowedError("its divisor depends on parameters")
    return _scaled(eq, args, kwargs)


def _sign(eq: Equations, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Form | None:
    """A comparison with zero: it does not change as its other side scales."""
    del eq, kwargs
    if not any(_is_zero(v) for v in args):
        raise NotFollowedError("it compares with something else than the number 0")
    return None


def _affine(eq: Equations, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Form | None:
    del kwargs
    x, weight, bias = [*args, None][:3]
    return eq.affine(_degree(x), _degree(weight), *([] if bias is None else [_degree(bias)]))


def _clamped(eq: Equations, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Form | None:
    del eq
    bounds = [*args[1:], *kwargs.values()]
    if not all(b is None or _is_zero(b) for b in bounds):
        raise NotFollowedError("it is bounded by something else than 0")
    return _degree(args[0])


def _padded(eq: Equations, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Form | None:
    mode = kwargs.get("mode", args[2] if len(args) > 2 else "constant")
    value = kwargs.get("value", args[3] if len(args) > 3 else 0)
    if mode == "constant" and value:
        raise NotFollowedError("it pads with something else than 0")
    return _keeps(eq, args[:1], {})


def _dropped(eq: Equations, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Form | None:
    p = kwargs.get("p", args[1] if len(args) > 1 else 0.5)
    training = kwargs.get("training", args[2] if len(args) > 2 else True)
    if p and training:
        raise NotFollowedError("it is random")
    return _keeps(eq, args[:1], {})


def _einsum(eq: Equations, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Form | None:
    del kwargs
    operands = args[1] if len(args) == 2 and isinstance(args[1], (list, tuple)) else args[1:]
    return eq.product(*(_degree(v) for v in operands))


def _kinked(eq: Equations, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Form | None:
    """PReLU: homogeneous in its input at a fixed slope, whose own α is therefore 0."""
    del kwargs
    slope = _degree(args[1])
    if slope is not None:
        eq.zero.append(slope)
    return _degree(args[0])


def _looked_up(eq: Equations, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Form | None:
    if len(args) > 2 or any(v is not None and v is not False for v in kwargs.values()):
        raise NotFollowedError("its rows are not all looked up and trained alike")
    return eq.product(_degree(args[1]))


def _constant(eq: Equations, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Form | None:
    del eq, args, kwargs
    return None


def _table(*groups: tuple[Rule, str]) -> dict[str, Rule]:
    return {name: rule for rule, names in groups for name in names.split()}


NAMED: Mapping[str, Rule] = _table(
    (_keeps, "relu relu_ leaky_relu leaky_relu_ abs flatten reshape view permute transpose t T mT "
     "squeeze unsqueeze contiguous clone mean sum neg getitem chunk split unbind expand repeat "
     "expand_as view_as roll flip cumsum amax amin movedim swapaxes unflatten narrow select "
     "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d "
     "adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d "
     "adaptive_max_pool3d boolean_dispatch _adaptive_max_pool1d pixel_shuffle repeat_interleave"),
    (_sum, "add sub maximum minimum radd rsub"),
    (_added, "iadd isub add_ sub_"),
    (_joined, "cat stack concat hstack vstack"),
    (_chosen, "where"),
    (_product, "mul matmul mm bmm mv dot outer"),
    (_scaled, "imul mul_ itruediv div_"),
    (_quotient, "truediv div"),
    (_sign, "gt lt ge le"),
    (_affine, "linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d"),
    (_clamped, "clamp clamp_min clamp_ clamp_min_"),
    (_padded, "pad"),
    (_dropped, "dropout dropout1d dropout2d dropout3d"),
    (_einsum, "einsum"),
    (_kinked, "prelu"),
    (_looked_up, "embedding"),
    (_constant, "size dim numel shape ndim device dtype _assert _assert_is_none"),
)  # fmt: skip
"""Functions of torch, methods of tensors and operators, by name: torch has one for all three."""

_PLAIN = (
    nn.ReLU, nn.LeakyReLU, nn.Flatten, nn.Unflatten, nn.Identity, nn.PixelShuffle,
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool1d,
    nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d, nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d,
    nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d, nn.ReplicationPad1d,
    nn.ReplicationPad2d, nn.ReplicationPad3d, nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d,
)  # fmt: skip
_AFFINE = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)  # fmt: skip
_DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)

LEAVES = frozenset({*_PLAIN, *_AFFINE, *_DROPOUT, nn.PReLU, nn.Embedding})
"""Modules that are not looked into; of these very classes, since a subclass may do anything."""


def of_module(
    module: nn.Module, x: Sequence[Any], own: Mapping[str, Form | None], eq: Equations
) -> Form | None:
    """The degree of what a leaf returns.

    Args:
        module: The leaf.
        x: Its arguments.
        own: Degrees of its parameters, by their names in it.
        eq: Added to.

    Returns:
        The degree.

    Raises:
        NotFollowedError: If it is not homogeneous, or unknown.
    """
    kind = type(module)
    if kind in _PLAIN:
        return _keeps(eq, x, {})
    if kind in _AFFINE and len(x) == 1:
        return eq.affine(_degree(x[0]), own["weight"], *([own["bias"]] if "bias" in own else []))
    if isinstance(module, _DROPOUT) and kind in _DROPOUT:
        if module.p and module.training:
            raise NotFollowedError("it is random")
        return _keeps(eq, x, {})
    if kind is nn.PReLU:
        return _kinked(eq, [*x, Value(own["weight"])], {})
    if isinstance(module, nn.Embedding) and kind is nn.Embedding:
        if module.max_norm is not None or module.scale_grad_by_freq or module.sparse:
            raise NotFollowedError("max_norm, scale_grad_by_freq or sparse is set")
        row = module.padding_idx
        if row is not None and bool(module.weight.detach()[row].any()):
            raise NotFollowedError("its padding row is not zero, and is not trained")
        return eq.product(own["weight"])
    raise NotFollowedError("it is not known to be homogeneous")


def of_call(target: Any, args: Sequence[Any], kwargs: Mapping[str, Any], eq: Equations) -> Any:
    """The degree of what a function, an operator or a method returns.

    Args:
        target: The function, or the method's name.
        args: Its arguments, `Value` s for tensors.
        kwargs: Those by name.
        eq: Added to.

    Returns:
        The degree.

    Raises:
        NotFollowedError: If it is not homogeneous, or unknown.
    """
    name = target if isinstance(target, str) else getattr(target, "__name__", str(target))
    if target is getattr:
        name = str(args[1])
        args = args[:1]
    if name in ("size", "dim", "numel", "shape", "ndim", "device", "dtype"):
        return None
    values = [
        v for a in (*args, *kwargs.values()) for v in (a if isinstance(a, (list, tuple)) else [a])
    ]
    if all(_degree(v) is None for v in values):
        return None  # a function of inputs alone
    args = [*args, *(kwargs[n] for n in _IN_PLACES if n in kwargs)]
    kwargs = {n: v for n, v in kwargs.items() if n not in _IN_PLACES}
    if any(_degree(v) is not None for v in kwargs.values()):
        raise NotFollowedError("what it is given by name depends on parameters")
    if target is operator.pow or target in (torch.square, "square"):
        power = 2 if name == "square" else args[1]
        if not isinstance(power, int) or power < 1:
            raise NotFollowedError("its power is no positive whole number")
        return eq.product(*[_degree(args[0])] * power)
    if kwargs.get("dtype") is not None:
        raise NotFollowedError("it changes the dtype")
    rule = NAMED.get(name)
    ours = isinstance(target, str) or getattr(target, "__module__", None) in _TORCH
    if rule is None or not ours:
        raise NotFollowedError("it is not known to be homogeneous")
    try:
        return rule(eq, args, kwargs)
    except (IndexError, ValueError) as error:
        raise NotFollowedError("its arguments are not understood") from error


_IN_PLACES = (
    "condition", "tensors", "input", "other", "mat2", "vec", "vec2", "weight", "bias"
)  # fmt: skip
"""Arguments that may come by name and have a degree, in the order in which every function has them;
those before them then come by name too, or are in their places."""

_TORCH = frozenset(
    {None, "_operator", "builtins", "torch", "torch._C._nn", "torch.functional",
     "torch.nn.functional", "torch._jit_internal", "torch._VariableFunctions"}
)  # fmt: skip
