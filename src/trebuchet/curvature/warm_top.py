"""The top eigenvalue of a symmetric H, from where it was last, with a proof; LAPACK if need be.

From one step of descent to the next the top eigenvector hardly turns. A few products with H from
the last one give an orthonormal V, with W = HV, T = VᵀW and R = W − VT; in a basis that begins with
V, H is [[T, Rᵀ], [R, C]]. That θ = λ_max(T) ≤ λ₁ holds for every V. What has to be shown is that
λ₁ ≤ (1 + tol)θ, that nothing larger was missed, and each of these shows it:

**The bracket.** If λ_max(C) ≤ c < θ then λ₁ ≤ λ_max(T + RᵀR/(θ − c)). For H ⪯ [[T, Rᵀ], [R, c·1]],
and a z > c is no less than that matrix if T + RᵀR/(z − c) ⪯ z, as it is for the bound, which is no
less than θ. Of a Krylov space RᵀR is β² e_k e_kᵀ. Of a single vector it is Temple's bound, whose c
may be as large as λ₂; what V holds is no longer in C, so that here c falls with every product. As R
enters squared, |R|/θ = 10⁻⁴ will do for eight digits.

For c, with P = 1 − VVᵀ, C = PHP on the complement of V, and H = B + SSᵀ

- ``trace``: c = ‖PBP‖_F + tr PSSᵀP, from products at hand: SSᵀ is never formed;
- ``frobenius``: c = ‖PHP‖_F, with H formed. Where there is no S it costs nothing either.

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

_FREE = {True: "trace", False: "frobenius"}
"""What proves λ₁ from products alone, with a factor S and without."""

TOP_PROOFS = "top_eigenvalue_proofs"
"""What their numbers are called in histories and results."""

SMALL = 64
"""Up to this size LAPACK has all eigenvalues of a matrix in the time of a few products."""

FIRST, MOST = 2, 12
"""Products before the first bracket, and before the matrix is formed at the latest."""

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
    split = matrices.factor is not None
    factor = None if matrices.factor is None else matrices.factor[0]
    products = _Products(dense, factor, matrices.weight)
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
    whole = _Products(h) if split else products
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
    return float(found[-1]), "lapack", _numpy(vectors[:, -1])


class _Products:
    """B and √c S of one run, and what is known of their norms."""

    def __init__(self, b: Tensor, s: Tensor | None = None, weight: float = 1.0) -> None:
        self.b, self.s, self.weight = b, s, weight
        flat = b.reshape(-1)
        self.square, self.trace = float(flat @ flat), 0.0  # ‖B‖_F², tr c SSᵀ or a little more
        self.eps, normal = 2 * UNIT, True
        if s is not None:
            flat, kind = s.reshape(-1), torch.finfo(s.dtype)
            squared, self.eps = float(flat @ flat), float(kind.eps)
            self.trace = weight * squared * (1 + flat.numel() * kind.eps)  # summed in any order
            normal = squared > flat.numel() * kind.tiny / kind.eps or not bool(s.any())
        total = self.square + self.trace**2
        self.sound = normal and SOUND[0] < total < SOUND[1]
        self.zero = total == 0 and not bool(b.any()) and (s is None or not bool(s.any()))

    def times(self, v: Floats) -> tuple[Floats, Floats]:
        """Bv and c SSᵀv."""
        at = torch.from_numpy(v).to(self.b.device)
        bv = _numpy(torch.mv(self.b, at))
        if self.s is None:
            return bv, np.zeros_like(bv)
        inner = torch.mv(self.s.T, at.to(self.s.dtype))
        sv: Floats = np.multiply(_numpy(torch.mv(self.s, inner)), self.weight, dtype=np.float64)
        return bv, sv

    @property
    def noise(self) -> float:
        """What rounding may make of a product with a unit vector."""
        return ROUNDING * self.eps * (math.sqrt(self.square) + self.trace)

    def climb(self, start: Floats, tol: float) -> tuple[float, Floats, bool]:
        """The best θ and y that a few products give, and whether that is λ₁."""
        m = start.size
        v, bv, sv = np.empty((MOST, m)), np.empty((MOST, m)), np.empty((MOST, m))
        noise, before = self.noise, math.inf
        v[0] = start
        for k in range(MOST):
            bv[k], sv[k] = self.times(v[k])
            basis = v[: k + 1]
            new = bv[k] + sv[k]
            for _ in range(2):  # the first leaves what rounding makes of a small remainder
                new -= (basis @ new) @ basis
            beta = math.sqrt(new @ new)
            if not math.isfinite(beta):
                return math.nan, start, False
            spent = k == MOST - 1 or beta <= 1e-3 * noise
            if k + 1 >= FIRST or spent:
                theta, top, c, proven = self._bracket(
                    basis, bv[: k + 1], sv[: k + 1], beta, noise, tol
                )
                # Without a bound, θ's own error is about (βy_k)²/θ, and c falls ever more slowly.
                hopeless = (
                    c - theta > (MOST - 1 - k) * (before - c)
                    and (beta * float(top[-1])) ** 2 <= 0.1 * tol * theta**2
                )
                if proven or hopeless or spent:
                    y = top @ basis
                    return theta, y / math.sqrt(y @ y), proven
                before = c
            v[k + 1] = new / beta
        raise AssertionError  # the last product is spent

    def _bracket(
        self, v: Floats, bv: Floats, sv: Floats, beta: float, noise: float, tol: float
    ) -> tuple[float, Floats, float, bool]:
        """θ, its vector in V, c, and whether λ₁ ≤ (1 + tol)θ."""
        of_b, of_s = v @ bv.T, v @ sv.T
        ritz, rotation = np.linalg.eigh(of_b + of_s)  # reads the lower half
        theta, top = float(ritz[-1]), rotation[:, -1]
        inside = self.square - 2 * float(np.vdot(bv, bv)) + float(np.vdot(of_b, of_b))  # ‖PBP‖_F²
        c = math.sqrt(max(inside, 0.0) + 1e-13 * self.square)
        c += max(self.trace - float(of_s.trace()), 0.0) + ROUNDING * self.eps * self.trace
        if theta <= c:
            return theta, top, c, False
        # R is βe_kᵀ and rounding N: of (a + b)² ≤ 1.1a² + 11b², a rounding of 1e-6θ adds 1e-11θ.
        most = (1 + tol) * theta - 11 * noise**2 / (theta - c)
        if most <= theta:
            return theta, top, c, False
        # T + δ e_k e_kᵀ ⪯ z as long as δ Σ (e_k·y_i)²/(z − θ_i) ≤ 1, the sum over T's eigenpairs.
        raised = 1.1 * beta**2 / (theta - c) * float((rotation[-1] ** 2 / (most - ritz)).sum())
        return theta, top, c, raised <= 1


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
