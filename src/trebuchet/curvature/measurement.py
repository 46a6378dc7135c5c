"""One measurement: which side and method is cheapest and exact, and what came out."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from trebuchet.curvature import dense, layer_rule
from trebuchet.curvature.basis import normal
from trebuchet.curvature.differences import ROUNDING as DIFFERENCES, DifferenceHessian
from trebuchet.curvature.distributed import Ranks
from trebuchet.curvature.evaluation import Evaluation
from trebuchet.curvature.explain import NoDerivativeError, explained
from trebuchet.curvature.factor import loss_factor
from trebuchet.curvature.ggn import GGN, OutputGGN
from trebuchet.curvature.hessian import Hessian
from trebuchet.curvature.lanczos import Goal, Step
from trebuchet.curvature.loss_curvature import LossCurvature
from trebuchet.curvature.memory import how_many_fit
from trebuchet.curvature.ntk import ntk_operator
from trebuchet.curvature.operators import Linearisations, Operator
from trebuchet.curvature.preconditioner import OptimizerView, Shifted
from trebuchet.curvature.result import TopEigen, WarmState
from trebuchet.curvature.settings import Lanczos
from trebuchet.curvature.solve import Solver, Spectrum, of_matrix
from trebuchet.curvature.witness import Witness, unknown
from trebuchet.errors import InputError
from trebuchet.problem.held_still import Mode

OperatorName = Literal["ggn", "ntk", "hessian"]

_NO_POTENTIAL = "the gradients are not those of one function, as with a straight-through estimator"


MOVES = (
    "its forward pass moves state of its own (a teacher, a codebook, a norm's estimate), which is "
    "held constant in every derivative"
)


@dataclass(slots=True)
class Measurement:
    """One measurement: choose the side and the method, solve, and report.

    Attributes:
        evaluation: Model, loss, micro-batches and weights.
        ranks: The processes that share the samples.
        view: How the optimizer sees curvature.
        operator: Which curvature.
        k: How many eigenvalues.
        rtol: Relative tolerance.
        vectors: Whether eigenvectors in parameter space are wanted.
        lanczos: How they are looked for.
        convex: The loss is convex in the outputs.
        on_step: Progress.
        warm: An earlier result.
        above: Ask only whether the largest eigenvalue exceeds this.
    """

    evaluation: Evaluation
    ranks: Ranks
    view: OptimizerView
    operator: OperatorName
    k: int
    rtol: float
    vectors: bool
    lanczos: Lanczos
    convex: bool
    on_step: Step | None
    warm: TopEigen | None
    above: float | None = None

    def result(self, mode: Mode) -> TopEigen:
        """Measure.

        Args:
            mode: How the model is being evaluated, for the record.

        Returns:
            The result.

        Raises:
            InputError: If k or the warm start do not fit the evaluation.
        """
        evaluation = self.evaluation
        if self.k > evaluation.n_parameters:
            msg = f"k: asks for {self.k} eigenvalues of {evaluation.n_parameters} parameters"
            raise InputError(msg)
        if self.warm is not None and self.warm.n_parameters != evaluation.n_parameters:
            msg = (
                f"warm: is of a model with {self.warm.n_parameters} parameters, "
                f"this one has {evaluation.n_parameters}"
            )
            raise InputError(msg)
        with explained(evaluation.model, "model", "its derivatives cannot be taken as they are"):
            spectrum = self._hessian() if self.operator == "hessian" else self._layer_rule()
            if spectrum is None:
                op, lin = self._operator()
                spectrum = self._solve(op, lin)
            return self._report(spectrum, mode)

    def _solve(self, op: Operator, lin: Linearisations | None = None) -> Spectrum:
        return self._dense(op, lin) or self._lanczos(op)

    def _hessian(self) -> Spectrum:
        """By automatic differentiation, where that is right; else by differences of gradients."""
        evaluation, scale = self.evaluation, self.view.scale
        keep = how_many_fit(evaluation, outputs=False)
        op = Hessian(evaluation, ranks=self.ranks, keep=keep, scale=scale)
        witness = Witness(evaluation, self.ranks, scale, self.lanczos.seed)
        try:
            wrong = witness.before(op)
            found = None if wrong else self._solve(self._shifted(op))
            if found is not None:
                wrong = witness.after(found, self.view.shift)
        except NoDerivativeError as error:
            found, wrong = None, f"{error} has no second derivative"
        if not wrong and found is not None:
            if witness.moves or evaluation.moves:
                evaluation.remarks.append(MOVES)
            return found
        evaluation.remarks.append(f"the Hessian is by finite differences of the gradient: {wrong}")
        try:
            differences = DifferenceHessian(evaluation, ranks=self.ranks, scale=scale)
            other = self._solve(self._shifted(differences))
        except InputError as error:
            evaluation.remarks.pop()
            if found is None:
                msg = f"model: has no Hessian, since {wrong}; and in its place {error}"
                raise InputError(msg) from error
            return unknown(found, f"{wrong}; and in its place {error}")
        if not other.symmetric:
            return unknown(other, f"{wrong}; by finite differences {other.note}: {_NO_POTENTIAL}")
        return other

    @property
    def single(self) -> bool:
        """Whether everything is in one micro-batch on one process."""
        return len(self.evaluation.batches) == 1 and self.ranks.alone

    def _operator(self) -> tuple[Operator, Linearisations]:
        evaluation, scale, shift = self.evaluation, self.view.scale, self.view.shift
        lin = Linearisations(evaluation, how_many_fit(evaluation))
        if shift is not None:
            return self._shifted(GGN(evaluation, lin, ranks=self.ranks, scale=scale)), lin
        small = self.single and lin[0].size < evaluation.n_parameters and self.k <= lin[0].size
        if self.operator == "ntk":
            if self.single and self.k > lin[0].size:
                msg = f"k: asks for {self.k} eigenvalues of an NTK of {lin[0].size} outputs"
                raise InputError(msg)
            ntk = ntk_operator(evaluation, lin, ranks=self.ranks, outputs_side=small, scale=scale)
            return ntk, lin
        if self.operator == "ggn" and small and self.convex:
            return OutputGGN(evaluation, lin, scale=scale), lin
        return GGN(evaluation, lin, ranks=self.ranks, scale=scale), lin

    def _shifted(self, op: Operator) -> Operator:
        """With weight decay on the diagonal: on the parameter side, where it is diagonal."""
        if self.view.shift is None:
            return op
        if self.operator == "ntk":
            msg = "optimizer: its weight decay belongs to the loss's curvature; use operator='ggn'"
            raise InputError(msg)
        return Shifted(op, self.view.shift)

    def _layer_rule(self) -> Spectrum | None:
        """The layer rule, where it is exact and cheaper; verified where samples might mix."""
        if self.operator == "hessian" or not self.single:
            return None
        if self.view.scale is not None or self.view.shift is not None:
            return None
        if self.lanczos.method == "lanczos" or self.evaluation.autocast.enabled:
            return None
        evaluation, batch = self.evaluation, self.evaluation.batches[0]
        run = layer_rule.record(evaluation, batch)
        if run is None:
            return None
        d, z = run.samples, run.outputs
        if self.operator == "ntk":
            eye = torch.eye(z.numel() // d, dtype=z.dtype, device=z.device)
            factor: Tensor | None = (eye / evaluation.n_samples**0.5).expand(d, -1, -1)
        else:
            factor = loss_factor(evaluation, z, batch, evaluation.weights[0], self.lanczos.seed)
        if factor is None or self.k > d * factor.shape[2]:
            return None
        if not layer_rule.is_cheaper(run, factor.shape[2]) and self.lanczos.method != "dense":
            return None
        r = normal((d, factor.shape[2]), z, self.lanczos.seed)
        a, ours = layer_rule.gram(run, factor, None if run.trusted else r)
        if not bool(torch.isfinite(a).all()):
            msg = "model: its derivatives are NaN or infinite; curvature needs a smooth point"
            raise InputError(msg)
        if not run.trusted:
            plain = layer_rule.plain_gradients(run, (factor @ r[..., None])[..., 0])
            if plain is None:
                return None
            rounding = 1e3 * torch.finfo(plain.dtype).eps * float(plain.norm())
            if not bool((ours - plain).norm() <= rounding):
                return None
        return of_matrix(a, self.k, "layer rule", "outputs", self._back(factor), self._eps())

    def _back(self, factor: Tensor) -> Callable[[Tensor, float], Tensor] | None:
        """From an eigenvector y of (Bᵀ J)(Bᵀ J)ᵀ to Jᵀ B y, if anybody will ask."""
        if not self.vectors:
            return None
        op = OutputGGN(self.evaluation, Linearisations(self.evaluation, 1), identity=True)

        def to_parameters(y: Tensor, value: float) -> Tensor:
            u = factor @ y.to(factor.dtype).view(len(factor), -1, 1)
            return op.to_parameters(u.reshape(-1), value)

        return to_parameters

    def _whole(
        self, gram: Tensor, z: Tensor, method: str, lin: Callable[[], Linearisations]
    ) -> Spectrum | None:
        """Solve for the spectrum of S (J Jᵀ) S, given whole."""
        evaluation, batch = self.evaluation, self.evaluation.batches[0]
        if not bool(torch.isfinite(gram).all()):
            msg = "model: its derivatives are NaN or infinite; curvature needs a smooth point"
            raise InputError(msg)
        if self.operator == "ntk":
            root: Tensor | None = gram.new_full((len(gram),), evaluation.n_samples**-0.5)
        else:
            root = dense.root(dense.loss_hessian(evaluation, z, batch) * evaluation.weights[0])
        if root is None:
            return None
        a = dense.sandwich(root, gram)
        back = None
        if self.vectors:
            op = OutputGGN(evaluation, lin(), scale=self.view.scale, identity=True)

            def to_parameters(y: Tensor, value: float) -> Tensor:
                u = root * y if root.ndim == 1 else root @ y
                return op.to_parameters(u.to(evaluation.dtype), value)

            back = to_parameters
        return of_matrix(a, self.k, method, "outputs", back, self._eps())

    def _dense(self, op: Operator, lin: Linearisations | None) -> Spectrum | None:
        """All products with the identity, for the few that are fewer than Lanczos would take."""
        limit = dense.DENSE_LIMIT if self.lanczos.method == "dense" else dense.AUTO_DENSE
        if self.lanczos.method == "lanczos" or op.dim > limit:
            if self.lanczos.method == "dense" and op.dim > limit:
                msg = f"method: 'dense' is for up to {limit} dimensions, this problem has {op.dim}"
                raise InputError(msg)
            return None
        like = torch.empty(0, dtype=self.evaluation.dtype, device=self.evaluation.device)
        a, skew = dense.matrix_of(op.product, op.dim, like)
        if op.side == "outputs" and lin is not None and self.operator != "ntk":
            return self._whole(a, lin[0].outputs, "dense", lambda: lin)
        eps = self._eps(op)
        return of_matrix(a, self.k, "dense", op.side, op.to_parameters, eps, skew)

    def _lanczos(self, op: Operator) -> Spectrum:
        like = torch.empty(0, dtype=self.evaluation.dtype, device=self.evaluation.device)
        state = self.warm.warm if self.warm is not None else None
        start, seed = None, self.lanczos.seed
        if state is not None and state.side == op.side and state.vectors.shape[1] == op.dim:
            # The certificate wants a random direction that the warm one knows nothing of.
            start, seed = state.vectors.to(like), fresh(seed, state.turn + 1)
        goal = Goal(
            k=self.k,
            rtol=self.rtol,
            failure=self.lanczos.failure,
            max_products=self.lanczos.max_products,
            basis_cap=self.lanczos.basis_cap or self._cap(op),
            above=self.above,
            eps=lambda: self._eps(op),  # only products tell whether one is by differences
        )
        generator = torch.Generator("cpu").manual_seed(seed)
        return Solver(op, like, goal, generator, self.ranks, self.on_step).solve(start)

    def _cap(self, op: Operator) -> int:
        """64 vectors, or as many as fit into 1 GiB, or half of a large model's own memory."""
        size = 4 if self.evaluation.dtype == torch.float32 else 8
        own = size * self.evaluation.n_parameters
        budget = 1 << 30 if own < 1 << 28 else own // 2
        each = op.dim * size * (2 if op.metric is not None else 1)
        return max(min(64, budget // each), self.k + 4)

    def _eps(self, op: Operator | None = None) -> float:
        """Rounding unit of the products: autocast's, where it is on; that of differences."""
        autocast = self.evaluation.autocast
        if isinstance(op, DifferenceHessian) or self.evaluation.inexact:
            return max(DIFFERENCES, float(torch.finfo(self.evaluation.dtype).eps))
        if not autocast.enabled:
            return float(torch.finfo(self.evaluation.dtype).eps)
        # Only the inputs of matrix products are rounded so; their sums are kept in float32, and
        # errors average: a quarter unit is what is seen.
        return float(torch.finfo(autocast.dtype).eps) / 32

    def _report(self, s: Spectrum, mode: Mode) -> TopEigen:
        evaluation = self.evaluation
        found = None
        if self.vectors:
            rows = [s.to_parameters(v, float(x)) for v, x in zip(s.vectors, s.values, strict=True)]
            found = torch.stack(rows)
        return TopEigen(
            values=torch.from_numpy(np.asarray(s.values, dtype=np.float64)),
            residuals=torch.from_numpy(np.asarray(s.residuals, dtype=np.float64)),
            upper=s.upper,
            gap=float(s.values[-1]) - s.next_value,
            converged=s.converged,
            products=s.products,
            operator=self.operator,
            method=s.method,
            side=s.side,
            mode=mode,
            optimizer=self.view.edge.name,
            settings=self.view.edge.settings,
            loss_scale=self._loss_scale(),
            reduction=evaluation.reduction,
            n_samples=evaluation.n_samples,
            n_parameters=evaluation.n_parameters,
            rtol=self.rtol,
            failure=self.lanczos.failure,
            vectors=found,
            names={n: tuple(p.shape) for n, p in evaluation.params.items()},
            warm=self._next(s) if s.method == "lanczos" else None,
            note=s.note,
            remarks=tuple(evaluation.remarks),
            statistics=self._statistics(mode),
        )

    def _next(self, s: Spectrum) -> WarmState:
        before = None if self.warm is None else self.warm.warm
        return WarmState(s.side, s.vectors, 0 if before is None else before.turn + 1)

    def _statistics(self, mode: Mode) -> str:
        """Whose statistics batch norms used, for the record; empty where there are none."""
        norms = [
            m for module in self.evaluation.modules for m in module.modules()
            if isinstance(m, nn.modules.batchnorm._BatchNorm)
        ]  # fmt: skip
        live = [m for m in norms if m.training or m.running_mean is None]
        if not norms:
            return ""
        if not live:
            return "running statistics"
        count = len(self.evaluation.batches)
        some = "" if len(live) == len(norms) else f" in {len(live)} of {len(norms)} batch norms"
        return f"batch statistics{some}" + (f", of {count} batches each by itself" * (count > 1))

    def _loss_scale(self) -> float:
        """c·D if the loss's Hessian at the outputs is c·I on every micro-batch, else NaN."""
        if self.operator != "ntk":
            return 1.0
        if self.evaluation.loss is None:
            return 1.0  # the half-MSE, whose Gauss–Newton the NTK is
        scales = []
        for batch, weight in zip(self.evaluation.batches, self.evaluation.weights, strict=True):
            z = self.evaluation.outputs(batch).detach()
            curvature = LossCurvature(self.evaluation, z, batch)
            if curvature.zero:
                return 0.0
            probe = normal(z.shape, z, self.lanczos.seed)
            h = curvature.product(probe)
            c = float((h / probe).mean()) if z.numel() else math.nan
            if float((h - c * probe).abs().max()) > 1e-4 * abs(c):
                return math.nan
            scales.append(c * weight * self.evaluation.n_samples)
        if max(scales) - min(scales) > 1e-4 * abs(scales[0]):
            return math.nan
        return scales[0]


def fresh(seed: int, turn: int) -> int:
    """Another seed for every measurement that starts where one of the same seed has ended."""
    (word,) = np.random.SeedSequence([seed, turn]).generate_state(1, np.uint64)
    return int(word) >> 1
