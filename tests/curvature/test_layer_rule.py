"""The layer rule against Lanczos and dense autograd, and where it must stand aside.

Tolerances: both roads form a matrix of float64 sums over P < 10⁴ parameters, n·u = 10⁻¹² of its
norm, and solve it whole; Lanczos is held to the `rtol` it was asked for.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.curvature.reference import close, spectrum
from trebuchet.curvature import half_mse, per_sample, top_eigen
from trebuchet.curvature.evaluation import Evaluation
from trebuchet.curvature.factor import loss_factor
from trebuchet.problem.batches import as_batches
from trebuchet.problem.selection import select

CPU = torch.device("cpu")


class Tokens(nn.Module):
    """Embedding, a Linear layer over positions, LayerNorm, a skip."""

    def __init__(self, *, overwrite: bool = False) -> None:
        super().__init__()
        self.table, self.mix = nn.Embedding(7, 8), nn.Linear(8, 8)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)
        self.overwrite = overwrite

    def forward(self, i: Tensor) -> Tensor:
        h = self.table(i)
        g = self.mix(h)
        g = torch.relu_(g) if self.overwrite else torch.relu(g)
        out: Tensor = self.head(self.norm(h + g).mean(1))
        return out


def nets() -> dict[str, tuple[nn.Module, Tensor]]:
    torch.manual_seed(0)
    conv = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, stride=2), nn.BatchNorm2d(4), nn.ReLU(inplace=True),
        nn.Conv2d(4, 4, 3, bias=False), nn.GroupNorm(2, 4), nn.ReLU(inplace=True), nn.Flatten(),
        nn.Linear(16, 3),
    )  # fmt: skip
    line = nn.Sequential(
        nn.Conv1d(2, 4, 3, padding=1, dilation=2), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)
    )
    plain = nn.Sequential(nn.Linear(5, 9), nn.ReLU(inplace=True), nn.Linear(9, 3))
    return {
        "conv2d": (conv, torch.randn(12, 2, 8, 8).double()),
        "conv1d": (line, torch.randn(12, 2, 10).double()),
        "tokens": (Tokens(), torch.randint(0, 7, (12, 5))),
        "in-place ReLU": (plain, torch.randn(12, 5).double()),
    }


@pytest.mark.parametrize("operator", ["ggn", "ntk"])
@pytest.mark.parametrize("name", ["conv2d", "conv1d", "tokens", "in-place ReLU"])
def test_every_kind_of_layer(name: str, operator: str) -> None:
    model, x = nets()[name]
    model = model.double().eval()
    y = torch.arange(12) % 3
    loss = nn.CrossEntropyLoss()
    options: dict[str, Any] = {"k": 3, "vectors": True, "mode": "eval"}
    rule = top_eigen(model, loss, (x, y), operator, method="dense", **options)  # type: ignore[arg-type]
    assert rule.method == "layer rule"
    truth = spectrum(model, loss, x, y, operator)
    torch.testing.assert_close(rule.values, truth[:3], rtol=1e-10, atol=0)
    lanczos = top_eigen(
        model, loss, (x, y), operator, method="lanczos", rtol=1e-8, **options  # type: ignore[arg-type]
    )  # fmt: skip
    assert rule.vectors is not None
    assert lanczos.vectors is not None
    overlaps = (rule.vectors * lanczos.vectors).sum(1).abs()
    torch.testing.assert_close(overlaps, torch.ones(3).double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["conv2d", "conv1d", "tokens"])
def test_parts_of_any_size_make_the_same_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = nets()[name]
    model = model.double().eval()
    loss, data = nn.CrossEntropyLoss(), (x, torch.arange(12) % 3)
    whole = top_eigen(model, loss, data, method="dense", mode="eval", k=3)
    for chunk in (1, 100, 1000):
        monkeypatch.setattr(per_sample, "CHUNK", chunk)
        parts = top_eigen(model, loss, data, method="dense", mode="eval", k=3)
        assert parts.method == "layer rule"
        torch.testing.assert_close(parts.values, whole.values, rtol=1e-10, atol=0)


def stands_aside(model: nn.Module, x: Tensor) -> bool:
    model = model.double().eval()
    y = torch.zeros(len(x), 3).double()
    top = top_eigen(model, half_mse, (x, y), method="dense", mode="eval")
    assert close(top.value, spectrum(model, half_mse, x, y, "ggn")[0], 1e-9)
    return top.method == "dense"


def test_it_stands_aside_where_it_does_not_hold() -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 4).double()
    # An output overwritten in place, a layer used twice, an unknown layer, a train-mode BatchNorm.
    assert stands_aside(Tokens(overwrite=True), torch.randint(0, 7, (6, 5)))
    twice = nn.Linear(4, 4)
    assert stands_aside(nn.Sequential(twice, nn.Tanh(), twice, nn.Linear(4, 3)), x)
    assert stands_aside(Halves(), x)
    assert not stands_aside(nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)), x)
    norm = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)).double()
    top = top_eigen(norm, half_mse, (x, torch.zeros(6, 3).double()), method="dense", mode="train")
    assert top.method == "dense"
    norm.train()
    assert close(top.value, spectrum(norm, half_mse, x, torch.zeros(6, 3).double(), "ggn")[0], 1e-9)


class Twice(nn.Module):
    """Uses a layer, and its weight once more by itself."""

    def __init__(self, *, again: bool) -> None:
        super().__init__()
        self.first, self.second, self.again = nn.Linear(4, 4), nn.Linear(4, 3), again

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        if self.again:
            h = h @ self.first.weight
        out: Tensor = self.second(h)
        return out


class Alone(nn.Module):
    """Uses a layer's weight without calling the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4, bias=False), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(torch.tanh(x @ self.first.weight))
        return out


def test_weights_used_by_themselves_are_found_out() -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 4).double()
    assert not stands_aside(Twice(again=False), x)
    assert stands_aside(Twice(again=True), x)
    assert stands_aside(Alone(), x)


def test_a_hook_takes_the_trust_away() -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 4).double()
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))
    handle = net[1].register_forward_hook(lambda m, args, out: out - out.mean(0))
    assert stands_aside(net, x)  # the hook mixes samples
    handle.remove()
    assert not stands_aside(net, x)


class Halves(nn.Module):
    """A layer whose per-sample gradients are not known to the rule."""

    def __init__(self) -> None:
        super().__init__()
        self.pair = nn.Bilinear(2, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.pair(x[:, :2], x[:, 2:])
        return out


def factor_of(loss: object, z: Tensor, y: Tensor) -> Tensor | None:
    model = nn.Linear(1, 1)
    batches = as_batches((z, y), device=CPU)
    evaluation = Evaluation(model, select(model), loss, batches)  # type: ignore[arg-type]
    return loss_factor(evaluation, z, batches[0], 1.0, 0)


def test_the_factor_of_the_loss() -> None:
    torch.manual_seed(0)
    z, y = torch.randn(7, 4).double(), torch.arange(7) % 4
    b = factor_of(nn.CrossEntropyLoss(reduction="sum"), z, y)
    assert b is not None
    assert b.shape == (7, 4, 3)  # softmax is blind to a shift
    p = z.softmax(1)
    want = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    torch.testing.assert_close(b @ b.mT, want, rtol=0, atol=1e-12)
    # Squared error: the whole rank; a coupling or concave loss: none; a linear one: zero.
    full = factor_of(half_mse, z, z)
    assert full is not None
    assert full.shape == (7, 4, 4)
    assert factor_of(lambda u, v: (u.mean(0) - v.mean(0)).square().sum(), z, z) is None
    assert factor_of(lambda u, v: -(u - v).square().sum(), z, z) is None
    zero = factor_of(lambda u, v: (u * v).sum(), z, z)
    assert zero is not None
    assert not zero.any()


def test_a_warm_start_from_another_model_is_not_trusted() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(6, 4).double(), torch.zeros(6, 3).double()
    warm = top_eigen(Twice(again=False).double(), half_mse, (x, y), method="dense")
    assert warm.method == "layer rule"
    sly = Twice(again=True).double()
    top = top_eigen(sly, half_mse, (x, y), warm=warm)
    assert close(top.value, spectrum(sly, half_mse, x, y, "ggn")[0], 1e-3)
