"""Stacked runs of any module, through ``torch.func``."""

import copy
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vjp, vmap

from trebuchet.engine.kernels.outputs import OutputKernel, nbytes
from trebuchet.engine.law import Law
from trebuchet.engine.lawful import unlike
from trebuchet.models.scaling import Scaling, scaling_of


class FunctionalKernel(OutputKernel):
    """R runs of a module that ``torch.vmap`` can batch; buffers are shared and left alone.

    Args:
        model: The module; every run starts from its weights.
        runs: R.
        x: Training inputs, D rows of any shape.
    """

    mixes_seeds: ClassVar[bool] = False

    def __init__(self, model: nn.Module, runs: int, x: Tensor) -> None:
        # functional_call swaps parameters inside the module for the time of the call, so chunks
        # that run in different threads each need a module of their own.
        self.model, self.x = copy.deepcopy(model), x
        trainable = {k: p for k, p in model.named_parameters() if p.requires_grad}
        self.names = list(trainable)
        self.params = [p.detach().expand(runs, *p.shape).clone() for p in trainable.values()]
        self.fixed = {
            k: v.detach()
            for k, v in [*model.named_parameters(), *model.named_buffers()]
            if k not in trainable
        }
        self._scaling: Scaling | str | None = None
        self._reached: Sequence[bool] | None = None

    @property
    def scaling(self) -> Scaling | str:  # type: ignore[override]  # found late
        """Found when it is first asked for."""
        if self._scaling is None:
            found = scaling_of(self.model)
            self._scaling = found if isinstance(found, str) else self.unlike(found) or found
        return self._scaling

    def unlike(self, found: Scaling) -> str:
        """Why a scaling is not that of the first run, by its gradients; empty where it is.

        Args:
            found: The scaling.

        Returns:
            The reason.
        """
        leaves = [p[0].detach().clone().requires_grad_(True) for p in self.params]
        law = Law.of(found.degree, [found.weights[n] for n in self.names], leaves, self.x.numel())
        with torch.enable_grad():
            return unlike(law, self._one(leaves, self.x), leaves)

    def reached(self) -> Sequence[bool]:
        """Found when it is first asked for."""
        if self._reached is None:
            leaves = [p[0].clone().requires_grad_() for p in self.params]
            with torch.enable_grad():
                total = self._one(leaves, self.x).sum()
                found = torch.autograd.grad(total, leaves, allow_unused=True)
            self._reached = [g is not None for g in found]
        return self._reached

    def forward(self, *, sparsity: bool = False) -> Tensor:
        """z, with the graph that ``add_vjp_`` runs back through."""
        pulled = vjp(lambda *params: self._stacked(params, self.x), *self.params)
        z: Tensor = pulled[0]
        self._vjp: Callable[[Tensor], tuple[Tensor, ...]] = pulled[1]
        return z

    def add_vjp_(self, into: Sequence[Tensor], dz: Tensor) -> None:
        """Add Jᵀdz of every run in one backward pass."""
        for target, gradient in zip(into, self._vjp(dz), strict=True):
            target.add_(gradient)

    def gram(self) -> Tensor:
        """H from the Jacobian of one run at a time, shape ``(R, D·K, D·K)``."""
        grams = []
        for run in range(self.runs):
            rows = jacrev(lambda params: self._one(params, self.x).flatten())(
                tuple(p[run] for p in self.params)
            )
            jacobian = torch.cat([j.flatten(1) for j in rows], dim=1)  # (D·K, P)
            grams.append(jacobian @ jacobian.T / self.x.shape[0])
        return torch.stack(grams)

    def outputs(self, x: Tensor) -> Tensor:
        """z on other inputs."""
        return self._stacked(self.params, x)

    def subset(self, index: Sequence[int]) -> "FunctionalKernel":
        """The runs `index`."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other.params = [p[list(index)].contiguous() for p in self.params]
        return other

    def model_of(self, run: int) -> nn.Module:
        """A copy of the module."""
        model = copy.deepcopy(self.model)
        named = dict(model.named_parameters())
        with torch.no_grad():
            for name, p in zip(self.names, self.params, strict=True):
                named[name].copy_(p[run])
        return model

    def bytes_per_run(self) -> int:
        """Weights, gradients and the Jacobian that H is made from."""
        size = sum(p[0].numel() for p in self.params)
        return nbytes(size, 3 + self.x.shape[0], dtype=self.params[0].dtype)

    def _one(self, params: Sequence[Tensor], x: Tensor) -> Tensor:
        named = dict(zip(self.names, params, strict=True))
        # Copies, since forward may move them (BatchNorm's averages, a bank of past samples): a step
        # is then a function of the weights alone, whatever ran before it or beside it.
        fixed = {name: t.clone() for name, t in self.fixed.items()}
        z: Tensor = functional_call(self.model, {**fixed, **named}, (x,))
        self.column = z.ndim == 2 and z.shape[-1] == 1
        return z.squeeze(-1) if self.column else z

    def _stacked(self, params: Sequence[Tensor], x: Tensor) -> Tensor:
        return vmap(lambda *one: self._one(one, x), randomness="error")(*params)


class SequentialKernel(FunctionalKernel):
    """The same runs one after another by plain autograd, for what ``torch.vmap`` refuses.

    It shares no arithmetic with the stacked kernels, so it is also what they are tested against.
    """

    def forward(self, *, sparsity: bool = False) -> Tensor:
        """z; keeps the graph of every run."""
        self._leaves = [
            [p[run].detach().clone().requires_grad_(True) for p in self.params]
            for run in range(self.runs)
        ]
        # Leaves are copies: the engine moves the parameters in place before the graph is done with.
        with torch.enable_grad():
            self._z = [self._one(leaves, self.x) for leaves in self._leaves]
        return torch.stack([z.detach() for z in self._z])

    def add_vjp_(self, into: Sequence[Tensor], dz: Tensor) -> None:
        """Add Jᵀdz, run by run."""
        for run, (leaves, z) in enumerate(zip(self._leaves, self._z, strict=True)):
            gradients = torch.autograd.grad(
                z, leaves, dz[run], retain_graph=True, allow_unused=True
            )
            for target, gradient in zip(into, gradients, strict=True):
                if gradient is not None:
                    target[run].add_(gradient)

    def gram(self) -> Tensor:
        """H, one backward pass an output and run, shape ``(R, D·K, D·K)``."""
        grams = []
        for leaves, z in zip(self._leaves, self._z, strict=True):
            with torch.enable_grad():
                each = z.flatten().unbind()
            rows = []
            for o in each:
                found = torch.autograd.grad(
                    o, leaves, retain_graph=True, allow_unused=True, materialize_grads=True
                )
                rows.append(torch.cat([g.flatten() for g in found]))
            jacobian = torch.stack(rows)  # (D·K, P)
            grams.append(jacobian @ jacobian.T / self.x.shape[0])
        return torch.stack(grams)

    def outputs(self, x: Tensor) -> Tensor:
        """z on other inputs, run by run."""
        return torch.stack([self._one([p[r] for p in self.params], x) for r in range(self.runs)])
