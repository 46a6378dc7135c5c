"""The top eigenvalue of a symmetric H, from where it was last, with a proof; LAPACK if need be.

From one step of descent to the next the top eigenvector hardly turns. A few products with H from
the last one give a unit vector y, its Rayleigh quotient θ = yᵀHy and its residual r = ‖Hy − θy‖.
That θ ≤ λ₁ holds for every y. What has to be shown is that λ₁ ≤ (1 + tol)θ, that nothing larger
was missed, and each of these shows it:

**Temple's bound.** If λ₂ ≤ β < θ then λ₁ ≤ θ + r²/(θ − β). For (H − λ₁)(H − β) ⪰ 0: its first
eigenvalue is 0, the others are products of two numbers ≤ 0; and yᵀ(H − λ₁)(H − β)y ≥ 0 is, with
‖Hy‖² = θ² + r², what the bound says. As r enters squared, r/θ = 10⁻⁴ will do for eight digits.

For β, by Courant and Fischer λ₂ is at most the largest eigenvalue of H on the complement of any
vector, so of PHP with P = 1 − yyᵀ, and with H = B + SSᵀ

- ``trace``: β = ‖PBP‖_F + tr PSSᵀP, from products at hand: SSᵀ is never formed;
- ``frobenius``: β = ‖PHP‖_F, with H formed. Where there is no S it costs nothing either.

Neither asks for H ⪰ 0. Where λ₂ is too near λ₁ for both,

- ``cholesky``: (1 + tol)θ − H is positive definite if its Cholesky factorisation runs to the end
  with as much to spare as rounding may have added, (m + 1) u Σ of its diagonal (Rump 2006);
- ``lapack``: all eigenvalues and vectors, which also serves as the start of a new run, and where
  an eigenvector was lost.

No random part is needed in the start: nothing is believed of it.

Vectors, sums and products with B are float64; products with S are made in its own dtype, and their
rounding is part of r. θ is as good as they are: that of H + E, ‖E‖ some units of rounding of ‖H‖.

References:
    Temple, Proc. R. Soc. A 119 (1928) 276; Kato, J. Phys. Soc. Jpn. 4 (1949) 334.
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

from trebuchet.curvature.gram import top_of_gram

Floats = NDArray[np.float64]

PROOFS = ("trace", "frobenius", "cholesky", "lapack")

TOP_PROOFS = "top_eigenvalue_proofs"
"""What their numbers are called in histories and results."""

SMALL = 64
"""Up to this size LAPACK has all eigenvalues of a matrix in the time of a few products."""

MOST = 6
"""Products before the matrix is formed: a start that needs more is no better than none."""

TOLERANCE = {torch.float64: 5e-13}
"""By which λ₁ may exceed what is returned, relatively; half of what is promised."""

TOLERANCE_ELSE = 5e-8

ROUNDING = 32
"""Rounding of a product in units of eps‖H‖, with room; as in lanczos.py."""

UNIT = 2.0**-53

SOUND = (1e-250, 1e250)
"""Squared norms between which the squares of entries that matter are normal numbers."""


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

    def times(self, v: Tensor) -> Tensor:
        """Hv of every run, float64 ``(R, m)``; of S in its own dtype."""
        found = torch.bmm(self.double, v.double().unsqueeze(2))
        if self.factor is not None:
            inner = torch.bmm(self.factor.mT, v.to(self.factor).unsqueeze(2))
            found += self.weight * torch.bmm(self.factor, inner)
        return found.squeeze(2)


class WarmTop:
    """The largest eigenvalue of each of R runs, asked for at one step after another.

    Args:
        runs: R.
        size: m.

    Attributes:
        vectors: The last eigenvectors, float64 ``(R, m)``; zero where none is known.
        proofs: How often each of `PROOFS` was needed, ``(R, 4)``.
    """

    def __init__(self, runs: int, size: int) -> None:
        self.vectors: Floats = np.zeros((runs, size))
        self.proofs = np.zeros((runs, len(PROOFS)), dtype=np.int64)

    def take(self, rows: Sequence[int]) -> "WarmTop":
        """Those of the runs `rows`."""
        other = WarmTop(0, 0)
        other.vectors, other.proofs = self.vectors[list(rows)], self.proofs[list(rows)]
        return other

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
        if other.vectors.shape[:1] != (runs,) or other.proofs.shape != (runs, len(PROOFS)):
            msg = f"eigenvectors of shape {other.vectors.shape} for {runs} runs"
            raise ValueError(msg)
        return other

    def of(self, matrices: SplitGram) -> Floats:
        """λ₁ of every run, float64 ``(R,)``.

        Too small by less than 10⁻⁷ of it where the matrices are float32, 10⁻¹² where they are
        float64, but for the rounding of products with S.

        Args:
            matrices: H of the runs.

        Returns:
            The eigenvalues; NaN where a matrix is not finite, or LAPACK finds none.
        """
        runs, size = self.vectors.shape
        if size <= SMALL:
            self.proofs[:, PROOFS.index("lapack")] += 1
            found: Floats = top_of_gram(matrices.whole()).double().cpu().numpy()
            return found
        values = np.full(runs, np.nan)
        for run in range(runs):
            one = matrices if runs == 1 else matrices.one(run)
            values[run], kind, self.vectors[run] = _top(one, self.vectors[run])
            self.proofs[run, PROOFS.index(kind)] += 1
        return values


def _top(matrices: SplitGram, start: Floats) -> tuple[float, str, Floats]:
    """λ₁ of one run, what proves it, and its eigenvector: the start where none is found."""
    dtype = matrices.dense.dtype
    tol = TOLERANCE.get(dtype, TOLERANCE_ELSE)
    dense = matrices.double[0]
    factor = None if matrices.factor is None else matrices.factor[0]
    products = _Products(dense, factor, matrices.weight)
    y = start
    if products.zero:
        return 0.0, "trace", start
    if products.sound and start.any():
        theta, y, proven = products.climb(start, tol)
        if proven:
            return theta, "trace", y
    h = dense if matrices.factor is None else matrices.whole()[0].double()
    if not bool(torch.isfinite(h).all()):
        return float("nan"), "lapack", start
    whole = _Products(h)
    if whole.sound and y.any():
        theta, proven = whole.judged(y, tol)
        if proven:
            return theta, "frobenius", y
        if _below(h, theta, tol):
            return theta, "cholesky", y
    try:
        found, vectors = torch.linalg.eigh(h)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # not in torch's stubs
        return float("nan"), "lapack", start
    return float(found[-1]), "lapack", _numpy(vectors[:, -1])


class _Products:
    """B and √c S of one run, and what is known of their norms."""

    def __init__(self, b: Tensor, s: Tensor | None = None, weight: float = 1.0) -> None:
        self.b, self.s, self.weight = b, s, weight
        flat = b.reshape(-1)
        self.square, self.trace = float(flat @ flat), 0.0  # ‖B‖_F², tr c SSᵀ or a little more
        self.eps = 2 * UNIT
        if s is not None:
            flat, self.eps = s.reshape(-1), float(torch.finfo(s.dtype).eps)
            slack = 1 + flat.numel() * self.eps  # for any order of summation
            self.trace = weight * slack * float(flat @ flat)
        total = self.square + self.trace**2
        self.sound = SOUND[0] < total < SOUND[1]
        self.zero = total == 0 and not bool(b.any()) and (s is None or not bool(s.any()))

    def times(self, v: Floats) -> tuple[Floats, Floats]:
        """Bv and c SSᵀv."""
        at = torch.from_numpy(v).to(self.b.device)
        bv = _numpy(self.b @ at)
        if self.s is None:
            return bv, np.zeros_like(bv)
        return bv, self.weight * _numpy((self.s @ (self.s.T @ at.to(self.s.dtype))).double())

    def climb(self, start: Floats, tol: float) -> tuple[float, Floats, bool]:
        """The best θ and y that a few products give, and whether that is λ₁."""
        m = start.size
        v, bv, sv = np.empty((MOST, m)), np.empty((MOST, m)), np.empty((MOST, m))
        t = np.zeros((MOST, MOST))
        v[0], y, theta = start, start, -math.inf
        for k in range(MOST):
            bv[k], sv[k] = self.times(v[k])
            t[k, : k + 1] = v[: k + 1] @ (bv[k] + sv[k])
            if not math.isfinite(t[k].sum()):
                return theta, start, False
            before = theta
            if k == 0:
                theta, y, by, sy = float(t[0, 0]), v[0], bv[0], sv[0]
            else:
                theta, c = _top_pair(t[: k + 1, : k + 1])
                y, by, sy = c @ v[: k + 1], c @ bv[: k + 1], c @ sv[: k + 1]
            residual = by + sy - theta * y
            r = math.sqrt(residual @ residual)
            noise = ROUNDING * self.eps * (abs(theta) + self.trace)
            if self._proven(theta, r + noise, y, by, sy, tol):
                return theta, y, True
            # Where θ stands still, more products are no help.
            if k == MOST - 1 or theta - before <= 0.1 * tol * abs(theta) or r <= noise:
                break
            new = residual / r
            for _ in range(2):  # the first leaves what rounding makes of a small residual
                new = new - (v[: k + 1] @ new) @ v[: k + 1]
                length = math.sqrt(new @ new)
                if length == 0:  # nothing but rounding was left of it
                    return theta, y, False
                new /= length
            v[k + 1] = new
        return theta, y, False

    def judged(self, y: Floats, tol: float) -> tuple[float, bool]:
        """θ of y, and whether that is λ₁."""
        by, sy = self.times(y)
        theta = float(y @ by + y @ sy)
        residual = by + sy - theta * y
        r = math.sqrt(residual @ residual) + ROUNDING * self.eps * (abs(theta) + self.trace)
        return theta, self._proven(theta, r, y, by, sy, tol)

    def _proven(
        self, theta: float, r: float, y: Floats, by: Floats, sy: Floats, tol: float
    ) -> bool:
        """Whether λ₁ ≤ (1 + tol)θ, by Temple's bound."""
        if r * r > tol * theta * theta:
            return False  # whatever β is
        inside = self.square - 2 * float(by @ by) + float(y @ by) ** 2  # ‖PBP‖_F²
        beta = math.sqrt(max(inside, 0.0) + 1e-13 * self.square)
        beta += max(self.trace - float(y @ sy), 0.0) + ROUNDING * self.eps * self.trace
        return theta > beta and r * r <= tol * theta * (theta - beta)


def _top_pair(t: Floats) -> tuple[float, Floats]:
    """The top eigenvalue of the lower half of a small matrix, and its eigenvector."""
    if len(t) == 2:  # two products are what it mostly takes
        a, b, c = float(t[0, 0]), float(t[1, 0]), float(t[1, 1])
        theta = (a + c) / 2 + math.hypot((a - c) / 2, b)
        pair = (theta - c, b) if a >= c else (b, theta - a)
        length = math.hypot(*pair)
        if length > 0:
            return theta, np.array(pair) / length
    values, vectors = np.linalg.eigh(t)
    return float(values[-1]), vectors[:, -1]


def _below(h: Tensor, theta: float, tol: float) -> bool:
    """Whether (1 + tol)θ − H is proven to be positive definite."""
    m = h.shape[0]
    most = theta * (1 + tol)
    spare = (m + 2) * UNIT * (m * most - float(h.trace()))
    if not 0 <= spare < 0.5 * tol * theta:
        return False  # rounding alone would decide
    shifted = torch.diag(h.new_full((m,), most - spare)) - h
    return int(torch.linalg.cholesky_ex(shifted)[1]) == 0


def _numpy(t: Tensor) -> Floats:
    array: Floats = t.cpu().numpy()
    return array
