"""Models quadratic in their weights: the smallest nets that catapult."""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from trebuchet import _torch_checks as checks
from trebuchet._checks import instance, positive
from trebuchet._doors import door, maybe, rule
from trebuchet.errors import InputError
from trebuchet.models.draws import Draws, drawing
from trebuchet.models.meta_feature import MetaFeature, even, spectrum

_PSI = rule(instance, MetaFeature, "a trebuchet.MetaFeature")
_WEIGHTS = rule(checks.tensor, None)


def normalisation(n: int) -> float:
    """ζ = (n/2)^(−1/2), which keeps z of order one for n standard normal weights."""
    return math.sqrt(2 / n)


class PureQuadratic(nn.Module):
    """z(x) = (ζ/2) θᵀψ(x)θ, positively homogeneous of degree 2 in θ.

    Args:
        psi: The meta-feature ψ.
        theta: Initial weights, shape ``(n,)``.
        zeta: ζ; (n/2)^(−1/2) unless given.

    Raises:
        InputError: If the number of weights is not that of ψ.

    Example:
        >>> model = PureQuadratic.draw(n=6, generator=3)
        >>> x = torch.ones(1, 1, dtype=torch.float64)
        >>> z = model(x)
        >>> _ = model.theta.data.mul_(3)
        >>> bool(torch.allclose(model(x), 9 * z))
        True

    References:
        Meltzer & Liu, arXiv 2301.07737, section 2.
    """

    degree = 2

    @door(psi=_PSI, theta=_WEIGHTS, zeta=maybe(positive))
    def __init__(self, psi: MetaFeature, theta: Tensor, zeta: float | None = None) -> None:
        super().__init__()
        _check_weights("theta", theta, psi.n)
        self.psi = psi
        self.theta = nn.Parameter(theta.detach().clone())
        self.zeta = normalisation(psi.n) if zeta is None else zeta

    @classmethod
    @door(n=even, d=checks.size, generator=drawing, eigenvalues=spectrum, dtype=checks.dtype)
    def draw(
        cls,
        n: int,
        d: int = 1,
        *,
        generator: int | torch.Generator | Draws,
        eigenvalues: Sequence[float] = (1.0, 1.0),
        dtype: torch.dtype = torch.float64,
    ) -> "PureQuadratic":
        """Draw ψ with g = identity, and standard normal weights, from one stream."""
        draws = drawing("generator", generator)
        low, high = eigenvalues
        psi = MetaFeature.draw(n, d, eigenvalues=(low, high), generator=draws, dtype=dtype)
        return cls(psi, draws.normal(n).to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Outputs, shape ``(D,)``, for inputs of shape ``(D, d)``."""
        psi: Tensor = self.psi(x)
        return self.zeta / 2 * ((psi @ self.theta) @ self.theta)


class QuadraticWithBias(nn.Module):
    """z(x) = θ_φ·φ(x) + (ζ/2) θ_ψᵀψ(x)θ_ψ with φ(x) = xU/√(d p).

    Args:
        features: U, shape ``(d, p)``.
        psi: The meta-feature ψ.
        theta_phi: Weights of the features, shape ``(p,)``.
        theta_psi: Weights of the meta-feature, shape ``(n,)``.
        zeta: ζ; (n/2)^(−1/2) unless given.
        n_features: The p in the scale of φ, where U is part of a larger draw (a student).

    Raises:
        InputError: If shapes disagree.

    References:
        Meltzer & Liu, arXiv 2301.07737, section 2 and appendix A.
    """

    features: Tensor
    degree = 2
    weight_degrees: ClassVar = {
        "theta_phi": 2
    }  # whose part of z is linear, so that they count twice

    @door(
        features=rule(checks.tensor, None, None), psi=_PSI, theta_phi=_WEIGHTS, theta_psi=_WEIGHTS,
        zeta=maybe(positive), n_features=maybe(checks.size),
    )  # fmt: skip
    def __init__(
        self,
        features: Tensor,
        psi: MetaFeature,
        theta_phi: Tensor,
        theta_psi: Tensor,
        zeta: float | None = None,
        n_features: int | None = None,
    ) -> None:
        super().__init__()
        if features.shape[0] != psi.d or not features.numel():
            msg = f"features: expected shape ({psi.d}, p), got {tuple(features.shape)}"
            raise InputError(msg)
        _check_weights("theta_phi", theta_phi, features.shape[1])
        _check_weights("theta_psi", theta_psi, psi.n)
        self.register_buffer("features", features)
        self.psi = psi
        self.theta_phi = nn.Parameter(theta_phi.detach().clone())
        self.theta_psi = nn.Parameter(theta_psi.detach().clone())
        self.zeta = normalisation(psi.n) if zeta is None else zeta
        self.n_features = features.shape[1] if n_features is None else n_features

    @classmethod
    @door(
        n=even, p=checks.size, d=checks.size, generator=drawing, eigenvalues=spectrum,
        dtype=checks.dtype,
    )  # fmt: skip
    def draw(
        cls,
        n: int,
        p: int,
        d: int = 1,
        *,
        generator: int | torch.Generator | Draws,
        eigenvalues: Sequence[float] = (1.0, 1.0),
        dtype: torch.dtype = torch.float64,
    ) -> "QuadraticWithBias":
        """Draw U, ψ with g = identity, and standard normal weights."""
        draws = drawing("generator", generator)
        low, high = eigenvalues
        checks.sizes(p=p, d=d)
        features = draws.normal(d, p).to(dtype)
        psi = MetaFeature.draw(n, d, eigenvalues=(low, high), generator=draws, dtype=dtype)
        return cls(features, psi, draws.normal(p).to(dtype), draws.normal(n).to(dtype))

    def phi(self, x: Tensor) -> Tensor:
        """φ(x), shape ``(D, p)``, for inputs of shape ``(D, d)``."""
        checks.inputs(x, self.psi.d, self.features)
        return x @ self.features / math.sqrt(self.psi.d * self.n_features)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs, shape ``(D,)``, for inputs of shape ``(D, d)``."""
        psi: Tensor = self.psi(x)
        return self.phi(x) @ self.theta_phi + self.zeta / 2 * (
            (psi @ self.theta_psi) @ self.theta_psi
        )


def _check_weights(name: str, weights: Tensor, n: int) -> None:
    if weights.shape != (n,):
        msg = f"{name}: expected shape ({n},), got {tuple(weights.shape)}"
        raise InputError(msg)
