"""The Hessian ∂²L/∂θ² of the training loss; its largest eigenvalue is called the sharpness.

Unlike Gauss–Newton it is indefinite: "largest" means largest algebraic, the one that limits the
learning rate, and never the largest in magnitude.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from trebuchet.curvature.distributed import Ranks
from trebuchet.curvature.evaluation import Evaluation
from trebuchet.curvature.explain import NoDerivativeError, missing
from trebuchet.curvature.lanczos import Product
from trebuchet.curvature.operators import random_direction
from trebuchet.curvature.suspects import suspects
from trebuchet.errors import InputError


class Hessian:
    """v ↦ Σ_b w_b (∂²L_b/∂θ²) v, by differentiating the gradient again (Pearlmutter's product).

    The gradient's graph is kept for as many micro-batches as `keep` says, so that a product costs
    one backward pass through it: about two gradient evaluations.

    Args:
        evaluation: Model, loss (or closure), micro-batches and weights.
        ranks: The processes that share the samples.
        keep: How many gradient graphs may be kept at once.
        scale: s of S (∂²L) S, shape (P,); None is the identity.

    References:
        Pearlmutter, Fast exact multiplication by the Hessian, Neural Computation 6 (1994) 147.
    """

    side = "parameters"
    metric: Product | None = None

    def __init__(
        self, evaluation: Evaluation, *, ranks: Ranks, keep: int, scale: Tensor | None = None
    ) -> None:
        self.evaluation, self.ranks, self.keep, self.scale = evaluation, ranks, keep, scale
        self.dim = evaluation.n_parameters
        self.doubted: list[str] | None = None
        self._kept: dict[int, Sequence[Tensor | None]] = {}

    @contextlib.contextmanager
    def _differentiable(self) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, NotImplementedError) as error:
            raise NoDerivativeError(missing(error, self.evaluation.model)) from error

    def _gradient(self, i: int) -> Sequence[Tensor | None]:
        if i in self._kept:
            return self._kept[i]
        loss = self.evaluation.loss_of(self.evaluation.batches[i])
        if not loss.requires_grad:
            msg = "loss: does not depend on the selected parameters; check params="
            raise InputError(msg)
        if self.doubted is None:
            self.doubted = suspects(loss)
        with self._differentiable():
            gradient: Sequence[Tensor | None] = torch.autograd.grad(
                loss, self.evaluation.leaves, create_graph=True, allow_unused=True
            )
        if len(self._kept) < self.keep:
            self._kept[i] = gradient
        return gradient

    def doubts(self) -> list[str]:
        """Name the operations whose second derivative is not believed unchecked (suspects.py)."""
        if self.doubted is None:
            self._gradient(0)
        return self.doubted or []

    def product(self, v: Tensor) -> Tensor:
        """Return the Hessian times v, shape (P,)."""
        out = torch.zeros_like(v)
        parts = self.evaluation.unflatten(v if self.scale is None else v * self.scale)
        for i, weight in enumerate(self.evaluation.weights):
            gradient = self._gradient(i)
            pairs = [
                (g, t) for g, t in zip(gradient, parts, strict=True)
                if g is not None and g.requires_grad
            ]  # fmt: skip
            if not pairs:  # a loss linear in the parameters
                continue
            with self._differentiable():
                hv = torch.autograd.grad(
                    [g for g, _ in pairs],
                    self.evaluation.leaves,
                    [t for _, t in pairs],
                    retain_graph=True,
                    allow_unused=True,
                )
            self.evaluation.add_flat(out, hv, weight)
        self.ranks.sum_(out)
        return out if self.scale is None else out.mul_(self.scale)

    def random_start(self, generator: torch.Generator) -> tuple[Tensor, Callable[[float], float]]:
        """Return a random g of unit variance, and 1, its overlap's scale for any unit vector."""
        like = torch.empty(0, dtype=self.evaluation.dtype, device=self.evaluation.device)
        return random_direction(self.dim, like, generator), lambda _: 1.0

    def to_parameters(self, y: Tensor, value: float) -> Tensor:
        """Return y itself: it lives here."""
        del value
        return y
