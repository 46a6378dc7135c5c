"""Sweeps of any module, loss, optimizer and batches: each run is the plain loop's, and a scan's."""

import copy
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

import trebuchet as tb
from tests.sweeps.interrupting import differing
from trebuchet.errors import InputError

F64 = torch.float64
G = torch.Generator().manual_seed(0)
X, TOKENS = torch.randn(24, 5, dtype=F64, generator=G), torch.randint(0, 9, (20, 6), generator=G)
Y = X[:, :2] * X[:, 1:2]
IMAGES = torch.randn(30, 1, 6, 6, dtype=F64, generator=G)
CLASSES = torch.arange(30) % 3


def _mlp(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2)).double()


def _cnn(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3)
    ).double()


class Transformer(nn.Module):
    """Next tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 9)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.head(self.layer(self.embed(tokens)))
        return out


def _transformer(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return Transformer().double()


def _tokens(z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(z.flatten(0, 1), y.flatten())


def _penalised(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    x, y = batch
    penalty = sum(p.square().sum() for p in model.parameters())
    return F.mse_loss(model(x), y) + 1e-3 * penalty


PROBLEMS: dict[str, tuple[Callable[[int], nn.Module], Any, Any, Any]] = {
    "full batch": (_mlp, "mse", (X, Y), "sgd"),
    "nesterov": (_mlp, nn.HuberLoss(), (X, Y), "nesterov"),
    "closure": (_mlp, _penalised, (X, Y), "adam"),
    "list of batches": (_mlp, "mse", [(X[:10], Y[:10]), (X[10:], Y[10:])], "rmsprop"),
    "transformer": (_transformer, _tokens, (TOKENS, TOKENS.roll(1, 1)), torch.optim.AdamW),
    "batch norm": (_cnn, "cross_entropy", (IMAGES, CLASSES), "momentum"),
}
HOW: dict[str, dict[str, Any]] = {
    "transformer": {"batch_size": 5, "clip_grad_norm": 1.0},
    "batch norm": {"batch_size": 10, "accumulate": 2, "schedule": lambda t: 1 / (1 + 0.1 * t)},
}


def _problem(kind: str, **changes: Any) -> tb.Problem:
    make, loss, data, optimizer = PROBLEMS[kind]
    return tb.Problem(make, loss, data, optimizer, **{**HOW.get(kind, {}), **changes})


def _seen(problem: tb.Problem, seed: int, steps: int) -> list[list[Any]]:
    """The batches that a run sees, found out by a run that keeps them."""
    seen: list[Any] = []
    net = problem.initial(seed)

    def spying(model: nn.Module, batch: Any) -> Tensor:
        if model.training and torch.is_grad_enabled():
            seen.append(batch)
        return next(model.parameters()).square().sum()

    spied = tb.Problem(
        net, spying, problem.data, batch_size=problem.batch_size, accumulate=problem.accumulate
    )
    tb.sweep(spied, lr=[1e-9], seeds=[seed], steps=steps, observables=())
    each = problem.accumulate
    last = seen[-steps * each :]
    return [last[i : i + each] for i in range(0, len(last), each)]


def _plain_loop(problem: tb.Problem, seed: int, rate: float, steps: int) -> dict[str, Tensor]:
    """What anybody would write: the weights after so many steps."""
    net = problem.initial(seed).train()
    made: Any = problem.optimizer
    makers = {
        "sgd": lambda p: torch.optim.SGD(p, lr=rate),
        "momentum": lambda p: torch.optim.SGD(p, lr=rate, momentum=0.9),
        "nesterov": lambda p: torch.optim.SGD(p, lr=rate, momentum=0.9, nesterov=True),
        "adam": lambda p: torch.optim.Adam(p, lr=rate),
        "rmsprop": lambda p: torch.optim.RMSprop(p, lr=rate),
    }
    make: Any = makers[made] if isinstance(made, str) else partial(made, lr=rate)
    optimizer = make(net.parameters())
    losses: dict[Any, Any] = {"mse": F.mse_loss, "cross_entropy": F.cross_entropy}
    loss: Any = losses.get(problem.loss, problem.loss)
    for t, batches in enumerate(_seen(problem, seed, steps)):
        optimizer.zero_grad()
        for batch in batches:
            value = loss(net, batch) if loss is _penalised else loss(net(batch[0]), batch[1])
            torch.autograd.backward(value / len(batches))
        if problem.clip_grad_norm is not None:
            nn.utils.clip_grad_norm_(net.parameters(), problem.clip_grad_norm)
        if problem.multiplier is not None:
            for group in optimizer.param_groups:
                group["lr"] = rate * problem.multiplier(t)
        optimizer.step()
    return {name: t.detach().clone() for name, t in net.state_dict().items()}


class Weights(tb.Observable):
    """Every number of the model, so that runs can be compared to the last one."""

    name = "weights"
    dim = "entry"

    def __init__(self, size: int) -> None:
        self.size = size

    def measure(self, model: nn.Module, problem: tb.Problem) -> Any:
        parts = [t.detach().double().flatten() for t in model.state_dict().values()]
        return torch.cat(parts).numpy()


@pytest.mark.parametrize("kind", PROBLEMS)
def test_each_run_is_the_plain_loop_s(kind: str) -> None:
    problem, steps = _problem(kind), 6
    size = sum(t.numel() for t in problem.initial(0).state_dict().values())
    runs = tb.sweep(problem, lr=[0.01, 0.1], seeds=2, steps=steps, observables=[Weights(size)])
    for seed in (0, 1):
        for rate in (0.01, 0.1):
            wanted = _plain_loop(problem, seed, rate, steps)
            flat = torch.cat([t.double().flatten() for t in wanted.values()]).numpy()
            found = runs["weights_final"].sel(lr=rate, seed=seed).values
            # The same operations, but for how accumulated gradients are added up. Biases of keys
            # have no gradient but rounding, 1e-17, which Adam divides by its ε of 1e-8.
            np.testing.assert_allclose(found, flat, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", PROBLEMS)
def test_models_and_random_states_are_as_they_were(kind: str) -> None:
    make, loss, data, optimizer = PROBLEMS[kind]
    net = make(0)
    before, state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    tb.sweep(tb.Problem(net, loss, data, optimizer, **HOW.get(kind, {})), lr=[0.1], steps=3)
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    assert torch.equal(torch.get_rng_state(), state)


NUMBERS = (
    "status", "steps", "loss_first", "loss_max", "loss_max_step", "loss_min", "loss_final",
    "last_above", "phase", "peak_ratio", "final_ratio", "recovery_step", "gradient_norm_first",
    "gradient_norm_final", "weight_norm_first", "weight_norm_final",
)  # fmt: skip


@pytest.mark.parametrize("kind", PROBLEMS)
def test_a_sweep_s_runs_are_a_scan_s(kind: str) -> None:
    """The rates of a scan that bisects both edges are crowded around them."""
    make, loss, data, optimizer = PROBLEMS[kind]
    problem = tb.Problem(make(3), loss, data, optimizer, **HOW.get(kind, {}))
    scan = tb.scan(
        problem, horizon=30, seeds=[0], edge_rtol=0.01, budget=1500, curvature="none"
    ).runs.sel(seed=[0])  # of the model's own weights
    runs = tb.label(
        tb.sweep(problem, lr=scan.lr.values, seeds=[0], steps=30, observables=[],
                 delta=scan.attrs["delta"])
    )  # fmt: skip
    ended = ~scan.status.isin(["dropped", "not_run"]).values
    assert ended.sum() > 8
    for name in NUMBERS:
        a, b = scan[name].values[ended], runs[name].values[ended]
        np.testing.assert_array_equal(a, b, err_msg=name)
    np.testing.assert_array_equal(scan.loss.values[ended], runs.loss.values[ended])
    assert tb.label(scan).phase.equals(scan.phase)


def test_a_few_hundred_runs_crowded_around_edges_agree_in_everything() -> None:
    """As a scan of given rates: every verdict, every recovery step, every number."""
    found = 0
    for seed in range(6):
        g = torch.Generator().manual_seed(seed)
        x = torch.randn(10, 4, dtype=F64, generator=g)
        y = torch.randn(10, 1, dtype=F64, generator=g)
        torch.manual_seed(seed)
        act: nn.Module = nn.Tanh() if seed % 2 else nn.ReLU()
        net = nn.Sequential(nn.Linear(4, 12), act, nn.Linear(12, 1)).double()
        problem = tb.Problem(net, "half_mse", (x, y), "sgd")
        scan = tb.scan(problem, horizon=20, edge_rtol=1e-4, budget=2000, curvature="initial")
        near = [scan.lr_crit, scan.lr_loss.value, scan.lr_max.value]
        rates = np.unique(np.concatenate([v * np.linspace(0.98, 1.02, 13) for v in near]))
        swept = tb.label(tb.sweep(problem, lr=rates, steps=20, observables=[]))
        # A scan that takes each of these rates to its horizon.
        whole = tb.scan(
            problem, horizon=20, rates=list(rates), budget=10**6, edge_rtol=1e-4, curvature="none"
        ).runs.sel(seed=[0])  # fmt: skip  # of the model's own weights
        both = np.isin(whole.lr.values, rates) & ~whole.status.isin(["dropped"]).values[:, 0]
        for lr in whole.lr.values[both]:
            a, b = whole.sel(lr=lr), swept.sel(lr=lr)
            for name in NUMBERS:
                np.testing.assert_array_equal(a[name].values, b[name].values, err_msg=name)
            found += 1
        own = scan.runs.sel(seed=[0])
        ended = own.where(~own.status.isin(["dropped", "not_run"]), drop=True)
        again = tb.label(tb.sweep(problem, lr=ended.lr.values, steps=20, observables=[]))
        for name in ("phase", "recovery_step", "peak_ratio", "loss_final"):
            np.testing.assert_array_equal(ended[name].values, again[name].values, err_msg=name)
        found += ended.lr.size
    assert found > 150


def test_theory_s_own_kernels_give_the_module_s_runs() -> None:
    problem = tb.Problem(
        lambda s: tb.MLP.draw(5, 16, generator=s), "half_mse", (X, Y[:, 0]), test=(X[:4], Y[:4, 0])
    )
    fast = tb.label(tb.sweep(problem, lr_ratio=[0.7, 1.9, 2.6], seeds=2, steps=25))
    slow = tb.label(tb.sweep(problem, lr_ratio=[0.7, 1.9, 2.6], seeds=2, steps=25, engine="module"))
    assert fast.attrs["kernel"] == "MLPKernel"
    assert slow.attrs["kernel"] == "ModuleKernel"
    assert fast.phase.equals(slow.phase)
    for name in ("loss", "top_eigenvalue", "weight_norm", "test_loss_final", "top_eigenvalue_max"):
        np.testing.assert_allclose(fast[name], slow[name], rtol=1e-9)
    assert float(slow.law_residual.max()) < 1e-12  # of the module too, which states its degree


def test_labelled_plotted_saved_loaded(tmp_path: Path) -> None:
    runs = tb.label(
        tb.sweep(_problem("transformer"), lr=[1e-3, 1e-2, 1.0], seeds=2, steps=8,
                 observables=["accuracy", "gradient_norm"])
    )  # fmt: skip
    read = tb.load(tb.save(runs, tmp_path / "runs.zarr"))
    xr.testing.assert_identical(read, runs)
    assert tb.table(runs)["lr"].tolist() == [1e-3, 1e-2, 1.0]
    tb.plots.phase_bar(runs, x="lr", ax=Figure().add_subplot())
    tb.plots.traces(runs, "loss", ax=Figure().add_subplot())
    assert set(np.unique(runs.phase)) <= set(tb.Phase)


@pytest.mark.parametrize("kind", ["full batch", "transformer", "batch norm"])
@pytest.mark.parametrize("after", [3, 14, 33])
def test_ctrl_c_and_on_again(kind: str, after: int, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {
        "lr": [0.01, 0.1], "seeds": 2, "steps": 10, "observables": ["gradient_norm"],
    }  # fmt: skip
    calls = 0
    make, loss, data, optimizer = PROBLEMS[kind]

    def counted(model: nn.Module, batch: Any) -> Tensor:
        nonlocal calls
        if torch.is_grad_enabled() and threading.current_thread() is threading.main_thread():
            calls += 1
            if calls == after:
                raise KeyboardInterrupt
        plain: Any = {"mse": F.mse_loss, "cross_entropy": F.cross_entropy}.get(loss, loss)
        value: Tensor = plain(model(batch[0]), batch[1])
        return value

    problem = tb.Problem(make, counted, data, optimizer, **HOW.get(kind, {}))
    try:
        part = tb.sweep(problem, **arguments, checkpoint=tmp_path / "c")
    except KeyboardInterrupt:  # before the first run: there is nothing to keep
        part = None
    if part is not None:
        assert part.attrs["interrupted"] == 1
        assert "interrupted" in part.status.values
        there = tb.load(tmp_path / "c")
        assert set(there.data_vars) <= set(part.data_vars)  # nothing that only the loop knows
        ended = there.status.values != "not_run"
        np.testing.assert_array_equal(there.loss.values[ended], part.loss.values[ended])
    calls = after + 1
    resumed = tb.sweep(problem, **arguments, checkpoint=tmp_path / "c")
    whole = tb.sweep(problem, **arguments)
    assert differing(whole, resumed) == []


def test_seeds_are_orders_where_there_is_one_module() -> None:
    net = _mlp(0)
    batches = tb.Problem(net, "mse", (X, Y), batch_size=6)
    runs = tb.sweep(batches, lr=[0.05], seeds=2, steps=6)
    final = runs.loss_final.values[0]
    assert final[0] != final[1]
    with pytest.raises(InputError, match="seeds: expected one"):
        tb.sweep(net, "mse", (X, Y), lr=[0.05], seeds=2, steps=6)


def test_a_tolerance_is_for_losses_without_noise() -> None:
    with pytest.raises(InputError, match="tolerance: expected None"):
        tb.sweep(_problem("transformer"), lr=[0.01], steps=5, tolerance=1e-3)


@pytest.mark.parametrize("engine", ["batched", "sequential"])
def test_engines_of_outputs_say_what_they_are_for(engine: Any) -> None:
    with pytest.raises(InputError, match=r"engine: .* full-batch gradient descent"):
        tb.sweep(_problem("transformer"), lr=[0.01], steps=5, engine=engine)


def test_a_factory_that_draws_from_the_global_generators_is_seeded() -> None:
    state = torch.get_rng_state()
    problem = tb.Problem(lambda seed: nn.Linear(5, 2).double(), "mse", (X, Y))
    first, again = (tb.sweep(problem, lr=[0.1], seeds=2, steps=3) for _ in range(2))
    assert differing(first, again) == []
    assert first.loss_first.values[0, 0] != first.loss_first.values[0, 1]
    assert torch.equal(torch.get_rng_state(), state)


def test_targets_without_the_outputs_last_dimension_are_not_broadcast() -> None:
    net, y = nn.Linear(5, 1).double(), Y[:, 0]

    def loss(z: Tensor, target: Tensor) -> Tensor:
        return (z - target).square().mean()

    made = [
        tb.sweep(tb.Problem(net, loss, (X, targets), batch_size=size), lr=[0.1], steps=4)
        for targets in (y, y[:, None])
        for size in (None, 6)
    ]
    np.testing.assert_array_equal(made[0].loss, made[2].loss)
    np.testing.assert_array_equal(made[1].loss, made[3].loss)
    assert "broadcasting would spoil" in made[0].attrs["notes"]
    scans = [tb.scan(net, loss, (X, t), horizon=10, rates=[0.05, 0.1]) for t in (y, y[:, None])]
    np.testing.assert_array_equal(scans[0].runs.loss, scans[1].runs.loss)
    assert any("broadcasting" in note for note in scans[0].notes)


@pytest.mark.parametrize(
    ("first", "other"),
    [
        ({"optimizer": partial(torch.optim.Adam, eps=1e-8)},
         {"optimizer": partial(torch.optim.Adam, eps=1e-3)}),
        ({"schedule": lambda t: 1.0}, {"schedule": lambda t: 0.9**t}),
        ({"schedule": partial(torch.optim.lr_scheduler.StepLR, step_size=2)},
         {"schedule": partial(torch.optim.lr_scheduler.StepLR, step_size=3)}),
        ({"clip_grad_norm": 1.0}, {"clip_grad_norm": 0.1}),
    ],
)  # fmt: skip
def test_a_checkpoint_is_not_taken_up_by_another_training(
    first: dict[str, Any], other: dict[str, Any], tmp_path: Path
) -> None:
    def sweep(how: dict[str, Any]) -> xr.Dataset:
        problem = tb.Problem(_mlp, "mse", (X, Y), **{"batch_size": 6, **how})
        return tb.sweep(problem, lr=[0.01], steps=5, checkpoint=tmp_path / "c")

    whole = sweep(first)
    assert differing(sweep(first), whole) == []
    with pytest.raises(InputError, match=r"holds another sweep \(it differs in .*trained\)"):
        sweep(other)


def test_a_rate_that_weights_cannot_take_is_refused() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    problem = tb.Problem(net, "mse", (torch.ones(4, 2), torch.zeros(4, 1)))
    with pytest.raises(tb.errors.InputError, match=r"lr: expected rates up to 3\.4e\+38"):
        tb.sweep(problem, lr=[1e300], seeds=[0], steps=2)
    with pytest.raises(tb.errors.InputError, match=r"lr: expected rates up to 3\.4e\+38"):
        tb.scan(problem, rates=[1e300], horizon=10)
