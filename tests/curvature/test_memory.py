"""Batches are cut where their graph would not fit into memory, and only where that is the same."""

import pytest
import torch
from torch import Tensor, nn

from tests.curvature.reference import close
from trebuchet.curvature import TopEigen, memory, top_eigen

D = 24
CUT = "at a time"


def _net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 3)).double()


def _data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(D, 5, generator=generator, dtype=torch.float64)
    return x, torch.arange(D) % 3


def _is_cut(top: TopEigen) -> bool:
    return any(CUT in remark for remark in top.remarks)


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for the graphs of a few samples of the nets here."""
    monkeypatch.setattr(memory, "free_bytes", lambda _: 20_000)


@pytest.mark.parametrize("operator", ["ggn", "ntk", "hessian"])
@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), nn.CrossEntropyLoss(reduction="sum")])
def test_little_memory_cuts_the_batch_and_changes_nothing_else(
    operator: str, loss: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, data = _net(), _data()
    sizes: list[int] = []
    net.register_forward_hook(lambda _, args, out: sizes.append(len(args[0])))
    whole = top_eigen(net, loss, data, operator, rtol=1e-9)  # type: ignore[arg-type]  # a str of three
    assert not _is_cut(whole)
    assert max(sizes) == D
    sizes.clear()
    monkeypatch.setattr(memory, "free_bytes", lambda _: 20_000)
    pieces = top_eigen(net, loss, data, operator, rtol=1e-9)  # type: ignore[arg-type]  # a str of three
    assert _is_cut(pieces)
    assert max(sizes) < D
    assert pieces.n_samples == D
    assert pieces.converged
    assert close(pieces.value, whole.value, 1e-8)


@pytest.mark.usefixtures("little")
def test_less_memory_makes_smaller_pieces_down_to_one_sample(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net, (x, y) = _net(), _data()
    largest = []
    for free in (20_000, 8_000, 1):
        monkeypatch.setattr(memory, "free_bytes", lambda _, free=free: free)
        sizes: list[int] = []
        handle = net.register_forward_hook(lambda _, args, __, s=sizes: s.append(len(args[0])))
        top_eigen(net, nn.CrossEntropyLoss(), (x, y))
        handle.remove()
        assert sizes[:3] == [1, 1, 2]  # a look at what samples keep
        largest.append(max(sizes[3:]))
    assert largest[0] > largest[1] > largest[2] == 1


@pytest.mark.usefixtures("little")
def test_a_size_that_is_given_is_taken() -> None:
    net, data = _net(), _data()
    sizes: list[int] = []
    net.register_forward_hook(lambda _, args, out: sizes.append(len(args[0])))
    top = top_eigen(net, nn.CrossEntropyLoss(), data, micro_batch=20)
    assert set(sizes) == {20, 4}
    assert not _is_cut(top)


class _Centred(nn.Module):
    """Samples meet: each is seen relative to the mean of its batch."""

    def __init__(self) -> None:
        super().__init__()
        self.net = _net()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x - x.mean(0))
        return out


class _Squeezed(nn.Module):
    """Cannot take one sample by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.net = _net()

    def forward(self, x: Tensor) -> Tensor:
        if len(x) < 2:
            msg = "two at least"
            raise ValueError(msg)
        out: Tensor = self.net(x)
        return out


class _Past(nn.Module):
    """The first axis is time: each output depends on those before it, and the first on none."""

    def __init__(self) -> None:
        super().__init__()
        self.net = _net()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x.cumsum(0))
        return out


def _normed() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).double()


@pytest.mark.parametrize("make", [_Centred, _Squeezed, _Past, _normed])
def test_models_in_which_samples_meet_are_not_cut(
    make: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    net, data = make(), _data()
    whole = top_eigen(net, nn.CrossEntropyLoss(), data)
    monkeypatch.setattr(memory, "free_bytes", lambda _: 20_000)
    top = top_eigen(net, nn.CrossEntropyLoss(), data)
    assert not _is_cut(top)
    assert top.value == whole.value


@pytest.mark.usefixtures("little")
def test_batch_norms_with_running_statistics_are_cut() -> None:
    assert _is_cut(top_eigen(_normed(), nn.CrossEntropyLoss(), _data(), mode="eval"))


def test_a_loss_over_pairs_of_samples_is_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    def pairs(z: Tensor, y: Tensor) -> Tensor:
        same = (y[:, None] == y).to(z.dtype)
        return ((z @ z.T).tanh() - same).square().mean()

    net, data = _net(), _data()
    whole = top_eigen(net, pairs, data, "hessian")
    monkeypatch.setattr(memory, "free_bytes", lambda _: 20_000)
    top = top_eigen(net, pairs, data, "hessian")
    assert not _is_cut(top)
    assert top.value == whole.value


def test_a_small_batch_is_seen_whole_and_only_so() -> None:
    net, data = _net(), _data()
    sizes: set[int] = set()
    net.register_forward_hook(lambda _, args, out: sizes.add(len(args[0])))
    top_eigen(net, nn.CrossEntropyLoss(), data)
    assert sizes == {len(data[0])}


def test_where_nothing_tells_how_much_is_free_nothing_is_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda _: None)
    assert not _is_cut(top_eigen(_net(), nn.CrossEntropyLoss(), _data()))


def test_the_memory_of_this_machine_is_known_or_said_not_to_be() -> None:
    free = memory.free_bytes(torch.device("cpu"))
    assert free is None or free >= 0
    assert memory.free_bytes(torch.device("meta")) is None
