"""The front door: the top eigenvalues of NTK, Gauss–Newton or Hessian, of any model."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from trebuchet.curvature import dense, layer_rule
from trebuchet.curvature.batches import as_batches
from trebuchet.curvature.distributed import Ranks
from trebuchet.curvature.factor import loss_factor
from trebuchet.curvature.ggn import GGN, OutputGGN, is_convex
from trebuchet.curvature.hessian import Hessian
from trebuchet.curvature.lanczos import Goal, Step
from trebuchet.curvature.losses import LossFn, ModelLoss, Reduction, batch_weights, resolve
from trebuchet.curvature.memory import how_many_fit
from trebuchet.curvature.ntk import ntk_operator
from trebuchet.curvature.operators import Linearisations, Operator
from trebuchet.curvature.policy import Mode, held_still
from trebuchet.curvature.preconditioner import OptimizerView, view_of
from trebuchet.curvature.problem import Autocast, Problem, Selection, select, unwrap
from trebuchet.curvature.result import TopEigen, WarmState
from trebuchet.curvature.solve import Solver, Spectrum, of_matrix
from trebuchet.errors import InputError

OperatorName = Literal["ggn", "ntk", "hessian"]
Method = Literal["auto", "lanczos", "dense"]


def top_eigen(
    model: nn.Module,
    loss: str | LossFn | ModelLoss | None,
    data: object,
    operator: OperatorName = "ggn",
    *,
    k: int = 1,
    rtol: float = 1e-3,
    params: Selection = None,
    mode: Mode = "eval",
    optimizer: torch.optim.Optimizer | str | None = None,
    warm: TopEigen | None = None,
    vectors: bool = False,
    micro_batch: int | None = None,
    max_batches: int | None = None,
    reduction: Reduction | None = None,
    method: Method = "auto",
    max_products: int = 1000,
    basis_cap: int | None = None,
    failure: float = 1e-6,
    seed: int = 0,
    group: Any = None,
    on_step: Step | None = None,
) -> TopEigen:
    """Measure the largest (algebraic) eigenvalues of a model's curvature, and the rate they imply.

    With outputs z, J = ∂z/∂θ (DK × P) and loss L:

    - ``"ggn"``: Jᵀ (∂²L/∂z²) J, Gauss–Newton, with the loss's own Hessian at the outputs;
    - ``"ntk"``: (1/D) J Jᵀ, the Gauss–Newton spectrum of the half-MSE, whatever the loss;
    - ``"hessian"``: ∂²L/∂θ².

    What is guaranteed when ``converged`` is true: an eigenvalue lies within ``residuals[0]`` ≤
    rtol·λ of ``values[0]``; and, except with probability `failure` over the random start, none lies
    above ``upper`` ≤ (1 + rtol) λ. The second holds for every matrix and every warm start, since at
    least one direction is always fresh (lanczos.py has the argument). Both are up to the rounding
    of the products. ``method="dense"`` results are exact to rounding, without "except".

    Args:
        model: Any module. It is evaluated under `mode`, and nothing about it changes.
        loss: ``loss(outputs, targets) -> scalar``, a name (``"half_mse"``, ``"mse"``,
            ``"cross_entropy"``, ``"bce"``, ``"huber"`` …), or for Hessians a closure
            ``loss_fn(model, batch)``. None only for the NTK.
        data: ``(inputs, targets)``, a dict batch, or a loader; see ``batches.as_batches``.
        operator: Which curvature.
        k: How many eigenvalues.
        rtol: Relative tolerance. 1e-3 is far below what a learning rate can feel.
        params: Names, parameters or a predicate; by default every parameter that is not frozen.
        mode: ``"eval"`` (default: BatchNorm's running statistics, no dropout), ``"train"`` (batch
            statistics, no dropout) or ``"as_is"``.
        optimizer: Whose edge ``lr_crit`` is; Adam's family also preconditions the operator.
        warm: The result for nearby parameters or data, to start from.
        vectors: Also return unit eigenvectors in parameter space, (k, P).
        micro_batch: At most so many samples in one forward pass; bounds memory.
        max_batches: Read only so many batches of a loader.
        reduction: ``"mean"`` or ``"sum"``; by default read off the loss, or found out by a trial.
        method: ``"lanczos"`` or ``"dense"`` on demand; ``"auto"`` takes what is cheaper.
        max_products: Give up after so many.
        basis_cap: Keep at most so many Lanczos vectors (of length P or D·K, whichever is shorter);
            by default 64, or what fits into twice the parameters' memory.
        failure: Failure probability of the certificate. The cost is logarithmic in it.
        seed: Of the random start, so that a measurement can be repeated.
        group: ``True`` or a process group: every rank holds a shard of the samples.
        on_step: Called after every product with (products, value, residual, probability of having
            missed a larger one); ``progress_line()`` makes one that shows them.

    Returns:
        Values, bounds, ``lr_crit`` and how they were come by.

    Raises:
        InputError: If an argument or the model is not what was expected.

    Example:
        One neuron z = θx with the half-MSE: the curvature is the mean of x², here (1 + 9)/2.

        >>> net = nn.Linear(1, 1, bias=False).double()
        >>> x = torch.tensor([[1.0], [3.0]], dtype=torch.float64)
        >>> top = top_eigen(net, "half_mse", (x, torch.zeros_like(x)))
        >>> round(top.value, 6), round(top.lr_crit, 6), top.converged
        (5.0, 0.4, True)
        >>> round(top_eigen(net, nn.MSELoss(), (x, torch.zeros_like(x))).lr_crit, 6)
        0.2
    """
    model = unwrap(model)
    resolved = resolve(loss)
    chosen = select(model, params)
    device = next(iter(chosen.values())).device
    _check(operator, resolved, k, rtol, failure, max_products, method)
    closure = isinstance(resolved, ModelLoss)
    ranks = Ranks(group, device)
    autocast = Autocast.ambient(device)
    # The solver's own arithmetic must not be cast down; the model re-enters the caller's autocast.
    with held_still(model, mode=mode, loader=data), torch.autocast(device.type, enabled=False):
        batches = as_batches(
            data, device=device, micro_batch=micro_batch, closure=closure, max_batches=max_batches
        )
        problem = Problem(model, chosen, resolved, batches, autocast)
        versions = [p._version for p in chosen.values()]
        _weigh(problem, ranks, reduction)
        run = _Run(
            problem, ranks, operator, k, rtol, method, vectors, max_products, basis_cap, failure,
            seed, on_step, warm, _view(optimizer, problem, ranks),
        )  # fmt: skip
        result = run.result(mode)
        if versions != [p._version for p in chosen.values()]:
            msg = "model: its forward pass writes to its parameters; curvature needs a fixed point"
            raise InputError(msg)
    return result


def _check(
    operator: str,
    loss: object,
    k: int,
    rtol: float,
    failure: float,
    max_products: int,
    method: str,
) -> None:
    if operator not in ("ggn", "ntk", "hessian"):
        msg = f"operator: expected 'ggn', 'ntk' or 'hessian', got {operator!r}"
        raise InputError(msg)
    if method not in ("auto", "lanczos", "dense"):
        msg = f"method: expected 'auto', 'lanczos' or 'dense', got {method!r}"
        raise InputError(msg)
    if loss is None and operator != "ntk":
        msg = "loss: only the NTK goes without one; give the loss that is trained on"
        raise InputError(msg)
    if isinstance(loss, ModelLoss) and operator != "hessian":
        msg = (
            f"loss: a closure loss_fn(model, batch) has a Hessian but no {operator}; use 'hessian'"
        )
        raise InputError(msg)
    if not isinstance(k, int) or k < 1:
        msg = f"k: expected a positive integer, got {k!r}"
        raise InputError(msg)
    if not 0 < rtol < 1:
        msg = f"rtol: expected a number between 0 and 1, got {rtol!r}"
        raise InputError(msg)
    if not 0 < failure < 1:
        msg = f"failure: expected a probability between 0 and 1, got {failure!r}"
        raise InputError(msg)
    if max_products < 1:
        msg = f"max_products: expected a positive integer, got {max_products!r}"
        raise InputError(msg)


def _weigh(problem: Problem, ranks: Ranks, reduction: Reduction | None) -> None:
    """Set the micro-batches' weights and D, over all ranks."""

    def outputs_of(batch: Any) -> Tensor:
        with torch.no_grad():
            return problem.outputs(batch)

    divisors, problem.reduction, total = batch_weights(
        problem.loss,
        problem.batches,
        reduction=reduction,
        outputs_of=outputs_of,
        always=not ranks.alone,
    )
    samples = float(sum(b.size for b in problem.batches))
    total, samples = ranks.total([total, samples])
    if problem.reduction == "sum":
        total = 1.0
    if total == 0:
        msg = "data: no target counts (all are ignored), so the mean loss is 0/0"
        raise InputError(msg)
    problem.weights = [d / total for d in divisors]
    problem.n_samples = int(samples)


def _view(
    optimizer: torch.optim.Optimizer | str | None, problem: Problem, ranks: Ranks
) -> OptimizerView:
    def gradient() -> Tensor:
        out = torch.zeros(problem.n_parameters, dtype=problem.dtype, device=problem.device)
        for batch, weight in zip(problem.batches, problem.weights, strict=True):
            grads = torch.autograd.grad(problem.loss_of(batch), problem.leaves, allow_unused=True)
            problem.add_flat(out, grads, weight)
        return ranks.sum_(out)

    return view_of(optimizer, problem, gradient)


@dataclass(slots=True)
class _Run:
    """One measurement: choose the side and the method, solve, and report."""

    problem: Problem
    ranks: Ranks
    operator: OperatorName
    k: int
    rtol: float
    method: Method
    vectors: bool
    max_products: int
    basis_cap: int | None
    failure: float
    seed: int
    on_step: Step | None
    warm: TopEigen | None
    view: OptimizerView

    def result(self, mode: Mode) -> TopEigen:
        """Measure."""
        problem = self.problem
        if self.k > problem.n_parameters:
            msg = f"k: asks for {self.k} eigenvalues of {problem.n_parameters} parameters"
            raise InputError(msg)
        if self.warm is not None and self.warm.n_parameters != problem.n_parameters:
            msg = (
                f"warm: is of a problem with {self.warm.n_parameters} parameters, "
                f"this one has {problem.n_parameters}"
            )
            raise InputError(msg)
        spectrum = self._layer_rule()
        if spectrum is None:
            op, lin = self._operator()
            spectrum = self._dense(op, lin) or self._lanczos(op)
        return self._report(spectrum, mode)

    @property
    def single(self) -> bool:
        """Everything is in one micro-batch on one process."""
        return len(self.problem.batches) == 1 and self.ranks.alone

    def _operator(self) -> tuple[Operator, Linearisations | None]:
        problem, scale = self.problem, self.view.scale
        keep = how_many_fit(problem)
        if self.operator == "hessian":
            return Hessian(problem, ranks=self.ranks, keep=keep, scale=scale), None
        lin = Linearisations(problem, keep)
        small = self.single and lin[0].size < problem.n_parameters and self.k <= lin[0].size
        if self.operator == "ntk":
            if self.single and self.k > lin[0].size:
                msg = f"k: asks for {self.k} eigenvalues of an NTK of {lin[0].size} outputs"
                raise InputError(msg)
            ntk = ntk_operator(problem, lin, ranks=self.ranks, outputs_side=small, scale=scale)
            return ntk, lin
        if self.operator == "ggn" and small and is_convex(problem.loss):
            return OutputGGN(problem, lin, scale=scale), lin
        return GGN(problem, lin, ranks=self.ranks, scale=scale), lin

    def _layer_rule(self) -> Spectrum | None:
        """The layer rule, where it is exact and cheaper; verified where samples might mix."""
        if self.operator == "hessian" or not self.single or self.view.scale is not None:
            return None
        if self.method == "lanczos" or self.problem.autocast.enabled:
            return None
        problem, batch = self.problem, self.problem.batches[0]
        run = layer_rule.record(problem, batch)
        if run is None:
            return None
        d, z = run.samples, run.outputs
        if self.operator == "ntk":
            eye = torch.eye(z.numel() // d, dtype=z.dtype, device=z.device)
            factor: Tensor | None = (eye / problem.n_samples**0.5).expand(d, -1, -1)
        else:
            factor = loss_factor(problem, z, batch, problem.weights[0], self.seed)
        if factor is None or self.k > d * factor.shape[2]:
            return None
        if not layer_rule.is_cheaper(run, factor.shape[2]) and self.method != "dense":
            return None
        trusted = run.trusted or (self.warm is not None and self.warm.trusted)
        generator = torch.Generator().manual_seed(self.seed)
        r = torch.randn(d, factor.shape[2], generator=generator).to(z)
        a, ours = layer_rule.gram(run, factor, None if trusted else r)
        if not bool(torch.isfinite(a).all()):
            msg = "model: its derivatives are NaN or infinite; curvature needs a smooth point"
            raise InputError(msg)
        if not trusted:
            plain = layer_rule.plain_gradients(run, (factor @ r[..., None])[..., 0])
            rounding = 1e3 * torch.finfo(plain.dtype).eps * float(plain.norm())
            if not bool((ours - plain).norm() <= rounding):
                return None
        return of_matrix(a, self.k, "layer rule", "outputs", self._back(factor), self._eps())

    def _back(self, factor: Tensor) -> Callable[[Tensor, float], Tensor] | None:
        """From an eigenvector y of (Bᵀ J)(Bᵀ J)ᵀ to Jᵀ B y, if anybody will ask."""
        if not self.vectors:
            return None
        op = OutputGGN(self.problem, Linearisations(self.problem, 1), identity=True)

        def to_parameters(y: Tensor, value: float) -> Tensor:
            u = factor @ y.to(factor.dtype).view(len(factor), -1, 1)
            return op.to_parameters(u.reshape(-1), value)

        return to_parameters

    def _whole(
        self, gram: Tensor, z: Tensor, method: str, lin: Callable[[], Linearisations]
    ) -> Spectrum | None:
        """Solve for the spectrum of S (J Jᵀ) S, given whole."""
        problem, batch = self.problem, self.problem.batches[0]
        if not bool(torch.isfinite(gram).all()):
            msg = "model: its derivatives are NaN or infinite; curvature needs a smooth point"
            raise InputError(msg)
        if self.operator == "ntk":
            root: Tensor | None = gram.new_full((len(gram),), problem.n_samples**-0.5)
        else:
            root = dense.root(dense.loss_hessian(problem, z, batch) * problem.weights[0])
        if root is None:
            return None
        a = dense.sandwich(root, gram)
        back = None
        if self.vectors:
            op = OutputGGN(problem, lin(), scale=self.view.scale, identity=True)

            def to_parameters(y: Tensor, value: float) -> Tensor:
                u = root * y if root.ndim == 1 else root @ y
                return op.to_parameters(u.to(problem.dtype), value)

            back = to_parameters
        return of_matrix(a, self.k, method, "outputs", back, self._eps())

    def _dense(self, op: Operator, lin: Linearisations | None) -> Spectrum | None:
        """All products with the identity, for the few that are fewer than Lanczos would take."""
        limit = dense.DENSE_LIMIT if self.method == "dense" else dense.AUTO_DENSE
        if self.method == "lanczos" or op.dim > limit:
            if self.method == "dense" and op.dim > limit:
                msg = f"method: 'dense' is for up to {limit} dimensions, this problem has {op.dim}"
                raise InputError(msg)
            return None
        like = torch.empty(0, dtype=self.problem.dtype, device=self.problem.device)
        if op.side == "outputs" and lin is not None:
            a = dense.matrix_of(op.product, op.dim, like)
            if self.operator == "ntk":
                return of_matrix(a, self.k, "dense", op.side, op.to_parameters, self._eps())
            return self._whole(a, lin[0].outputs, "dense", lambda: lin)
        a = dense.matrix_of(op.product, op.dim, like)
        return of_matrix(a, self.k, "dense", op.side, op.to_parameters, self._eps())

    def _lanczos(self, op: Operator) -> Spectrum:
        like = torch.empty(0, dtype=self.problem.dtype, device=self.problem.device)
        state = self.warm.warm if self.warm is not None else None
        start = None
        if state is not None and state.side == op.side and state.vectors.shape[1] == op.dim:
            start = state.vectors.to(like)
        goal = Goal(
            k=self.k,
            rtol=self.rtol,
            failure=self.failure,
            max_products=self.max_products,
            basis_cap=self.basis_cap or self._cap(op),
            eps=self._eps(),
        )
        generator = torch.Generator().manual_seed(self.seed)
        return Solver(op, like, goal, generator, self.ranks, self.on_step).solve(start)

    def _cap(self, op: Operator) -> int:
        """64 vectors, or as many as fit into twice the parameters' memory (256 MB at least)."""
        size = 4 if self.problem.dtype == torch.float32 else 8
        budget = max(2 * size * self.problem.n_parameters, 1 << 28)
        each = op.dim * size * (2 if op.metric is not None else 1)
        return max(min(64, budget // each), self.k + 4)

    def _eps(self) -> float:
        """Rounding unit of the products: autocast's, where it is on."""
        autocast = self.problem.autocast
        if not autocast.enabled:
            return float(torch.finfo(self.problem.dtype).eps)
        # Only the inputs of matrix products are rounded so; their sums are kept in float32, and
        # errors average: a quarter unit is what is seen.
        return float(torch.finfo(autocast.dtype).eps) / 32

    def _report(self, s: Spectrum, mode: Mode) -> TopEigen:
        problem = self.problem
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
            optimizer=self.view.name,
            settings=self.view.settings,
            loss_scale=self._loss_scale(),
            reduction=problem.reduction,
            n_samples=problem.n_samples,
            n_parameters=problem.n_parameters,
            rtol=self.rtol,
            failure=self.failure,
            vectors=found,
            names={n: tuple(p.shape) for n, p in problem.params.items()},
            warm=WarmState(s.side, s.vectors) if s.method == "lanczos" else None,
            note=s.note,
            trusted=s.method == "layer rule",
        )

    def _loss_scale(self) -> float:
        """c·D if the loss's Hessian at the outputs is c·I on every micro-batch, else NaN."""
        if self.operator != "ntk":
            return 1.0
        if self.problem.loss is None:
            return 1.0  # the half-MSE, whose Gauss–Newton the NTK is
        scales = []
        for batch, weight in zip(self.problem.batches, self.problem.weights, strict=True):
            with torch.no_grad():
                z = self.problem.outputs(batch)
            z = z.detach().requires_grad_()
            value = self.problem.loss_at(z, batch)
            (g,) = torch.autograd.grad(value, z, create_graph=True)
            if not g.requires_grad:
                return 0.0
            probe = torch.randn(
                z.shape, generator=torch.Generator().manual_seed(self.seed), dtype=z.dtype
            ).to(z.device)
            (h,) = torch.autograd.grad(g, z, probe)
            c = float((h / probe).mean()) if z.numel() else math.nan
            if float((h - c * probe).abs().max()) > 1e-4 * abs(c):
                return math.nan
            scales.append(c * weight * self.problem.n_samples)
        if max(scales) - min(scales) > 1e-4 * abs(scales[0]):
            return math.nan
        return scales[0]
