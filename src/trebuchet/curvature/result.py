"""What a measurement of curvature returns."""

import json
import math
from dataclasses import dataclass, field, fields
from typing import Any

import torch
import xarray as xr
from torch import Tensor

from trebuchet._checks import one_line, whole
from trebuchet._content import ByContent
from trebuchet._doors import door, rule
from trebuchet._environment import environment
from trebuchet.errors import InputError
from trebuchet.problem.held_still import Mode
from trebuchet.results.record import plain, rebuilt
from trebuchet.results.schema import a_dataset
from trebuchet.theory.stability import OptimizerName, edge_at

ASKED = "asked only whether it is above"
"""How the note of a measurement begins that was never meant to converge."""


@dataclass(frozen=True, slots=True, eq=False)
class WarmState(ByContent):
    """Where the next measurement of the same problem may start: eigenvectors on their own side.

    Attributes:
        side: Which.
        vectors: Unit vectors, shape (k, n).
        turn: How many measurements they come from beside the last: the next draws other numbers.
    """

    side: str
    vectors: Tensor = field(repr=False)
    turn: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class TopEigen(ByContent):
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
        statistics: Whose statistics batch norms used, in words; empty if there are none.
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
        remarks: What else to know: which other route was taken where automatic differentiation has
            none, what batches counted by.
        environment: The CPU, its instruction set, threads and versions: what rounding owes to.
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
    remarks: tuple[str, ...] = ()
    statistics: str = ""
    environment: dict[str, str | int] = field(default_factory=environment, repr=False)

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
        return self._rate(self.value)

    @property
    def bounds(self) -> tuple[float, float]:
        """Between which numbers λ_1 lies: ``values[0]``, which no run can exceed, and `upper`.

        The upper one holds except with probability `failure`, both up to rounding. Infinite where
        nothing is known, as of an operator that was found to be wrong.
        """
        if not math.isfinite(self.residual):
            return -math.inf, math.inf
        if len(self.values) == 1:
            return self.value, max(self.upper, self.value)
        # Of several values `upper` bounds the next one.
        return self.value, self.value + self.residual if self.converged else math.inf

    @property
    def lr_crit_bounds(self) -> tuple[float, float]:
        """Between which rates `lr_crit` lies: a λ that did not converge only bounds it from above.

        (0, ∞) where nothing is known, and NaN where `lr_crit` is.
        """
        low, high = self.bounds
        if math.isnan(self.lr_crit):
            return math.nan, math.nan
        if not math.isfinite(low):
            return 0.0, math.inf
        return (self._rate(high) if math.isfinite(high) else 0.0), self._rate(low)

    def _rate(self, value: float) -> float:
        return edge_at(self.optimizer, value * self.loss_scale, **self.settings)

    @door(i=rule(whole, "an index from 0", least=0))
    def vector(self, i: int = 0) -> dict[str, Tensor]:
        """Return eigenvector `i` by parameter name, in the parameters' shapes.

        Args:
            i: 0 is the top one.

        Returns:
            Name → tensor.

        Raises:
            InputError: If vectors were not asked for, or there is no such one.
        """
        if self.vectors is None or i >= len(self.vectors):
            msg = f"i: there is no vector {i}; call top_eigen with vectors=True and k > {i}"
            raise InputError(msg)
        out, at = {}, 0
        for name, shape in self.names.items():
            n = math.prod(shape)
            out[name] = self.vectors[i, at : at + n].view(shape)
            at += n
        return out

    def to_dataset(self) -> xr.Dataset:
        """The result as labelled arrays, for ``trebuchet.save``; all but tensors in the attributes.

        Returns:
            The dataset.
        """
        arrays: dict[str, Any] = {}
        rest: dict[str, Any] = {}
        for row in fields(self):
            value = getattr(self, row.name)
            if row.name == "warm" and value is not None:
                arrays["warm"] = value.vectors
                rest["warm_side"], rest["warm_turn"] = value.side, value.turn
            elif isinstance(value, Tensor):
                arrays[row.name] = value
            elif value is not None:
                rest[row.name] = plain(value)
        rest["dtypes"] = {n: str(t.dtype).removeprefix("torch.") for n, t in arrays.items()}
        variables = {
            name: (
                tuple(f"{name}_{axis}" for axis in range(tensor.ndim)),
                # NumPy has no bfloat16, and Zarr wants no half precision: both fit into float32.
                (tensor.float() if tensor.itemsize < 4 else tensor).detach().cpu().numpy(),
                {"units": "1", "long_name": f"{name} of {self.operator}"},
            )
            for name, tensor in arrays.items()
        }
        return xr.Dataset(variables, attrs={"top_eigen": json.dumps(rest)})

    @classmethod
    @door(ds=a_dataset)
    def from_dataset(cls, ds: xr.Dataset) -> "TopEigen":
        """The result that `to_dataset` wrote down, its tensors on the CPU.

        Args:
            ds: The dataset.

        Returns:
            The result.

        Raises:
            InputError: If it is none, or parts of it are missing.
        """
        try:
            rest = json.loads(ds.attrs["top_eigen"])
            rest = {n: tuple(v) if isinstance(v, list) else v for n, v in rest.items()}
            tensors = {
                name: torch.from_numpy(ds[name].values.copy()).to(getattr(torch, dtype))
                for name, dtype in rest.pop("dtypes").items()
            }
            if "warm" in tensors:
                side, turn = rest.pop("warm_side"), rest.pop("warm_turn", 0)
                rest["warm"] = WarmState(side, tensors.pop("warm"), turn)
            rest["names"] = {name: tuple(shape) for name, shape in rest["names"].items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            msg = f"a part of it is missing or is not what it should be ({one_line(error)})"
            raise InputError(msg) from error
        return rebuilt(cls, rest, **tensors)

    def __str__(self) -> str:
        """One paragraph that a person can read."""
        name = {"ggn": "Gauss–Newton", "ntk": "NTK ÷ D", "hessian": "Hessian"}[self.operator]
        state = f"residual {self.residual:.1e}, at most {self.upper:.6g}"
        if self.converged:
            state = f"converged; {state}"
        else:
            asked = self.note.startswith(ASKED)
            state = f"{'' if asked else 'NOT converged: '}{self.note or 'see the bounds'}; {state}"
        lines = [f"top eigenvalue of the {name}: {self.worded()}  ({state})"]
        if len(self.values) > 1:
            lines.append("next: " + ", ".join(f"{float(v):.6g}" for v in self.values[1:]))
        mode = f"model in {self.mode} mode" + (f" with {self.statistics}" * bool(self.statistics))
        lines.append(
            f"critical rate ({self.optimizer}): {self.worded_rate()}   "
            f"[D = {self.n_samples}, P = {self.n_parameters:,}, {mode}, "
            f"{self.method}, {self.products} products]"
        )
        return "\n".join([*lines, *self.remarks])

    @door(digits=rule(whole, "1 to 17 digits", most=17))
    def worded(self, digits: int = 6) -> str:
        """λ_1 as far as it is known: ``"5"``, ``"at least 5"``, or ``"not known"``.

        Args:
            digits: How many significant ones.

        Returns:
            A phrase.
        """
        if self.converged:
            return f"{self.value:.{digits}g}"
        if not math.isfinite(self.residual):
            return "not known"
        return f"at least {self.value:.{digits}g}"

    @door(digits=rule(whole, "1 to 17 digits", most=17))
    def worded_rate(self, digits: int = 6) -> str:
        """The critical rate as far as it is known: a λ from below bounds it from above.

        Args:
            digits: How many significant ones.

        Returns:
            ``"0.4"``, ``"at most 0.4, λ not converged"``, or ``"not known"``.
        """
        rate = self.lr_crit
        if self.converged and not math.isnan(rate):
            return f"{rate:.{digits}g}"
        if math.isnan(rate):
            return "not known, since the NTK knows no loss"
        if not math.isfinite(self.residual) or math.isinf(rate):
            return "not known"
        return f"at most {rate:.{digits}g}, λ not converged"


def to_cpu(values: object) -> Tensor:
    """Return numbers as a float64 tensor on the CPU."""
    return torch.as_tensor(values, dtype=torch.float64, device="cpu")
