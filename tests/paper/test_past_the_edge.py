"""Test loss past the critical rate, and the edge of stability, against plain loops."""

from collections.abc import Callable
from typing import cast

import numpy as np
import pytest
import torch
import xarray as xr
from scipy.stats import spearmanr
from torch import Tensor, nn

import trebuchet as tb
from trebuchet.data import load_digits01
from trebuchet.errors import InputError
from trebuchet.paper.beyond import (
    edge_of_stability,
    held_out_over_rates,
    relu_problem,
    tanh_problem,
)
from trebuchet.paper.beyond.held_out import at_loss


def half_mse(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    loss: Tensor = 0.5 * (model(x).squeeze(-1) - y).square().mean()
    return loss


def plain(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    lr: float,
    steps: int,
    look: Callable[[], float],
    every: int = 1,
) -> np.ndarray:
    """Training loss, and what `look` sees, at every or every few steps, ``(rows, 2)``."""
    parameters = list(model.parameters())
    seen = []
    for step in range(steps + 1):
        loss = half_mse(model, x, y)
        if step % every == 0:
            seen.append((float(loss.detach()), look()))
        grads = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for p, g in zip(parameters, grads, strict=True):
                p.sub_(lr * g)
    return np.asarray(seen)


# Test loss


def test_value_at_a_loss_is_interpolated_in_its_logarithm() -> None:
    steps = np.arange(6.0)
    assert at_loss(np.exp(-steps), 3 * steps, np.exp(-2.25)) == pytest.approx(6.75)
    assert at_loss([0.5, 0.1], [7.0, 8.0], 0.6) == 7.0
    assert np.isnan(at_loss([1.0, 0.5, np.nan], [1.0, 2.0, np.nan], 0.4))
    # the first time counts, and a loss of zero is below any target
    assert at_loss([1.0, 0.1, 2.0, 0.01], [1.0, 2.0, 3.0, 4.0], 0.1) == pytest.approx(2.0)
    assert 1.0 < at_loss([1.0, 0.0], [1.0, 2.0], 0.1) < 2.0


def test_problems_hold_the_test_samples_of_the_data() -> None:
    data = load_digits01(16)
    for problem in (relu_problem(8, n_train=16), tanh_problem(8, n_train=16)):
        x, y = cast("tuple[Tensor, Tensor]", problem.test)
        assert torch.equal(x, torch.as_tensor(data.x_test).float())
        assert torch.equal(y, torch.as_tensor(data.y_test).float())


@pytest.fixture(scope="module")
def compared() -> xr.Dataset:
    """A small comparison, in which one rate is too small to reach the target and one diverges."""
    return held_out_over_rates(
        widths=[24], lr_ratio=[0.05, 1.0, 1.5, 2.5, 60.0], seeds=[1, 2], n_train=32,
        steps=200, target=0.005, dtype=torch.float64, workers=1,
    )  # fmt: skip


@pytest.mark.parametrize("ratio", [1.0, 2.5])
def test_test_loss_at_equal_training_loss_is_that_of_a_plain_loop(
    compared: xr.Dataset, ratio: float
) -> None:
    problem, seed = relu_problem(24, n_train=32, dtype=torch.float64), 1
    model = problem.initial(seed)
    data = load_digits01(32)
    x, y = (torch.as_tensor(a).double() for a in (data.x_test, data.y_test))
    # To nine digits, not to the default's thousandth, and in float64: a catapult amplifies both.
    top = tb.top_eigen(problem.initial(seed), "half_mse", problem.data, rtol=1e-9)
    lr = ratio / top.value

    def held_out() -> float:
        with torch.no_grad():
            return float(half_mse(model, x, y))

    seen = plain(model, problem.x, problem.y, lr, 200, held_out)
    recorded = tb.Recording(every=30, dense=30, per_decade=12).steps(200)
    losses, tests = seen[recorded].T
    assert losses[1] > 0.005 > losses[-1]
    first = int(np.argmax(losses <= 0.005))
    around = slice(first - 1, first + 1)
    # np.interp wants rising positions
    expected = np.interp(np.log(0.005), np.log(losses[around][::-1]), tests[around][::-1])
    found = compared.test_loss.sel(data="digits", width=24, lr=ratio, seed=seed)
    assert float(found.sel(at="target")) == pytest.approx(expected, rel=1e-5)
    assert float(found.sel(at="end")) == pytest.approx(seen[-1, 1], rel=1e-5)


def test_runs_are_compared_within_their_phase_and_counted(compared: xr.Dataset) -> None:
    one = compared.sel(data="digits", width=24)
    assert (one.phase.sel(lr=60.0) == "divergent").all()
    assert one.test_loss.sel(lr=60.0).isnull().all()
    assert (one.phase.sel(lr=0.05) == "lazy").all()
    assert one.test_loss.sel(lr=0.05, at="target").isnull().all()
    assert one.test_loss.sel(lr=0.05, at="end").notnull().all()
    trained = one.phase.isin(["lazy", "catapult"])
    low = (one.test_loss.sel(at="target").notnull() & trained).sum()
    assert int(one.never_reached) == int(trained.sum() - low) >= 2
    for at in ("target", "end"):
        for seed in (1, 2):
            runs = one.sel(at=at, seed=seed)
            columns = (runs[name].values.tolist() for name in ("phase", "sparsity", "test_loss"))
            pairs = [row for row in zip(*columns, strict=True) if np.isfinite(row[2])]
            for phase in ("lazy", "catapult"):
                mine = [t for p, _, t in pairs if p == phase]
                assert float(runs[f"best_{phase}"]) == pytest.approx(min(mine))
                assert float(runs[f"median_{phase}"]) == pytest.approx(np.median(mine))
            _, sparse, losses = zip(*pairs, strict=True)
            expected = spearmanr(sparse, losses).statistic
            assert float(runs.rank_correlation.sel(among="trained")) == pytest.approx(expected)


def test_a_target_reached_while_losses_still_swing_is_no_place_to_compare() -> None:
    found = held_out_over_rates(
        widths=[24], lr_ratio=[1.0, 2.5], seeds=1, n_train=16, steps=60, target=0.2, workers=1
    )
    assert found.test_loss.sel(at="target").isnull().all()
    assert found.test_loss.sel(at="end").notnull().all()
    assert int(found.never_reached.sel(data="digits")) == 2


def test_targets_are_one_or_one_a_data_set() -> None:
    with pytest.raises(InputError, match=r"target: expected one number, or 1, .* got 2"):
        held_out_over_rates(target=[0.1, 0.2])
    with pytest.raises(InputError, match="target: expected a positive"):
        held_out_over_rates(target=[0.0])
    with pytest.raises(InputError, match=r"data: expected any of \['cifar10', 'digits'"):
        held_out_over_rates(data=["digits", "mnits"])


# Edge of stability


def test_trajectory_and_its_numbers_are_those_of_a_plain_loop_on_whole_images() -> None:
    """8 images of 64 pixels: trained in their span here, as they are in the loop."""
    ratio, seed, steps, every = 1.9, 3, 150, 10
    found = edge_of_stability(
        lr_ratio=[1.0, ratio], seeds=[0, seed], steps=steps, every=every, width=6, hidden=1,
        n_train=8,
    ).sel(lr=ratio, seed=seed)  # fmt: skip
    problem = tanh_problem(6, hidden=1, n_train=8, dtype=torch.float64)
    net = tanh_problem(6, hidden=1, n_train=8).initial(seed).double()  # the same draw
    x, y = problem.x, problem.y
    top = tb.top_eigen(net, "half_mse", (x, y)).value
    assert float(found.learning_rate) == pytest.approx(ratio / top, rel=1e-4)
    parameters = list(net.parameters())

    def sharpness() -> float:
        slopes = torch.autograd.grad(half_mse(net, x, y), parameters, create_graph=True)
        rows = [
            torch.autograd.grad(slope, parameters, retain_graph=True)
            for slope in torch.cat([g.flatten() for g in slopes])
        ]
        hessian = torch.stack([torch.cat([r.flatten() for r in row]) for row in rows])
        return float(torch.linalg.eigvalsh(hessian)[-1])

    kept = plain(net, x, y, float(found.learning_rate), steps, sharpness, every)
    np.testing.assert_allclose(found.loss, kept[:, 0], rtol=2e-3, atol=1e-7)
    np.testing.assert_allclose(found.sharpness, kept[:, 1], rtol=3e-3)  # Lanczos to 1e-3
    relative = kept[:, 1] * float(found.learning_rate) / 2
    late = relative[np.arange(0, steps + 1, every) >= 2 * steps / 3]
    assert float(found.level) == pytest.approx(late.mean(), rel=3e-3)
    assert float(found.spread) == pytest.approx(late.std(), abs=2e-3)
    assert float(found.sharpening) == pytest.approx(kept[:, 1].max() / kept[0, 1], rel=3e-3)
    above = np.flatnonzero(relative >= 1)
    expected = every * above[0] if above.size else np.nan
    np.testing.assert_equal(float(found.reached), float(expected))


def test_share_of_rising_steps_is_of_single_steps() -> None:
    """Beyond 2/η a tanh net swings from step to step, which every second step would not show."""
    found = edge_of_stability(
        lr_ratio=[1.0, 3.0], seeds=1, steps=90, every=30, width=6, hidden=1, n_train=8
    )
    low, high = found.rising_share.values[:, 0]
    assert low == 0
    problem = tanh_problem(6, hidden=1, n_train=8)
    lr = float(found.learning_rate[1, 0])
    losses = plain(problem.initial(0), problem.x, problem.y, lr, 90, lambda: 0.0)[60:, 0]
    assert high == pytest.approx((np.diff(losses) > 0).mean(), abs=2 / 30)


def test_every_must_leave_a_last_third() -> None:
    with pytest.raises(InputError, match="every: expected at most a third of the 10 steps, got 4"):
        edge_of_stability(steps=10, every=4)
