"""The top eigenvalue of a symmetric H, from where it was last, with a proof; LAPACK if need be.

From one step of descent to the next the top eigenvectors hardly turn: the last ones and a few
products with H = B + SSᵀ give λ₁. That nothing larger was missed is shown by one of these:

- ``trace``: the bracket (:mod:`trebuchet.curvature.bracket`), with ‖B‖_F and tr SSᵀ. SSᵀ is never
  formed;
- ``frobenius``: the bracket with ‖H‖_F, H formed, or where there is no S;
- ``cholesky``: (1 + tol)θ − H is positive definite if its Cholesky factorisation runs to the end
  with as much to spare as rounding may have added, (m + 1) u Σ of its diagonal (Rump 2006);
- ``lapack``: all eigenvalues and vectors, which also serve as the start of a new run, and where
  an eigenvector was lost.

No random part is needed in the start: nothing is believed of it.

References:
    Rump, Verification of positive definiteness, BIT 46 (2006) 433.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trebuchet.curvature.bracket import KEPT, UNIT, Floats, Products, quotient
from trebuchet.curvature.gram import top_of_gram

PROOFS = ("trace", "frobenius", "cholesky", "lapack")

_FREE = {True: "trace", False: "frobenius"}
"""What proves λ₁ from products alone, with a factor S and without."""

TOP_PROOFS = "top_eigenvalue_proofs"
"""What their numbers are called in histories and results."""

SMALL = 64
"""Up to this size LAPACK has all eigenvalues of a matrix in the time of a few products."""

TOLERANCE = {torch.float64: 5e-13}
"""By which λ₁ may exceed what is returned, relatively; half of what is promised."""

TOLERANCE_ELSE = 5e-8


@dataclass(frozen=True)
class SplitGram:
    """H = B + c SSᵀ of every run, so that a narrow part need not be formed.

    Attributes:
        dense: B, symmetric, shape ``(R, m, m)``.
        factor: S, shape ``(R, m, n)``; None where there is none. It is not copied.
        weight: c ≥ 0.
    """

    dense: Tensor
    factor: Tensor | None = None
    weight: float = 1.0

    def whole(self) -> Tensor:
        """H, ``(R, m, m)``, in its own dtype."""
        if self.factor is None:
            return self.dense
        return torch.baddbmm(self.dense, self.factor, self.factor.mT, alpha=self.weight)

    def only(self) -> Tensor:
        """The one entry of every H, summed in float64, ``(R,)``; NaN where it is not finite."""
        found = self.along(self.dense.new_ones(self.dense.shape[:2]))
        return torch.where(found.isfinite(), found, torch.nan)

    @cached_property
    def double(self) -> Tensor:
        """B in float64."""
        return self.dense.double()

    def one(self, run: int) -> "SplitGram":
        """Of one run, as a stack of one."""
        at = slice(run, run + 1)
        return SplitGram(
            self.dense[at], None if self.factor is None else self.factor[at], self.weight
        )

    def along(self, v: Tensor) -> Tensor:
        """vᵀHv of every run, float64 ``(R,)``; products with S in its own dtype."""
        w = v.double()
        found = torch.bmm(self.double, w.unsqueeze(2)).squeeze(2).mul_(w).sum(1)
        if self.factor is not None:
            inner = torch.bmm(v.to(self.factor).unsqueeze(1), self.factor)
            found += self.weight * inner.double().square_().sum((1, 2))
        return found


class WarmTop:
    """The largest eigenvalue of each of R runs, asked for at one step after another.

    Args:
        runs: R.
        size: m.

    Attributes:
        vectors: The last top eigenvectors, float64 ``(R, 3, m)``; zero where none is known.
        proofs: How often each of `PROOFS` was needed, ``(R, 4)``.
    """

    def __init__(self, runs: int, size: int) -> None:
        self.vectors: Floats = np.zeros((runs, KEPT, size))
        self.proofs = np.zeros((runs, len(PROOFS)), dtype=np.int64)

    def take(self, rows: Sequence[int]) -> "WarmTop":
        """Those of the runs `rows`."""
        other = WarmTop(0, 0)
        other.vectors, other.proofs = self.vectors[list(rows)], self.proofs[list(rows)]
        return other

    def tallies(self) -> dict[str, Floats]:
        """The proofs of every run, by their name in results."""
        return {TOP_PROOFS: self.proofs.astype(np.float64)}

    def state(self) -> dict[str, NDArray[Any]]:
        """Arrays that say where this stands."""
        return {"top_vectors": self.vectors, "top_proofs": self.proofs}

    @classmethod
    def restored(cls, state: Mapping[str, Any], runs: int) -> "WarmTop | None":
        """What ``state`` was of; None where it holds nothing of the kind."""
        if "top_vectors" not in state:
            return None
        other = cls(0, 0)
        other.vectors, other.proofs = state["top_vectors"], state["top_proofs"]
        if other.vectors.shape[:2] != (runs, KEPT) or other.proofs.shape != (runs, len(PROOFS)):
            msg = f"eigenvectors of shape {other.vectors.shape} for {runs} runs"
            raise ValueError(msg)
        return other

    def of(self, matrices: SplitGram) -> Floats:
        """λ₁ of every run, float64 ``(R,)``.

        Too small by less than 10⁻⁷ of it where the matrices are float32, 10⁻¹² where they are
        float64.

        Args:
            matrices: H of the runs.

        Returns:
            The eigenvalues; NaN where a matrix is not finite, or LAPACK finds none.
        """
        runs, _, size = self.vectors.shape
        if size <= SMALL:
            self.proofs[:, PROOFS.index("lapack")] += 1
            found = matrices.only() if size == 1 else top_of_gram(matrices.whole().double())
            numbers: Floats = found.cpu().numpy()
            return numbers
        values = np.full(runs, np.nan)
        for run in range(runs):
            one = matrices if runs == 1 else matrices.one(run)
            theta, kind, y = _top(one, self.vectors[run])
            if one.factor is not None and one.factor.dtype != torch.float64 and theta > 0:
                theta = quotient(one.double[0], one.factor[0], one.weight, y[0])
            values[run], self.vectors[run] = theta, y
            self.proofs[run, PROOFS.index(kind)] += 1
        return values


def _top(matrices: SplitGram, start: Floats) -> tuple[float, str, Floats]:
    """λ₁ of one run, what proves it, and top eigenvectors: the start where none are found."""
    dtype = matrices.dense.dtype
    tol = TOLERANCE.get(dtype, TOLERANCE_ELSE)
    dense = matrices.double[0]
    split = matrices.factor is not None
    factor = None if matrices.factor is None else matrices.factor[0]
    products = Products(dense, factor, matrices.weight)
    theta, y = math.nan, start
    if products.zero:
        return 0.0, _FREE[split], start
    if products.sound and start.any():
        theta, y, proven = products.climb(start, tol)
        if proven:
            return theta, _FREE[split], y
    h = matrices.whole()[0].double() if split else dense
    if not bool(torch.isfinite(h).all()):
        return math.nan, "lapack", start
    whole = Products(h) if split else products
    if whole.sound and y.any():
        if split:
            theta, y, proven = whole.climb(y, tol)
            if proven:
                return theta, "frobenius", y
        if _below(h, theta, tol):
            return theta, "cholesky", y
    try:
        found, vectors = torch.linalg.eigh(h)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # not in torch's stubs
        return math.nan, "lapack", start
    return float(found[-1]), "lapack", vectors[:, -KEPT:].flip(1).T.cpu().numpy()


def _below(h: Tensor, theta: float, tol: float) -> bool:
    """Whether (1 + tol)θ − H is proven to be positive definite."""
    m = h.shape[0]
    most = theta * (1 + tol)
    spare = (m + 2) * UNIT * (m * most - float(h.trace()))
    if not 0 <= spare < 0.5 * tol * theta:
        return False  # rounding alone would decide
    shifted = torch.diag(h.new_full((m,), most - spare)) - h
    return int(torch.linalg.cholesky_ex(shifted)[1]) == 0
