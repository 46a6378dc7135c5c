"""Edges: the learning rates at which gradient descent is known to change its behaviour.

All of them are for full-batch gradient descent on L = (1/2D) Σ ε², and for λ = λ_max of the
D-normalised NTK. An upper edge bounds the *proven window*: for labels y = 0 (or a loss so large
that labels do not matter) the weight norm cannot grow at any learning rate below it, so the run
cannot diverge. Above it a run may still converge: the theorem is silent there.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from trebuchet._checks import (
    LARGEST_NUMBER,
    FloatArray,
    anything,
    array,
    flag,
    from_zero,
    one_by_one,
    pair,
    positive,
    real,
    symmetric,
    text,
)
from trebuchet._content import ByContent
from trebuchet._doors import door, maybe, rule
from trebuchet.errors import InputError, NotApplicableError

PAPER = "Meltzer & Liu, arXiv 2301.07737"
_LABELS = "labels zero, or a loss so large that labels do not matter"


_VECTOR, _FEATURES = rule(array, 1), rule(array, (2, 3))
_TOP = maybe(positive)
_ZETA = rule(real, "a number below 1e100 in size", lambda x: abs(x) < LARGEST_NUMBER)


@door(name=text, lr=positive, top_eigenvalue_init=_TOP, proven=flag, conditions=text, source=text)
@dataclass(frozen=True, slots=True, eq=False)
class Edge(ByContent):
    """A learning rate where behaviour changes.

    Attributes:
        name: "critical", "upper" or "upper_omega".
        lr: The learning rate η.
        top_eigenvalue_init: λ₀, where it is known.
        proven: Whether a proof was checked; False for the linearisation's edge and for formulas
            taken from the authors' public code ("as coded").
        conditions: When it holds.
        source: Where it comes from.

    Raises:
        InputError: If a rate or λ₀ is not positive and finite.
    """

    name: str
    lr: float
    top_eigenvalue_init: float | None
    proven: bool
    conditions: str
    source: str

    @property
    def lr_ratio(self) -> float:
        """ηλ₀; NaN where λ₀ is not known."""
        return math.nan if self.top_eigenvalue_init is None else self.lr * self.top_eigenvalue_init

    @property
    def opens_window(self) -> bool:
        """Whether the edge lies above the critical rate, so that a catapult is promised."""
        return self.lr_ratio > 2


@door(top_eigenvalue=positive)
def critical(top_eigenvalue: float) -> Edge:
    """The critical rate 2/λ₀, above which the linearised model diverges.

    Args:
        top_eigenvalue: λ₀.

    Returns:
        The edge.

    Raises:
        InputError: If λ₀ is not positive and finite.

    Example:
        >>> critical(4.0).lr, critical(4.0).lr_ratio
        (0.5, 2.0)
    """
    return Edge(
        name="critical",
        lr=2 / top_eigenvalue,
        top_eigenvalue_init=top_eigenvalue,
        proven=False,
        conditions="gradient descent; exact for the linearised model, leading order otherwise",
        source="Lewkowycz et al., arXiv 2003.02218",
    )


@door(e=_VECTOR, features=_FEATURES)
def effective(e: ArrayLike, features: ArrayLike) -> FloatArray:
    """The effective feature D^(−1/2) Σ_a e_a f_a of one direction in sample space.

    Args:
        e: Top eigenvector of H at initialisation, shape ``(D,)``, normalised here.
        features: φ(x_a), shape ``(D, p)``, or ψ(x_a), shape ``(D, n, n)``.

    Returns:
        φ_eff of shape ``(p,)`` or ψ_eff of shape ``(n, n)``.

    Raises:
        InputError: If shapes disagree or e is zero.

    Example:
        >>> effective([3.0, 4.0], [[1.0, 0.0], [0.0, 1.0]]) * 2**0.5
        array([0.6, 0.8])
    """
    e, features = np.asarray(e), np.asarray(features)
    if len(e) != len(features):
        msg = f"e: expected shape ({len(features)},), one entry a sample, got {e.shape}"
        raise InputError(msg)
    norm = positive("e: its norm", float(np.linalg.norm(e)))
    return np.tensordot(e / norm, features, axes=1) / math.sqrt(len(e))


@door(psi=anything, zeta=_ZETA)
def omega_dual(psi: ArrayLike | Iterable[ArrayLike], zeta: float) -> FloatArray:
    """The n × n matrix (ζ²/D) Σ_a ψ_a², which has the nonzero spectrum of the Dn × Dn Ω.

    Ω_{(a,m),(b,p)} = (ζ²/D)(ψ_aψ_b)_{mp} is ΨΨᵀ for the stacked Ψ, and this is ΨᵀΨ.

    Args:
        psi: ψ_a, shape ``(D, n, n)``; or an iterable of D matrices, read one at a time.
        zeta: ζ, (n/2)^(−1/2) in the paper.

    Returns:
        The matrix, shape ``(n, n)``.

    Raises:
        InputError: If there is no ψ, or one is not symmetric.

    Example:
        >>> omega_dual([np.diag([1.0, -2.0])], zeta=1.0)
        array([[1., 0.],
               [0., 4.]])
    """
    total: FloatArray | None = None
    count = 0
    for given in one_by_one("psi", psi, "symmetric matrices, shape (D, n, n)"):
        matrix = symmetric("psi", given)
        if total is not None and matrix.shape != total.shape:
            msg = f"psi: expected matrices of one size, got shapes {total.shape}, {matrix.shape}"
            raise InputError(msg)
        total = matrix @ matrix if total is None else total + matrix @ matrix
        count += 1
    if total is None:
        msg = "psi: expected at least one matrix, got none"
        raise InputError(msg)
    return zeta * zeta / count * total


@door(psi_eff=symmetric, theta=_VECTOR, zeta=_ZETA, top_eigenvalue=_TOP)
def pure_quadratic_single(
    psi_eff: ArrayLike, theta: ArrayLike, zeta: float, *, top_eigenvalue: float | None = None
) -> Edge:
    """The single-sample upper edge 4/(ζ²|θ₀|²λ_max(ψ_eff²)), as the authors code it.

    For D = 1 it is the proven `pure_quadratic_multi`. For D > 1 it follows one direction in
    sample space only, lies at or above the proven edge, and is not proven.

    Args:
        psi_eff: D^(−1/2) Σ_a e_a ψ_a, shape ``(n, n)``; see `effective`.
        theta: θ₀, shape ``(n,)``.
        zeta: ζ.
        top_eigenvalue: λ₀, to express the edge as a ratio.

    Returns:
        The edge, named "upper".

    Raises:
        NotApplicableError: If θ₀ or ψ_eff is zero: nothing moves, so there is no edge.

    Example:
        With eigenvalues ±1, λ₀ = ζ²|θ₀|² and the edge is ηλ₀ = 4:

        >>> edge = pure_quadratic_single(np.diag([1.0, -1.0]), [2.0, 1.0], 1.0, top_eigenvalue=5.0)
        >>> edge.lr_ratio
        4.0
    """
    matrix, theta = np.asarray(psi_eff), np.asarray(theta)
    _check_length("theta", theta, len(matrix))
    top = zeta * zeta * _largest_square(matrix)
    return Edge(
        name="upper",
        lr=_four_over(top * float(theta @ theta), "θ₀ or ψ_eff"),
        top_eigenvalue_init=top_eigenvalue,
        proven=False,
        conditions=f"pure quadratic, one effective sample (proven for D = 1 only); {_LABELS}",
        source=f"{PAPER}, as coded",
    )


@door(omega_dual=symmetric, theta=_VECTOR, top_eigenvalue=_TOP)
def pure_quadratic_multi(
    omega_dual: ArrayLike, theta: ArrayLike, *, top_eigenvalue: float | None = None
) -> Edge:
    """The proven upper edge 4/(|θ₀|²λ_max(Ω)) of the pure quadratic model, for any D.

    Args:
        omega_dual: (ζ²/D) Σ_a ψ_a², shape ``(n, n)``; see `omega_dual`.
        theta: θ₀, shape ``(n,)``.
        top_eigenvalue: λ₀, to express the edge as a ratio.

    Returns:
        The edge, named "upper_omega".

    Raises:
        InputError: If the matrix has a negative eigenvalue beyond rounding.
        NotApplicableError: If θ₀ or Ω is zero.

    References:
        Meltzer & Liu, arXiv 2301.07737.
    """
    matrix, theta = np.asarray(omega_dual), np.asarray(theta)
    _check_length("theta", theta, len(matrix))
    return Edge(
        name="upper_omega",
        lr=_four_over(_top_of_omega(matrix) * float(theta @ theta), "θ₀ or Ω"),
        top_eigenvalue_init=top_eigenvalue,
        proven=True,
        conditions=f"pure quadratic, any number of samples; {_LABELS}",
        source=PAPER,
    )


@door(
    phi_eff=_VECTOR, psi_eff=symmetric, theta_phi=_VECTOR, theta_psi=_VECTOR, zeta=_ZETA,
    top_eigenvalue=_TOP,
)  # fmt: skip
def quadratic_with_bias(
    phi_eff: ArrayLike,
    psi_eff: ArrayLike,
    theta_phi: ArrayLike,
    theta_psi: ArrayLike,
    zeta: float,
    *,
    top_eigenvalue: float | None = None,
) -> Edge:
    """The upper edge of the quadratic model with bias, as the authors code it.

    η < 4/(2φ² + ζ²|θ₀|²Λ + ζ²Λ(φ·θ_φ)²/φ²), with φ = φ_eff, Λ = λ_max(ψ_eff²) and |θ₀|² over
    all weights, θ_φ and θ_ψ. For D = 1 it lies at or below the proven `quadratic_with_bias_multi`,
    since it counts weights that never move. For D > 1 it follows one direction in sample space
    only, and is not proven.

    Args:
        phi_eff: D^(−1/2) Σ_a e_a φ(x_a), shape ``(p,)``.
        psi_eff: D^(−1/2) Σ_a e_a ψ(x_a), shape ``(n, n)``.
        theta_phi: Weights of the features, shape ``(p,)``.
        theta_psi: Weights of the meta-feature, shape ``(n,)``.
        zeta: ζ.
        top_eigenvalue: λ₀, to express the edge as a ratio.

    Returns:
        The edge, named "upper".

    Raises:
        NotApplicableError: If φ_eff is zero (there is no bias: use `pure_quadratic_single`) or
            ψ_eff is zero (the model is linear: the critical rate is the only edge).
    """
    phi, matrix = np.asarray(phi_eff), np.asarray(psi_eff)
    theta_phi, theta_psi = np.asarray(theta_phi), np.asarray(theta_psi)
    _check_length("theta_phi", theta_phi, len(phi))
    _check_length("theta_psi", theta_psi, len(matrix))
    phi_squared = float(phi @ phi)
    if phi_squared == 0:
        msg = "phi_eff is zero: the model has no bias; use pure_quadratic_single or _multi"
        raise NotApplicableError(msg)
    largest = zeta * zeta * _largest_square(matrix)
    if largest == 0:
        msg = "psi_eff is zero: the model is linear, and the critical rate is its only edge"
        raise NotApplicableError(msg)
    weight_norm = float(theta_phi @ theta_phi + theta_psi @ theta_psi)
    bias = float(phi @ theta_phi) / phi_squared * float(phi @ theta_phi)
    return Edge(
        name="upper",
        lr=4 / (2 * phi_squared + largest * (weight_norm + bias)),
        top_eigenvalue_init=top_eigenvalue,
        proven=False,
        conditions=(
            "quadratic with bias, separate weights, one effective sample (proven for D = 1 only); "
            + _LABELS
        ),
        source=f"{PAPER}, as coded",
    )


@door(phi=rule(array, 2), omega_dual=symmetric, theta_phi=_VECTOR, theta_psi=_VECTOR,
      top_eigenvalue=_TOP)  # fmt: skip
def quadratic_with_bias_multi(
    phi: ArrayLike,
    omega_dual: ArrayLike,
    theta_phi: ArrayLike,
    theta_psi: ArrayLike,
    *,
    top_eigenvalue: float | None = None,
) -> Edge:
    """The proven upper edge of the quadratic model with bias, for any D.

    η < 4/(2λ_max(ΦΦᵀ/D) + λ_max(Ω)W₀) with W = |θ_ψ|² + 2|Pθ_φ|² and P the projector on the span
    of the features, outside of which no weight moves. Exactly, in every step,

    W' − W = (η/D)[εᵀ(η(H + ΦΦᵀ/D) − 4)ε − 4Σ ε_a y_a],

    the weight-norm law with the linear part's weights counted twice: θ_ψ·∂z/∂θ_ψ + 2θ_φ·∂z/∂θ_φ is
    2z. H + ΦΦᵀ/D is at most the denominator above with W for W₀, so that with y = 0 the weighted
    norm cannot rise below this edge, and the run cannot diverge.

    Args:
        phi: φ(x_a), shape ``(D, p)``, to the digits of float64: rounded ones span more directions.
        omega_dual: (ζ²/D) Σ_a ψ_a², shape ``(n, n)``; see `omega_dual`.
        theta_phi: Weights of the features, shape ``(p,)``.
        theta_psi: Weights of the meta-feature, shape ``(n,)``.
        top_eigenvalue: λ₀, to express the edge as a ratio.

    Returns:
        The edge, named "upper_omega".

    Raises:
        InputError: If shapes disagree, or the matrix has a negative eigenvalue beyond rounding.
        NotApplicableError: If φ is zero (there is no bias: use `pure_quadratic_multi`) or Ω is zero
            (the model is linear: the critical rate is the only edge).

    Example:
        z = θ_φ + θ_ψ²/2 at θ_φ = 0, θ_ψ = 1: the edge is 4/(2 + 1), and λ₀ = 1 + 1.

        >>> edge = quadratic_with_bias_multi([[1.0]], [[1.0]], [0.0], [1.0], top_eigenvalue=2.0)
        >>> round(edge.lr_ratio, 12)
        2.666666666667

    References:
        The model: Meltzer & Liu, arXiv 2301.07737, whose coded edge is `quadratic_with_bias`; the
        proof: docs/concepts.md.
    """
    features = np.asarray(phi)
    theta_phi, theta_psi = np.asarray(theta_phi), np.asarray(theta_psi)
    _check_length("theta_phi", theta_phi, features.shape[1])
    _check_length("theta_psi", theta_psi, len(np.asarray(omega_dual)))
    largest, rows = _span(features)
    if largest == 0:
        msg = "phi is zero: the model has no bias; use pure_quadratic_multi"
        raise NotApplicableError(msg)
    omega = _top_of_omega(np.asarray(omega_dual))
    if omega == 0:
        msg = "omega_dual is zero: the model is linear, and the critical rate is its only edge"
        raise NotApplicableError(msg)
    norm = float(theta_psi @ theta_psi + 2 * np.sum((rows @ theta_phi) ** 2))
    return Edge(
        name="upper_omega",
        lr=4 / positive("the bound on λ", 2 * largest * largest / len(features) + omega * norm),
        top_eigenvalue_init=top_eigenvalue,
        proven=True,
        conditions=f"quadratic with bias, separate weights, any number of samples; {_LABELS}",
        source="trebuchet, docs/concepts.md; for one sample after the code of " + PAPER,
    )


@door(X=rule(array, 2), theta_norm_sq=from_zero, width=positive, slopes=pair, top_eigenvalue=_TOP)
def two_layer_homogeneous(
    X: ArrayLike,
    theta_norm_sq: float,
    width: int,
    slopes: tuple[float, float],
    *,
    top_eigenvalue: float | None = None,
) -> Edge:
    """The proven upper edge of z = (nd)^(−1/2) v·σ(Uᵀx) for a₋ ≠ 0, any D and d.

    η < 4nd/(max(a₊,a₋)² λ_max(XXᵀ/D) |θ₀|²). It bounds every unit by its larger slope and every
    input by the largest direction, so the promised window narrows as d grows: for a linear net
    on one sample it is ηλ₀ < 8/(d+1), above the critical 2 only for d < 3.

    Args:
        X: Inputs, shape ``(D, d)``.
        theta_norm_sq: |θ₀|² = |U|² + |v|²; or that of `span_weight_norm`, which sharpens the edge.
        width: n.
        slopes: (a₊, a₋).
        top_eigenvalue: λ₀, to express the edge as a ratio.

    Returns:
        The edge, named "upper".

    Raises:
        NotApplicableError: For ReLU (a slope of zero), or if X or θ₀ is zero.

    Example:
        One input, the linear net, |θ₀|² = P = 2n: the edge is η = 2, which is ηλ₀ = 4 for λ₀ = 2.

        >>> two_layer_homogeneous([[1.0]], 200.0, 100, (1.0, 1.0), top_eigenvalue=2.0).lr_ratio
        4.0

    References:
        Meltzer & Liu, arXiv 2301.07737; their code's normalisation for d > 1 is not followed.
    """
    X = np.asarray(X)
    samples, d = X.shape
    plus, minus = slopes
    if plus == 0 or minus == 0:
        advice = (
            "use relu_single_sample(top_eigenvalue)"
            if samples == 1
            else "nothing is proven above the critical rate (networks train up to about "
            "12/λ₀, an observation: stability.empirical_ceiling('relu'))"
        )
        msg = (
            "slopes: the theorem needs both slopes nonzero. A ReLU unit that is off does not "
            "move, while the bound counts every unit as on, which puts the edge at or below the "
            f"critical rate; {advice}"
        )
        raise NotApplicableError(msg)
    gram = X @ X.T if samples <= d else X.T @ X
    top_data = float(np.linalg.eigvalsh(gram)[-1]) / samples
    slope = max(abs(plus), abs(minus))
    bound = slope * slope * top_data * theta_norm_sq / (width * d)
    return Edge(
        name="upper",
        lr=_four_over(bound, "X or θ₀"),
        top_eigenvalue_init=top_eigenvalue,
        proven=True,
        conditions=f"two layers, no biases, both slopes nonzero; {_LABELS}",
        source=PAPER,
    )


@door(X=rule(array, 2), U=rule(array, 2), v=_VECTOR)
def span_weight_norm(X: ArrayLike, U: ArrayLike, v: ArrayLike) -> float:
    """|PU|² + |v|², with P the projector on the span of the inputs: the weights that can move.

    The part of U outside the span receives no gradient and enters no output, so that the theorem
    of `two_layer_homogeneous` holds for the rest alone. For a linear net on one sample this moves
    its edge from ηλ₀ = 8/(d+1) to 4, for every d.

    Args:
        X: Inputs, shape ``(D, d)``.
        U: First-layer weights, shape ``(d, n)``.
        v: Second-layer weights, shape ``(n,)``.

    Returns:
        The squared norm; |U|² + |v|² where the inputs span all of Rᵈ.

    Raises:
        InputError: If shapes disagree.

    Example:
        >>> span_weight_norm([[0.0, 2.0]], U=[[3.0], [1.0]], v=[1.0])
        2.0
    """
    X, U, v = np.asarray(X), np.asarray(U), np.asarray(v)
    if len(U) != X.shape[1]:
        msg = f"U: expected shape ({X.shape[1]}, n), one row an input dimension, got {U.shape}"
        raise InputError(msg)
    _check_length("v", v, U.shape[1])
    return float(np.sum((_span(X)[1] @ U) ** 2) + v @ v)


@door(top_eigenvalue=positive)
def relu_single_sample(top_eigenvalue: float) -> Edge:
    """The upper edge ηλ₀ = 4 of a two-layer ReLU net on one sample.

    Only the units active on the sample move, and for them the model is a two-layer linear net,
    whose edge is 4: below it their weight norm falls at every step, and the run cannot diverge.
    Past it a linear net would; here units die instead: all of them, and the run collapses, or
    enough of them to bring λ back under the edge, and it still converges. The edge does not
    exclude collapse below it: from about ηλ₀ = 3 (width 20) or 3.8 (width 2000) some
    initialisations lose every unit at the height of their catapult.

    Args:
        top_eigenvalue: λ₀.

    Returns:
        The edge, named "upper".

    Raises:
        InputError: If λ₀ is not positive and finite.

    Example:
        >>> relu_single_sample(8.0).lr
        0.5
    """
    return Edge(
        name="upper",
        lr=4 / top_eigenvalue,
        top_eigenvalue_init=top_eigenvalue,
        proven=True,
        conditions=f"two-layer ReLU, no biases, exactly one sample; {_LABELS}; may collapse",
        source=PAPER,
    )


def _span(rows: FloatArray) -> tuple[float, FloatArray]:
    """The largest singular value, and an orthonormal basis of the span of the rows, ``(r, d)``."""
    _, singular, basis = np.linalg.svd(rows, full_matrices=False)
    rank = int((singular > singular[0] * max(rows.shape) * np.finfo(np.float64).eps).sum())
    return float(singular[0]), basis[:rank]


def _top_of_omega(matrix: FloatArray) -> float:
    spectrum = np.linalg.eigvalsh(matrix)
    if spectrum[0] < -1e-6 * max(abs(spectrum[-1]), 1e-300):
        msg = "omega_dual: expected a positive semidefinite matrix; build it with omega_dual()"
        raise InputError(msg)
    return float(spectrum[-1])


def _largest_square(matrix: FloatArray) -> float:
    """λ_max(A²) of a symmetric A."""
    largest = float(np.abs(np.linalg.eigvalsh(matrix)).max())
    return largest * largest  # infinite where it overflows, which ** 2 refuses


def _four_over(bound: float, zero: str) -> float:
    if bound == 0:
        msg = f"{zero} is zero: the gradient vanishes, so no learning rate is an edge"
        raise NotApplicableError(msg)
    return 4 / positive("the bound on λ", bound)


def _check_length(name: str, vector: FloatArray, n: int) -> None:
    if vector.shape != (n,):
        msg = f"{name}: expected shape ({n},), got {vector.shape}"
        raise InputError(msg)
