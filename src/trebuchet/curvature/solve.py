"""From an operator to its certified top: starts, fresh checks, several eigenvalues.

One Lanczos run certifies λ_1. For k > 1 it may miss copies of a multiple eigenvalue, and its
certificate says nothing about λ_2; so a further run, from a fresh random vector, checks that on the
complement of the found vectors no eigenvalue exceeds λ_k. By Courant–Fischer its largest value
bounds λ_{k+1} whatever the errors of the vectors. If it finds a larger one, that is taken in, and
the check repeated.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from trebuchet.curvature.certificate import Floats
from trebuchet.curvature.distributed import Ranks
from trebuchet.curvature.lanczos import (
    ROUNDING,
    SYMMETRIC,
    Goal,
    LanczosResult,
    Product,
    Start,
    Step,
    lanczos,
)
from trebuchet.curvature.operators import Operator, mixed_start
from trebuchet.curvature.result import ASKED

WARM_SHARE = 0.1
"""Share τ of the fresh direction beside a warm start: its error τ² is below any tolerance one
tracks with, and each factor of ten costs the certificate only ln 10."""


NOT_SYMMETRIC = "the operator is not symmetric: ⟨u, A v⟩ and ⟨v, A u⟩ differ by {:.1e} of ‖A‖"


@dataclass(frozen=True, slots=True)
class Spectrum:
    """The top of a spectrum, however it was found; the fields are those of `TopEigen`."""

    values: Floats
    residuals: Floats
    upper: float
    next_value: float
    converged: bool
    products: int
    method: str
    side: str
    vectors: Tensor  # (k, n), on the side worked on
    to_parameters: Callable[[Tensor, float], Tensor]
    note: str = ""
    asymmetry: float = 0.0
    symmetric: bool = True


def of_matrix(
    a: Tensor,
    k: int,
    method: str,
    side: str,
    to_parameters: Callable[[Tensor, float], Tensor] | None,
    eps: float,
    skew: float = 0.0,
) -> Spectrum:
    """Solve a whole symmetric matrix.

    Args:
        a: Shape (n, n), n ≥ k, float64.
        k: How many eigenvalues.
        method: What to call it.
        side: Where its vectors live.
        to_parameters: Maps an eigenvector to parameter space; None if nobody will ask.
        eps: Rounding unit that the matrix was formed in.
        skew: ‖A − Aᵀ‖ before the matrix was made symmetric.

    Returns:
        The spectrum, exact to rounding.
    """
    n = len(a)
    if to_parameters is None:
        values, vectors = torch.linalg.eigvalsh(a), a.new_empty((0, n))
    else:
        values, columns = torch.linalg.eigh(a)
        vectors = columns.T.flip(0)[:k]
    top = values.flip(0).cpu().numpy()
    # LAPACK's own error in float64, and that of the matrix.
    size = float(np.abs(top).max())
    error = (4 * float(torch.finfo(a.dtype).eps) * n + ROUNDING * eps) * size
    # Rounding of n columns adds up as n random numbers do.
    symmetric = skew <= SYMMETRIC * eps * size * math.sqrt(n)
    return Spectrum(
        values=top[:k].copy(),
        residuals=np.full(k, error),
        upper=float(top[k - 1]) + error,
        next_value=float(top[k]) if n > k else math.nan,
        converged=symmetric,
        products=0,
        method=method,
        side=side,
        vectors=vectors,
        to_parameters=to_parameters or (lambda y, _: y),
        asymmetry=skew / size if size else 0.0,
        symmetric=symmetric,
        note="" if symmetric else NOT_SYMMETRIC.format(skew / size),
    )


@dataclass(slots=True)
class Solver:
    """Lanczos runs on one operator until its top is certified.

    Attributes:
        op: The operator.
        like: Gives the vectors' dtype and device.
        goal: What is asked for.
        generator: Of the random directions.
        ranks: Whose start vectors must agree.
        on_step: Progress.
        products: Spent so far.
        asymmetry: The worst seen, relative to ‖A‖.
        symmetric: Whether all of it was rounding.
    """

    op: Operator
    like: Tensor
    goal: Goal
    generator: torch.Generator
    ranks: Ranks
    on_step: Step | None = None
    products: int = 0
    asymmetry: float = 0.0
    symmetric: bool = True

    def solve(self, warm: Tensor | None = None) -> Spectrum:
        """Find and certify the k largest eigenvalues.

        Args:
            warm: Vectors of an earlier run, shape (any, n), or None.

        Returns:
            The spectrum.
        """
        k = self.goal.k
        vector, overlap = self._fresh()
        lead = None if warm is None or not len(warm) else warm.sum(0)
        start = mixed_start(vector, overlap, lead, self.op.metric, WARM_SHARE)
        run = self._run(start, self.op.product, replace(self.goal, certify=k == 1))
        if k == 1:
            return self._one(run)
        return self._several(run)

    def _fresh(self) -> tuple[Tensor, Callable[[float], float]]:
        vector, overlap = self.op.random_start(self.generator)
        return self.ranks.same(vector.to(self.like)), overlap

    def _run(self, start: Start, product: Product, goal: Goal) -> LanczosResult:
        goal = replace(goal, max_products=self.goal.max_products - self.products)
        run = lanczos(product, start, goal, metric=self.op.metric, on_step=self.on_step)
        self.products += run.products
        self.asymmetry = max(self.asymmetry, run.asymmetry)
        self.symmetric = self.symmetric and run.symmetric
        return run

    @property
    def _left(self) -> bool:
        return self.products < self.goal.max_products

    def _one(self, run: LanczosResult) -> Spectrum:
        # A run that ended early, in an invariant space, is repeated from fresh starts. A missed
        # eigenvector must be missed by all of them, independently: the probabilities multiply.
        missed, above = run.miss, self.goal.above
        if above is not None and run.values[0] - run.noise > above:
            return self._spectrum(_Found(run), run.upper, run.next_value, certified=False)
        while run.exhausted and missed > self.goal.failure and self._left:
            goal = replace(self.goal, failure=min(0.5, self.goal.failure / missed))
            again = self._run(Start(*self._fresh()), self.op.product, goal)
            missed *= again.miss
            if again.values[0] > run.values[0]:
                run = again
            run = replace(run, upper=min(run.upper, again.upper), exhausted=again.exhausted)
        certified = missed <= self.goal.failure
        if certified and not math.isfinite(run.upper):
            run = replace(run, upper=float(run.values[0]) * (1 + self.goal.rtol))
        if above is not None:  # what was certified may be far from the value
            margin = max(self.goal.rtol * abs(run.values[0]), 2 * run.noise)
            certified = certified and run.upper <= run.values[0] + margin
        return self._spectrum(_Found(run), run.upper, run.next_value, certified)

    def _several(self, run: LanczosResult) -> Spectrum:
        """k > 1: collect, then check the complement."""
        k, found = self.goal.k, _Found(run)
        # A union bound over the checks: half of what is left of the failure probability each.
        share, upper, next_value, certified = self.goal.failure, math.inf, run.next_value, False
        while self._left:
            share /= 2
            short = len(found) < k
            if len(found) == self.op.dim:  # there is no complement
                upper, certified = float(found.values[-1]), True
                break
            goal = replace(
                self.goal,
                k=1,
                failure=share,
                watch=False,
                against=None if short else float(found.values[k - 1]),
            )
            vector, overlap = self._fresh()
            start = Start(found.project(vector, self.op.metric), overlap)
            check = self._run(start, found.deflate(self.op.product, self.op.metric), goal)
            if not short and (check.certified or check.exhausted):
                certified = check.certified or check.values[0] <= found.values[k - 1]
            if certified:
                upper, next_value = check.upper, float(check.values[0])
                break
            if not short and not check.values[0] > found.values[k - 1]:
                break  # out of products
            if check.products == 0:  # the complement is all kernel: the other values are zero
                found.pad(k)
                upper, next_value, certified = 0.0, 0.0, True
                break
            found.add(check)
        found.keep(k)
        return self._spectrum(found, upper, next_value, certified and len(found) == k)

    def _spectrum(
        self, found: "_Found", upper: float, next_value: float, certified: bool
    ) -> Spectrum:
        size = np.abs(found.values)
        # Rounding decides where a value is zero to rounding; elsewhere the tolerance does.
        allowed = np.where(size <= found.noise, 2 * found.noise, self.goal.rtol * size)
        close = bool((found.residuals <= allowed).all())
        note = ""
        if not self.symmetric:
            note = NOT_SYMMETRIC.format(self.asymmetry)
        elif self.goal.above is not None and not (certified and close):
            over = found.values[0] > self.goal.above
            known = over or upper <= self.goal.above + abs(self.goal.above) * self.goal.rtol
            ended = ("it is" if over else "it is not") if known else "that is not known"
            note = f"{ASKED} {self.goal.above:.6g}: {ended}"
        elif not self._left and not (certified and close):
            note = f"max_products={self.goal.max_products} was spent"
        elif found.noise > self.goal.rtol * size.min() and not close:
            note = f"the products' rounding ({found.noise:.1e}) does not allow this rtol"
        return Spectrum(
            values=found.values,
            residuals=found.residuals,
            upper=upper,
            next_value=next_value,
            converged=bool(certified) and close and self.symmetric,
            products=self.products,
            method="lanczos",
            side=self.op.side,
            vectors=found.vectors,
            to_parameters=self.op.to_parameters,
            note=note,
            asymmetry=self.asymmetry,
            symmetric=self.symmetric,
        )


class _Found:
    """Eigenpairs so far, orthonormal in the metric, largest first."""

    def __init__(self, run: LanczosResult) -> None:
        self.values, self.residuals, self.vectors = run.values, run.residuals, run.vectors
        self.noise, self.size = run.noise, run.size

    def __len__(self) -> int:
        return len(self.values)

    def project(self, w: Tensor, metric: Product | None) -> Tensor:
        for _ in range(2):
            w = w - self.vectors.T @ (self.vectors @ (w if metric is None else metric(w)))
        return w

    def deflate(self, product: Product, metric: Product | None) -> Product:
        """A on the complement; the found vectors get −‖A‖ rather than 0, which might be the top."""

        def deflated(v: Tensor) -> Tensor:
            down = self.vectors.T @ (self.vectors @ v)  # v is an image already: no metric here
            return self.project(product(v), metric) - self.size * down

        return deflated

    def add(self, run: LanczosResult) -> None:
        # On the complement the part of the residual along the found vectors is not seen: add it.
        missed = float(np.sqrt(np.square(self.residuals).sum()))
        self.values = np.concatenate([self.values, run.values])
        self.residuals = np.concatenate([self.residuals, np.hypot(run.residuals, missed)])
        self.vectors = torch.cat([self.vectors, run.vectors])
        order = np.argsort(-self.values, kind="stable")
        self.values, self.residuals = self.values[order], self.residuals[order]
        self.vectors = self.vectors[torch.as_tensor(order.copy(), device=self.vectors.device)]

    def keep(self, k: int) -> None:
        self.values, self.residuals = self.values[:k], self.residuals[:k]
        self.vectors = self.vectors[:k]

    def pad(self, k: int) -> None:
        more = k - len(self)
        if more > 0:
            self.values = np.concatenate([self.values, np.zeros(more)])
            self.residuals = np.concatenate([self.residuals, np.zeros(more)])
            blank = self.vectors.new_zeros((more, self.vectors.shape[1]))
            self.vectors = torch.cat([self.vectors, blank])
