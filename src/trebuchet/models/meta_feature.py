"""Meta-features ψ(x): the symmetric matrices that make a model quadratic in its weights."""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trebuchet import _torch_checks as checks
from trebuchet._checks import choice, pair, refuse, whole
from trebuchet._doors import door, rule
from trebuchet.errors import InputError
from trebuchet.models.draws import Draws, drawing

ElementwiseName = Literal["identity", "tanh", "relu", "leaky_relu"]

ELEMENTWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda h: h,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "leaky_relu": lambda h: F.leaky_relu(h, 0.5),
}


def even(name: str, value: object) -> int:
    """A number of weights: even, since eigenvalues come in pairs ±λ."""
    expected = "a positive even number (eigenvalues come in pairs)"
    number = whole(name, value, expected, most=checks.LARGEST)
    if number % 2:
        refuse(name, expected, number)
    return number


def spectrum(name: str, value: object) -> tuple[float, float]:
    """(low, high) of positive eigenvalues."""
    low, high = pair(name, value, "two numbers, 0 <= low <= high")
    if not 0 <= low <= high:
        refuse(name, "0 <= low <= high", (low, high))
    return low, high


class MetaFeature(nn.Module):
    """ψ(x) = g(d^(−1/2) Σᵢ xᵢ Wᵢ), with g applied to each entry.

    Args:
        matrices: The symmetric W, shape ``(d, n, n)``.
        elementwise: g: ``"identity"``, ``"tanh"``, ``"relu"`` or ``"leaky_relu"`` (slope ½).

    Raises:
        InputError: If the matrices are not square or not symmetric, or g is unknown.

    Example:
        >>> psi = MetaFeature.draw(n=4, d=2, generator=7, dtype=torch.float64)
        >>> matrix = psi(torch.ones(1, 2, dtype=torch.float64))[0]
        >>> bool(torch.allclose(matrix, matrix.T))
        True

    References:
        Meltzer & Liu, arXiv 2301.07737, section 2 and appendix B.
    """

    matrices: Tensor

    @door(
        matrices=rule(checks.finite_tensor, None, None, None),
        elementwise=rule(choice, ELEMENTWISE, quoted=False),
    )
    def __init__(self, matrices: Tensor, elementwise: ElementwiseName = "identity") -> None:
        super().__init__()
        if matrices.shape[1] != matrices.shape[2] or not matrices.numel():
            msg = f"matrices: expected shape (d, n, n), got {tuple(matrices.shape)}"
            raise InputError(msg)
        if not torch.allclose(matrices, matrices.mT, rtol=1e-4, atol=1e-4):
            msg = "matrices: expected symmetric matrices; symmetrise them, (W + W.mT) / 2"
            raise InputError(msg)
        # W is symmetric up to the rounding of its construction; products with W from the left and
        # from the right must agree exactly for the weight-norm law to hold to rounding.
        self.register_buffer("matrices", (matrices + matrices.mT) / 2)
        self.elementwise: ElementwiseName = elementwise

    @classmethod
    @door(
        n=even, d=checks.size, eigenvalues=spectrum,
        elementwise=rule(choice, ELEMENTWISE, quoted=False), generator=drawing,
        dtype=checks.dtype,
    )  # fmt: skip
    def draw(
        cls,
        n: int,
        d: int = 1,
        *,
        eigenvalues: tuple[float, float] = (1.0, 1.0),
        elementwise: ElementwiseName = "identity",
        generator: Draws | torch.Generator | int,
        dtype: torch.dtype = torch.float64,
    ) -> "MetaFeature":
        """Draw Wᵢ with random eigenvectors and eigenvalues ±U(low, high).

        Wᵢ = qᵢᵀ diag(λᵢ) qᵢ, with qᵢ the matrix exponential of (Bᵢ − Bᵢᵀ)/√2 for normal Bᵢ. All B
        are drawn first, in turn, then all positive eigenvalues; this is the paper's order.

        W is computed in float64 and rounded once, whatever `dtype` is. The authors' q is a float32
        exponential, which is far from orthogonal: squaring it s times, until 2ˢ ≥ |B|, doubles the
        rounding each time, and at n = 1000 its rows are short by 1e-4, so that λ₀, which goes
        like |q|⁴, is short by 3e-4 to 1e-3, by a factor that differs from CPU to CPU.

        Args:
            n: Number of weights; even, since eigenvalues come in pairs ±λ.
            d: Number of inputs.
            eigenvalues: (low, high) of the positive eigenvalues.
            elementwise: The function g.
            generator: A seed (the paper's draws), a generator, or draws under way.
            dtype: Of the matrices; the drawn numbers are float32 always.

        Returns:
            The meta-feature.

        Raises:
            InputError: If n is odd or not positive, or the eigenvalue range is not 0 ≤ low ≤ high.
        """
        checks.sizes(n=n, rows=n, d=d)
        low, high = eigenvalues
        draws = drawing("generator", generator)
        normals = [draws.normal(n, n).double() for _ in range(d)]
        q = [torch.linalg.matrix_exp((b - b.T) / math.sqrt(2)) for b in normals]
        positive = draws.uniform(d, n // 2, low=low, high=high).double()
        spectrum = torch.cat([positive, -positive], dim=1)  # (d, n)
        w = torch.stack([(q_i.T * lam) @ q_i for q_i, lam in zip(q, spectrum, strict=True)])
        return cls(((w + w.mT) / 2).to(dtype), elementwise)

    @property
    def n(self) -> int:
        """Number of weights ψ acts on."""
        return self.matrices.shape[1]

    @property
    def d(self) -> int:
        """Number of inputs."""
        return self.matrices.shape[0]

    def select(self, index: Tensor) -> "MetaFeature":
        """The meta-feature Pᵀψ(x)P of a student that sees only the weights in `index`."""
        index = checks.indices("index", index, self.n)
        # P selects coordinates and g acts entry by entry, so g before P equals g after P.
        return MetaFeature(self.matrices[:, index][:, :, index], self.elementwise)

    def forward(self, x: Tensor) -> Tensor:
        """ψ(x) for inputs of shape ``(D, d)``; shape ``(D, n, n)``."""
        checks.inputs(x, self.d, self.matrices)
        h = torch.einsum("ai,imp->amp", x / math.sqrt(self.d), self.matrices)
        return ELEMENTWISE[self.elementwise](h)

    def family(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The fewest matrices that span ψ(x_a), and how each ψ(x_a) is made of them.

        Where g is the identity, ψ(x_a) = Σᵢ C_ai Wᵢ with C = X/√d: d matrices do for any number
        of samples.

        Args:
            x: Inputs, shape ``(D, d)``.

        Returns:
            Matrices M of shape ``(m, n, n)`` and coefficients C of shape ``(D, m)`` with
            ψ(x_a) = Σ_j C_aj M_j; C is None where m = D and C is the identity.
        """
        checks.inputs(x, self.d, self.matrices)
        if self.elementwise == "identity" and self.d < x.shape[0]:
            return self.matrices, x / math.sqrt(self.d)
        return self(x), None
