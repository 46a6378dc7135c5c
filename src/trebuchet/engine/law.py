"""The engine's self-check: the weight-norm law, at every recorded step of a homogeneous model."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trebuchet.engine.optimizers import GradientDescent
from trebuchet.errors import LawViolationError

SLACK = 2e4
"""Allowed violation in units of the machine epsilon: rounding of a step in a net of 1e6 weights
reaches a few hundred; a step wrong by one part in a million stands far above it in float64."""


@dataclass(slots=True)
class Prediction:
    """|θ_{t+1}|² of every run as the law has it, and the size of what was added up."""

    weight_norm: NDArray[np.float64]
    scale: NDArray[np.float64]


def predict(
    degree: int,
    weight_norm: Tensor,
    z: Tensor,
    dz: Tensor,
    gram: Tensor,
    lr: Tensor,
    optimizer: GradientDescent,
) -> Prediction:
    """|θ'|² = (1−ηw)²|θ|² − 2η(1−ηw) θ·∇L + η²|∇L|², with θ·∇L = k z·∂L/∂z by Euler.

    |∇L|² = D ∂L/∂zᵀ H ∂L/∂z comes from the Gram matrix, so no gradient is needed, and the step
    that is checked is the one the engine takes, not a second copy of it.

    Args:
        degree: k.
        weight_norm: |θ|², float64 ``(R,)``.
        z: Outputs, ``(R, D[, K])``.
        dz: ∂L/∂z, of the shape of z.
        gram: H, ``(R, D·K, D·K)``.
        lr: η, ``(R,)``.
        optimizer: Gradient descent, with weight decay w or without; no momentum.

    Returns:
        The prediction.
    """
    eta = lr.double()
    keep = 1 - eta * optimizer.weight_decay
    q = dz.flatten(1).double()
    euler = degree * (z.flatten(1).double() * q).sum(1)
    hq = torch.bmm(gram.double(), q.unsqueeze(2)).squeeze(2)  # (R, D·K)
    squared = z.shape[1] * (q * hq).sum(1)
    linear, quadratic = 2 * eta * keep * euler, eta**2 * squared
    expected = keep**2 * weight_norm - linear + quadratic
    scale = keep**2 * weight_norm + linear.abs() + quadratic
    return Prediction(expected.cpu().numpy(), scale.cpu().numpy())


def residual(
    prediction: Prediction, weight_norm: NDArray[np.float64], dtype: torch.finfo, **where: Any
) -> NDArray[np.float64]:
    """The violation of the law relative to |θ|² and the terms it moved by.

    Args:
        prediction: As made before the step.
        weight_norm: |θ_{t+1}|² as measured.
        dtype: What rounding is in the run's dtype.
        **where: What to name in the error.

    Returns:
        The relative violation of each run; NaN where a number is not finite.

    Raises:
        LawViolationError: If it is beyond rounding.
    """
    # Weights that decay into the subnormal numbers lose their digits there: not a violation.
    floor = dtype.tiny / dtype.eps
    with np.errstate(invalid="ignore"):
        violation = np.abs(weight_norm - prediction.weight_norm) / (prediction.scale + floor)
    if (violation > SLACK * dtype.eps).any():
        worst = float(np.nanmax(violation))
        place = ", ".join(f"{k} {v}" for k, v in where.items())
        msg = (
            f"the weight-norm law is violated by {worst:.2e} of |θ|² ({place}; rounding allows "
            f"{SLACK * dtype.eps:.0e}): the model is not homogeneous of the degree it states, or "
            "the step taken was not the gradient step"
        )
        raise LawViolationError(msg)
    result: NDArray[np.float64] = violation
    return result
