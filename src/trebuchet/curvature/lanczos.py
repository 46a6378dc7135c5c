"""Lanczos with full reorthogonalisation and a certificate, on any device.

Given a symmetric A, Lanczos builds orthonormal vectors v_0, v_1, … with
A V_m = V_m T_m + β_m v_m e_mᵀ. The largest eigenvalue θ of the small T_m approaches λ_1 = λ_max(A)
from below. Two numbers say how far it has come, and both are needed:

1. **The residual** ‖A y − θ y‖ = β_m |s_m| (y = V_m s the Ritz vector): some eigenvalue lies within
   it of θ. Rigorous, but it does not say *which* eigenvalue: a run whose start is nearly orthogonal
   to the top eigenvector converges to the second one with a perfect residual.
2. **The certificate**: v_j = p_j(A) v_0 with the polynomials p_j of the recurrence. The v_j are
   orthonormal, so for the top eigenvector x, ⟨x, v_0⟩² Σ_j p_j(λ_1)² ≤ 1. Above θ every p_j grows
   monotonically. With v_0 ∝ w + τ g/‖g‖, g standard normal, |⟨x, v_0⟩| is below
   δ τ / (‖g‖ ‖w + τ g/‖g‖‖) with probability at most P(|N(0, 1)| < δ) ≤ δ √(2/π), whatever x and w
   are. So, except with that probability, λ_1 is below the λ at which Σ_j p_j(λ)² reaches the
   inverse square of that number. All steps of the run rest on one and the same event, so looking
   at every step costs no extra risk.

The run stops when both are within tolerance. `w` is the warm start. However stale it is, the fresh
direction g carries the certificate: a wrong warm start costs products, never the answer.

A metric M ⪰ 0 replaces the dot product by ⟨u, v⟩ = uᵀ M v; then A M is what must be symmetric in
it, and the products are with A (see ggn.py, which works in the space of outputs).

References:
    Parlett, The Symmetric Eigenvalue Problem (SIAM 1998), chapters 4 and 13 (residual bounds).
    van Dorsselaer, Hochstenbach, van der Vorst, SIAM J. Matrix Anal. Appl. 22 (2001) 837
    (probabilistic bounds from the Lanczos polynomials).
    Wu & Simon, SIAM J. Matrix Anal. Appl. 22 (2000) 602 (thick restart).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trebuchet.errors import InputError

Product = Callable[[Tensor], Tensor]
Floats = NDArray[np.float64]

ROUNDING = 32
"""Rounding of a product in units of eps‖A‖: up to 10 was seen on nets in float32; with room."""


@dataclass(frozen=True, slots=True)
class Start:
    """Where a run starts, and how much of the top eigenvector it is sure to contain.

    Attributes:
        vector: v_0 before normalisation, shape (n,).
        overlap: Function of λ: the number c with ⟨x, v_0⟩ = c · N(0, 1) + (something independent),
            for v_0 *before* normalisation and x the unit top eigenvector.
    """

    vector: Tensor
    overlap: Callable[[float], float]


@dataclass(frozen=True, slots=True)
class LanczosResult:
    """The top of a spectrum as one run saw it.

    Attributes:
        values: Ritz values θ_1 ≥ … ≥ θ_k, shape (k,).
        residuals: Bounds on the distance from each to an eigenvalue, shape (k,).
        vectors: Ritz vectors as rows, shape (k, n).
        next_value: θ_{k+1}, an estimate from below of λ_{k+1}; NaN if the space has none.
        upper: No eigenvalue that the start can see lies above this, up to the failure probability.
        products: Products with A.
        certified: `upper` is within tolerance of the value to beat.
        converged: Certified, and every residual within tolerance.
    """

    values: Floats
    residuals: Floats
    vectors: Tensor
    next_value: float
    upper: float
    products: int
    certified: bool
    converged: bool


@dataclass(slots=True)
class _Polynomials:
    """p_j(λ) of every basis vector, replayed from the run's coefficients at any λ."""

    # One entry a restart: (first column of the segment, T of the segment, rotation that ended it).
    done: list[tuple[int, Floats, Floats]] = field(default_factory=list)

    def sum_of_squares(self, lam: float, first: int, t: Floats, cap: float) -> float:
        """Σ_j p_j(λ)² over the run so far, or something above `cap` as soon as it is passed."""
        p = [1.0]
        for start, segment, rotation in self.done:
            p = self._run(p, lam, start, segment, cap)
            if p[-1] ** 2 > cap:
                return p[-1] ** 2
            kept = rotation.T @ np.asarray(p[: len(rotation)])
            p = [*kept.tolist(), p[-1]]
        p = self._run(p, lam, first, t, cap)
        return float(np.square(p).sum())

    @staticmethod
    def _run(p: list[float], lam: float, first: int, t: Floats, cap: float) -> list[float]:
        """Extend p over the columns of one segment: β_j p_{j+1} = λ p_j − Σ_{i≤j} T_ij p_i."""
        p = list(p)
        for j in range(first, t.shape[1]):
            below = j + 1
            if below >= t.shape[0] or t[below, j] <= 0:
                break
            lo = 0 if j == first else j - 1  # only the first column after a restart is full
            p.append(
                (lam * p[j] - float(t[lo : j + 1, j] @ np.asarray(p[lo : j + 1]))) / t[below, j]
            )
            if p[-1] ** 2 > cap:
                break
        return p


def lanczos(
    product: Product,
    start: Start,
    *,
    k: int = 1,
    metric: Product | None = None,
    rtol: float = 1e-3,
    failure: float = 1e-6,
    max_products: int = 1000,
    basis_cap: int = 64,
    eps: float | None = None,
    against: float | None = None,
    on_step: Callable[[int, float, float, float], None] | None = None,
) -> LanczosResult:
    """Find the `k` largest (algebraic) eigenvalues of a symmetric operator.

    Args:
        product: v ↦ A v, or with a metric v ↦ A(v) such that A M is symmetric in ⟨u, v⟩ = uᵀ M v.
        start: The start vector with its guaranteed share of randomness.
        k: Number of eigenvalues. A multiple eigenvalue is seen once by one run: see top.py.
        metric: v ↦ M v, positive semidefinite; None is the identity.
        rtol: Relative tolerance of both tests.
        failure: Probability with which the certificate may be wrong.
        max_products: Products after which to give up, unconverged.
        basis_cap: At most so many basis vectors are kept (then a thick restart); at least k + 3.
        eps: Rounding unit of the products; by default that of the start's dtype.
        against: The value that no eigenvalue may exceed (by `rtol`); by default θ_k. Given, only
            the certificate is asked for: the run checks a claim rather than finding a value.
        on_step: Called after each product with (products, θ_1, residual, upper).

    Returns:
        The values, their bounds, and whether both tests passed.

    Raises:
        InputError: If the products are NaN or infinite.

    Example:
        >>> d = torch.linspace(0, 1, 50, dtype=torch.float64)
        >>> g = torch.randn(50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        >>> run = lanczos(lambda v: d * v, Start(g, lambda _: 1.0), rtol=1e-6)
        >>> bool(run.converged), round(float(run.values[0]), 6)
        (True, 1.0)
    """
    n = start.vector.numel()
    cap = max(min(basis_cap, n), min(k + 3, n))
    eps = float(torch.finfo(start.vector.dtype).eps) if eps is None else eps
    on_cpu = start.vector.device.type == "cpu"
    basis = _Basis(n, cap + 1, start.vector, paired=metric is not None)
    image = start.vector if metric is None else metric(start.vector)
    norm = math.sqrt(max(float(_dot(start.vector, image)), 0.0))
    history, columns, first = _Polynomials(), [], 0
    t = np.zeros((1, 0))
    if norm == 0.0 or not math.isfinite(norm):
        # M (or A, through the start) vanishes: every eigenvalue the metric can see is zero.
        zero = start.vector.new_zeros((k, n))
        return LanczosResult(np.zeros(k), np.zeros(k), zero, math.nan, 0.0, 0, True, True)
    basis.append(start.vector / norm, None if metric is None else image / norm)
    products, kept = 0, np.zeros((0, 0))
    while True:
        w = product(basis.last_image())
        products += 1
        column, w = basis.orthogonalise(w)
        image = w if metric is None else metric(w)
        beta = _dot(w, image).clamp_min(0).sqrt()
        columns.append(torch.cat([column, beta.reshape(1)]))
        safe = beta.clamp_min(torch.finfo(beta.dtype).tiny).to(w.dtype)
        basis.append(w / safe, None if metric is None else image / safe)
        # One small transfer a check; on an accelerator not at every step, so that it never waits.
        if not (on_cpu or products % 4 == 0 or len(basis) > cap or products >= max_products):
            continue
        t = _assemble(kept, columns, first)
        if not np.isfinite(t).all():
            msg = "model: its derivatives are NaN or infinite; curvature needs a smooth point"
            raise InputError(msg)
        m = t.shape[1]
        scale = float(np.abs(t[:m, :m]).sum(axis=0).max())
        broken = np.flatnonzero(np.diagonal(t, offset=-1)[first:] <= 4 * eps * scale)
        exhausted = len(broken) > 0 or m >= n
        if len(broken):
            m = first + int(broken[0]) + 1
            t = t[: m + 1, :m]
        theta, s = np.linalg.eigh((t[:m, :m] + t[:m, :m].T) / 2)
        theta, s = theta[::-1].copy(), s[:, ::-1].copy()
        last = 0.0 if exhausted else float(t[m, m - 1])
        noise = ROUNDING * eps * max(abs(theta[0]), abs(theta[-1]))
        residuals = np.hypot(last * np.abs(s[m - 1]), noise)
        have = min(k, m)
        beat = float(theta[have - 1]) if against is None else against
        top = max(beat, float(theta[0])) if against is not None else float(theta[0])
        margin = max(rtol * abs(beat), 2 * noise)

        def passed(lam: float, t: Floats = t, first: int = first) -> bool:
            share = start.overlap(lam) / norm * failure * math.sqrt(math.pi / 2)
            limit = math.inf if share <= 0 else share**-2
            return history.sum_of_squares(lam, first, t, limit) >= limit

        if exhausted:
            certified, upper = float(theta[0]) <= beat + margin or against is None, float(theta[0])
        else:
            certified, upper = k == 1 and top <= beat + margin and passed(beat + margin), math.inf
        close = bool((residuals[:have] <= np.maximum(rtol * np.abs(theta[:have]), 2 * noise)).all())
        found = have == k or exhausted
        if against is not None:
            done = certified or (close and float(theta[0] - residuals[0]) > beat + margin)
        else:
            done = found and close and (certified or k > 1)
        if on_step is not None:
            on_step(
                products,
                float(theta[0]),
                float(residuals[0]),
                beat + margin if certified else upper,
            )
        if done or exhausted or products >= max_products:
            break
        if len(basis) > cap:
            keep = min(max(k + 1, k + (m - k) // 3), m - 2)
            rotation = np.ascontiguousarray(s[:, :keep])
            history.done.append((first, t.copy(), rotation))
            basis.restart(rotation)
            kept, columns, first = np.diag(theta[:keep]), [], keep
    if not math.isfinite(upper):
        upper = _upper(passed, top, margin if certified else None, scale)
    ritz = basis.combine(np.ascontiguousarray(s[:, :have]))
    following = float(theta[have]) if m > have else math.nan
    return LanczosResult(
        theta[:have].copy(), residuals[:have].copy(), ritz, following, upper, products,
        bool(certified), bool(done and (against is None or certified)),
    )  # fmt: skip


def _assemble(kept: Floats, columns: list[Tensor], first: int) -> Floats:
    """T with one more row than columns: kept Ritz values, then the columns since the restart."""
    m = first + len(columns)
    t = np.zeros((m + 1, m))
    t[:first, :first] = kept
    flat = torch.cat(columns).double().cpu().numpy()
    at = 0
    for j in range(first, m):
        t[: j + 2, j] = flat[at : at + j + 2]
        at += j + 2
        t[j, :j] = t[:j, j]  # symmetric: the row a restart's arrow leaves behind
    return t


def _upper(
    passed: Callable[[float], bool], top: float, margin: float | None, scale: float
) -> float:
    """The λ above `top` at which the certificate passes, to a hundredth of its distance."""
    reach = margin if margin is not None else max(abs(top), scale) * 1e-6
    for _ in range(60):
        if passed(top + reach):
            break
        reach *= 4
    else:
        return math.inf
    low = 0.0
    for _ in range(12):
        middle = (low + reach) / 2
        low, reach = (low, middle) if passed(top + middle) else (middle, reach)
    return top + reach


def _dot(u: Tensor, v: Tensor) -> Tensor:
    """uᵀv in float64 without a float64 copy: partial sums of 2¹⁵ entries are added in float64."""
    if u.dtype == torch.float64 or u.numel() < 1 << 15:
        return torch.dot(u.double(), v.double())
    whole = u.numel() >> 15 << 15
    parts = torch.linalg.vecdot(u[:whole].view(-1, 1 << 15), v[:whole].view(-1, 1 << 15))
    total: Tensor = parts.double().sum() + torch.dot(u[whole:].double(), v[whole:].double())
    return total


class _Basis:
    """Orthonormal vectors as rows of a few blocks, grown as needed; with a metric, also M times."""

    def __init__(self, n: int, cap: int, like: Tensor, *, paired: bool) -> None:
        self.n, self.cap, self.paired = n, cap, paired
        self.rows = 8 if n > 1 << 16 else min(cap, 32)
        self.like, self.count = like, 0
        self.blocks: list[Tensor] = []
        self.images: list[Tensor] = []

    def __len__(self) -> int:
        return self.count

    def append(self, v: Tensor, image: Tensor | None) -> None:
        block, row = divmod(self.count, self.rows)
        if block == len(self.blocks):
            rows = min(self.rows, self.cap - self.count)
            self.blocks.append(self.like.new_empty((rows, self.n)))
            if self.paired:
                self.images.append(self.like.new_empty((rows, self.n)))
        self.blocks[block][row] = v
        if image is not None:
            self.images[block][row] = image
        self.count += 1

    def last_image(self) -> Tensor:
        block, row = divmod(self.count - 1, self.rows)
        return (self.images if self.paired else self.blocks)[block][row]

    def _filled(self, blocks: list[Tensor]) -> list[Tensor]:
        left = self.count
        out = []
        for block in blocks:
            out.append(block[: min(left, len(block))])
            left -= len(out[-1])
        return out

    def orthogonalise(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Return Vᵀ M w and w − V Vᵀ M w, done twice: once is not enough (Parlett 6.9)."""
        total = w.new_zeros(self.count, dtype=torch.float64)
        vectors = self._filled(self.blocks)
        duals = self._filled(self.images) if self.paired else vectors
        for _ in range(2):
            parts = [dual @ w for dual in duals]
            for part, block in zip(parts, vectors, strict=True):
                w = torch.addmv(w, block.T, part, alpha=-1)
            total += torch.cat(parts).double()
        return total, w

    def combine(self, s: Floats) -> Tensor:
        """Return Sᵀ V, shape (columns of S, n)."""
        weights = torch.as_tensor(s, dtype=self.like.dtype, device=self.like.device)
        blocks = self._filled(self.blocks)
        out = self.like.new_zeros((weights.shape[1], self.n))
        at = 0
        for block in blocks:
            rows = min(len(block), len(weights) - at)
            if rows > 0:
                out.addmm_(weights[at : at + rows].T, block[:rows])
            at += len(block)
        return out

    def restart(self, s: Floats) -> None:
        """Keep V S and the last vector, in place, a stripe of 2¹⁶ entries at a time."""
        weights = torch.as_tensor(s, dtype=self.like.dtype, device=self.like.device)
        m, keep = weights.shape
        for blocks in (self.blocks, self.images) if self.paired else (self.blocks,):
            for at in range(0, self.n, 1 << 16):
                stripe = slice(at, min(at + (1 << 16), self.n))
                old = torch.cat([b[:, stripe] for b in blocks])
                new = torch.cat([weights.T @ old[:m], old[m : m + 1]])
                row = 0
                for block in blocks:
                    rows = min(len(block), keep + 1 - row)
                    if rows <= 0:
                        break
                    block[:rows, stripe] = new[row : row + rows]
                    row += rows
        self.count = keep + 1
