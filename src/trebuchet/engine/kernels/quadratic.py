"""Stacked runs of the quadratic models, with and without bias."""

import copy
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from trebuchet.curvature.closed_forms import quadratic_gram
from trebuchet.engine.kernels.outputs import OutputKernel, nbytes
from trebuchet.models.quadratic import PureQuadratic, QuadraticWithBias
from trebuchet.models.scaling import scaling_of

_BLOCK_BYTES = 64 * 2**20
"""ψ of test inputs is formed this much at a time: it would be D_test × n × n whole."""


class QuadraticKernel(OutputKernel):
    """R runs of one quadratic model: one matrix product gives ψ(x_a)θ_r for all samples and runs.

    With V_r = (ψ_aθ_r)_a of shape ``(D, n)``: z = (ζ/2)Vθ (+ Φθ_φ), Jᵀdz = ζVᵀdz, H = ζ²VVᵀ/D.
    Where ψ is linear in x, V = C·(W_iθ)_i needs d products, whatever D is.

    Args:
        model: The model; its meta-feature and features are shared by all runs.
        runs: R; every run starts from the model's weights.
        x: Training inputs, shape ``(D, d)``.
    """

    mixes_seeds: ClassVar[bool] = False

    def __init__(self, model: PureQuadratic | QuadraticWithBias, runs: int, x: Tensor) -> None:
        self.model = model
        with torch.no_grad():
            matrices, self.coefficients = model.psi.family(x)  # (m, n, n), (D, m) or None
            self.m, self.n = matrices.shape[:2]
            self.flat = matrices.reshape(self.m * self.n, self.n)
            if isinstance(model, PureQuadratic):
                self.phi: Tensor | None = None
                weights = [model.theta]
            else:
                self.phi = model.phi(x)
                weights = [model.theta_psi, model.theta_phi]
            self.params = [w.detach().expand(runs, -1).clone() for w in weights]
        self.scaling = scaling_of(model)
        self.samples = x.shape[0]

    def alphas(self) -> list[float | Tensor]:
        """Of θ_ψ, and of θ_φ, which counts twice."""
        return [1.0] if self.phi is None else [1.0, 2.0]

    def forward(self, *, sparsity: bool = False) -> Tensor:
        """z, shape ``(R, D)``."""
        theta = self.params[0]
        # (R, n) @ (n, m·n): ψ is symmetric, so rows of the product are ψ_jθ_r.
        self._u = (theta @ self.flat.T).reshape(-1, self.m, self.n)
        q = (self._u @ theta.unsqueeze(2)).squeeze(2)  # (R, m): θᵀM_jθ
        z = q if self.coefficients is None else q @ self.coefficients.T
        z = self.model.zeta / 2 * z
        if self.phi is not None:
            z = z + self.params[1] @ self.phi.T
        return z

    def add_vjp_(self, into: Sequence[Tensor], dz: Tensor) -> None:
        """Add ζ Σ_a dz_a ψ_aθ, and Φᵀdz."""
        c = dz if self.coefficients is None else dz @ self.coefficients  # (R, m)
        into[0].add_((c.unsqueeze(1) @ self._u).squeeze(1), alpha=self.model.zeta)
        if self.phi is not None:
            into[1].add_(dz @ self.phi)

    def gram(self) -> Tensor:
        """H, shape ``(R, D, D)``."""
        v = self._u if self.coefficients is None else self.coefficients @ self._u
        return quadratic_gram(v, self.model.zeta, self.phi)

    def outputs(self, x: Tensor) -> Tensor:
        """z on other inputs, shape ``(R, B)``."""
        theta = self.params[0]
        block = max(1, _BLOCK_BYTES // nbytes(self.n, self.n, dtype=theta.dtype))
        z = torch.cat([self._quadratic_part(part) for part in torch.split(x, block)], dim=1)
        if isinstance(self.model, QuadraticWithBias):
            z = z + self.params[1] @ self.model.phi(x).T
        return z

    def _quadratic_part(self, x: Tensor) -> Tensor:
        theta = self.params[0]
        psi: Tensor = self.model.psi(x)  # (B, n, n)
        v = (theta @ psi.reshape(-1, self.n).T).reshape(-1, x.shape[0], self.n)  # (R, B, n)
        return self.model.zeta / 2 * (v @ theta.unsqueeze(2)).squeeze(2)

    def subset(self, index: Sequence[int]) -> "QuadraticKernel":
        """The runs `index`; the meta-feature stays shared."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other.params = [p[list(index)] for p in self.params]
        return other

    def model_of(self, run: int) -> nn.Module:
        """A copy of the model; the meta-feature stays shared."""
        model = copy.copy(self.model)
        model._parameters = dict(self.model._parameters)
        names = ("theta",) if self.phi is None else ("theta_psi", "theta_phi")
        for name, p in zip(names, self.params, strict=True):
            setattr(model, name, nn.Parameter(p[run].clone()))
        return model

    def bytes_per_run(self) -> int:
        """ψθ, its product with the coefficients, and the D × D matrices of H."""
        dtype = self.params[0].dtype
        v = nbytes(self.m + self.samples, self.n, dtype=dtype)
        return v + 3 * nbytes(self.samples, self.samples, dtype=dtype)
