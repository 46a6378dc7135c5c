"""Every supported loss × model against dense float64 autograd and against curvlinops.

Tolerances: up to ten times the `rtol` asked of the solver, as the truth is a dense solve of its
own; and never below what the dtype can know of sums over P parameters, P·u: 10⁻¹² in float64,
10⁻⁴ in float32.
"""

import copy
import warnings
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.curvature.nets import NETS, draw
from tests.curvature.reference import Loss, close, spectrum
from trebuchet.curvature import half_mse, top_eigen

torch.manual_seed(1)
REAL = torch.randn(10, 3, dtype=torch.float64)
CLASS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 2, 2, 1])
IGNORED = torch.tensor([0, 1, -100, 0, 1, -100, 0, 2, 2, 1])
LOSSES: dict[str, tuple[Loss, Tensor]] = {
    "cross_entropy": (nn.CrossEntropyLoss(), CLASS),
    "smoothed": (nn.CrossEntropyLoss(label_smoothing=0.1, ignore_index=-100), IGNORED),
    "summed": (nn.CrossEntropyLoss(reduction="sum"), CLASS),
    "mse": (nn.MSELoss(), REAL),
    "half_mse": (half_mse, REAL),
    "bce": (nn.BCEWithLogitsLoss(), REAL.sigmoid()),
    "huber": (nn.HuberLoss(delta=0.7), REAL),
    "lambda": (lambda z, y: ((z - y) ** 4).mean(), REAL),
}


def to(y: Tensor, dtype: torch.dtype) -> Tensor:
    return y.to(dtype) if y.is_floating_point() else y


@pytest.mark.parametrize("operator", ["ggn", "ntk", "hessian"])
@pytest.mark.parametrize("net", list(NETS))
def test_cross_entropy_on_every_net(net: str, operator: str) -> None:
    model, x = draw(net)
    loss, y = LOSSES["smoothed"]
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernel has no second derivative
        truth = spectrum(model, loss, x, y, operator)
    top = top_eigen(model, loss, (x, y), operator, rtol=1e-7, mode="eval")  # type: ignore[arg-type]
    assert top.converged
    assert close(top.value, truth[0], 1e-6)
    assert abs(top.value - float(truth[0])) <= top.residual
    single = copy.deepcopy(model).float()
    x32 = x.float() if x.is_floating_point() else x
    top32 = top_eigen(single, loss, (x32, y), operator, rtol=1e-4, mode="eval")  # type: ignore[arg-type]
    assert top32.converged
    assert close(top32.value, truth[0], 1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("operator", ["ggn", "hessian"])
@pytest.mark.parametrize("name", list(LOSSES))
def test_every_loss_by_every_method(name: str, operator: str, dtype: torch.dtype) -> None:
    model, x = draw("mlp")
    loss, y = LOSSES[name]
    truth = spectrum(model, loss, x, y, operator)
    model, x, y = model.to(dtype), x.to(dtype), to(y, dtype)
    exact = dtype == torch.float64
    for options in ({"method": "lanczos"}, {"method": "dense"}, {"micro_batch": 4}, {}):
        top = top_eigen(
            model, loss, (x, y), operator, rtol=1e-7 if exact else 2e-5, **options  # type: ignore[arg-type]
        )  # fmt: skip
        assert top.converged, options
        assert close(top.value, truth[0], 1e-6 if exact else 1e-4), options


@pytest.mark.parametrize(
    ("net", "operator"),
    [(n, "ggn") for n in ("mlp", "conv", "layer_norm", "frozen")]
    # Not the Hessian of the other two: curvlinops differentiates the backward pass forward, which
    # group_norm refuses, and which torch 2.13 gets wrong for layer_norm (2.2464 for 2.2459 here).
    + [(n, "hessian") for n in ("mlp", "frozen")],
)
def test_curvlinops_agrees(net: str, operator: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its dependencies use deprecated parts of torch
        curvlinops = pytest.importorskip("curvlinops", reason="the test extra is not installed")
        model, x = draw(net)
        params = [p for p in model.parameters() if p.requires_grad]
        for loss, y in (LOSSES["cross_entropy"], LOSSES["mse"]):
            kind = {"ggn": "GGNLinearOperator", "hessian": "HessianLinearOperator"}[operator]
            theirs = getattr(curvlinops, kind)(
                model, loss, params, [(x, y)], check_deterministic=False
            )
            n = sum(p.numel() for p in params)
            dense = theirs @ torch.eye(n, dtype=torch.float64)
            truth = torch.linalg.eigvalsh((dense + dense.T) / 2)[-1]
            ours = top_eigen(model, loss, (x, y), operator, rtol=1e-7, mode="eval")  # type: ignore[arg-type]
            assert close(ours.value, truth, 1e-6)


@pytest.mark.parametrize("net", ["conv", "layer_norm"])
def test_finite_differences_of_the_gradient_agree(net: str) -> None:
    model, x = draw(net)
    loss, y = LOSSES["cross_entropy"]
    params = dict(model.named_parameters())
    start = torch.cat([p.detach().reshape(-1) for p in params.values()])

    def gradient(theta: Tensor) -> Tensor:
        parts = torch.split(theta, [p.numel() for p in params.values()])
        leaves = {
            n: t.view(p.shape).clone().requires_grad_()
            for (n, p), t in zip(params.items(), parts, strict=True)
        }
        value = loss(torch.func.functional_call(model, leaves, (x,)), y)
        return torch.cat([g.reshape(-1) for g in torch.autograd.grad(value, list(leaves.values()))])

    h = 1e-5  # error h² · third derivative + eps/h
    rows = [
        (gradient(start + h * e) - gradient(start - h * e)) / (2 * h)
        for e in torch.eye(len(start), dtype=start.dtype)
    ]
    dense = torch.stack(rows)
    truth = torch.linalg.eigvalsh((dense + dense.T) / 2)[-1]
    top = top_eigen(model, loss, (x, y), "hessian", rtol=1e-8, mode="eval")
    assert close(top.value, truth, 1e-6)


@pytest.mark.parametrize(
    "options", [{"method": "lanczos"}, {"method": "dense"}, {"micro_batch": 3}]
)
@pytest.mark.parametrize("operator", ["ggn", "ntk", "hessian"])
def test_several_eigenpairs_and_their_vectors(operator: str, options: dict[str, object]) -> None:
    model, x = draw("mlp")
    loss, y = LOSSES["cross_entropy"]
    truth = spectrum(model, loss, x, y, operator)
    top = top_eigen(
        model, loss, (x, y), operator, k=4, rtol=1e-7, vectors=True, **options  # type: ignore[arg-type]
    )  # fmt: skip
    assert top.converged
    torch.testing.assert_close(top.values, truth[:4], rtol=1e-6, atol=0)
    assert top.vectors is not None
    gram = top.vectors @ top.vectors.T
    torch.testing.assert_close(gram, torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-5)
    if operator == "hessian":  # the defining equation, by plain double backward
        params = list(model.parameters())
        v = list(top.vector(0).values())
        g = torch.autograd.grad(loss(model(x), y), params, create_graph=True)
        hv = torch.autograd.grad(g, params, v)
        for got, want in zip(hv, v, strict=True):
            torch.testing.assert_close(got, truth[0] * want, rtol=0, atol=1e-5)


def test_ntk_is_the_gauss_newton_of_the_half_mse() -> None:
    model, x = draw("mlp")
    ggn = top_eigen(model, half_mse, (x, REAL), "ggn", k=3, rtol=1e-8)
    ntk = top_eigen(model, None, x, "ntk", k=3, rtol=1e-8)
    torch.testing.assert_close(ggn.values, ntk.values, rtol=1e-7, atol=0)
    assert close(ntk.lr_crit, 2 / ntk.value, 1e-12)


def test_scaling_the_loss_scales_the_spectrum_and_order_is_irrelevant() -> None:
    model, x = draw("conv")
    order = torch.randperm(10, generator=torch.Generator().manual_seed(3))
    for operator in ("ggn", "hessian"):
        one = top_eigen(model, F.mse_loss, (x, REAL), operator, rtol=1e-8)
        seven = top_eigen(
            model, lambda z, y: 7 * F.mse_loss(z, y), (x, REAL), operator, rtol=1e-8
        )  # fmt: skip
        mixed = top_eigen(model, F.mse_loss, (x[order], REAL[order]), operator, rtol=1e-8)
        assert close(seven.value, 7 * one.value, 1e-7)
        assert close(seven.lr_crit, one.lr_crit / 7, 1e-7)
        assert close(mixed.value, one.value, 1e-7)


@pytest.mark.parametrize("net", list(NETS))
def test_operators_are_symmetric_and_gauss_newton_is_not_negative(net: str) -> None:
    from trebuchet.curvature.distributed import Ranks
    from trebuchet.curvature.evaluation import Evaluation
    from trebuchet.curvature.ggn import GGN
    from trebuchet.curvature.hessian import Hessian
    from trebuchet.curvature.operators import Linearisations
    from trebuchet.problem.batches import as_batches
    from trebuchet.problem.held_still import held_still
    from trebuchet.problem.selection import select

    model, x = draw(net)
    ranks = Ranks(None, torch.device("cpu"))
    with held_still(model):
        evaluation = Evaluation(
            model,
            select(model),
            nn.CrossEntropyLoss(),
            as_batches((x, CLASS), device=torch.device("cpu")),
            weights=[1.0],
            n_samples=10,
        )
        g = torch.Generator().manual_seed(0)
        u, v = torch.randn(2, evaluation.n_parameters, dtype=torch.float64, generator=g)
        ggn = GGN(evaluation, Linearisations(evaluation, 1), ranks=ranks)
        hessian = Hessian(evaluation, ranks=ranks, keep=1)
        for product in (ggn.product, hessian.product):
            assert close(u @ product(v), v @ product(u), 1e-9)
        assert float(v @ ggn.product(v)) >= 0


@pytest.mark.parametrize("operator", ["ggn", "hessian", "ntk"])
def test_several_inputs_by_position_and_by_name(operator: str) -> None:
    from tests.curvature.nets import TwoInputs

    torch.manual_seed(0)
    model = TwoInputs().double()
    left, right = torch.randn(10, 2).double(), torch.randn(10, 3).double()
    run = partial(top_eigen, model, nn.CrossEntropyLoss(), operator=operator, rtol=1e-8)  # type: ignore[arg-type]
    by_position = run(((left, right), CLASS)).value
    for data in (
        (left, right, CLASS),
        ({"left": left, "right": right}, CLASS),
        {"left": left, "right": right, "labels": CLASS},
        [(left[:4], right[:4], CLASS[:4]), (left[4:], right[4:], CLASS[4:])],
        [{"right": right, "labels": CLASS, "left": left}],
    ):
        assert close(run(data).value, by_position, 1e-7)
