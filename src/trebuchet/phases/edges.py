"""The edges that theory knows for a problem."""

import copy
from typing import Unpack

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from trebuchet._checks import anything, seed as one_seed, shown
from trebuchet._doors import door
from trebuchet.curvature.explain import explained
from trebuchet.engine.kernels import make_kernel
from trebuchet.engine.optimizers import full_batch
from trebuchet.errors import InputError, NotApplicableError
from trebuchet.models.mlp import MLP
from trebuchet.models.quadratic import PureQuadratic, QuadraticWithBias
from trebuchet.problem.how import HOW, How, as_problem
from trebuchet.problem.losses import LossFn, ModelLoss, half_mse, resolve
from trebuchet.problem.problem import ModelFactory, Problem, finite_table
from trebuchet.theory import edges as theory
from trebuchet.theory.edges import Edge


@door(problem=anything, loss=anything, data=anything, seed=one_seed, **HOW)
def edges(
    problem: Problem | nn.Module | ModelFactory,
    loss: str | LossFn | ModelLoss | None = None,
    data: object = None,
    *,
    seed: int = 0,
    **keywords: Unpack[How],
) -> dict[str, Edge]:
    """The critical rate, and every upper edge whose theorem applies to this problem.

    Upper edges assume labels of zero, or a loss so large that labels do not matter. A net that no
    theorem covers, such as a ReLU net on several samples, has the critical rate only.

    Args:
        problem: What is trained: a `Problem`; or a model, beside `loss` and `data`. Edges are of
            gradient descent on half the mean squared error.
        loss: As for `Problem`, beside a model.
        data: As for `Problem`, beside a model.
        seed: Which initialisation.
        **keywords: Other fields of `Problem`.

    Returns:
        Edges by name: ``"critical"`` always; ``"upper"`` and ``"upper_omega"`` (proven for several
        samples) where they apply.

    Raises:
        InputError: If an argument is not what was expected, the data are no pair of arrays, or the
            model cannot be evaluated on them.
        NotApplicableError: If the loss is not ``"half_mse"``, or training is not gradient descent
            on all data at once, on which all of them rest.

    Example:
        >>> from trebuchet.models import MLP
        >>> problem = Problem(MLP.draw(1, 64, generator=5), "half_mse", ([[4.0]], [2.0]))
        >>> {name: round(edge.lr_ratio, 6) for name, edge in edges(problem).items()}
        {'critical': 2.0, 'upper': 4.0}
    """
    problem = as_problem(problem, loss, data, keywords, called="problem")
    if resolve(problem.loss) is not half_mse:
        msg = (
            "loss: the edges are for L = (1/2D) Σ|z − y|² ('half_mse'), got "
            f"{problem.loss_name!r}; trebuchet.top_eigen gives the critical rate of any loss"
        )
        raise NotApplicableError(msg)
    _check_descent(problem)
    model = problem.initial(seed)
    weight = next(p for p in model.parameters() if p.requires_grad)
    x = problem.x.to(weight.device, weight.dtype)
    finite_table("data", x, problem.y)
    # One BLAS thread: these matrices are small, and two threads on a busy machine wait for each
    # other far longer than they work.
    with torch.no_grad(), threadpool_limits(1, user_api="blas"):
        with explained(model, "model", "check model(x) on the problem's data"):
            kernel = make_kernel([model], x)
            kernel.forward()
            gram = kernel.gram()[0].double().cpu().numpy()
        if not gram.size:
            msg = "model: expected outputs for the samples it is given, got none; check model(x)"
            raise InputError(msg)
        if not np.isfinite(gram).all():
            msg = (
                "model: its NTK on the problem's data is NaN or infinite at the initialisation; "
                "check that model(x) and its derivatives are finite there"
            )
            raise InputError(msg)
        spectrum, vectors = np.linalg.eigh(gram)
        critical = theory.critical(float(spectrum[-1]))
        found = _upper(model, x, float(spectrum[-1]), vectors[:, -1])
    return {edge.name: edge for edge in [critical, *found]}


def _check_descent(problem: Problem) -> None:
    descent = full_batch(problem.optimizer)
    samples = problem.x.shape[0]
    for name, fits in {
        "optimizer": descent is not None and descent.plain,
        "batch_size": problem.batch_size is None or problem.batch_size >= samples,
        "schedule": problem.schedule is None,
        "clip_grad_norm": problem.clip_grad_norm is None,
        "clip_grad_value": problem.clip_grad_value is None,
    }.items():
        if not fits:
            msg = (
                f"{name}: the edges are for gradient descent on all data at once, got "
                f"{shown(getattr(problem, name))}; trebuchet.top_eigen gives the critical rate of "
                "other optimizers, and trebuchet.scan measures edges"
            )
            raise NotApplicableError(msg)


def _upper(model: nn.Module, x: Tensor, top: float, e: np.ndarray) -> list[Edge]:
    try:
        if isinstance(model, PureQuadratic):
            return _pure(model, x, top, e)
        if isinstance(model, QuadraticWithBias):
            return _biased(model, x, top, e)
        if isinstance(model, MLP) and model.hidden == 1 and model.weights[1].shape[0] == 1:
            return [_two_layer(model, x, top)]
    except NotApplicableError:
        return []
    return []


def _pure(model: PureQuadratic, x: Tensor, top: float, e: np.ndarray) -> list[Edge]:
    psi, theta = _numpy(model.psi(x)), _numpy(model.theta)
    single = theory.pure_quadratic_single(
        theory.effective(e, psi), theta, model.zeta, top_eigenvalue=top
    )
    omega = theory.omega_dual(psi, model.zeta)
    return [single, theory.pure_quadratic_multi(omega, theta, top_eigenvalue=top)]


def _biased(model: QuadraticWithBias, x: Tensor, top: float, e: np.ndarray) -> list[Edge]:
    # In float64 from the start: features that are rounded span more directions than they have.
    model, x = copy.deepcopy(model).double(), x.double()
    phi, psi = _numpy(model.phi(x)), _numpy(model.psi(x))
    weights = _numpy(model.theta_phi), _numpy(model.theta_psi)
    coded = theory.quadratic_with_bias(
        theory.effective(e, phi), theory.effective(e, psi), *weights, model.zeta, top_eigenvalue=top
    )
    omega = theory.omega_dual(psi, model.zeta)
    return [coded, theory.quadratic_with_bias_multi(phi, omega, *weights, top_eigenvalue=top)]


def _two_layer(model: MLP, x: Tensor, top: float) -> Edge:
    if model.slopes == (1.0, 0.0) and x.shape[0] == 1:
        return theory.relu_single_sample(top)
    first, last = (_numpy(w) for w in model.weights)
    norm = float((first**2).sum() + (last**2).sum())
    return theory.two_layer_homogeneous(
        _numpy(x), norm, first.shape[0], model.slopes, top_eigenvalue=top
    )


def _numpy(t: Tensor) -> np.ndarray:
    array: np.ndarray = t.detach().double().cpu().numpy()
    return array
