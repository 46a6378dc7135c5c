"""The exact weight-norm law: how much |θ|² changes in one step of gradient descent."""

import numpy as np
from numpy.typing import ArrayLike

from trebuchet._checks import (
    FloatArray,
    array,
    finite,
    from_zero,
    numbers,
    positive,
    symmetric,
)
from trebuchet._doors import door, maybe, rule
from trebuchet.errors import InputError


@door(
    H=symmetric, residual=rule(array, (1, 2)), labels=rule(array, (1, 2)), degree=finite, lr=finite,
    weight_decay=finite, weight_norm=maybe(from_zero),
)  # fmt: skip
def change_mse(
    H: ArrayLike,
    residual: ArrayLike,
    labels: ArrayLike,
    degree: float,
    lr: float,
    *,
    weight_decay: float = 0.0,
    weight_norm: float | None = None,
) -> float:
    """|θ'|² − |θ|² for a homogeneous model under the half-mean square error.

    (η/D)[εᵀ(ηH − 2k)ε − 2k Σ_a ε_a y_a], exactly, where z(cθ) = cᵏz(θ) for c > 0. With y = 0
    the weight norm falls whenever ηλ_max(H) < 2k: see `ceiling`.

    Args:
        H: The D-normalised NTK, shape ``(D, D)``, or ``(DK, DK)`` for K outputs, samples major.
        residual: ε = z − y, shape ``(D,)`` or ``(D, K)``.
        labels: y, of the same shape.
        degree: k.
        lr: η.
        weight_decay: w, with the gradient ∇L + wθ (coupled, as in ``torch.optim.SGD``).
        weight_norm: |θ|² before the step; needed with weight decay.

    Returns:
        The change.

    Raises:
        InputError: If shapes disagree, or weight decay comes without `weight_norm`.

    Example:
        z = θ²/2 at θ = 2, y = 1: ε = 1, H = θ² = 4, and a step of 0.1 leads to θ' = 1.8.

        >>> round(change_mse([[4.0]], [1.0], [1.0], degree=2, lr=0.1), 12)
        -0.76
        >>> round(1.8**2 - 2**2, 12)
        -0.76

    References:
        Meltzer & Liu, arXiv 2301.07737; Lewkowycz et al., arXiv 2003.02218.
    """
    eps, y = np.asarray(residual), np.asarray(labels)
    if y.shape != eps.shape:
        msg = f"labels: expected the shape of residual, {eps.shape}, got {y.shape}"
        raise InputError(msg)
    kernel = np.asarray(H)
    if len(kernel) != eps.size:
        msg = f"H: expected shape ({eps.size}, {eps.size}), one row an output, got {kernel.shape}"
        raise InputError(msg)
    samples = len(eps)
    theta_dot_gradient = degree / samples * float(np.sum(eps * (eps + y)))
    gradient_norm = float(eps.ravel() @ kernel @ eps.ravel()) / samples
    if weight_decay and weight_norm is None:
        msg = "weight_norm: expected |θ|² before the step, since weight_decay is not zero; got None"
        raise InputError(msg)
    return float(
        change(
            theta_dot_gradient,
            gradient_norm,
            lr,
            weight_decay=weight_decay,
            weight_norm=weight_norm if weight_norm is not None else 0.0,
        )
    )


@door(
    theta_dot_gradient=numbers, gradient_norm=numbers, lr=numbers, weight_decay=numbers,
    weight_norm=numbers,
)  # fmt: skip
def change(
    theta_dot_gradient: ArrayLike,
    gradient_norm: ArrayLike,
    lr: ArrayLike,
    *,
    weight_decay: ArrayLike = 0.0,
    weight_norm: ArrayLike = 0.0,
) -> FloatArray:
    """|θ'|² − |θ|² = −2η θ·∇L + η²|∇L|², for any loss and any model; entry by entry.

    For a homogeneous model θ·∇L = k Σ_a (∂L/∂z_a) z_a (Euler), so that outputs alone predict the
    first term. With coupled weight decay w, θ' = (1 − ηw)θ − η∇L.

    Args:
        theta_dot_gradient: θ·∇L.
        gradient_norm: |∇L|².
        lr: η.
        weight_decay: w.
        weight_norm: |θ|² before the step; used with weight decay only.

    Returns:
        The change, in the broadcast shape of the arguments.

    Raises:
        InputError: If an argument is no number or array of numbers, or shapes do not broadcast.

    Example:
        >>> float(change(2.0, 3.0, 0.1))
        -0.37
    """
    dot, square, eta, decay, norm = _floats(
        theta_dot_gradient=theta_dot_gradient, gradient_norm=gradient_norm, lr=lr,
        weight_decay=weight_decay, weight_norm=weight_norm,
    )  # fmt: skip
    with np.errstate(over="ignore", invalid="ignore"):
        return _change(dot, square, eta, decay, norm)


def _change(
    dot: FloatArray, square: FloatArray, eta: FloatArray, decay: FloatArray, norm: FloatArray
) -> FloatArray:
    shrink = 1 - eta * decay
    # (1−ηw)² − 1 is written as a product: no cancellation for small ηw.
    return np.asarray((shrink - 1) * (shrink + 1) * norm - 2 * eta * shrink * dot + eta**2 * square)


@door(before=numbers, after=numbers, predicted=numbers)
def relative_violation(before: ArrayLike, after: ArrayLike, predicted: ArrayLike) -> FloatArray:
    """|(|θ'|² − |θ|²) − predicted| / max(|θ|², |θ'|²): zero to rounding where the law holds.

    Args:
        before: |θ|².
        after: |θ'|².
        predicted: The law's change.

    Returns:
        The violation, in the broadcast shape of the arguments; NaN where a norm is not finite.

    Raises:
        InputError: If an argument is no number or array of numbers, or shapes do not broadcast.

    Example:
        >>> float(relative_violation(4.0, 3.24, -0.76)) < 1e-15
        True
    """
    start, end, change_ = _floats(before=before, after=after, predicted=predicted)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        return np.asarray(np.abs(end - start - change_) / np.maximum(start, end))


@door(degree=positive)
def ceiling(degree: float) -> float:
    """The ceiling 2k on ηλ under which the weight norm falls, for a model of degree k.

    Args:
        degree: k; 2 for the pure quadratic model and two-layer nets without biases, the number
            of layers for a bias-free ReLU net.

    Returns:
        2k.

    Raises:
        InputError: If k is not positive.

    Example:
        >>> ceiling(2), ceiling(3)
        (4.0, 6.0)
    """
    return 2 * degree


def _floats(**named: ArrayLike) -> list[FloatArray]:
    """Arrays whose shapes go together."""
    arrays = [np.asarray(value, dtype=np.float64) for value in named.values()]
    try:
        np.broadcast_shapes(*(a.shape for a in arrays))
    except ValueError as error:
        shapes = ", ".join(f"{name} {a.shape}" for name, a in zip(named, arrays, strict=True))
        msg = f"{next(iter(named))}: expected shapes that broadcast together, got {shapes}"
        raise InputError(msg) from error
    return arrays
