"""Second derivatives that are wrong, missing or of no function: the right value, or no claim."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import trebuchet as tb
from tests.curvature import differences
from tests.curvature.reference import close, jacobian, spectrum
from trebuchet.curvature import push
from trebuchet.errors import InputError

F64 = torch.float64


def data(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(20, 3, generator=generator, dtype=F64)
    return x, torch.randn(20, 1, generator=generator, dtype=F64)


def normed(norm: Callable[..., nn.Module], *layers: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(norm(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 1), *layers).double()


LEGACY: Callable[..., nn.Module] = nn.utils.weight_norm
PARAMETRISED: Callable[..., nn.Module] = nn.utils.parametrizations.weight_norm
SPECTRAL: Callable[..., nn.Module] = nn.utils.parametrizations.spectral_norm


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
@pytest.mark.parametrize("norm", [LEGACY, PARAMETRISED])
@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize("method", ["lanczos", "dense"])
def test_weight_norm_has_the_hessian_of_finite_differences(
    norm: Callable[..., nn.Module], dtype: torch.dtype, method: Any
) -> None:
    """torch's double backward of it is wrong, by tens of percent here."""
    net, (x, y) = normed(norm), data()
    truth = differences.top(differences.hessian(net, lambda: F.mse_loss(net(x), y)))
    top = tb.top_eigen(
        net.to(dtype), "mse", (x.to(dtype), y.to(dtype)), "hessian", method=method, rtol=1e-5
    )
    assert top.converged
    assert close(top.value, truth, 2e-5)
    assert "weight_norm is wrong" in str(top)
    assert all(p.dtype == dtype for p in net.parameters())
    net(x.to(dtype))  # nothing of the float64 evaluations hangs on the model


def test_weight_norm_of_a_convolution_in_a_closure_in_micro_batches() -> None:
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Conv1d(1, 2, 3)), nn.Tanh(), nn.Flatten(),
        nn.Linear(2, 1),
    ).double()  # fmt: skip
    x, y = data()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return (model(batch[0][:, None]) - batch[1]).pow(4).mean()  # type: ignore[no-any-return]

    truth = differences.top(differences.hessian(net, lambda: loss(net, (x, y))))
    halves = [(x[:10], y[:10]), (x[10:], y[10:])]
    for given in ((x, y), halves):
        top = tb.top_eigen(net, loss, given, "hessian", rtol=1e-5)
        assert top.converged
        assert close(top.value, truth, 1e-5)


@pytest.mark.parametrize("operator", ["ggn", "ntk"])
def test_weight_norm_has_the_gauss_newton_matrix_of_its_jacobian(operator: Any) -> None:
    net, (x, y) = normed(PARAMETRISED), data()
    truth = spectrum(net, F.mse_loss, x, y, operator)[0]
    top = tb.top_eigen(net, "mse", (x, y), operator, rtol=1e-8)
    assert top.converged
    assert close(top.value, truth, 1e-7)


@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_spectral_norm_is_held_constant_in_training_and_it_is_said(dtype: torch.dtype) -> None:
    """Its power iteration follows the weights, and no gradient follows it."""
    net, (x, y) = normed(SPECTRAL), data()
    net.eval()
    truth = differences.top(differences.hessian(net, lambda: F.mse_loss(net(x), y)))
    given = (x.to(dtype), y.to(dtype))
    net.to(dtype)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    top = tb.top_eigen(net, "mse", given, "hessian", mode="eval", rtol=1e-5)
    assert top.converged
    assert close(top.value, truth, 2e-5)
    assert top.remarks == ()
    net.train()
    top = tb.top_eigen(net, "mse", given, "hessian", rtol=1e-5)
    assert top.converged
    assert "held constant in every derivative" in str(top)
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])
    # One power iteration, from the same state, and then derivatives of what it gave.
    assert close(top.value, spectrum(net.double(), F.mse_loss, x, y, "hessian")[0], 2e-5)


class Once(torch.autograd.Function):
    """tanh, differentiable once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.tanh(x)

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator,unused-ignore]
    def backward(ctx: Any, g: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return g * (1 - torch.tanh(x) ** 2)


class Silent(Once):
    """tanh whose backward pass computes with numbers: no second derivative, and no word."""

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return g * (1 - torch.tanh(x.detach()) ** 2)


class Right(Once):
    """tanh, as it should be."""

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return g * (1 - torch.tanh(x) ** 2)


class Straight(torch.autograd.Function):
    """Rounding with the gradient of the identity: no function has this gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.round(4 * x) / 4

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return g


class Applied(nn.Module):
    """A net around a function."""

    def __init__(self, function: Callable[[Tensor], Tensor], dtype: torch.dtype = F64) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.last = nn.Linear(3, 6, dtype=F64), nn.Linear(6, 3, dtype=F64)
        self.function = function
        self.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.last(self.function(self.first(x)))
        return z


CLASSES = torch.arange(20) % 3


@pytest.mark.parametrize("operator", ["ggn", "ntk", "hessian"])
@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize("function", [Once, Silent, Right])
def test_functions_of_ones_own_are_tried_before_they_are_believed(
    function: Any, dtype: torch.dtype, operator: Any
) -> None:
    x = data()[0]
    truth = spectrum(Applied(torch.tanh), F.cross_entropy, x, CLASSES, operator)[0]
    net = Applied(function.apply, dtype)
    top = tb.top_eigen(net, "cross_entropy", (x.to(dtype), CLASSES), operator, rtol=1e-5)
    assert top.converged
    assert close(top.value, truth, 2e-5)
    assert bool(top.remarks) == (function is not Right and (operator, function) != ("ggn", Silent)
                                 and (operator, function) != ("ntk", Silent))  # fmt: skip


@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_a_straight_through_estimator_has_no_hessian(dtype: torch.dtype) -> None:
    net, x = Applied(Straight.apply, dtype), data()[0].to(dtype)
    top = tb.top_eigen(net, "cross_entropy", (x, CLASSES), "hessian")
    assert not top.converged
    assert not torch.isfinite(top.residuals).any()
    assert top.bounds == (-float("inf"), float("inf"))
    assert top.lr_crit_bounds == (0.0, float("inf"))
    assert "not those of one function" in top.note
    assert "critical rate (sgd): not known" in str(top)


class Fused(torch.autograd.Function):
    """Cross-entropy that keeps its gradient, as memory-saving ones do."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, y: Tensor) -> Tensor:
        with torch.enable_grad():
            u = z.detach().requires_grad_()
            value = F.cross_entropy(u, y)
            ctx.save_for_backward(*torch.autograd.grad(value, u))
        return value.detach()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        (kept,) = ctx.saved_tensors
        return g * kept, None


@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize("operator", ["ggn", "hessian"])
def test_a_fused_loss_has_its_curvature(operator: Any, dtype: torch.dtype) -> None:
    net, x = Applied(torch.tanh), data()[0]
    truth = spectrum(net, F.cross_entropy, x, CLASSES, operator)[0]
    net.to(dtype)

    def loss(z: Tensor, y: Tensor) -> Tensor:
        return Fused.apply(z, y)  # type: ignore[no-any-return,no-untyped-call]

    top = tb.top_eigen(net, loss, (x.to(dtype), CLASSES), operator, rtol=1e-5)
    assert top.converged
    assert close(top.value, truth, 2e-5)
    assert "Fused" in top.remarks[0]


class Radial(nn.Module):
    """Distances to centres: ``cdist`` has one derivative."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.centres = nn.Parameter(torch.randn(4, 3, dtype=F64))
        self.head = nn.Linear(4, 3, dtype=F64)

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.head(torch.exp(-torch.cdist(x, self.centres)))
        return z


def bag() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.EmbeddingBag(9, 4, mode="mean"), nn.Tanh(), nn.Linear(4, 3)).double()


def words() -> Tensor:
    return torch.randint(0, 9, (20, 5), generator=torch.Generator().manual_seed(0))


ONCE = {"EmbeddingBag": (bag, words), "cdist": (Radial, lambda: data()[0])}


@pytest.mark.parametrize("method", ["auto", "lanczos", "dense"])
@pytest.mark.parametrize("operator", ["ggn", "ntk", "hessian"])
@pytest.mark.parametrize("name", list(ONCE))
def test_one_derivative_is_enough(name: str, operator: Any, method: Any) -> None:
    net, x = ONCE[name][0](), ONCE[name][1]()
    if operator == "hessian":
        matrix = differences.hessian(net, lambda: F.cross_entropy(net(x), CLASSES))
        truth, rtol = differences.top(matrix), 1e-6
    else:
        truth, rtol = float(spectrum(net, F.cross_entropy, x, CLASSES, operator)[0]), 1e-7
    top = tb.top_eigen(net, "cross_entropy", (x, CLASSES), operator, method=method, rtol=1e-7)
    assert top.converged
    assert close(top.value, truth, rtol)
    halves = [(x[:7], CLASSES[:7]), (x[7:], CLASSES[7:])]
    if method == "lanczos":
        split = tb.top_eigen(net, "cross_entropy", halves, operator, rtol=1e-7)
        assert close(split.value, truth, 2 * rtol)
    if name == "EmbeddingBag":
        assert "EmbeddingBag '0'" in top.remarks[0]


@pytest.mark.parametrize("name", list(ONCE))
def test_a_jacobian_too_large_to_form_is_had_by_differences(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(push, "ROWS_BYTES", 0)
    net, x = ONCE[name][0](), ONCE[name][1]()
    for operator in ("ggn", "ntk"):
        truth = spectrum(net, F.cross_entropy, x, CLASSES, operator)[0]
        top = tb.top_eigen(net, "cross_entropy", (x, CLASSES), operator, rtol=1e-6)
        assert top.converged
        assert close(top.value, truth, 1e-6)
        assert "finite differences in float64" in top.remarks[0]
    single, y = net.float(), CLASSES
    x32 = x.float() if x.is_floating_point() else x
    top = tb.top_eigen(single, "cross_entropy", (x32, y), "ntk", rtol=1e-5)
    assert close(top.value, truth, 1e-5)


class Speech(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(3, 4, dtype=F64)

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.head(x).log_softmax(-1)
        return z


@pytest.mark.parametrize("operator", ["ggn", "hessian"])
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_ctc_is_differentiated_by_differences(operator: Any, dtype: torch.dtype) -> None:
    net, x = Speech(), data()[0].view(10, 2, 3)
    words_ = torch.tensor([[1, 2, 3], [3, 3, 1]])

    def loss(z: Tensor, y: Tensor) -> Tensor:
        return F.ctc_loss(z, y, torch.tensor([10, 10]), torch.tensor([3, 3]))

    if operator == "hessian":
        truth = differences.top(differences.hessian(net, lambda: loss(net(x), words_)))
    else:
        z, j = jacobian(net, x, list(net.parameters()))
        h = differences.loss_hessian(lambda u: loss(u, words_), z.view(10, 2, 4))
        truth = differences.top(j.T @ h @ j)
    top = tb.top_eigen(net.to(dtype), loss, (x.to(dtype), words_), operator, rtol=1e-4)
    assert top.converged
    assert close(top.value, truth, 1e-4)
    assert "_ctc_loss_backward" in top.remarks[0]


class Checkpointed(nn.Module):
    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.middle, self.last = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 1)
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Any:
        h = torch.tanh(self.first(x))
        h = checkpoint(lambda u: torch.tanh(self.middle(u)), h, use_reentrant=self.reentrant)
        return self.last(h)


@pytest.mark.parametrize("operator", ["ggn", "ntk", "hessian"])
@pytest.mark.parametrize("method", ["auto", "lanczos"])
def test_reentrant_checkpointing_is_refused_in_one_sentence(operator: Any, method: Any) -> None:
    x, y = data()
    net = Checkpointed(reentrant=True).double()
    with pytest.raises(InputError, match="use_reentrant=False") as caught:
        tb.top_eigen(net, "mse", (x, y), operator, method=method)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="use_reentrant=False"):
        tb.top_eigen(net, lambda model, b: model(b).square().mean(), x, "hessian")
    net = Checkpointed(reentrant=False).double()
    truth = spectrum(net, F.mse_loss, x, y, operator)[0]
    top = tb.top_eigen(net, "mse", (x, y), operator, method=method, rtol=1e-8)
    assert close(top.value, truth, 1e-7)


def test_what_a_layer_raises_is_one_sentence_that_names_it() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(5, 1)).double()
    for operator in ("ggn", "ntk", "hessian"):
        with pytest.raises(InputError, match="in Linear '2'") as caught:
            tb.top_eigen(net, "mse", data(), operator)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="loss: it cannot take this data"):
        tb.top_eigen(nn.Linear(3, 2).double(), "cross_entropy", (data()[0], CLASSES + 7))
