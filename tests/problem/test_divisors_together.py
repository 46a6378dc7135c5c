"""What a loss divides by, where the largest batch alone does not tell: every batch has a say."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import trebuchet as tb
from tests.problem.reference import top
from trebuchet.errors import InputError

CLASS_WEIGHTS = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)


def net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()


def closure_of(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda model, batch: loss(model(batch[0]), batch[1])


def marked(mark: float) -> tuple[Callable[[Tensor, Tensor], Tensor], list[tuple[Tensor, Tensor]]]:
    """Sequences of which only the second batch is padded."""
    torch.manual_seed(2)
    x = torch.randn(8, 6, 3, dtype=torch.float64)
    y = torch.randint(1, 3, (8, 6))
    y[4:, 2:] = int(mark)

    def loss(z: Tensor, t: Tensor) -> Tensor:
        return F.cross_entropy(z.flatten(0, 1), t.flatten(), ignore_index=int(mark))

    return loss, [(x[:4], y[:4]), (x[4:], y[4:])]


def missing() -> tuple[Callable[[Tensor, Tensor], Tensor], list[tuple[Tensor, Tensor]]]:
    """Targets of which only the first batch has all."""
    torch.manual_seed(3)
    x, y = torch.randn(2, 24, 3, dtype=torch.float64)
    y[8:][torch.rand(16, 3) > 0.3] = torch.nan

    def loss(z: Tensor, t: Tensor) -> Tensor:
        known = ~t.isnan()
        return F.mse_loss(z[known], t[known])

    return loss, [(x[i : i + 8], y[i : i + 8]) for i in (0, 8, 16)]


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("case", [-1, 0, 255, "nan"])
def test_marks_that_the_first_batch_does_not_hold_are_not_counted(case: Any, closed: bool) -> None:
    loss, batches = missing() if case == "nan" else marked(case)
    model = net()
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    truth = top(model, lambda: loss(model(x), y))
    found = tb.top_eigen(model, closure_of(loss) if closed else loss, batches, "hessian", rtol=1e-6)
    assert found.value == pytest.approx(truth, rel=1e-5)


def masked() -> tuple[Callable[..., Tensor], list[tuple[Tensor, ...]]]:
    torch.manual_seed(4)
    x, y = torch.randn(2, 24, 3, dtype=torch.float64)
    mask = torch.ones_like(y)
    mask[8:] = (torch.rand(16, 3) > 0.7).double()

    def loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        error = torch.as_tensor(model(batch[0]) - batch[1])
        return (error.square() * batch[2]).sum() / batch[2].sum()

    return loss, [(x[i : i + 8], y[i : i + 8], mask[i : i + 8]) for i in (0, 8, 16)]


def sorted_classes() -> tuple[Callable[..., Tensor], list[tuple[Tensor, ...]]]:
    torch.manual_seed(5)
    x, y = torch.randn(24, 3, dtype=torch.float64), torch.arange(24) // 8

    def loss(z: Tensor, t: Tensor) -> Tensor:
        return F.cross_entropy(z, t, weight=CLASS_WEIGHTS)

    return loss, [(x[i : i + 8], y[i : i + 8]) for i in (0, 8, 16)]


def test_a_loss_over_a_mask_that_only_later_batches_have_is_refused_until_weights_are_said() -> (
    None
):
    loss, batches = masked()
    model = net()
    with pytest.raises(InputError, match=r"neither a mean nor a sum.*batches count"):
        tb.top_eigen(model, loss, batches, "hessian")
    counts = [float(batch[2].sum()) for batch in batches]
    found = tb.top_eigen(model, loss, batches, "hessian", weights=counts, rtol=1e-6)
    whole = tuple(torch.cat(parts) for parts in zip(*batches, strict=True))
    truth = top(model, lambda: loss(model, whole))
    assert found.value == pytest.approx(truth, rel=1e-5)


@pytest.mark.parametrize("closed", [False, True])
def test_class_weights_in_a_loss_of_ones_own_are_noticed_where_batches_hold_one_class(
    closed: bool,
) -> None:
    loss, batches = sorted_classes()
    model = net()
    with pytest.raises(InputError, match="neither a mean nor a sum"):
        tb.top_eigen(model, closure_of(loss) if closed else loss, batches, "hessian")
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    known = tb.top_eigen(model, nn.CrossEntropyLoss(weight=CLASS_WEIGHTS), batches, "hessian")
    truth = top(model, lambda: loss(model(x), y))
    assert known.value == pytest.approx(truth, rel=1e-3)


def test_a_loss_with_weights_of_all_samples_is_refused_by_a_scan_of_batches_in_a_sentence() -> None:
    x = torch.randn(23, 3, dtype=torch.float64)
    loss = nn.BCEWithLogitsLoss(weight=torch.rand(23, 1, dtype=torch.float64))
    with pytest.raises(InputError, match="on one batch"):
        tb.scan(net(), loss, (x, torch.rand_like(x)), batch_size=6, horizon=10, seeds=1)


def test_micro_batches_of_several_batches_are_tried_together() -> None:
    loss, batches = marked(0)
    whole = tuple(torch.cat(parts) for parts in zip(*batches, strict=True))
    model = net()
    right = tb.forward_critical_rate(model, loss, whole)
    found = tb.forward_critical_rate(model, loss, batches, micro_batch=2)
    assert (found.low, found.high) == pytest.approx((right.low, right.high), rel=1e-6)
    heavy, sorted_batches = sorted_classes()
    with pytest.raises(InputError, match="neither a mean nor a sum"):
        tb.forward_critical_rate(model, heavy, sorted_batches, micro_batch=2)
