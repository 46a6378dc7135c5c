"""How likely it is that a Lanczos run missed the top eigenvalue.

Lanczos vectors are v_j = p_j(A) v_0, with polynomials p_j that obey the run's own recurrence. They
are orthonormal, so for a unit eigenvector x of eigenvalue λ, Σ_j ⟨x, v_j⟩² = ⟨x, v_0⟩² Σ_j p_j(λ)²
≤ 1. All zeros of the p_j lie at or below the largest Ritz value θ, and above it the sum
F(λ) = Σ_j p_j(λ)² grows monotonically, in m steps about as fast as a Chebyshev polynomial of
degree m. If λ_max(A) were λ > θ, its overlap with the start would have to be below F(λ)^{-1/2}.

The start contains c·g, g with independent entries uniform in ±√3, plus something independent of g
(a warm start). By Ball's theorem on slices of the cube, x·g has a density of at most √2/(2√3) for
every unit x, so P(|c x·g + anything| < δ) ≤ √(2/3) δ/c; for Gaussian g it is √(2/π), a little less.
Hence

    P(an eigenvalue above λ was missed) ≤ √(2/3) / (c √F(λ)) =: miss(λ).

Everything is decided by one random number, so looking after each step adds no risk. Thick restarts
change nothing: the kept vectors are polynomials in A times v_0 too, and the recurrence is replayed
through the restart. Rounding perturbs the overlaps by about eps, independently of the start.

References:
    Ball, Cube slicing in Rⁿ, Proc. Amer. Math. Soc. 97 (1986) 465.
    Kuczyński & Woźniakowski, SIAM J. Matrix Anal. Appl. 13 (1992) 1094 (random starts).
    van Dorsselaer, Hochstenbach, van der Vorst, SIAM J. Matrix Anal. Appl. 22 (2001) 837
    (bounds from the run's own polynomials; here with their sum of squares).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(slots=True)
class Certificate:
    """The recurrence of one run, replayed at any λ.

    Attributes:
        share: Function of λ: c, the guaranteed random share of the *normalised* start.
        segments: One entry a restart: first new column, T of the segment, rotation that ended it.
    """

    share: Callable[[float], float]
    segments: list[tuple[int, Floats, Floats]] = field(default_factory=list)

    def miss(self, lam: float, first: int, t: Floats, enough: float = 0.0) -> float:
        """Bound the probability that an eigenvalue above `lam` was missed.

        Args:
            lam: λ, above the largest Ritz value of `t`.
            first: First column of `t` since the last restart.
            t: T of the current segment, shape (m + 1, m), β in its last row.
            enough: Stop replaying once the bound is below this.

        Returns:
            miss(λ), at most 1.

        Example:
            Two steps, α = 0 and β = 1 throughout, at λ = 2: p = 1, 2, 3.

            >>> t = np.array([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
            >>> bound = Certificate(lambda _: 1.0).miss(2.0, 0, t)
            >>> math.isclose(bound, math.sqrt(2 / 3 / (1 + 4 + 9)))
            True
        """
        c = self.share(lam)
        if c <= 0:
            return 1.0
        limit = 2 / 3 / max(c * enough, 1e-100) ** 2 if enough > 0 else math.inf
        p = [1.0]
        for start, segment, rotation in self.segments:
            p = _extend(p, lam, start, segment, limit)
            if p[-1] ** 2 > limit:
                break
            p = [*(rotation.T @ np.asarray(p[: len(rotation)])).tolist(), p[-1]]
        else:
            p = _extend(p, lam, first, t, limit)
        total = math.fsum(x * x for x in p)
        return min(1.0, math.sqrt(2 / 3 / total) / c)


def _extend(p: list[float], lam: float, first: int, t: Floats, limit: float) -> list[float]:
    """Extend p over one segment: β_j p_{j+1} = λ p_j − Σ_{i≤j} T_ij p_i."""
    p = list(p)
    for j in range(first, t.shape[1]):
        beta = float(t[j + 1, j])
        if beta <= 0:
            break
        lo = 0 if j == first else j - 1  # only the first column after a restart is full
        p.append((lam * p[j] - float(t[lo : j + 1, j] @ np.asarray(p[lo : j + 1]))) / beta)
        if p[-1] ** 2 > min(limit, 1e200):
            break
    return p
