"""What a measurement of curvature returns."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from trebuchet.errors import InputError
from trebuchet.problem.held_still import Mode
from trebuchet.theory.stability import OptimizerName, edge_at


@dataclass(frozen=True, slots=True)
class WarmState:
    """Where the next measurement of the same problem may start: eigenvectors on their own side."""

    side: str
    vectors: Tensor = field(repr=False)  # (k, n)


@dataclass(frozen=True, slots=True)
class TopEigen:
    """The largest eigenvalues of one operator, with how sure they are.

    Attributes:
        values: λ_1 ≥ … ≥ λ_k, shape (k,), float64, on the CPU. NaN where none was found.
        residuals: ‖A y − λ y‖ for unit y, shape (k,), float64: within this distance of each value
            lies an eigenvalue, up to the rounding of the products themselves (which is included
            as far as it is known).
        upper: Except with probability `failure` over the random start, no eigenvalue is left out
            above this: λ_1 ∈ [values[0], upper] for k = 1, λ_{k+1} ≤ upper for k > 1. Infinite if
            the run ended before that could be said.
        gap: λ_k − λ_{k+1}, as far as the run saw λ_{k+1}; NaN if it saw none.
        converged: Every residual is below `rtol` · |λ|, and `upper` is within `rtol` of λ_k. Never
            true of a result that only one of the two tests passed.
        products: Products with the operator (0 where the matrix was formed whole).
        operator: ``"ggn"``, ``"ntk"`` or ``"hessian"``.
        method: ``"lanczos"``, ``"dense"`` or ``"layer rule"``.
        side: The space worked in: ``"parameters"`` or ``"outputs"``.
        mode: Train or eval, as the model was evaluated (held_still.py).
        optimizer: Whose edge `lr_crit` is.
        settings: The optimizer's settings that are in `lr_crit`: momentum or β₁, dampening, weight
            decay (an adaptive optimizer's coupled decay is in `values`), as
            ``theory.stability.coefficients`` takes them.
        loss_scale: Factor from `values` to the given loss's Gauss–Newton: 1 for ggn and hessian;
            for the ntk, c·D where the loss's Hessian at the outputs is c·I, NaN where it is not.
        reduction: How micro-batches were combined: ``"mean"`` or ``"sum"``.
        n_samples: D.
        n_parameters: P.
        rtol: The tolerance asked for.
        failure: The certificate's failure probability.
        vectors: Unit eigenvectors in parameter space, shape (k, P), if asked for.
        names: The parameters' names and shapes, in the order of `vectors`.
        warm: Start for the next measurement.
        note: Why it did not converge, if it did not.
    """

    values: Tensor
    residuals: Tensor
    upper: float
    gap: float
    converged: bool
    products: int
    operator: str
    method: str
    side: str
    mode: Mode
    optimizer: OptimizerName
    settings: dict[str, float]
    loss_scale: float
    reduction: str
    n_samples: int
    n_parameters: int
    rtol: float
    failure: float
    vectors: Tensor | None = field(default=None, repr=False)
    names: dict[str, tuple[int, ...]] = field(default_factory=dict, repr=False)
    warm: WarmState | None = field(default=None, repr=False)
    note: str = ""

    @property
    def value(self) -> float:
        """λ_1."""
        return float(self.values[0])

    @property
    def residual(self) -> float:
        """The bound on the distance from λ_1 to an eigenvalue."""
        return float(self.residuals[0])

    @property
    def lr_crit(self) -> float:
        """The learning rate at which the optimizer's linear stability ends: 2/λ for plain descent.

        With the optimizer's momentum, dampening and weight decay, as ``scan`` has it. For the loss
        as given, with its own reduction and factors. Infinite where λ ≤ 0: there is no curvature to
        be unstable in. NaN for an NTK whose loss is not a squared one (take
        ``operator="ggn"``).
        """
        curvature = self.value * self.loss_scale
        return edge_at(self.optimizer, curvature, **self.settings)

    def vector(self, i: int = 0) -> dict[str, Tensor]:
        """Return eigenvector `i` by parameter name, in the parameters' shapes.

        Args:
            i: 0 is the top one.

        Returns:
            Name → tensor.

        Raises:
            InputError: If vectors were not asked for, or there is no such one.
        """
        if self.vectors is None or not 0 <= i < len(self.vectors):
            msg = f"i: there is no vector {i}; call top_eigen with vectors=True and k > {i}"
            raise InputError(msg)
        out, at = {}, 0
        for name, shape in self.names.items():
            n = math.prod(shape)
            out[name] = self.vectors[i, at : at + n].view(shape)
            at += n
        return out

    def __str__(self) -> str:
        """One paragraph that a person can read."""
        name = {"ggn": "Gauss–Newton", "ntk": "NTK ÷ D", "hessian": "Hessian"}[self.operator]
        state = "converged" if self.converged else "NOT converged"
        lines = [
            f"top eigenvalue of the {name}: {self.value:.6g}  ({state}; "
            f"residual {self.residual:.1e}, at most {self.upper:.6g})"
        ]
        if self.note:
            lines.append(f"because {self.note}")
        if len(self.values) > 1:
            lines.append("next: " + ", ".join(f"{float(v):.6g}" for v in self.values[1:]))
        lines.append(
            f"critical learning rate ({self.optimizer}): {self.lr_crit:.6g}   "
            f"[D = {self.n_samples}, P = {self.n_parameters:,}, model in {self.mode} mode, "
            f"{self.method}, {self.products} products]"
        )
        return "\n".join(lines)


def to_cpu(values: object) -> Tensor:
    """Return numbers as a float64 tensor on the CPU."""
    return torch.as_tensor(values, dtype=torch.float64, device="cpu")
