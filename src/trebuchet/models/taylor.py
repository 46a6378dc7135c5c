"""Taylor models: any module as a linear or quadratic function of its weights."""

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from trebuchet import _torch_checks as checks
from trebuchet._checks import one_line, whole
from trebuchet._doors import door, rule
from trebuchet._swapped import swapped
from trebuchet.errors import InputError
from trebuchet.models.derivatives import Derivatives, Value


class _Node(nn.Module):
    """A module's names, parameters, buffers and mode, and nothing that computes.

    No layer of its own type: whoever looks for ``nn.Linear`` or ``nn.ReLU`` in a Taylor model would
    take it for the net that it is not.
    """

    _of: tuple[nn.Module]
    _free: set[str]

    def __init__(self, module: nn.Module, known: dict[int, Any]) -> None:
        # In a tuple: no part of this one, and θ₀ no parameter.
        self.__dict__["_of"] = (module,)
        mode = module.training
        super().__init__()
        self.training = mode
        known[id(module)] = self
        self._free = {n for n, p in module._parameters.items() if p is not None and p.requires_grad}
        for name, p in module._parameters.items():
            if p is not None and name in self._free and id(p) not in known:
                known[id(p)] = nn.Parameter(p.detach().clone())
            self.register_parameter(name, p if p is None else known.get(id(p), p))
        for name, b in module._buffers.items():
            if b is not None and id(b) not in known:
                known[id(b)] = b.detach().clone()
            kept = name not in module._non_persistent_buffers_set
            self.register_buffer(name, b if b is None else known[id(b)], persistent=kept)
        for name, child in module._modules.items():
            self._modules[name] = (
                None if child is None else known.get(id(child)) or _Node(child, known)
            )

    @property
    def training(self) -> bool:
        """The mode of the module itself."""
        mode: bool = self._of[0].training
        return mode

    @training.setter
    def training(self, mode: bool) -> None:
        self._of[0].training = mode


class TaylorModel(_Node):
    """The Taylor model of a module around its weights; `taylor_expand` makes it."""

    def __init__(self, net: nn.Module, degree: int) -> None:
        super().__init__(net, {})
        self._expanded_to = degree

    def extra_repr(self) -> str:
        """What it is the expansion of."""
        return f"{type(self._of[0]).__name__}, degree {self._expanded_to}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "TaylorModel":
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch's
        self._of[0]._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch's
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """z for what the module takes, in the shape that it returns.

        Args:
            args: As the module takes them.
            kwargs: As the module takes them.

        Returns:
            f₀ + J δ, and + ½ δᵀ∇²f δ for degree 2.

        Raises:
            InputError: If the module does not return one real tensor, has no second derivative, or
                is to be differentiated by its inputs.
            NotImplementedError: Inside a transform of ``torch.func``.
        """
        if torch._C._are_functorch_transforms_active():
            # It would see no graph in here, and the model as a constant.
            msg = (
                "a Taylor model is differentiated by torch.autograd; torch.func's vmap, grad and "
                "jacrev cannot look into it"
            )
            raise NotImplementedError(msg)
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(mode=False), torch.no_grad():
                args, kwargs = tree_map_only(Tensor, torch.clone, (args, kwargs))
                return self.forward(*args, **kwargs)
        if torch.is_grad_enabled() and any(
            isinstance(t, Tensor) and t.requires_grad for t in tree_leaves((args, kwargs))
        ):
            msg = (
                "args: expected inputs without gradients, since a Taylor model is differentiated "
                "by its weights only; detach them"
            )
            raise InputError(msg)
        (net,) = self._of
        theta, leaves, instead = self._placed()
        # Buffers are copies: a forward pass moves the batch statistics of nobody.
        with swapped([net], instead):
            at = Derivatives(net, leaves, self._expanded_to, lambda: net(*args, **kwargs))
        if not at.outputs.requires_grad:
            return at.outputs
        delta = [p - start.detach() for p, start in zip(theta, leaves, strict=True)]
        z: Tensor = Value.apply(at, *delta)  # type: ignore[no-untyped-call]  # torch's
        return z

    def _placed(self) -> tuple[list[Tensor], list[Tensor], Mapping[int, Tensor]]:
        """θ, θ₀ as leaves of a graph, and what else stands in the place of the net's tensors."""
        moved: dict[int, tuple[Tensor, Tensor]] = {}
        instead: dict[int, Tensor] = {}
        for node in self.modules():
            assert isinstance(node, _Node)
            (module,) = node._of
            for name, here, start in _pairs(node._parameters, module._parameters):
                if name not in node._free:
                    if here.requires_grad:
                        msg = (
                            f"module: parameter {name!r} was frozen when it was expanded, and "
                            "trains now; unfreeze it before, with requires_grad_()"
                        )
                        raise InputError(msg)
                    instead[id(start)] = here.detach()
                elif id(start) not in moved:
                    leaf = start
                    if not leaf.requires_grad or _kind(leaf) != _kind(here):
                        leaf = start.detach().to(here).requires_grad_()
                        instead[id(start)] = leaf
                    moved[id(start)] = (here, leaf)
            for _, here, start in _pairs(node._buffers, module._buffers):
                if id(start) not in instead:
                    instead[id(start)] = here.detach().clone()
        theta, leaves = zip(*moved.values(), strict=True)
        return list(theta), list(leaves), instead


def parts(model: nn.Module) -> Iterator[nn.Module]:
    """All modules in a model, those that the Taylor models among them are expansions of as well.

    Args:
        model: Any module.

    Yields:
        Each once.
    """
    for module in model.modules():
        yield module
        if isinstance(module, TaylorModel):
            yield from module._of[0].modules()


def _kind(t: Tensor) -> tuple[torch.dtype, torch.device]:
    return t.dtype, t.device


def _pairs(
    ours: Mapping[str, Tensor | None], theirs: Mapping[str, Tensor | None]
) -> Iterator[tuple[str, Tensor, Tensor]]:
    for name, start in theirs.items():
        here = ours[name]
        if start is not None and here is not None:
            yield name, here, start


@door(module=checks.module, degree=rule(whole, "1 or 2", most=2))
def taylor_expand(module: nn.Module, degree: int = 1) -> TaylorModel:
    """A module's Taylor model around its present weights θ₀, of degree 1 or 2 in δ = θ − θ₀.

    f_lin = f₀ + ∇f·δ and f_quad = f_lin + ½ δᵀ∇²f δ, at every input. It starts at θ₀ with
    the module's own parameter names, and is trained, swept and measured as the module is. In
    training mode batch statistics are functions of the weights and expanded with the rest; buffers,
    running statistics among them, stay as they are. Dropout has one mask in a forward pass, for
    value and derivatives alike. Frozen parameters are constants.

    A gradient costs two to three of the module's for degree 1 and about eight for degree 2.

    Args:
        module: Any module that returns one real tensor; it is copied and left alone.
        degree: 1 or 2.

    Returns:
        The model. It is differentiable to any order by its weights, but not by its inputs.

    Raises:
        InputError: If the module cannot be copied, or has no trainable parameters; at its first
            forward pass if its output is no real tensor or has no second derivative.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1)).double()
        >>> quadratic = taylor_expand(net, degree=2)  # exact: it is quadratic in its weights
        >>> x = torch.ones(2, 3, dtype=torch.float64)
        >>> with torch.no_grad():
        ...     for p, q in zip(net.parameters(), quadratic.parameters()):
        ...         _ = p.add_(1), q.add_(1)
        >>> bool(torch.allclose(quadratic(x), net(x)))
        True

    References:
        Zhu, Liu, Radhakrishnan & Belkin, arXiv 2205.11787, section 2.
    """
    checks.shaped("module", [*module.named_parameters(), *module.named_buffers()])
    if isinstance(module, torch.jit.ScriptModule):
        msg = "module: is compiled by TorchScript, which cannot be expanded; give the plain module"
        raise InputError(msg)
    if not any(p.requires_grad for p in module.parameters()):
        msg = "module: expected parameters to expand in, got none that train"
        raise InputError(msg)
    hung = [v for m in module.modules() for v in vars(m).values() if isinstance(v, Tensor)]
    try:
        # What a forward pass hung onto a module (legacy weight_norm) is copied without its graph.
        net = copy.deepcopy(module, {id(t): t.detach().clone() for t in hung if not t.is_leaf})
    except Exception as error:  # a user's module may hold anything
        if checks.out_of_memory(error):
            raise
        msg = f"module: cannot be copied ({one_line(error)}); a Taylor model keeps a copy"
        raise InputError(msg) from error
    for p in net.parameters():
        p.grad = None
    return TaylorModel(net, degree)
