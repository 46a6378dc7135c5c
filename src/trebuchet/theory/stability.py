"""Where optimizers lose stability on a quadratic, and the ceilings the field has observed.

Each row bounds the top eigenvalue λ of the Hessian at learning rate η; for Adam and AdamW it is
the top eigenvalue of the preconditioned Hessian P⁻¹H, with P held fixed. Momentum is PyTorch's
(v ← βv + g, θ ← θ − ηv), Adam's is an average (m ← β₁m + (1 − β₁)g).
"""

from dataclasses import dataclass
from typing import Literal

from trebuchet.errors import InputError
from trebuchet.theory._checks import fraction, positive

OptimizerName = Literal["sgd", "momentum", "nesterov", "adam", "adamw"]


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
    "edge while the Hessian's own keeps growing. P includes the bias correction. "
)
TABLE: dict[OptimizerName, StabilityRow] = {
    "sgd": StabilityRow(
        "2/η",
        "Hessian",
        "full batch; coupled weight decay w adds w to every eigenvalue",
        "textbook; Cohen et al., arXiv 2103.00065",
    ),
    "momentum": StabilityRow(
        "2(1+β)/η",
        "Hessian",
        "late in training; near initialisation the velocity is still small and catapults begin "
        "at 2/η",
        "Polyak 1964; Cohen et al., arXiv 2103.00065",
    ),
    "nesterov": StabilityRow(
        "2(1+β)/((1+2β)η)",
        "Hessian",
        "torch.optim.SGD(nesterov=True); lower than plain gradient descent's 2/η for β > 0",
        "Cohen et al., arXiv 2103.00065",
    ),
    "adam": StabilityRow(
        "2(1+β₁)/((1−β₁)η)",
        "P⁻¹H",
        _ADAM_NOTE + "38/η at β₁ = 0.9.",
        "Cohen et al., arXiv 2207.14484",
    ),
    "adamw": StabilityRow(
        "2(1+β₁)/((1−β₁)η)",
        "P⁻¹H",
        _ADAM_NOTE + "Decoupled decay w turns the 2 into 2 − ηw, a per-mille change in practice.",
        "Cohen et al., arXiv 2207.14484",
    ),
}


def stability_product(
    optimizer: OptimizerName, *, momentum: float = 0.9, beta1: float = 0.9
) -> float:
    """The largest stable ηλ of an optimizer.

    Args:
        optimizer: A key of `TABLE`.
        momentum: β of "momentum" and "nesterov"; the others ignore it.
        beta1: β₁ of "adam" and "adamw"; the others ignore it.

    Returns:
        ηλ at the edge, dimensionless.

    Raises:
        InputError: If the optimizer is unknown or a β is outside [0, 1).

    Example:
        >>> round(stability_product("adam"), 9), stability_product("momentum", momentum=0.5)
        (38.0, 3.0)
    """
    if optimizer not in TABLE:
        msg = f"optimizer: expected one of {', '.join(TABLE)}, got {optimizer!r}"
        raise InputError(msg)
    match optimizer:
        case "sgd":
            return 2.0
        case "momentum":
            return 2 * (1 + fraction("momentum", momentum))
        case "nesterov":
            beta = fraction("momentum", momentum)
            return 2 * (1 + beta) / (1 + 2 * beta)
        case "adam" | "adamw":
            beta = fraction("beta1", beta1)
            return 2 * (1 + beta) / (1 - beta)


def max_stable_curvature(
    optimizer: OptimizerName, lr: float, *, momentum: float = 0.9, beta1: float = 0.9
) -> float:
    """The largest λ at which the optimizer is stable on a quadratic.

    Args:
        optimizer: A key of `TABLE`, which also names the operator λ belongs to.
        lr: η.
        momentum: β of "momentum" and "nesterov".
        beta1: β₁ of "adam" and "adamw".

    Returns:
        λ at the edge.

    Raises:
        InputError: If the optimizer is unknown, η is not positive, or a β is outside [0, 1).

    Example:
        >>> max_stable_curvature("sgd", 0.1)
        20.0
    """
    return stability_product(optimizer, momentum=momentum, beta1=beta1) / positive("lr", lr)


def critical_lr(
    optimizer: OptimizerName, top_eigenvalue: float, *, momentum: float = 0.9, beta1: float = 0.9
) -> float:
    """The learning rate above which the optimizer is unstable at curvature λ.

    Args:
        optimizer: A key of `TABLE`, which also names the operator λ belongs to.
        top_eigenvalue: λ.
        momentum: β of "momentum" and "nesterov".
        beta1: β₁ of "adam" and "adamw".

    Returns:
        η at the edge.

    Raises:
        InputError: If the optimizer is unknown, λ is not positive, or a β is outside [0, 1).

    Example:
        >>> critical_lr("sgd", 20.0)
        0.1
    """
    top = positive("top_eigenvalue", top_eigenvalue)
    return stability_product(optimizer, momentum=momentum, beta1=beta1) / top


EMPIRICAL_CEILINGS: dict[str, float] = {"relu": 12.0, "tanh": 4.0}
"""ηλ₀ up to which networks of each activation were observed to train (no theorem)."""


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
    if activation not in EMPIRICAL_CEILINGS:
        known = ", ".join(EMPIRICAL_CEILINGS)
        msg = f"activation: expected one of {known}, got {activation!r}"
        raise InputError(msg)
    return EMPIRICAL_CEILINGS[activation]


def second_catapult(second_eigenvalue: float) -> float:
    """The learning rate 2/λ₂ at which the second eigenvalue crosses stability too.

    Args:
        second_eigenvalue: λ₂, the second largest eigenvalue of the NTK at initialisation.

    Returns:
        η.

    Raises:
        InputError: If λ₂ is not positive and finite.

    Example:
        >>> second_catapult(0.5)
        4.0
    """
    return 2 / positive("second_eigenvalue", second_eigenvalue)
