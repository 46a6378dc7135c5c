"""Where optimizers lose stability on a quadratic, and the ceilings the field has observed.

Each row bounds the top eigenvalue λ of the Hessian at learning rate η; for optimizers that divide
the step in every parameter by some P it is the top eigenvalue of the preconditioned Hessian P⁻¹H,
with P held fixed. Momentum is PyTorch's (v ← βv + g, θ ← θ − ηv), Adam's is an average
(m ← β₁m + (1 − β₁)g).

All edges have one form. A direction of curvature λ is a linear recursion of second order; with the
rate its root leaves the unit circle at −1, where 1 + trace + determinant = 0, which is linear in η:

    η = n / (cλ + d),    n = 2(1 + β),

with c from the optimizer (`TABLE`) and d from weight decay. Coupled decay w adds wθ to the
gradient, so d = cw; decoupled decay shrinks θ by 1 − ηw beside the step, so d = (1 + β₁)w.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from trebuchet._checks import array, choice, finite, fraction, mapping, positive, real, shown
from trebuchet._doors import door, maybe, rule
from trebuchet.errors import InputError, NotApplicableError

OptimizerName = Literal[
    "sgd", "momentum", "nesterov", "adam", "adamw", "nadam", "radam", "adamax", "rmsprop", "adagrad"
]


@dataclass(frozen=True, slots=True)
class StabilityRow:
    """One row of the table.

    Attributes:
        formula: The largest stable λ.
        operator: Whose top eigenvalue λ is.
        note: What to keep in mind.
        source: Where it comes from.
    """

    formula: str
    operator: str
    note: str
    source: str


_ADAM_NOTE = (
    "P is fixed here; Adam's own P follows the gradient, so the sharpness of P⁻¹H hovers at this "
    "edge while the Hessian's own keeps growing. P includes the bias correction. It is an edge of "
    "late training: the first steps, bias-corrected, are full size. "
)
TABLE: dict[OptimizerName, StabilityRow] = {
    "sgd": StabilityRow(
        "2/η",
        "Hessian",
        "full batch; coupled weight decay w adds w to every eigenvalue",
        "textbook; Cohen et al., arXiv 2103.00065",
    ),
    "momentum": StabilityRow(
        "2(1+β)/((1−d)η)",
        "Hessian",
        "d is the dampening, zero by default. Late in training; from rest a loss may rise earlier, "
        "see `earliest_rise`",
        "Polyak 1964; Cohen et al., arXiv 2103.00065",
    ),
    "nesterov": StabilityRow(
        "2(1+β)/((1+2β)η)",
        "Hessian",
        "torch.optim.SGD(nesterov=True); lower than plain gradient descent's 2/η for β > 0. From "
        "rest a loss may rise from 2/((1+β)η) on, in the first step",
        "Cohen et al., arXiv 2103.00065",
    ),
    "adam": StabilityRow(
        "2(1+β₁)/((1−β₁)η)",
        "P⁻¹H",
        _ADAM_NOTE + "38/η at β₁ = 0.9. Coupled decay belongs into the operator, P⁻¹(H + w).",
        "Cohen et al., arXiv 2207.14484",
    ),
    "adamw": StabilityRow(
        "(2−ηw)(1+β₁)/((1−β₁)η)",
        "P⁻¹H",
        _ADAM_NOTE + "Decoupled decay w turns the 2 into 2 − ηw, a per-mille change in practice.",
        "Cohen et al., arXiv 2207.14484",
    ),
    "nadam": StabilityRow(
        "2(1+β₁)/((1+β₁−2μβ₁)η)",
        "P⁻¹H",
        "the step mixes gradient and average as (1−μ)g + μm; μ climbs from β₁/2 to β₁ over "
        "thousands of steps, and the edge from 3.5/η to 13.6/η at β₁ = 0.9",
        "derived as for Nesterov; Dozat 2016",
    ),
    "radam": StabilityRow(
        "2(1+β₁)/((1−β₁)rη)",
        "P⁻¹H",
        "r is the rectification of the step, from about 0.02 to 1 over thousands of steps; the "
        "first steps, where it is undefined, are not divided by P",
        "Adam's; Liu et al., arXiv 1908.03265",
    ),
    "adamax": StabilityRow(
        "2(1+β₁)/((1−β₁)η)",
        "P⁻¹H",
        "P is the decaying maximum of |g|",
        "Adam's; Kingma & Ba, arXiv 1412.6980",
    ),
    "rmsprop": StabilityRow(
        "2(1+β)/η",
        "P⁻¹H",
        "β is its momentum, zero by default. P has no bias correction: after one step it is "
        "√(1−α) |g|, a tenth of |g| by default, and grows ten times in the first few hundred",
        "Cohen et al., arXiv 2207.14484",
    ),
    "adagrad": StabilityRow(
        "2/(fη)",
        "P⁻¹H",
        "P only grows. f is 1, or 1/(1 + t·lr_decay)",
        "gradient descent in P's coordinates; Duchi et al. 2011",
    ),
}

_NAME = rule(choice, TABLE, quoted=False)
_RATES = {"optimizer": _NAME, "momentum": fraction, "beta1": fraction, "settings": mapping}
_AVERAGING = ("adam", "adamw", "nadam", "radam", "adamax")


@door(
    optimizer=_NAME, momentum=fraction, beta1=fraction, dampening=finite, weight_decay=finite,
    mix=maybe(fraction), factor=positive,
)  # fmt: skip
def coefficients(
    optimizer: OptimizerName,
    *,
    momentum: float = 0.9,
    beta1: float = 0.9,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    mix: float | None = None,
    factor: float = 1.0,
) -> tuple[float, float, float]:
    """Return n, c and d of the edge η = n/(cλ + d).

    Args:
        optimizer: A key of `TABLE`.
        momentum: β of "momentum", "nesterov" and "rmsprop"; the others ignore it.
        beta1: β₁ of Adam's family; the others ignore it.
        dampening: Of "momentum": the share of each gradient but the first that it leaves out.
        weight_decay: w, coupled for "sgd", "momentum" and "nesterov" (torch's ``SGD``), decoupled
            for Adam's family. Coupled decay of an optimizer that preconditions belongs into the
            operator whose λ is taken, P⁻¹(H + w).
        mix: μ of "nadam"; β₁, where it ends, unless given.
        factor: What the optimizer itself multiplies the rate with: RAdam's rectification, Adagrad's
            decay.

    Returns:
        n, c, d.

    Raises:
        InputError: If the optimizer is unknown, a β is outside [0, 1), or a setting is not finite.

    Example:
        >>> coefficients("nesterov", momentum=0.5, weight_decay=3.0)
        (3.0, 2.0, 6.0)
    """
    if optimizer in _AVERAGING:
        beta = beta1
        mu = beta if mix is None else mix
        slope = 1 + beta - 2 * mu * beta if optimizer == "nadam" else 1 - beta
        return 2 * (1 + beta), slope * factor, (1 + beta) * weight_decay
    if optimizer in ("sgd", "adagrad"):
        return 2.0, factor, factor * weight_decay
    beta, slope = momentum, factor
    if optimizer == "nesterov":
        slope *= 1 + 2 * beta
    elif optimizer == "momentum":
        slope *= positive("1 - dampening", 1 - dampening)
    return 2 * (1 + beta), slope, slope * weight_decay


@door(**_RATES)
def stability_product(
    optimizer: OptimizerName, *, momentum: float = 0.9, beta1: float = 0.9, **settings: float
) -> float:
    """The largest stable ηλ of an optimizer, without weight decay.

    Args:
        optimizer: A key of `TABLE`.
        momentum: β of "momentum", "nesterov" and "rmsprop"; the others ignore it.
        beta1: β₁ of Adam's family; the others ignore it.
        **settings: As for `coefficients`.

    Returns:
        ηλ at the edge, dimensionless.

    Raises:
        InputError: If the optimizer is unknown or a β is outside [0, 1).

    Example:
        >>> round(stability_product("adam"), 9), stability_product("momentum", momentum=0.5)
        (38.0, 3.0)
    """
    n, slope, _ = coefficients(optimizer, momentum=momentum, beta1=beta1, **settings)
    return n / slope


@door(**_RATES, lr=positive)
def max_stable_curvature(
    optimizer: OptimizerName,
    lr: float,
    *,
    momentum: float = 0.9,
    beta1: float = 0.9,
    **settings: float,
) -> float:
    """The largest λ at which the optimizer is stable on a quadratic.

    Args:
        optimizer: A key of `TABLE`, which also names the operator λ belongs to.
        lr: η.
        momentum: β of "momentum", "nesterov" and "rmsprop".
        beta1: β₁ of Adam's family.
        **settings: As for `coefficients`.

    Returns:
        λ at the edge; negative where weight decay alone is unstable.

    Raises:
        InputError: If the optimizer is unknown, η is not positive, or a β is outside [0, 1).

    Example:
        >>> max_stable_curvature("sgd", 0.1)
        20.0
    """
    n, slope, decay = coefficients(optimizer, momentum=momentum, beta1=beta1, **settings)
    return (n / lr - decay) / slope


@door(**_RATES, top_eigenvalue=positive)
def critical_lr(
    optimizer: OptimizerName,
    top_eigenvalue: float,
    *,
    momentum: float = 0.9,
    beta1: float = 0.9,
    **settings: float,
) -> float:
    """The learning rate above which the optimizer is unstable at curvature λ.

    Args:
        optimizer: A key of `TABLE`, which also names the operator λ belongs to.
        top_eigenvalue: λ.
        momentum: β of "momentum", "nesterov" and "rmsprop".
        beta1: β₁ of Adam's family.
        **settings: As for `coefficients`.

    Returns:
        η at the edge.

    Raises:
        InputError: If the optimizer is unknown, λ is not positive, or a β is outside [0, 1).

    Example:
        >>> critical_lr("sgd", 20.0), critical_lr("sgd", 20.0, weight_decay=20.0)
        (0.1, 0.05)
    """
    return edge_at(optimizer, top_eigenvalue, momentum=momentum, beta1=beta1, **settings)


@door(optimizer=_NAME, curvature=rule(real, "a number", lambda _: True), settings=mapping)
def edge_at(optimizer: OptimizerName, curvature: float, **settings: float) -> float:
    """The same for a measured λ, which may be zero, negative or missing.

    Args:
        optimizer: A key of `TABLE`.
        curvature: λ.
        **settings: As for `coefficients`.

    Returns:
        η at the edge; infinite where nothing is curved enough to be unstable, NaN for a NaN.

    Raises:
        InputError: If the optimizer is unknown, or a number is none.

    Example:
        >>> edge_at("sgd", -1.0), edge_at("sgd", -1.0, weight_decay=2.0)
        (inf, 2.0)
    """
    n, slope, decay = coefficients(optimizer, **settings)
    below = slope * curvature + decay
    if math.isnan(below):
        return math.nan
    return n / below if below > 0 else math.inf


@door(optimizer=_NAME, momentum=fraction, dampening=finite)
def earliest_rise(
    optimizer: OptimizerName, *, momentum: float = 0.9, dampening: float = 0.0
) -> float:
    """The smallest ηλ at which a quadratic's loss can rise above its start, from rest.

    From rest the first steps are no longer those of late training. A direction of curvature λ that
    starts at 1 is at xₜ(ηλ) after t steps; below the smallest ηλ with some |xₜ| > 1 no direction of
    a smaller curvature leaves [−1, 1] either, so no loss rises, whatever the start. Above it a loss
    rises if enough of it lies along the top eigenvector, and, after long enough, in any case above
    the edge (`stability_product`). Gradient descent: 2, the edge itself. Nesterov: 2/(1+β), since
    the first step is 1+β times as long. Heavy ball: 2, the first step, for β < 2√2 − 2 = 0.828;
    above that overshoot comes first, with ((2+β) − √((2+β)²−8))/2 in the second step and earlier
    still from β = 0.94 on.

    Args:
        optimizer: A key of `TABLE`.
        momentum: β of "momentum" and "nesterov".
        dampening: Of "momentum".

    Returns:
        ηλ, from a grid of 0.2 % refined by bisection; NaN for optimizers with a preconditioner,
        which moves with the first gradients, so that no such number is known.

    Raises:
        InputError: If β is outside [0, 1).

    Example:
        >>> earliest_rise("sgd"), round(earliest_rise("momentum", momentum=0.9), 4)
        (2.0, 1.1298)
        >>> earliest_rise("nesterov", momentum=0.6)
        1.25
    """
    if optimizer == "sgd":
        return 2.0
    if optimizer == "nesterov":
        return 2 / (1 + momentum)
    if optimizer != "momentum":
        return math.nan
    beta, kept = momentum, positive("1 - dampening", 1 - dampening)

    def rises(products: np.ndarray) -> np.ndarray:
        position, velocity = np.ones_like(products), np.zeros_like(products)
        found = np.zeros(products.shape, bool)
        with np.errstate(over="ignore", invalid="ignore"):  # long after they have risen
            for t in range(400):
                velocity = beta * velocity + (kept if t else 1.0) * position
                position = position - products * velocity
                found |= np.abs(position) > 1 + 1e-12
        return found

    scale = max(kept, 1.0)  # negative dampening lengthens all steps but the first
    grid = np.geomspace(1e-3 / scale, min(2.0, 2e3 / scale), 8000)
    hit = np.flatnonzero(rises(grid))
    if hit.size == 0:
        return 2.0  # the first step's, whatever the momentum
    low, high = float(grid[hit[0] - 1]) if hit[0] else 0.0, float(grid[hit[0]])
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if bool(rises(np.array([middle]))[0]) else (middle, high)
    return high


EMPIRICAL_CEILINGS: dict[str, float] = {"relu": 12.0, "tanh": 4.0}
"""ηλ₀ up to which networks of each activation were observed to train (no theorem)."""


@door(activation=rule(choice, EMPIRICAL_CEILINGS, quoted=False))
def empirical_ceiling(activation: str) -> float:
    """The observed ηλ₀ up to which the catapult phase reaches; no theorem stands behind it.

    Args:
        activation: "relu" or "tanh".

    Returns:
        About 12 for ReLU, about 4 for tanh.

    Raises:
        InputError: If nothing is recorded for the activation.

    Example:
        >>> empirical_ceiling("relu")
        12.0

    References:
        Lewkowycz et al., arXiv 2003.02218.
    """
    return EMPIRICAL_CEILINGS[activation]


@door(eigenvalues=rule(array, 1))
def second_catapult(eigenvalues: ArrayLike) -> tuple[float, float, float]:
    """The rates 2/λ₁, 2/λ₂ and 4/λ₁ between which two eigendirections catapult, one by one.

    From 2/λ₁ on the loss rises along the first eigenvector of the kernel at the start, and λ₁
    falls; from 2/λ₂ on along the second too, and λ₂ falls with it. Proven for the neural quadratic
    model of inputs of one dimension and infinite width; leading order elsewhere.

    Args:
        eigenvalues: Of the curvature at the start (the NTK / D for the half mean squared error,
            twice that without the half), two or more, positive, in any order.

    Returns:
        (2/λ₁, 2/λ₂, 4/λ₁): where the first and the second catapult begin, and divergence.

    Raises:
        InputError: If there are not two positive finite numbers.
        NotApplicableError: If 2/λ₂ ≥ 4/λ₁: divergence comes first.

    Example:
        >>> second_catapult([0.4, 0.5])
        (4.0, 5.0, 8.0)
        >>> second_catapult([0.5, 0.2])
        Traceback (most recent call last):
        trebuchet.errors.NotApplicableError: eigenvalues: there is no second catapult, since \
training diverges from 4/λ₁ = 8 on, before 2/λ₂ = 10; it needs λ₂ > λ₁/2

    References:
        Zhu, Liu, Radhakrishnan & Belkin, arXiv 2205.11787, theorem 3.
    """
    found = np.sort(np.asarray(eigenvalues))[::-1]
    if len(found) < 2 or found[1] <= 0:
        msg = f"eigenvalues: expected two or more positive numbers, got {shown(eigenvalues)}"
        raise InputError(msg)
    first, second, last = float(2 / found[0]), float(2 / found[1]), float(4 / found[0])
    if second >= last:
        msg = (
            "eigenvalues: there is no second catapult, since training diverges from 4/λ₁ = "
            f"{last:.4g} on, before 2/λ₂ = {second:.4g}; it needs λ₂ > λ₁/2"
        )
        raise NotApplicableError(msg)
    return first, second, last
