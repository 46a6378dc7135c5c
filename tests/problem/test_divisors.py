"""What a loss divides by: known, tried, said by the caller, or refused."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import trebuchet as tb
from tests.problem.reference import draws, net, top
from trebuchet.curvature import held_still
from trebuchet.errors import InputError

Loss = Callable[..., Tensor]


def _mean(model: nn.Module, loss: Loss, batches: list[Any], counts: list[float]) -> float:
    """The eigenvalue of the mean over all batches, each counting as it is told."""

    def total() -> Tensor:
        parts = [c * loss(model(x), y) for c, (x, y) in zip(counts, batches, strict=True)]
        return torch.stack(parts).sum() / sum(counts)

    return top(model, total)


def _ragged(seed: int = 0, *, kind: str = "real") -> list[tuple[Tensor, Tensor]]:
    x1, y1, x2, y2 = draws((4, 20, 3), (4, 20, 1), (4, 5, 3), (4, 5, 1), seed=seed)
    if kind == "binary":
        y1, y2 = (y1 > 0).double(), (y2 > 0).double()
    if kind == "sign":
        y1, y2 = y1.sign(), y2.sign()
    return [(x1, y1), (3 * x2, y2)]


ELEMENTS: dict[str, tuple[Loss, str]] = {
    "mse": (nn.MSELoss(), "real"),
    "bce": (nn.BCEWithLogitsLoss(), "binary"),
    "huber": (nn.HuberLoss(), "real"),
    "smooth_l1": (partial(F.smooth_l1_loss, beta=0.5), "real"),
    "soft_margin": (nn.SoftMarginLoss(), "sign"),
    "poisson": (nn.PoissonNLLLoss(), "binary"),
    "wrapped": (lambda z, y: F.mse_loss(z, y), "real"),
    "own": (lambda z, y: ((z - y) ** 4).mean(), "real"),
}


@pytest.mark.parametrize("case", ELEMENTS)
def test_means_over_elements_count_by_elements(case: str) -> None:
    loss, kind = ELEMENTS[case]
    model, batches = nn.Linear(3, 1).double(), _ragged(kind=kind)
    right = _mean(model, loss, batches, [80, 20])
    assert abs(right / _mean(model, loss, batches, [4, 4]) - 1) > 0.05
    found = tb.top_eigen(model, loss, batches, "hessian", rtol=1e-9)
    assert found.value == pytest.approx(right, rel=1e-8)
    assert found.reduction == "mean"


def test_a_scan_and_its_forward_rate_count_alike() -> None:
    model, batches = nn.Linear(3, 1).double(), _ragged()
    whole = (torch.cat([x.flatten(0, 1) for x, _ in batches]),
             torch.cat([y.flatten(0, 1) for _, y in batches]))  # fmt: skip
    rate = tb.forward_critical_rate(model, "mse", whole)
    found = tb.forward_critical_rate(model, "mse", batches)
    assert found.value == pytest.approx(rate.value, rel=1e-6)
    early = tb.early_constants(model, "mse", batches)
    assert early.sharpness == pytest.approx(_mean(model, nn.MSELoss(), batches, [80, 20]), rel=1e-3)
    result = tb.scan(model, "mse", batches, horizon=20, budget=640)
    assert result.lr_crit == pytest.approx(2 / early.sharpness, rel=1e-2)
    assert result.settings["compared_on"] == "all 8 samples, spread over 2 batches"


class Time(nn.Module):
    """A recurrent net with time first."""

    def __init__(self) -> None:
        super().__init__()
        self.cells, self.out = nn.GRU(3, 3), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.out(self.cells(x)[0])
        return z


@pytest.mark.parametrize("loss", [nn.MSELoss(), lambda z, y: (z - y).square().mean()])
def test_time_first(loss: Loss) -> None:
    torch.manual_seed(0)
    model = Time().double()
    x1, y1, x2, y2 = draws((5, 20, 3), (5, 20, 1), (5, 3, 3), (5, 3, 1))
    batches = [(x1, y1), (3 * x2, y2)]
    with held_still(model, mode="as_is"):  # recurrent kernels with a second derivative
        right = _mean(model, loss, batches, [20, 3])
    found = tb.top_eigen(model, loss, batches, "hessian", rtol=1e-8)
    assert found.value == pytest.approx(right, rel=1e-7)


class Graphs(nn.Module):
    """The sum over the nodes of each graph."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, x: Tensor, edges: Tensor, ids: Tensor) -> Tensor:
        del edges
        h = self.layer(x)
        return torch.zeros(int(ids.max()) + 1, 1, dtype=h.dtype).index_add(0, ids, h)


def test_nodes_with_one_target_a_graph() -> None:
    batches: list[Any] = []
    for nodes, graphs in ((31, 4), (90, 3)):
        x, y = draws((nodes, 3), (graphs, 1), seed=nodes)
        batches.append(((x, torch.zeros(2, 5).long(), torch.arange(nodes) % graphs), y))
    model = Graphs().double()

    def total() -> Tensor:
        parts = [len(y) * F.mse_loss(model(*x), y) for x, y in batches]
        return torch.stack(parts).sum() / 7

    found = tb.top_eigen(model, "mse", batches, rtol=1e-9)
    assert found.value == pytest.approx(top(model, total), rel=1e-8)
    assert found.n_samples == 7
    with pytest.raises(InputError, match="no input has its 4 samples along the first axis"):
        tb.top_eigen(model, "mse", batches, micro_batch=2)


def _tokens() -> tuple[nn.Module, list[tuple[Tensor, Tensor]], list[int], list[int]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5, 2), nn.Linear(2, 5)).double()
    x1, x2 = torch.randint(0, 5, (4, 9)), torch.randint(0, 5, (3, 5))
    y1, y2 = x1.clone(), x2.clone()
    y1[0, 3:], y1[2, 1:], y2[1, 2:] = -100, -100, -100
    batches = [(x1, y1), (x2, y2)]
    return (
        model, batches,
        [int((y != -100).sum()) for _, y in batches],
        [int((y[:, 1:] != -100).sum()) for _, y in batches],
    )  # fmt: skip


def _token_loss(z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(z.flatten(0, 1), y.flatten())


def _next_token_loss(z: Tensor, y: Tensor) -> Tensor:
    return _token_loss(z[:, :-1], y[:, 1:])


@pytest.mark.parametrize("closure", [False, True])
@pytest.mark.parametrize("shifted", [False, True])
def test_padded_targets_are_found_not_to_count(closure: bool, shifted: bool) -> None:
    model, batches, counted, following = _tokens()
    loss = _next_token_loss if shifted else _token_loss
    right = _mean(model, loss, batches, list(map(float, following if shifted else counted)))

    def by_model(model: nn.Module, batch: Any) -> Tensor:
        return loss(model(batch[0]), batch[1])

    found = tb.top_eigen(model, by_model if closure else loss, batches, "hessian", rtol=1e-9)
    assert found.value == pytest.approx(right, rel=1e-8)


class Dice(nn.Module):
    """No mean over samples, whatever its attribute says."""

    reduction = "mean"

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        p = z.sigmoid()
        return 1 - (2 * (p * y).sum() + 1) / (p.sum() + y.sum() + 1)


def _contrastive(z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(z @ y.T, torch.arange(len(z)))


class Doubled(nn.MSELoss):
    """A subclass whose forward is another one: a sum."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return (input - target).square().sum()


class Named(nn.MSELoss):
    """A subclass that adds nothing."""


NOT_ADDITIVE: dict[str, tuple[Any, int]] = {
    "dice": (Dice(), 1),
    "contrastive": (_contrastive, 2),
    "dice closure": (tb.ModelLoss(lambda m, b: Dice()(m(b[0]), b[1])), 1),
}


@pytest.mark.parametrize("case", NOT_ADDITIVE)
def test_what_does_not_add_up_is_refused(case: str) -> None:
    loss, outputs = NOT_ADDITIVE[case]
    model = net(outputs=outputs)
    x, y = draws((30, 3), (30, outputs))
    y = (y > 0).double() if "dice" in case else y
    whole = tb.top_eigen(model, loss, (x, y), "hessian")
    assert whole.converged
    parts = [(x[:20], y[:20]), (x[20:], y[20:])]
    with pytest.raises(InputError, match="neither a mean nor a sum"):
        tb.top_eigen(model, loss, parts, "hessian")
    said = tb.top_eigen(model, loss, parts, "hessian", reduction="mean", rtol=1e-9)
    fn: Loss = (lambda z, y: Dice()(z, y)) if "dice" in case else _contrastive
    assert said.value == pytest.approx(_mean(model, fn, parts, [20, 10]), rel=1e-8)


def test_a_scan_takes_a_loss_of_the_batch_as_a_whole_batch_by_batch() -> None:
    model = net(outputs=2)
    x, y = draws((64, 3), (64, 2))
    result = tb.scan(model, _contrastive, (x, y), batch_size=8, horizon=20)
    assert "of 8 samples" in result.critical.convention
    start = result.settings["loss_first"]
    assert start < _contrastive(model(x), y).item() - 1  # log 8, not log 64
    with pytest.raises(InputError, match="neither a mean nor a sum"):
        tb.scan(model, _contrastive, (x, y), batch_size=8, micro_batch=4, horizon=20)


def test_a_sum_is_as_large_as_a_step_sees_it() -> None:
    model = nn.Linear(3, 1).double()
    data = tuple(draws((64, 3), (64, 1)))
    mean = tb.scan(model, nn.MSELoss(), data, batch_size=8, horizon=20, seeds=1)
    total = tb.scan(model, nn.MSELoss(reduction="sum"), data, batch_size=8, horizon=20, seeds=1)
    assert total.lr_crit == pytest.approx(mean.lr_crit / 8, rel=0.5)
    assert total.settings["loss_first"] == pytest.approx(8 * mean.settings["loss_first"], rel=0.2)


@pytest.mark.parametrize(
    ("loss", "reduction"),
    [
        (Named(), "mean"),
        (Named(reduction="sum"), "sum"),
        (Doubled(), "sum"),
        (lambda z, y: (z - y).square().sum(1).mean(), "mean"),
    ],
)
def test_subclasses_partials_and_functions(loss: Any, reduction: str) -> None:
    model = net(outputs=2)
    x, y = draws((9, 3), (9, 2))
    found = tb.top_eigen(model, loss, (x, y), "hessian", micro_batch=4, rtol=1e-9)
    assert found.reduction == reduction
    assert found.value == pytest.approx(top(model, lambda: loss(model(x), y)), rel=1e-8)


class Graph:
    """A batch that is an object."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y


def _of_graph(model: nn.Module, batch: Graph) -> Tensor:
    return F.mse_loss(model(batch.x), batch.y)


def test_objects_count_equally_and_it_is_said_or_as_the_caller_says() -> None:
    model = net()
    x, y = draws((23, 3), (23, 1))
    x[20:] *= 3
    pairs = [(x[:20], y[:20]), (x[20:], y[20:])]
    objects = [Graph(*pair) for pair in pairs]
    loss = nn.MSELoss()
    equal = tb.top_eigen(model, _of_graph, objects, "hessian", rtol=1e-9)
    assert equal.value == pytest.approx(_mean(model, loss, pairs, [1, 1]), rel=1e-8)
    assert any("counted equally" in note for note in equal.remarks)
    assert "counted equally" in str(equal)
    right = _mean(model, loss, pairs, [20, 3])
    words: list[dict[str, Any]] = [{"weights": [20, 3]}, {"size_of": lambda b: len(b.x)}]
    for word in words:
        found = tb.top_eigen(model, _of_graph, objects, "hessian", rtol=1e-9, **word)
        assert found.value == pytest.approx(right, rel=1e-8)
        assert not found.remarks
        result = tb.scan(model, _of_graph, objects, horizon=20, budget=640, **word)
        assert result.lr_crit == pytest.approx(2 / right, rel=2e-2)
        early = tb.early_constants(model, _of_graph, objects, train_steps=20, **word)
        assert early.sharpness == pytest.approx(right, rel=1e-3)
    assert any("counted equally" in n for n in tb.scan(model, _of_graph, objects, horizon=20).notes)
    with pytest.warns(UserWarning, match="counted equally"):
        tb.forward_critical_rate(model, _of_graph, objects)
    said = tb.forward_critical_rate(model, _of_graph, objects, weights=[20, 3])
    assert said.value == pytest.approx(
        tb.forward_critical_rate(model, "mse", pairs).value, rel=1e-6
    )


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ({"weights": [1.0]}, "weights: expected 2 positive numbers, one a batch"),
        ({"weights": [1.0, -1.0]}, "weights: expected 2 positive numbers, one a batch"),
        ({"weights": 3}, "weights: expected 2 positive numbers, one a batch"),
        ({"size_of": 3}, "size_of: expected a function"),
        ({"size_of": lambda b: b.nothing}, "size_of: expected the size .*AttributeError"),
        ({"size_of": lambda b: None}, "size_of: expected a positive number"),
        ({"size_of": len, "weights": [1, 2]}, "expected either weights= or size_of="),
    ],
)
def test_words_that_say_nothing(word: Any, message: str) -> None:
    x, y = draws((6, 3), (6, 1))
    with pytest.raises(InputError, match=message) as caught:
        tb.top_eigen(net(), _of_graph, [Graph(x, y)] * 2, "hessian", **word)
    assert "\n" not in str(caught.value)


class Noisy(nn.Module):
    """Noise in its forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x)
        return torch.as_tensor(h + torch.randn_like(h))


def test_a_random_closure_counts_by_samples_and_says_so() -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        return torch.as_tensor(model(batch[0]).square().mean())

    x, y = draws((23, 3), (23, 1))
    model = Noisy().double()
    found = tb.top_eigen(model, loss, [(x[:20], y[:20]), (x[20:], y[20:])], "hessian", rtol=1e-8)
    right = top(model, lambda: (model.layer(x)).square().mean())  # the noise has no curvature
    assert found.value == pytest.approx(right, rel=1e-7)
    assert any("is random" in note for note in found.remarks)


class Counting(nn.Module):
    """A loss with a state of its own."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        return (z - y).square().mean()


def test_a_trial_leaves_the_losss_state_alone() -> None:
    loss = Counting()
    x, y = draws((9, 3), (9, 1))
    found = tb.top_eigen(net(), loss, (x, y), micro_batch=4)
    assert found.reduction == "mean"
    assert float(loss.calls) == 0
