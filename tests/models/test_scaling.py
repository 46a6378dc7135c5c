"""How nets scale: found by tracing, checked by scaling the weights and evaluating again."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import trebuchet as tb
from tests.nets import NETS, Dictionary, Functional, Residual, Vgg, plain
from trebuchet.errors import NotApplicableError
from trebuchet.models import MLP, QuadraticWithBias
from trebuchet.models.scaling import scaling

F64 = torch.float64


@pytest.mark.parametrize("name", NETS)
def test_scaled_weights_scale_the_output(name: str) -> None:
    """z(c^α θ) = cᵏ z(θ), by evaluation: nothing of the tracing is trusted."""
    net, x = NETS[name](0)
    found = scaling(net)
    z = net(x)
    for c in (0.7, 1.9):
        with torch.no_grad():
            for key, p in net.named_parameters():
                p.mul_(c ** found.weights.get(key, 0))
            scaled = net(x)
            for key, p in net.named_parameters():
                p.div_(c ** found.weights.get(key, 0))
        np.testing.assert_allclose(
            scaled.numpy(), c**found.degree * z.detach().numpy(), rtol=1e-11, atol=1e-12
        )


def test_weights_count_once_and_biases_by_their_layer() -> None:
    found = scaling(plain(4))
    assert found.degree == 4
    assert [found.weights[f"{2 * l}.weight"] for l in range(4)] == [1, 1, 1, 1]
    assert [found.weights[f"{2 * l}.bias"] for l in range(4)] == [1, 2, 3, 4]
    assert scaling(plain(3, bias=False)).uniform
    assert scaling(MLP.draw(2, 4, hidden=2, generator=0)).degree == 3
    assert scaling(QuadraticWithBias.draw(4, 2, generator=0)).weights == {
        "theta_phi": 2, "theta_psi": 1
    }  # fmt: skip


def test_residual_sums_of_equal_degree() -> None:
    """A shortcut of one layer beside two counts twice; beside an identity nothing can scale."""
    found = scaling(Residual())
    assert (found.weights["second.short.weight"], found.weights["second.short.bias"]) == (2, 3)
    assert found.weights["first.a.weight"] == found.weights["first.b.weight"] == 0
    assert found.degree == 4
    assert scaling(Vgg()).weights["head.2.weight"] == 0  # PReLU's slope
    assert scaling(Dictionary()).weights["unused.weight"] == 0
    assert scaling(Functional()).degree == 2


def test_frozen_and_tied_parameters() -> None:
    net = plain(3)
    net[0].requires_grad_(False)
    assert scaling(net).degree == 2  # a constant net in front of two layers
    assert "0.weight" not in scaling(net).weights
    tied = plain(3, width=5)
    tied[2].bias = tied[0].bias  # in layers 1 and 2: only α = 0 of the weight between is both
    assert scaling(tied).weights["2.weight"] == 0
    assert scaling(tied).degree == 2


_weight_normed = nn.utils.parametrizations.weight_norm


def _hooked() -> nn.Module:
    net = plain(2)
    net[0].register_forward_hook(lambda module, args, out: out + 1)
    return net


class _Without(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 5), nn.Linear(5, 1)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            h = self.a(x)
        z: Tensor = self.b(h)
        return z


class _Branches(_Without):
    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.b(self.a(x)) if x.sum() > 0 else self.b(x)
        return z


class _Identity(_Without):
    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = x + F.relu(self.a(x))
        return h.sum(1)


class _Stated(_Without):
    degree = None


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: nn.Sequential(nn.Linear(2, 3), nn.Tanh()), r"1 \(Tanh\): it is not known"),
        (lambda: nn.Sequential(nn.Linear(2, 3), nn.Softmax(1)), r"1 \(Softmax\)"),
        (lambda: nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3)), r"1 \(LayerNorm\)"),
        (lambda: nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)), r"1 \(BatchNorm1d\)"),
        (lambda: nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.1)), r"1 \(Dropout\): it is random"),
        (lambda: nn.Sequential(nn.Linear(2, 3), nn.ReLU6()), r"1 \(ReLU6\)"),
        (lambda: nn.TransformerEncoderLayer(8, 2, batch_first=True), "Multi|EncoderLayer"),
        (lambda: nn.Sequential(_weight_normed(nn.Linear(2, 3))), r"0 \(ParametrizedLinear\)"),
        (_hooked, "has hooks"),
        (_Without, "runs without gradients"),
        (_Branches, "torch.fx cannot follow"),
        (_Identity, "sums of different degree"),
        (_Stated, "its degree is None"),
    ],
)  # fmt: skip
def test_refused_with_the_reason(make: Callable[[], nn.Module], reason: str) -> None:
    with pytest.raises(NotApplicableError, match=reason):
        scaling(make())


class _Named(_Without):
    """What is given by name counts as what is given in its place."""

    def forward(self, x: Tensor) -> Tensor:
        z = F.linear(input=F.relu(self.a(x)), weight=self.b.weight, bias=self.b.bias)
        z = torch.mul(z, other=F.linear(x, self.a.weight[:1]))
        return torch.div(torch.add(z, other=2 * z), other=3.0)


def test_arguments_by_name() -> None:
    net = _Named()
    found, x = scaling(net), torch.randn(4, 5)
    before = net(x)
    with torch.no_grad():
        for key, p in net.named_parameters():
            p.mul_(1.5 ** found.weights[key])
    torch.testing.assert_close(net(x), 1.5**found.degree * before)


class _Raw(_Without):
    def forward(self, x: Tensor) -> Tensor:
        weight = next(self.parameters()) * 1
        z: Tensor = self.b(F.linear(x, weight))
        return z


class _IntoAConstant(_Without):
    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros_like(x)
        h.add_(self.a(x))
        z: Tensor = self.b(h)
        return z


class _Rounds(_Without):
    def forward(self, x: Tensor) -> Tensor:
        return torch.div(self.b(x), 0.3, rounding_mode="floor")


class _Padded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Embedding(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.embedding(x, self.a.weight, padding_idx=0)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_Raw, "makes tensors of its parameters"),
        (_IntoAConstant, "to a constant, in place"),
        (_Rounds, "it rounds"),
        (_Padded, "not all looked up and trained alike"),
    ],
)
def test_what_tracing_would_miss_is_refused(make: Callable[[], nn.Module], reason: str) -> None:
    with pytest.raises(NotApplicableError, match=reason):
        scaling(make())


def test_tracing_leaves_the_module_as_it_was() -> None:
    class Remembers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.calls = nn.Linear(2, 1), 0
            self.last: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.last = self.a(x)
            return self.last

    net = Remembers()
    weight = net.a.weight
    assert scaling(net).degree == 1
    assert (net.calls, net.last) == (0, None)
    assert net.a.weight is weight


def test_modules_of_other_threads_are_left_alone() -> None:
    """While one thread follows a net, another one calls it, and a third follows it too."""
    net, x = Residual(), torch.randn(2, 3, 8, 8)
    wanted, form = net(x), str(scaling(net))

    def call() -> bool:
        return all(torch.allclose(net(x), wanted) for _ in range(300))

    def follow() -> bool:
        return all(str(scaling(net)) == form for _ in range(15))

    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(job) for job in (call, follow, call, follow)]
        assert all(job.result() for job in jobs)
    assert torch.allclose(net(x), wanted)


def test_a_number_called_degree_of_one_object_states_nothing() -> None:
    """Such as a polynomial's: only a class states how its weights scale."""

    class Polynomial(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.degree = 3
            self.weight = nn.Parameter(torch.ones(4, dtype=torch.float64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.stack([x[:, 0] ** k for k in range(self.degree + 1)], 1) @ self.weight

    x = torch.linspace(-1, 1, 8, dtype=torch.float64)[:, None]
    for call in (tb.sweep, tb.scan):
        how = {"lr": [0.1], "steps": 5} if call is tb.sweep else {"horizon": 10}
        found = call(Polynomial(), "mse", (x, x[:, 0] ** 2), **how)
        runs = found.runs if isinstance(found, tb.Scan) else found
        assert "degree" not in str(runs.attrs["weight_norm_law"])
