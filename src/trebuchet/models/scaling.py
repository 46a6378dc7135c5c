"""How a net scales with its parameters: the degrees that the weight-norm law needs.

Multiply the weights of layer l of a ReLU net by c and its biases by cˡ, and the output of k layers
is multiplied by cᵏ. Such a symmetry is found here for any net made of operations that scale.
"""

import copy
import inspect
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from threading import RLock, get_ident
from typing import Any, NoReturn

import numpy as np
import torch
from torch import fx, nn

from trebuchet._checks import one_line, positive
from trebuchet._doors import door
from trebuchet._torch_checks import module as a_module
from trebuchet.errors import InputError, NotApplicableError
from trebuchet.models.scaling_rules import (
    LEAVES,
    Equations,
    Form,
    NotFollowedError,
    Value,
    of_call,
    of_module,
)

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_NONE = "has no scaling law that could be found"
_LESS = 100.0
"""What lowering an α below 1 costs, raising it by one being 1: weights count once if they can."""


@dataclass(frozen=True, slots=True)
class Scaling:
    """z(c^{α_1}θ_1, c^{α_2}θ_2, …) = cᵏ z(θ) for every c > 0.

    Attributes:
        degree: k.
        weights: α of each trained parameter, by name; 0 of one that is held fixed in this scaling.
    """

    degree: float
    weights: Mapping[str, float]

    @property
    def uniform(self) -> bool:
        """Whether every α is 1, so that W = Σ α_i|θ_i|² is |θ|²."""
        return set(self.weights.values()) <= {1}

    def __str__(self) -> str:
        """The α that are not 1."""
        others = [f"{name} {alpha:g}" for name, alpha in self.weights.items() if alpha != 1]
        return ", ".join(others) or "all 1"


@door(module=a_module)
def scaling(module: nn.Module) -> Scaling:
    """Find how a net's output scales with its parameters: k, and an α for each of them.

    Found for nets of ``Linear``, convolution and ``Embedding`` layers with or without biases, ReLU,
    leaky ReLU and PReLU, average and max pooling, flattening, sums of equal degree, and their
    functional forms, traced by ``torch.fx``. With W = Σ α_i|θ_i|² and H_α = (1/D) Σ α_i J_iJ_iᵀ the
    weight-norm law holds for gradient descent as it does for a homogeneous net:

    W' − W = (η/D)[εᵀ(ηH_α − 2k)ε − 2k Σ_a ε_a y_a].

    Where a net has several such symmetries (each layer of a net without biases has its own), the
    one with α = 1 for as many weights as possible is taken; α is never negative. Weights inside an
    identity skip have α = 0: no scaling of them alone makes the branch and the skip agree. A frozen
    parameter is a constant. A module may state its own: its class has an attribute or a property
    ``degree``, k, with every α 1 but those in ``weight_degrees`` by name; or ``degree = None`` for
    none.

    Args:
        module: The net, in the mode that it is trained in.

    Returns:
        k and every α.

    Raises:
        InputError: If it is no module, or has no trained parameter.
        NotApplicableError: If the net does not scale, or it cannot be told whether it does.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 1))
        >>> scaling(net)
        Scaling(degree=2, weights={'0.weight': 1, '0.bias': 1, '2.weight': 1, '2.bias': 2})

    References:
        Meltzer & Liu, arXiv 2301.07737, for nets without biases; Lyu & Li, arXiv 1906.05890,
        for homogeneous nets; Kunin et al., arXiv 2210.03820, for quasi-homogeneous ones.
    """
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if not trained:
        raise InputError("module: expected one with a trained parameter, got none; unfreeze one")
    # Of the class: a polynomial's or a spline's own number says nothing of its weights.
    if hasattr(type(module), "degree"):
        return _stated(module, trained)
    for name, part in module.named_modules():
        if any(getattr(part, kind, None) for kind in _HOOKS) or "forward" in vars(part):
            _refuse(f"{_called(name, part)} has hooks, or a forward of its own, that are not seen")
    eq = Equations()
    output = _follow(module, eq)
    if output is None:
        _refuse("its output depends on no trained parameter")
    alphas = _solved(eq, output, list(trained))
    degree = _value(output, alphas)
    if degree == 0:
        _refuse("no scaling of its parameters scales its output: sums of different degree cancel")
    return Scaling(_plain(degree), {name: _plain(alpha) for name, alpha in alphas.items()})


def scaling_of(model: nn.Module) -> Scaling | str:
    """A model's scaling, or why it has none.

    Args:
        model: The module.

    Returns:
        The scaling, or a reason.
    """
    try:
        return scaling(model)
    except (NotApplicableError, InputError) as error:
        return str(error).removeprefix("module: ").removeprefix(f"{_NONE}: ")


def _stated(module: nn.Module, trained: Mapping[str, nn.Parameter]) -> Scaling:
    degree: Any = module.degree
    if degree is None:
        _refuse("it says so: its degree is None")
    if isinstance(degree, bool) or not isinstance(degree, int):
        _refuse(f"its attribute degree is {degree!r}, not a whole number")
    others: Any = getattr(module, "weight_degrees", {})
    if not isinstance(others, Mapping) or not set(others) <= set(trained):
        msg = (
            "module: expected weight_degrees to give numbers by the names of trained parameters, "
            f"got {others!r}"
        )
        raise InputError(msg)
    positive("module.degree", degree)
    return Scaling(degree, {name: others.get(name, 1) for name in trained})


def _refuse(reason: str) -> NoReturn:
    raise NotApplicableError(f"module: {_NONE}: {reason}")


def _called(name: str, module: nn.Module) -> str:
    return f"{name or 'the module'} ({type(module).__name__})"


_ALONE = RLock()
"""torch.fx puts functions of its own in the place of torch's while it follows a module, for all
threads: two that overlapped would not put everything back."""


class _Tracer(fx.Tracer):
    """Looks into every module that is not in the table, and sees what runs without gradients.

    Modules that other threads call meanwhile are none of its business.
    """

    def __init__(self) -> None:
        super().__init__()
        self._thread = get_ident()

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        inside = m.__module__.startswith("torch.nn") and not isinstance(
            m, (nn.Sequential, nn.ModuleList, nn.ModuleDict)
        )
        del module_qualified_name
        return inside or type(m) in LEAVES

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if not torch.is_grad_enabled():
            raise NotFollowedError("part of it runs without gradients")
        if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
            raise NotFollowedError("part of it runs in autocast")
        return super().create_node(*args, **kwargs)


def _follow(module: nn.Module, eq: Equations) -> Form | None:
    """The degree of a module's output, with the equations under which it has one."""
    named = dict(module.named_parameters(remove_duplicate=False))
    names = {id(p): name for name, p in module.named_parameters() if p.requires_grad}
    try:
        # What forward leaves behind in the module is left in a copy, which shares every tensor.
        shared = {id(t): t for t in [*named.values(), *module.buffers()]}
        twin = copy.deepcopy(module, memo=dict(shared))
        signature = inspect.signature(twin.forward).parameters
        optional = {n: p.default for n, p in signature.items() if p.default is not p.empty}
        with _ALONE, torch.enable_grad():
            graph = _Tracer().trace(twin, concrete_args=optional or None)
    except Exception as error:  # forward, called with symbols, may raise anything
        reason = one_line(error)
        _refuse(f"torch.fx cannot follow {_called('', module)} ({reason})")
    known: dict[fx.Node, Form | None] = {}
    degrees: Any = fx.map_arg  # which would have nodes become other nodes
    parts = dict(twin.named_modules())

    def degree_of(tensor: object) -> Form | None:
        name = names.get(id(tensor))
        return None if name is None else {name: 1}

    for node in graph.nodes:
        given = degrees(node.args, lambda n: Value(known[n]))
        by_name = degrees(node.kwargs, lambda n: Value(known[n]))
        try:
            if node.op == "placeholder":
                known[node] = None
            elif node.op == "get_attr":
                held = operator.attrgetter(node.target)(twin)
                known[node] = degree_of(held)
                if known[node] is None and isinstance(held, torch.Tensor) and held.requires_grad:
                    _refuse("it makes tensors of its parameters in ways that are not seen")
            elif node.op == "call_module":
                leaf = parts[node.target]
                own = {n: degree_of(p) for n, p in leaf.named_parameters(recurse=False)}
                if by_name:
                    given = (*given, *by_name.values())
                known[node] = of_module(leaf, given, own, eq)
            elif node.op == "output":
                if not isinstance(given[0], Value):
                    _refuse("it does not return one tensor")
                found: Form | None = given[0].degree
                return found
            else:
                known[node] = of_call(node.target, given, by_name, eq)
        except NotFollowedError as error:
            what = (
                _called(str(node.target), parts[node.target])
                if node.op == "call_module"
                else getattr(node.target, "__name__", str(node.target))
            )
            _refuse(f"{what}: {error}")
    return None


def _solved(eq: Equations, output: Form | None, names: list[str]) -> dict[str, Fraction]:
    """α >= 0 that make every equation hold, as near to 1 for every factor as they can be."""
    from scipy.optimize import linprog  # a tenth of a second to import

    factors = [n for n in names if n in eq.factors or n not in eq.biases]
    used = set(output or {}).union(*(set(form) for form in eq.zero))
    count, split = len(names), len(factors)
    column = {name: j for j, name in enumerate(names)}
    # Columns: α, then how far each factor is above and below 1.
    rows = [dict(form) for form in eq.zero]
    a = np.zeros((len(rows) + split, count + 2 * split))
    b = np.zeros(len(a))
    for i, row in enumerate(rows):
        for name, times in row.items():
            a[i, column[name]] = times
    for j, name in enumerate(factors):
        i = len(rows) + j
        a[i, column[name]], a[i, count + j], a[i, count + split + j], b[i] = 1, -1, 1, 1
    # Of two that could be raised the later one is, so that there is one answer.
    up = [2 - j / split for j in range(split)]
    cost = np.array([0.0] * count + up + [_LESS * 2] * split)
    found = linprog(cost, A_eq=a, b_eq=b, method="highs")
    if found.x is None:
        _refuse(f"its equations were not solved ({found.message})")
    alphas = {n: Fraction(float(x)).limit_denominator(1000) for n, x in _pairs(names, found.x)}
    # A parameter that the output does not see takes no part.
    alphas |= dict.fromkeys(set(names) - used, Fraction(0))
    if any(_value(form, alphas) != 0 for form in eq.zero):
        _refuse("its degrees are no simple fractions")
    return alphas


def _pairs(names: list[str], x: Any) -> Iterator[tuple[str, float]]:
    return zip(names, x[: len(names)].tolist(), strict=True)


def _value(form: Form | None, alphas: Mapping[str, Fraction]) -> Fraction:
    return sum((count * alphas[name] for name, count in (form or {}).items()), Fraction(0))


def _plain(x: Fraction) -> float:
    return int(x) if x.denominator == 1 else float(x)


__all__ = ["Scaling", "scaling", "scaling_of"]
