"""Taylor models against closed forms, finite differences and the net's own derivatives."""

import copy
import pickle
import threading
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

import trebuchet as tb
from tests.models_of_others import CASES
from tests.models_of_others.case import differences, snapshot
from tests.zoo import F64, inputs, mlp
from trebuchet.models import taylor_expand


class Dropping(nn.Module):
    """Dropout by a layer, and by a function."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.drop, self.last = nn.Linear(5, 8), nn.Dropout(0.3), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.drop(torch.tanh(self.first(x)))
        z: Tensor = self.last(F.dropout(h, 0.3, self.training))
        return z


class Tied(nn.Module):
    """One matrix used twice, and one module."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 6, bias=False)
        self.again = self.inner = nn.Linear(6, 6)
        self.head = nn.Linear(6, 5, bias=False)
        self.head.weight = nn.Parameter(torch.randn(5, 6))
        self.shared = self.head.weight

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.again(torch.tanh(self.inner(self.embed(x)))))
        z: Tensor = self.head(h) + h[:, :5] @ self.shared[:, :5]
        return z


class Attention(nn.Module):
    """Attention by torch's fused function, and a recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.rnn = nn.Linear(5, 12), nn.GRU(4, 3, batch_first=True)

    def forward(self, x: Tensor, *, scale: float = 1.0) -> Tensor:
        q, k, v = self.qkv(x.reshape(2, 4, 5)).chunk(3, -1)  # (2, 4, 4) each
        z: Tensor = scale * self.rnn(F.scaled_dot_product_attention(q, k, v))[0]
        return z.flatten(0, 1)


def between(middle: Callable[[], nn.Module], width: int = 7) -> nn.Module:
    return nn.Sequential(nn.Linear(5, width), middle(), nn.Linear(width, 3))


WN = nn.utils.parametrizations.weight_norm
NETS: dict[str, Callable[[], nn.Module]] = {
    "tanh": lambda: between(nn.Tanh),
    "gelu": lambda: between(nn.GELU),
    "relu": lambda: between(nn.ReLU),
    "layer norm": lambda: nn.Sequential(*between(lambda: nn.LayerNorm(7)), nn.GELU()),  # type: ignore[misc]
    "batch norm": lambda: nn.Sequential(*between(lambda: nn.BatchNorm1d(7)), nn.GELU()),  # type: ignore[misc]
    "batch norm, eval": lambda: between(lambda: nn.BatchNorm1d(7)).eval(),
    "group norm": lambda: nn.Sequential(*between(lambda: nn.GroupNorm(1, 7)), nn.GELU()),  # type: ignore[misc]
    "weight norm": lambda: nn.Sequential(
        WN(nn.Linear(5, 7)), nn.Tanh(), WN(nn.Linear(7, 2), dim=1)
    ),
    "legacy weight norm": lambda: nn.Sequential(
        nn.utils.weight_norm(nn.Linear(5, 7), dim=None), nn.Tanh(), nn.Linear(7, 2)  # type: ignore[arg-type]
    ),
    "tied": Tied,
    "attention": Attention,
    "encoder": lambda: nn.TransformerEncoderLayer(5, 1, 6, dropout=0.0),
    "convolution": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 5)), nn.Conv1d(1, 4, 3), nn.SiLU(), nn.MaxPool1d(2), nn.Flatten()
    ),
}  # fmt: skip

legacy = pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")


def made(name: str) -> nn.Module:
    torch.manual_seed(3)
    return NETS[name]().double()


def moved(model: nn.Module, start: list[Tensor], by: list[Tensor], h: float) -> nn.Module:
    with torch.no_grad():
        for p, a, d in zip(model.parameters(), start, by, strict=True):
            p.copy_(a + h * d)
    return model


def along(net: nn.Module, x: Tensor, by: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """f, φ′ and φ″ of φ(h) = f(θ₀ + h·by), by differences of two steps: errors of order h⁴."""
    start = [p.detach().clone() for p in net.parameters()]

    def f(h: float) -> Tensor:
        z: Tensor = moved(net, start, by, h)(x)
        return z.detach()

    h, middle = 2e-3, f(0.0)
    first = [(f(s) - f(-s)) / (2 * s) for s in (h, 2 * h)]
    second = [(f(s) - 2 * middle + f(-s)) / s**2 for s in (h, 2 * h)]
    better = [(4 * fine - coarse) / 3 for fine, coarse in (first, second)]
    moved(net, start, by, 0.0)
    return middle, better[0], better[1]


@legacy
@pytest.mark.parametrize("name", NETS)
def test_values_are_those_of_finite_differences(name: str) -> None:
    net, x = made(name), inputs(8, 5)
    by = [torch.randn_like(p) / p.numel() ** 0.5 for p in net.parameters()]
    start = [p.detach().clone() for p in net.parameters()]
    f, first, second = along(net, x, by)
    assert second.abs().max() > 1e-2 or name == "batch norm, eval"
    for s in (0.4, -1.3):
        linear = moved(taylor_expand(net), start, by, s)(x)
        quadratic = moved(taylor_expand(net, degree=2), start, by, s)(x)
        # Differences of 1e-3: truncation h⁴ ≈ 1e-11, rounding 1e-16/h² ≈ 1e-10.
        torch.testing.assert_close(linear, f + s * first, rtol=0, atol=1e-7)
        torch.testing.assert_close(quadratic, f + s * first + s * s / 2 * second, rtol=0, atol=1e-7)


@legacy
@pytest.mark.parametrize("degree", [1, 2])
@pytest.mark.parametrize("name", ["layer norm", "batch norm", "weight norm", "attention", "tied"])
def test_derivatives_of_every_order(name: str, degree: int) -> None:
    net = made(name)
    model, x = taylor_expand(net, degree=degree), inputs(8, 5)
    names = [n for n, _ in model.named_parameters()]
    theta = [(p + 0.1 * torch.randn_like(p)).detach().requires_grad_() for p in model.parameters()]

    def loss(*parameters: Tensor) -> Tensor:
        z: Tensor = functional_call(model, dict(zip(names, parameters, strict=True)), (x,))
        return z.tanh().square().sum()

    def gradient_norm(*parameters: Tensor) -> Tensor:
        grads = torch.autograd.grad(loss(*parameters), parameters, create_graph=True)
        return torch.cat([g.reshape(-1) for g in grads]).square().sum()

    assert torch.autograd.gradcheck(loss, theta, fast_mode=True)
    assert torch.autograd.gradgradcheck(loss, theta, fast_mode=True)
    assert torch.autograd.gradgradcheck(gradient_norm, theta, fast_mode=True)


def test_the_neural_quadratic_model_in_closed_form() -> None:
    d, m = 4, 30
    x, g = inputs(6, d), torch.Generator().manual_seed(1)
    net = mlp(d, m)
    u, v = (w.detach().clone() for w in net.weights)
    model = taylor_expand(net, degree=2)
    du, dv = (torch.randn(w.shape, generator=g, dtype=F64) for w in (u, v))
    moved(model, [u, v], [du, dv], 1.0)
    # f = (md)^(−1/2) Σ v_i σ(u_i·x): on the start's pattern 1{u_i·x > 0} it is bilinear, so that
    # f + ∇f·δ + ½ δᵀ∇²f δ has three terms, of δu, of δv, and of both together (equation 10).
    on = (x @ u.T > 0).double()  # (D, m)
    closed = (
        (on * (x @ u.T)) @ v.T
        + (on * (x @ du.T)) @ v.T
        + (on * (x @ u.T)) @ dv.T
        + (on * (x @ du.T)) @ dv.T
    ).squeeze(-1) / (m * d) ** 0.5
    torch.testing.assert_close(model(x), closed, rtol=1e-12, atol=1e-12)
    linear = moved(taylor_expand(net), [u, v], [du, dv], 1.0)
    both = ((on * (x @ du.T)) @ dv.T).squeeze(-1) / (m * d) ** 0.5
    torch.testing.assert_close(linear(x), closed - both, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["layer norm", "batch norm", "relu", "attention"])
def test_gradient_and_curvature_at_the_start_are_the_net_s(name: str) -> None:
    net, x = made(name), inputs(8, 5)
    y = torch.randn_like(net(x).detach())
    quadratic, linear = taylor_expand(net, degree=2), taylor_expand(net)
    torch.testing.assert_close(linear(x), net(x), rtol=0, atol=0)
    want = torch.autograd.grad((net(x) - y).square().mean(), list(net.parameters()))
    for model in (linear, quadratic):
        got = torch.autograd.grad((model(x) - y).square().mean(), list(model.parameters()))
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
    loss = nn.MSELoss()
    for operator in ("ggn", "hessian"):
        top = [tb.top_eigen(m, loss, (x, y), operator, rtol=1e-9) for m in (net, quadratic)]
        assert top[1].value == pytest.approx(top[0].value, rel=1e-6)
    # The linear model's Hessian is the net's Gauss–Newton matrix.
    ggn = tb.top_eigen(net, loss, (x, y), "ggn", rtol=1e-9).value
    assert tb.top_eigen(linear, loss, (x, y), "hessian", rtol=1e-9).value == pytest.approx(ggn)


def test_curvature_away_from_the_start_is_that_of_the_dense_matrices() -> None:
    net, x = made("layer norm"), inputs(6, 5)
    y = torch.randn_like(net(x).detach())
    model = taylor_expand(net, degree=2)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    params = list(model.parameters())

    def gradient() -> Tensor:
        loss = (model(x) - y).square().mean()
        return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, params)])

    columns = []
    for p in params:
        flat = p.data.view(-1)
        for i in range(flat.numel()):
            kept, ends = flat[i].item(), []
            for h in (1e-5, -1e-5):
                flat[i] = kept + h
                ends.append(gradient())
            flat[i] = kept
            columns.append((ends[0] - ends[1]) / 2e-5)
    dense = torch.linalg.eigvalsh(torch.stack(columns))[-1]
    top = tb.top_eigen(model, nn.MSELoss(), (x, y), "hessian", rtol=1e-8)
    assert top.value == pytest.approx(float(dense), rel=1e-6)


OTHERS = ["vit with dropout", "lora", "packed sequences", "checkpointed", "graphs", "force field"]


@pytest.mark.parametrize("name", OTHERS)
def test_models_of_others(name: str) -> None:
    case = CASES[name]()
    torch.manual_seed(5)
    model = taylor_expand(case.model, degree=2)
    before = snapshot(model)
    for operator in case.operators:
        want = tb.top_eigen(case.model, case.loss, case.data, operator, rtol=1e-8)
        got = tb.top_eigen(model, case.loss, case.data, operator, rtol=1e-8)
        assert got.value == pytest.approx(want.value, rel=1e-6), operator
    settings = {k: v for k, v in case.scan.items() if k != "horizon"}
    problem = tb.Problem(model, case.loss, case.data, **settings)
    runs = tb.sweep(problem, lr=[1e-3, 3e-3], seeds=[0], steps=5, observables=[])
    assert bool((runs.loss_final < runs.loss.isel(step=0)).all())
    assert differences(before, snapshot(model)) == []


def test_a_sweep_is_a_plain_loop_of_the_closed_form() -> None:
    d, m, rate, steps = 3, 20, 0.8, 30
    x = inputs(8, d)
    y = torch.linspace(-1, 1, 8, dtype=F64)
    problem = tb.Problem(lambda s: taylor_expand(mlp(d, m, seed=s), degree=2), "half_mse", (x, y))
    runs = tb.sweep(problem, lr=[rate], seeds=[4], steps=steps)
    net = mlp(d, m, seed=4)
    u0, v0 = (w.detach() for w in net.weights)
    on, c = (x @ u0.T > 0).double(), (m * d) ** -0.5
    u, v, losses = u0.clone(), v0.clone(), []
    for _ in range(steps + 1):
        error = c * ((on * (x @ u.T)) @ v.T).squeeze(-1) - y
        losses.append(float(error.square().mean() / 2))
        by_u = c / 8 * (on * error[:, None] * v).T @ x
        by_v = c / 8 * error[None] @ (on * (x @ u.T))
        u, v = u - rate * by_u, v - rate * by_v
    # Bilinear on the start's pattern, f_quad is this net exactly, all along the run.
    np.testing.assert_allclose(runs.loss.values.ravel(), losses, rtol=1e-10)


def test_a_linear_model_diverges_past_two_where_the_quadratic_catapults() -> None:
    x, y = inputs(6, 4), torch.zeros(6, dtype=F64)
    phases = {}
    for degree in (1, 2):
        problem = tb.Problem(
            lambda s, k=degree: taylor_expand(mlp(4, 100, seed=s), degree=k), "half_mse", (x, y)
        )  # fmt: skip
        every = tb.Recording(every=300)
        runs = tb.label(
            tb.sweep(
                problem, lr_ratio=[1.8, 2.4], seeds=[0], steps=300, record=every, observables=[]
            )
        )
        phases[degree] = [str(p) for p in runs.phase.values.ravel()]
    assert phases == {1: ["lazy", "divergent"], 2: ["lazy", "catapult"]}


def test_a_scan() -> None:
    x = inputs(16, 5)
    net = mlp(5, 30)
    data = (x, torch.sin(x.sum(1)))
    quadratic = taylor_expand(net, degree=2)
    before = snapshot(quadratic)
    scans = [
        tb.scan(m, "half_mse", data, horizon=20, budget=400, edge_rtol=0.3)
        for m in (net, quadratic)
    ]
    assert differences(before, snapshot(quadratic)) == []
    # One λ₀; and the runs are alike where the weights hardly move.
    assert scans[1].lr_crit == pytest.approx(scans[0].lr_crit, rel=1e-6)


def test_other_engines() -> None:
    x, y = inputs(6, 5), torch.zeros(6, dtype=F64)
    problem = tb.Problem(taylor_expand(mlp(5, 9), degree=2), "half_mse", (x, y))
    plain = tb.sweep(problem, lr=[0.1, 0.3], seeds=[0], steps=10)
    each = tb.sweep(problem, lr=[0.1, 0.3], seeds=[0], steps=10, engine="sequential")
    np.testing.assert_allclose(each.loss, plain.loss, rtol=1e-10)
    with pytest.raises(tb.errors.InputError, match=r"engine: TaylorModel cannot be batched"):
        tb.sweep(problem, lr=[0.1, 0.3], seeds=[0], steps=10, engine="batched")


@pytest.mark.parametrize("degree", [1, 2])
def test_names_modes_and_buffers(degree: int) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 1)).double()
    net[1].eval()  # frozen statistics
    model, x = taylor_expand(net, degree=degree), inputs(8, 5)
    assert list(model.state_dict()) == list(net.state_dict())
    names = [n for n, _ in net.named_parameters()]
    assert [n for n, _ in model.named_parameters()] == names
    torch.testing.assert_close(model(x), net(x))
    kept = {k: b.clone() for k, b in model.named_buffers()}
    for training in (True, False):
        net.train(training)
        model.train(training)
        torch.testing.assert_close(model(x), copy.deepcopy(net)(x))
        (model(x).square().sum()).backward()
    assert all(torch.equal(kept[k], b) for k, b in model.named_buffers())
    assert all(p.grad is None for p in net.parameters())
    other = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    assert torch.equal(other(x), model(x))
    model.load_state_dict({k: t + 1 for k, t in net.state_dict().items()})
    assert not torch.equal(other(x), model(x))
    single = other.float()
    assert single(x.float()).dtype == torch.float32
    torch.testing.assert_close(single(x.float()).double(), other.double()(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("degree", [1, 2])
def test_dropout_has_one_mask_in_a_pass(degree: int) -> None:
    torch.manual_seed(0)
    net, x = Dropping().double(), inputs(6, 5)
    model = taylor_expand(net, degree=degree)
    torch.manual_seed(7)
    want, after = net(x), torch.random.get_rng_state()
    torch.manual_seed(7)
    got = model(x)
    torch.testing.assert_close(got, want)
    assert torch.equal(torch.random.get_rng_state(), after)
    ours = torch.autograd.grad(got.sum(), list(model.parameters()))
    torch.testing.assert_close(ours, torch.autograd.grad(want.sum(), list(net.parameters())))
    off = tb.top_eigen(net, nn.MSELoss(), (x, want.detach()), "ggn", rtol=1e-8).value
    top = tb.top_eigen(model, nn.MSELoss(), (x, want.detach()), "ggn", rtol=1e-8).value
    assert top == pytest.approx(off, rel=1e-6)


def test_frozen_parameters_are_constants() -> None:
    net, x = made("tanh"), inputs(6, 5)
    cast(nn.Sequential, net)[0].requires_grad_(False)
    model = taylor_expand(net, degree=2)
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, True]
    start = [p.detach().clone() for p in net.parameters()]
    by = [torch.randn_like(p) * p.requires_grad for p in net.parameters()]
    f, first, second = along(net, x, by)
    got = moved(model, start, by, 0.5)(x)
    torch.testing.assert_close(got, f + 0.5 * first + 0.125 * second, rtol=0, atol=1e-8)
    model.requires_grad_()
    with pytest.raises(tb.errors.InputError, match=r"module: parameter 'weight' was frozen"):
        model(x)


def test_in_inference_mode_and_without_gradients() -> None:
    net, x = made("attention"), inputs(8, 5)
    model = taylor_expand(net, degree=2)
    want = model(x, scale=2.0)
    assert want.requires_grad
    with torch.no_grad():
        assert torch.equal(model(x, scale=2.0), want)
    with torch.inference_mode():
        assert torch.equal(model(x, scale=2.0), want)


class Own(torch.autograd.Function):
    """Twice x, by somebody's own backward pass, which knows no second derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g.detach() * 2


class Applied(nn.Module):
    """A linear layer, and a function of its output."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.function = nn.Linear(5, 4), function

    def forward(self, x: Tensor) -> Any:
        return self.function(self.layer(x))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda z: (z, z), "expected one tensor of real numbers as its output, got \\("),
        (lambda z: z.long(), "expected one tensor of real numbers as its output, got torch.int64"),
        (lambda z: z.to(torch.complex64), "expected one tensor of real numbers"),
        (Own.apply, "uses Own, an autograd function"),
        (lambda z: torch.cdist(z, z + 1), "cannot be expanded to degree 2"),
    ],
)
def test_refused_at_the_first_pass(function: Callable[[Tensor], Any], message: str) -> None:
    torch.manual_seed(0)
    model = taylor_expand(Applied(function), degree=2)
    with pytest.raises(tb.errors.InputError, match=f"module: {message}"):
        model(torch.randn(3, 5))


def test_refused() -> None:
    net = nn.Linear(5, 2)
    with pytest.raises(tb.errors.InputError, match="args: expected inputs without gradients"):
        taylor_expand(net)(torch.randn(3, 5, requires_grad=True))
    with pytest.raises(tb.errors.InputError, match="module: expected parameters to expand in"):
        taylor_expand(net.requires_grad_(False))
    with pytest.raises(tb.errors.InputError, match="module: is compiled by TorchScript"):
        taylor_expand(CASES["scripted"]().model)
    with pytest.raises(NotImplementedError, match=r"torch\.func's vmap"):
        torch.func.vmap(taylor_expand(nn.Linear(5, 2)))(torch.randn(3, 1, 5))
    with pytest.raises(tb.errors.InputError, match=r"module: cannot be copied"):
        taylor_expand(Applied(cast(Any, threading.Lock())))
