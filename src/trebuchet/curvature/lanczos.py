"""Lanczos with full reorthogonalisation, restarts and a certificate, on any device.

Given a symmetric A, Lanczos builds orthonormal vectors v_0, v_1, … with
A V_m = V_m T_m + β_m v_m e_mᵀ. The largest eigenvalue θ of the small T_m approaches λ_1 = λ_max(A)
from below. Two numbers say how far it has come, and both are needed:

1. **The residual** ‖A y − θ y‖ = β_m |s_m| for the Ritz vector y = V_m s: some eigenvalue lies
   within it of θ. Rigorous, but it does not say *which* eigenvalue: a run whose start is nearly
   orthogonal to the top eigenvector converges to the second one with a perfect residual.
2. **The certificate** (certificate.py): a bound on the probability that an eigenvalue above
   (1 + rtol) θ exists and was missed. It holds for every A, and for every warm start, since beside
   a warm start w there is always a share of a fresh random direction: v_0 ∝ ŵ + τ ĝ. However stale
   w is, it costs products, never the answer.

The run stops when both tests are passed.

A metric M ⪰ 0 replaces the dot product by ⟨u, v⟩ = uᵀ M v; then the run is on A M, which is
symmetric in it, with products v ↦ A v (see ggn.py, which works in the space of outputs).

References:
    Parlett, The Symmetric Eigenvalue Problem (SIAM 1998), chapters 4 and 13 (residual bounds).
    Wu & Simon, SIAM J. Matrix Anal. Appl. 22 (2000) 602 (thick restart).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trebuchet.curvature.basis import Basis, dot, length
from trebuchet.curvature.certificate import Certificate, Floats
from trebuchet.errors import InputError

Product = Callable[[Tensor], Tensor]
Step = Callable[[int, float, float, float], None]
"""Progress: (products so far, value, residual, probability of having missed a larger one)."""

SYMMETRIC = 1000
"""Asymmetry of an operator in units of eps‖A‖ that is still rounding."""

ROUNDING = 32
"""Rounding of a product in units of eps‖A‖: up to 10 was seen on nets in float32; with room."""


@dataclass(frozen=True, slots=True)
class Start:
    """Where a run starts, and how much of the top eigenvector it is sure to contain.

    Attributes:
        vector: v_0 before normalisation, shape (n,).
        overlap: Function of λ: c such that ⟨x, v_0⟩ = c x̂·g + (something independent), with x the
            unit eigenvector of eigenvalue λ, x̂ any unit vector and g random of unit variance with
            independent uniform or Gaussian entries. 1 for v_0 = g.
    """

    vector: Tensor
    overlap: Callable[[float], float]


@dataclass(frozen=True, slots=True)
class Goal:
    """When a run may stop.

    Attributes:
        k: Number of eigenvalues. A multiple eigenvalue is seen once by one run: see solve.py.
        rtol: Relative tolerance of residual and certificate.
        failure: Probability with which the certificate may be wrong.
        max_products: Products after which to give up.
        basis_cap: At most so many vectors are kept (then a thick restart); at least k + 3.
        eps: Rounding unit of the products, or a function that is asked for it after each of them;
            None is that of the vectors' dtype.
        certify: Ask for the certificate at θ_k, not only for residuals.
        against: Only ask for a certificate that no eigenvalue exceeds this by more than `rtol`;
            stop as well when one is found that does.
        above: Only ask whether an eigenvalue exceeds this, the same but that a Ritz value above it,
            which no eigenvalue need be near, is enough.
        watch: Expect symmetry. Of a deflated operator it only holds as far as what was taken out
            is an eigenspace.
    """

    k: int = 1
    rtol: float = 1e-3
    failure: float = 1e-6
    max_products: int = 1000
    basis_cap: int = 64
    eps: float | Callable[[], float] | None = None
    certify: bool = True
    against: float | None = None
    above: float | None = None
    watch: bool = True


@dataclass(frozen=True, slots=True)
class LanczosResult:
    """The top of a spectrum as one run saw it.

    Attributes:
        values: Ritz values θ_1 ≥ … ≥ θ_k, shape (k,); fewer if the run was exhausted before.
        residuals: Bounds on the distance from each to an eigenvalue, shape (k,).
        vectors: Ritz vectors as rows, shape (k, n).
        next_value: θ_{k+1}, an estimate from below of λ_{k+1}; NaN if the space has none.
        upper: Above this no eigenvalue lies, except with the failure probability.
        miss: Probability of having missed one above the tolerance.
        products: Products with A.
        size: Largest |θ| seen: the scale of ‖A‖.
        noise: Rounding level of the values; no residual is below it.
        close: Every residual is within tolerance.
        certified: `miss` is below the failure probability.
        exhausted: The Krylov space is all used up: more products would add nothing.
        asymmetry: How far T is from the tridiagonal form that a symmetric A gives, relative to ‖A‖.
        symmetric: Whether that is rounding. If not, nothing here says anything of A.
    """

    values: Floats
    residuals: Floats
    vectors: Tensor
    next_value: float
    upper: float
    miss: float
    products: int
    size: float
    noise: float
    close: bool
    certified: bool
    exhausted: bool
    asymmetry: float = 0.0
    symmetric: bool = True


def lanczos(
    product: Product,
    start: Start,
    goal: Goal | None = None,
    *,
    metric: Product | None = None,
    on_step: Step | None = None,
) -> LanczosResult:
    """Find the largest (algebraic) eigenvalues of a symmetric operator.

    Args:
        product: v ↦ A v, shape (n,), in memory of its own: it is overwritten.
        start: The start vector with its guaranteed share of randomness.
        goal: When to stop.
        metric: v ↦ M v, positive semidefinite; None is the identity.
        on_step: Called after each look at the spectrum.

    Returns:
        The values, their bounds, and which tests were passed.

    Raises:
        InputError: If the products are NaN or infinite.

    Example:
        >>> d = torch.linspace(0, 1, 50, dtype=torch.float64)
        >>> g = torch.randn(50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        >>> run = lanczos(lambda v: d * v, Start(g, lambda _: 1.0), Goal(rtol=1e-6))
        >>> run.certified, round(float(run.values[0]), 6)
        (True, 1.0)
    """
    goal = goal or Goal()
    image = start.vector if metric is None else metric(start.vector)
    norm = math.sqrt(max(float(dot(start.vector, image)), 0.0))
    if not math.isfinite(norm):
        raise InputError(_NOT_FINITE)
    if norm == 0.0:
        # The metric vanishes, or A on the way to the start: with probability one, A M = 0.
        zero = start.vector.new_zeros((goal.k, start.vector.numel()))
        none = np.zeros(goal.k)
        return LanczosResult(none, none, zero, 0.0, 0.0, 0.0, 0, 0.0, 0.0, True, True, True)
    run = _Run(product, metric, goal, start, norm, image)
    while True:
        run.step()
        if not run.due():
            continue
        run.look()
        if on_step is not None:
            on_step(run.products, float(run.theta[0]), float(run.residuals[0]), run.miss)
        if run.done() or run.exhausted or run.products >= goal.max_products or not run.symmetric:
            return run.result()
        if run.full:
            run.restart()


_NOT_FINITE = "model: its derivatives are NaN or infinite here; curvature needs a smooth point"


class _Run:
    """The state of one run: the basis, T, and what the last look at T said."""

    theta: Floats
    residuals: Floats

    def __init__(
        self,
        product: Product,
        metric: Product | None,
        goal: Goal,
        start: Start,
        norm: float,
        image: Tensor,
    ) -> None:
        v = start.vector
        self.product, self.metric, self.goal = product, metric, goal
        self.n = v.numel()
        self.cap = max(min(goal.basis_cap, self.n), min(goal.k + 3, self.n))
        self.eps = float(torch.finfo(v.dtype).eps)
        self.basis = Basis(self.n, self.cap + 1, v, paired=metric is not None)
        length = torch.tensor(norm, dtype=v.dtype, device=v.device)
        self.basis.append(v, None if metric is None else image, length)
        self.certificate = Certificate(lambda lam: start.overlap(lam) / norm)
        # T is `kept` (Ritz values of the last restart), then one column a step since then.
        self.kept: Floats = np.zeros((0, 0))
        self.columns: list[Tensor] = []
        self.t: Floats = np.zeros((1, 0))
        self.products, self.miss, self.exhausted = 0, 1.0, False
        self.asymmetry, self.symmetric = 0.0, True

    @property
    def first(self) -> int:
        return len(self.kept)

    @property
    def full(self) -> bool:
        return len(self.basis) > self.cap

    def step(self) -> None:
        """One product, one more basis vector."""
        w = self.product(self.basis.last_image())
        self.products += 1
        column, w = self.basis.orthogonalise(w)
        image = w if self.metric is None else self.metric(w)
        beta = length(w, image)
        self.columns.append(torch.cat([column, beta.reshape(1)]))
        safe = beta.clamp_min(torch.finfo(w.dtype).tiny).to(w.dtype)
        self.basis.append(w, None if self.metric is None else image, safe)

    def due(self) -> bool:
        """Look after every step on the CPU; elsewhere every fourth, so that nothing waits."""
        always = self.columns[0].device.type == "cpu"
        return always or self.products % 4 == 0 or self.full or self._spent

    @property
    def _spent(self) -> bool:
        return self.products >= self.goal.max_products

    def look(self) -> None:
        """Solve T, bound the residuals, and test the certificate."""
        t, skews = _assemble(self.kept, self.columns)
        if not np.isfinite(t).all():
            raise InputError(_NOT_FINITE)
        m = t.shape[1]
        if self.goal.eps is not None:
            self.eps = self.goal.eps() if callable(self.goal.eps) else self.goal.eps
        size = float(np.abs(t[:m]).sum(axis=0).max())
        floor = 4 * self.eps * size
        broken = np.flatnonzero(np.diagonal(t, offset=-1)[self.first :] <= floor)
        self.exhausted = len(broken) > 0 or m >= self.n
        if len(broken):
            # Invariant to rounding. β is only known to be below `floor`, so that is what counts.
            m = self.first + int(broken[0]) + 1
            t = t[: m + 1, :m].copy()
            t[m, m - 1] = floor
        theta, s = np.linalg.eigh((t[:m, :m] + t[:m, :m].T) / 2)
        self.theta, self.s, self.t = theta[::-1].copy(), s[:, ::-1].copy(), t
        self.size = float(np.abs(theta).max())
        # In a metric, rounding is relative to factors that may be much larger than their product.
        if self.goal.watch and self.metric is None:
            self.asymmetry = max(self.asymmetry, *skews[: m - self.first], 0.0)
        self.symmetric = self.asymmetry <= SYMMETRIC * self.eps * self.size
        self.noise = max(ROUNDING * self.eps * self.size, self.asymmetry)
        last = 0.0 if self.exhausted else float(t[m, m - 1])
        self.residuals = np.hypot(last * np.abs(self.s[m - 1]), self.noise)
        self.have = min(self.goal.k, m)
        claim = self.claim
        self.beat = float(self.theta[self.have - 1]) if claim is None else claim
        self.margin = max(self.goal.rtol * abs(self.beat), 2 * self.noise)
        above = max(self.beat + self.margin, float(self.theta[0]))
        if size == 0.0 if len(broken) else m >= self.n:
            # A v_0 is zero: with probability one, so is A. Or T is all of A, in another basis.
            self.miss = 0.0
        elif not self.goal.certify:
            self.miss = 1.0
        else:
            self.miss = self.certificate.miss(above, self.first, t, self.goal.failure)

    @property
    def claim(self) -> float | None:
        """What no eigenvalue is to exceed."""
        return self.goal.against if self.goal.above is None else self.goal.above

    @property
    def certified(self) -> bool:
        beaten = float(self.theta[0]) > self.beat + self.margin
        held = not (beaten and self.claim is not None)
        return self.symmetric and self.miss <= self.goal.failure and held

    @property
    def close(self) -> bool:
        allowed = np.maximum(self.goal.rtol * np.abs(self.theta[: self.have]), 2 * self.noise)
        return self.symmetric and bool((self.residuals[: self.have] <= allowed).all())

    def done(self) -> bool:
        """Both tests; or, running against a claim, the claim proven or refuted."""
        if self.goal.above is not None:
            return self.certified or (self.symmetric and self.theta[0] - self.noise > self.beat)
        if self.goal.against is not None:
            low = float(self.theta[0] - self.residuals[0])
            return self.certified or (self.close and low > self.beat + self.margin)
        enough = self.have == self.goal.k and self.close
        return enough and (self.certified or not self.goal.certify)

    def restart(self) -> None:
        """Keep the best Ritz vectors and the last vector, forget the rest."""
        k, m = self.goal.k, self.t.shape[1]
        keep = max(1, min(max(k + 1, k + (m - k) // 3), m - 2))
        rotation = np.ascontiguousarray(self.s[:, :keep])
        self.certificate.segments.append((self.first, self.t.copy(), rotation))
        self.basis.restart(rotation)
        self.kept, self.columns = np.diag(self.theta[:keep]), []

    def result(self) -> LanczosResult:
        have = self.have
        return LanczosResult(
            values=self.theta[:have].copy(),
            residuals=self.residuals[:have].copy(),
            vectors=self.basis.combine(np.ascontiguousarray(self.s[:, :have])),
            next_value=float(self.theta[have]) if len(self.theta) > have else math.nan,
            upper=self._upper(),
            miss=self.miss,
            products=self.products,
            size=self.size,
            noise=self.noise,
            close=self.close,
            certified=self.certified,
            exhausted=self.exhausted,
            asymmetry=self.asymmetry / self.size if self.size else 0.0,
            symmetric=self.symmetric,
        )

    def _upper(self) -> float:
        """The λ at which the certificate passes, to a thousandth of its distance from θ."""
        top, failure = max(float(self.theta[0]), self.beat), self.goal.failure
        if self.miss == 0.0:
            return top if self.goal.above is None else float(self.theta[0])

        def passed(reach: float) -> bool:
            return self.certificate.miss(top + reach, self.first, self.t, failure) <= failure

        low, reach = 0.0, self.margin or 1e-30
        while not passed(reach):
            low, reach = reach, 4 * reach
            if reach > 1e6 * (abs(top) + float(np.abs(self.theta).max())):
                return math.inf
        for _ in range(10):
            middle = (low + reach) / 2
            low, reach = (low, middle) if passed(middle) else (middle, reach)
        return top + reach


def _assemble(kept: Floats, columns: list[Tensor]) -> tuple[Floats, list[float]]:
    """T with one more row than columns, and how far each column since a restart is from symmetric.

    Full orthogonalisation has computed all of Vᵀ A v_j, so what of it stands above the diagonal
    must be what stands below: β next to it, zero beyond. That is ⟨u, A v⟩ = ⟨v, A u⟩ for every pair
    of Lanczos vectors, at no cost.

    Args:
        kept: The Ritz values of the last restart, as a diagonal matrix.
        columns: The columns since.

    Returns:
        T, shape (m + 1, m), and one distance a column.
    """
    first = len(kept)
    m = first + len(columns)
    t = np.zeros((m + 1, m))
    t[:first, :first] = kept
    flat = torch.cat(columns).double().cpu().numpy()  # the one transfer of a look
    at, skews = 0, [0.0] * len(columns)
    for j in range(first, m):
        t[: j + 2, j] = flat[at : at + j + 2]
        at += j + 2
        if j > first:  # the first column after a restart is full: the arrow
            above = t[:j, j].copy()
            above[j - 1] -= t[j, j - 1]
            skews[j - first] = math.hypot(*above)  # without squares, which overflow
        t[j, :j] = t[:j, j]  # symmetric: the row that a restart's arrow leaves behind
    return t, skews
