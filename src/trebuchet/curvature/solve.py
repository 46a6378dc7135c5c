"""From an operator to its certified top: starts, deflation, several eigenvalues.

One Lanczos run certifies λ_1. For k > 1 it may miss copies of a multiple eigenvalue, and its
certificate says nothing about λ_2; so a second run, from a fresh random vector, checks that on the
complement of the found vectors no eigenvalue exceeds λ_k. By Courant–Fischer its largest value
bounds λ_{k+1} whatever the errors of the vectors. If it finds a larger one, that is taken in, and
the check repeated.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trebuchet.curvature.distributed import Ranks
from trebuchet.curvature.lanczos import Floats, LanczosResult, Product, Start, lanczos
from trebuchet.curvature.operators import Operator, mixed_start

WARM_SHARE = 0.1
"""Share τ of the fresh direction beside a warm start: its error τ² is below any tolerance one
tracks with, and each factor of ten costs the certificate only ln 10."""


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

    @staticmethod
    def of_matrix(
        a: Tensor,
        k: int,
        method: str,
        side: str,
        to_parameters: Callable[[Tensor, float], Tensor] | None,
    ) -> "Spectrum":
        """Solve a whole symmetric matrix, shape (n, n), n ≥ k."""
        n = len(a)
        if to_parameters is None and n > 32:
            values = torch.linalg.eigvalsh(a)
            vectors = a.new_empty((0, n))
        else:
            values, columns = torch.linalg.eigh(a)
            vectors = columns.T.flip(0)[:k]
        top = values.flip(0).cpu().numpy()
        error = 4 * torch.finfo(a.dtype).eps * n * float(np.abs(top).max())
        return Spectrum(
            top[:k].copy(),
            np.full(k, error),
            float(top[k - 1]) + error,
            float(top[k]) if n > k else float("nan"),
            True,
            0,
            method,
            side,
            vectors,
            to_parameters or (lambda y, _: y),
        )


def solve(
    op: Operator,
    like: Tensor,
    *,
    k: int,
    rtol: float,
    failure: float,
    max_products: int,
    basis_cap: int,
    seed: int,
    warm: Tensor | None,
    ranks: Ranks,
    eps: float,
    on_step: Callable[[int, float, float, float], None] | None,
) -> Spectrum:
    """Find and certify the `k` largest eigenvalues of an operator.

    Args:
        op: The operator.
        like: Gives the vectors' dtype and device.
        k: How many.
        rtol: Relative tolerance.
        failure: Failure probability of the certificate, over all runs together.
        max_products: Over all runs together.
        basis_cap: Vectors kept at once.
        seed: Of the random directions.
        warm: Vectors of an earlier run, shape (any, n), or None.
        ranks: Whose start vectors must agree.
        eps: Rounding unit of the products.
        on_step: Progress.

    Returns:
        The spectrum.
    """
    generator = torch.Generator().manual_seed(seed)
    # A union bound over the runs: the first few get all there is, geometrically less later.
    share = failure if k == 1 else failure / 2

    def fresh() -> tuple[Tensor, Callable[[float], float]]:
        vector, overlap = op.random_start(generator)
        return ranks.same(vector.to(like)), overlap

    vector, overlap = fresh()
    lead = None if warm is None or not len(warm) else warm.sum(0)
    run = lanczos(
        op.product,
        mixed_start(vector, overlap, lead, op.metric, WARM_SHARE),
        k=k,
        metric=op.metric,
        rtol=rtol,
        failure=share,
        max_products=max_products,
        basis_cap=basis_cap,
        eps=eps,
        on_step=on_step,
    )
    found = _Found(run)
    products = run.products
    if k == 1:
        return _spectrum(op, found, run.upper, run.next_value, run.converged, products)
    upper, next_value, done = float("inf"), run.next_value, False
    while products < max_products:
        share /= 2
        vector, overlap = fresh()
        short = len(found) < k
        check = lanczos(
            found.deflate(op.product, op.metric),
            Start(found.project(vector, op.metric), overlap),
            k=1,
            metric=op.metric,
            rtol=rtol,
            failure=share,
            max_products=max_products - products,
            basis_cap=basis_cap,
            eps=eps,
            against=None if short else float(found.values[k - 1]),
            on_step=on_step,
        )
        products += check.products
        if not short and check.certified:
            upper, next_value, done = check.upper, float(check.values[0]), True
            break
        if not short and not check.values[0] > found.values[k - 1]:
            break
        found.add(check)
        if short and check.converged and check.values[0] == 0 and check.products == 0:
            found.pad(k)  # the complement is all kernel: the rest of the eigenvalues are zero
            upper, next_value, done = 0.0, 0.0, True
            break
        found.keep(k)
    good = bool((found.residuals[:k] <= rtol * np.abs(found.values[:k]) + found.floor).all())
    return _spectrum(op, found, upper, next_value, done and good and len(found) >= k, products, k)


class _Found:
    """Eigenpairs so far, orthonormal in the metric, largest first."""

    def __init__(self, run: LanczosResult) -> None:
        self.values, self.residuals, self.vectors = run.values, run.residuals, run.vectors
        self.floor = float(run.residuals.min(initial=np.inf)) * 1e-9

    def __len__(self) -> int:
        return len(self.values)

    def project(self, w: Tensor, metric: Product | None) -> Tensor:
        for _ in range(2):
            w = w - self.vectors.T @ (self.vectors @ (w if metric is None else metric(w)))
        return w

    def deflate(self, product: Product, metric: Product | None) -> Product:
        return lambda v: self.project(product(v), metric)

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


def _spectrum(
    op: Operator,
    found: _Found,
    upper: float,
    next_value: float,
    converged: bool,
    products: int,
    k: int = 1,
) -> Spectrum:
    return Spectrum(
        found.values[:k], found.residuals[:k], upper, next_value, converged, products,
        "lanczos", op.side, found.vectors[:k], op.to_parameters,
    )  # fmt: skip
