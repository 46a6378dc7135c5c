"""The mode a model is measured in: as it is trained, without dropout, the same at every door."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import trebuchet as tb
from tests.curvature.reference import close, spectrum
from trebuchet.errors import InputError

F64 = torch.float64


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(24, 3, generator=generator, dtype=F64)
    return x, torch.randn(24, 1, generator=generator, dtype=F64)


def batch_normed(*, affine: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(5, affine=affine)
    return nn.Sequential(nn.Linear(3, 5), norm, nn.Tanh(), nn.Linear(5, 1)).double()


@pytest.mark.parametrize("training", [True, False])
def test_top_eigen_and_scan_give_one_answer(training: bool) -> None:
    net, (x, y) = batch_normed().train(training), data()
    scan = tb.scan(net, "mse", (x, y), horizon=20, seeds=[0])
    top = tb.top_eigen(net, "mse", (x, y), rtol=1e-8)
    assert net.training == training
    truth = spectrum(batch_normed().train(), F.mse_loss, x, y, "ggn")[0]
    assert close(top.value, truth, 1e-7)
    assert close(scan.top_eigenvalue, truth, 1e-5)
    assert top.mode == "train"
    assert top.statistics == "batch statistics"
    assert "train mode with batch statistics" in str(top)
    assert "train mode with batch statistics" in str(scan)


def test_early_constants_are_of_the_same_sharpness() -> None:
    net, (x, y) = batch_normed().eval(), data()
    found = tb.early_constants(net, "mse", (x, y), rtol=0.5, steps=2, train_steps=5)
    truth = spectrum(batch_normed().train(), F.mse_loss, x, y, "hessian")[0]
    assert close(found.sharpness, truth, 1e-3)
    assert not net.training


def test_running_statistics_on_demand() -> None:
    net, (x, y) = batch_normed(), data()
    top = tb.top_eigen(net, "mse", (x, y), mode="eval", rtol=1e-8)
    assert close(top.value, spectrum(net.eval(), F.mse_loss, x, y, "ggn")[0], 1e-7)
    assert top.statistics == "running statistics"


def test_a_layer_that_is_trained_with_running_statistics_keeps_them() -> None:
    """As in fine-tuning: the model in training mode, its batch norm not."""
    net, (x, y) = batch_normed().train(), data()
    net[1].eval()
    top = tb.top_eigen(net, "mse", (x, y), rtol=1e-8)
    assert close(top.value, spectrum(net, F.mse_loss, x, y, "ggn")[0], 1e-7)
    assert top.statistics == "running statistics"


def test_several_batches_have_statistics_of_their_own_and_it_is_said() -> None:
    net, (x, y) = batch_normed().train(), data()
    top = tb.top_eigen(net, "mse", (x, y), "hessian", micro_batch=12, rtol=1e-8)

    def loss(z: Tensor, t: Tensor) -> Tensor:
        halves = (net(x[:12]) - y[:12]).square().mean() + (net(x[12:]) - y[12:]).square().mean()
        total: Tensor = halves / 2 + 0 * (z - t).sum()
        return total

    assert close(top.value, spectrum(net, loss, x, y, "hessian")[0], 1e-7)
    assert "of 2 batches each by itself" in str(top)


@pytest.mark.parametrize("method", ["auto", "dense"])
def test_batch_statistics_without_parameters_mix_samples_too(method: Any) -> None:
    """The layer rule trusts nets of known layers, and this one's samples meet in its norm."""
    net, (x, y) = batch_normed(affine=False).train(), data()
    top = tb.top_eigen(net, "mse", (x, y), method=method, rtol=1e-8)
    assert close(top.value, spectrum(net, F.mse_loss, x, y, "ggn")[0], 1e-7)


@pytest.mark.parametrize("options", [{"micro_batch": 23}, {"micro_batch": 1}])
def test_a_single_sample_has_no_statistics(options: Any) -> None:
    net, (x, y) = batch_normed(), data()
    with pytest.raises(InputError, match=r"BatchNorm1d '1'.*mode='eval'") as caught:
        tb.top_eigen(net, "mse", (x, y), **options)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="at least two samples"):
        tb.top_eigen(net, "mse", (x[:1], y[:1]))
    assert tb.top_eigen(net, "mse", (x[:1], y[:1]), mode="eval").converged


class Dropping(nn.Module):
    """Dropout as a function, in two spellings."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(3, 8, dtype=F64), nn.Linear(8, 1, dtype=F64)

    def forward(self, x: Tensor) -> Tensor:
        h = F.dropout(torch.tanh(self.first(x)), 0.5, training=self.training)
        h = torch.dropout(h, 0.5, self.training)
        h = h + F.scaled_dot_product_attention(h, h, h, dropout_p=0.5 * self.training)
        z: Tensor = self.last(h)
        return z


@pytest.mark.parametrize("operator", ["ggn", "ntk", "hessian"])
def test_dropout_is_off_where_it_is_a_function(operator: Any) -> None:
    net, (x, y) = Dropping(), data()
    truth = spectrum(net.eval(), F.mse_loss, x, y, operator)[0]
    for training in (True, False):
        top = tb.top_eigen(net.train(training), "mse", (x, y), operator, rtol=1e-8)
        assert close(top.value, truth, 1e-7)
    noisy = tb.top_eigen(net.train(), "mse", (x, y), operator, mode="as_is")
    assert not close(noisy.value, truth, 1e-3)


class Recomputing(Dropping):
    """Evaluates its first half again in the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        def half(u: Tensor) -> Tensor:
            return F.dropout(torch.tanh(self.first(u)), 0.5, training=self.training)

        z: Tensor = self.last(checkpoint(half, x, use_reentrant=False))
        return z


@pytest.mark.parametrize("operator", ["ggn", "ntk", "hessian"])
def test_dropout_is_off_in_the_backward_pass_too(operator: Any) -> None:
    net, (x, y) = Recomputing(), data()
    truth = spectrum(net.eval(), F.mse_loss, x, y, operator)[0]
    top = tb.top_eigen(net.train(), "mse", (x, y), operator, rtol=1e-8)
    assert close(top.value, truth, 1e-7)


def test_dropout_in_a_closure_is_off() -> None:
    (x, y), net = data(), nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return F.mse_loss(F.dropout(model(batch[0]), 0.5), batch[1])

    truth = spectrum(net, F.mse_loss, x, y, "hessian")[0]
    assert close(tb.top_eigen(net, loss, (x, y), "hessian", rtol=1e-8).value, truth, 1e-7)


class Detector(nn.Module):
    """A dict of losses in training, predictions in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(3, 1, dtype=F64)

    def forward(self, x: Tensor, y: Tensor) -> Any:
        z = self.head(x)
        if not self.training:
            return [z]
        return {"near": (z - y).square().mean(), "far": 2 * (z - y).square().mean()}


def test_detectors_are_measured_in_training() -> None:
    net, (x, y) = Detector().eval(), data()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        total: Tensor = sum(model(*batch).values())
        return total

    top = tb.top_eigen(net, loss, (x, y), "hessian", rtol=1e-8)
    wide = torch.cat([x, torch.ones(24, 1, dtype=F64)], 1)
    assert close(top.value, torch.linalg.eigvalsh(6 * wide.T @ wide / 24)[-1], 1e-7)


class Taught(nn.Module):
    """A frozen teacher that follows the student at the end of every forward pass."""

    def __init__(self, *, follow: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.student, self.teacher = nn.Linear(3, 1, dtype=F64), nn.Linear(3, 1, dtype=F64)
        self.teacher.requires_grad_(False)
        self.follow = follow

    def forward(self, x: Tensor) -> Tensor:
        z = torch.tanh(self.student(x) - self.teacher(x))
        if self.follow:
            with torch.no_grad():
                for t, s in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                    t.lerp_(s, 0.3)
        return z


@pytest.mark.parametrize("operator", ["ggn", "ntk", "hessian"])
def test_every_evaluation_starts_from_the_same_state(operator: Any) -> None:
    net, (x, y) = Taught(follow=True), data()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    truth = spectrum(Taught(follow=False), F.mse_loss, x, y, operator)[0]
    for given in ((x, y), [(x[:9], y[:9]), (x[9:], y[9:])]):
        for method in ("lanczos", "dense"):
            top = tb.top_eigen(net, "mse", given, operator, method=method, rtol=1e-8)
            assert top.converged
            assert close(top.value, truth, 1e-7)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
