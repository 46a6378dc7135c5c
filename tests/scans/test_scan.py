"""The front door: every batch form, optimizer and option, and what comes back."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from trebuchet.problem.batch import take
from trebuchet.problem.stream import make_stream
from trebuchet.scans.door import Scan, scan
from trebuchet.scans.tables import RUN_COLUMNS

CPU = torch.device("cpu")


def _net(seed: int = 0, outputs: int = 3, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, outputs)).to(dtype)


def _classes(n: int = 60) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    y = torch.arange(n) % 3
    return torch.randn(n, 6, generator=g, dtype=torch.float64) + 2 * nn.functional.one_hot(y, 6), y


@pytest.fixture(scope="module")
def scanned() -> Scan:
    return scan(_net(), "cross_entropy", _classes(), "momentum", batch_size=20, horizon=60)


def test_suggested_rate_beats_rates_four_times_smaller_and_larger(scanned: Scan) -> None:
    x, y = _classes()

    def final(rate: float) -> float:
        losses = []
        for seed in (11, 12):
            model, generator = _net(), torch.Generator().manual_seed(seed)
            steps = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
            for _ in range(60):
                rows = torch.randperm(60, generator=generator)[:20]
                steps.zero_grad()
                torch.autograd.backward(nn.functional.cross_entropy(model(x[rows]), y[rows]))
                steps.step()
            losses.append(nn.functional.cross_entropy(model(x), y).item())
        return float(np.nan_to_num(np.mean(losses), nan=np.inf))

    best = scanned.suggestion.rate
    start = scanned.settings["loss_first"]
    soft = 0.02 * start
    assert final(best) + soft < final(best / 4) + soft
    assert final(best) + soft < 1.05 * (final(best * 4) + soft)
    assert scanned.suggestion.low <= best <= scanned.suggestion.high
    assert scanned.suggestion.expected_loss < start


def test_budget_counts_every_gradient_and_is_kept(scanned: Scan) -> None:
    assert scanned.cost["gradients"] <= 240
    calls = 0

    def loss(z: Tensor, y: Tensor) -> Tensor:
        nonlocal calls
        calls += z.requires_grad and torch.is_grad_enabled()
        return nn.functional.cross_entropy(z, y)

    result = scan(_net(), loss, _classes(), horizon=40, budget=120, curvature="none")
    assert result.cost["gradients"] == calls
    assert calls <= 120
    assert (result.run_table["steps"] == 40).any()


def test_same_call_same_result(scanned: Scan) -> None:
    torch.manual_seed(99)  # the caller's random state does not matter
    again = scan(_net(), "cross_entropy", _classes(), "momentum", batch_size=20, horizon=60)
    assert again.suggestion == scanned.suggestion
    np.testing.assert_array_equal(again.run_table["loss"], scanned.run_table["loss"])


def _closure(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch["x"]), batch["labels"])


class Named(nn.Module):
    """Takes its input by name, as models of language do."""

    def __init__(self) -> None:
        super().__init__()
        self.net = _net()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


@pytest.mark.parametrize("form", ["pair", "dict", "batches", "loader", "closure"])
def test_every_batch_form_gives_the_full_batch_result(form: str) -> None:
    x, y = _classes(30)
    forms: dict[str, tuple[nn.Module, Any, Any]] = {
        "pair": (_net(), "cross_entropy", (x, y)),
        "dict": (Named(), "cross_entropy", {"x": x, "labels": y}),
        "batches": (_net(), "cross_entropy", [(x, y)]),
        "loader": (_net(), "cross_entropy", DataLoader(TensorDataset(x, y), batch_size=30)),
        "closure": (Named(), _closure, {"x": x, "labels": y}),
    }
    model, loss, data = forms[form]
    plain = scan(_net(), "cross_entropy", (x, y), horizon=20, curvature="none")
    result = scan(model, loss, data, horizon=20, curvature="none")
    np.testing.assert_allclose(result.run_table["loss"], plain.run_table["loss"], rtol=1e-12)
    assert result.suggestion.rate == pytest.approx(plain.suggestion.rate, rel=1e-9)


def test_closure_has_a_hessian() -> None:
    x, y = _classes(30)
    result = scan(Named(), _closure, {"x": x, "labels": y}, horizon=40)
    assert "Hessian" in result.critical.convention
    assert result.lr_crit == pytest.approx(2 / result.top_eigenvalue)


def test_shuffled_loader_is_drawn_anew_for_every_seed_and_left_alone() -> None:
    generator = torch.Generator().manual_seed(5)
    loader = DataLoader(
        TensorDataset(*_classes()), batch_size=16, shuffle=True, generator=generator
    )
    before = generator.get_state()
    result = scan(_net(), "cross_entropy", loader, "adam", horizon=20)
    assert torch.equal(before, generator.get_state())
    assert result.settings["batch_size"] == 16
    assert result.settings["n_samples"] == 60


def test_accumulated_batches_are_one_step() -> None:
    x, y = _classes(40)
    halves = [(x[:20], y[:20]), (x[20:], y[20:])]
    settings: dict[str, Any] = {"horizon": 100, "curvature": "none", "delta": 0.01, "seeds": 1}
    whole = scan(_net(), "cross_entropy", (x, y), **settings)
    parts = scan(_net(), "cross_entropy", halves, accumulate=2, **settings)
    a, b = (s.traces.set_index(["rate", "step"])["loss"] for s in (whole, parts))
    common = [(r, t) for r, t in b.index if t in (1, 2, 3, 5, 7) and (r, t) in a.index]
    assert len(common) >= 20
    # Two halves' mean gradient is the whole's, so the runs are the same but for rounding.
    for key in common:
        assert b[key] == pytest.approx(a[key], rel=1e-6)


def test_micro_batches_do_not_change_the_gradient() -> None:
    settings: dict[str, Any] = {"horizon": 20, "curvature": "none"}
    whole = scan(_net(), "cross_entropy", _classes(), **settings)
    parts = scan(_net(), "cross_entropy", _classes(), micro_batch=7, **settings)
    np.testing.assert_allclose(parts.run_table["loss"], whole.run_table["loss"], rtol=1e-8)


def test_rate_scales_every_group_and_keeps_their_ratio() -> None:
    seen = []

    class Watched(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            seen.append([g["lr"] for g in self.param_groups])
            return super().step(closure)

    model = _net()
    layers = [p for p in model.parameters()]
    optimizer = Watched([{"params": layers[:2], "lr": 0.1}, {"params": layers[2:], "lr": 0.3}])
    result = scan(model, "cross_entropy", _classes(), optimizer, horizon=20)
    assert len(seen) > 20
    assert all(b == pytest.approx(3 * a) for a, b in seen)
    assert {round(r, 12) for r in result.table["rate"]} <= {round(a, 12) for a, _ in seen}
    assert [g["lr"] for g in optimizer.param_groups] == [0.1, 0.3]


def test_schedule_multiplies_the_rate() -> None:
    settings: dict[str, Any] = {"horizon": 20, "curvature": "none", "rates": [0.01, 0.02, 0.04]}
    plain = scan(_net(), "cross_entropy", _classes(), **settings)
    halved = scan(_net(), "cross_entropy", _classes(), schedule=lambda t: 0.5, **settings)
    a = plain.traces.set_index(["rate", "step"])["loss"]
    b = halved.traces.set_index(["rate", "step"])["loss"]
    low, high = (min(plain.table["rate"], key=lambda r: abs(r - v)) for v in (0.01, 0.02))
    assert b[high, 1] == pytest.approx(a[low, 1], rel=1e-9)


def test_every_rate_too_small_is_said_and_the_search_extends_itself() -> None:
    result = scan(_net(), "cross_entropy", _classes(), horizon=40, rates=[1e-6, 2e-6])
    assert any("every rate tried at first was too small" in note for note in result.notes)
    assert result.suggestion.rate > 1e-5


def test_every_rate_too_large() -> None:
    x, _ = _classes()
    result = scan(_net(outputs=1), "mse", (x, x[:, :1]), horizon=40, rates=[1e5, 1e6])
    assert result.suggestion.rate < 1e2
    assert any("too large" in note for note in result.notes)


def test_autocast_runs_the_model_in_half_precision() -> None:
    seen = set()

    def loss(z: Tensor, y: Tensor) -> Tensor:
        seen.add(z.dtype)
        return nn.functional.cross_entropy(z.float(), y)

    x, y = _classes()
    net = _net(dtype=torch.float32)
    scan(net, loss, (x.float(), y), horizon=20, autocast=torch.bfloat16, curvature="none")
    assert seen == {torch.bfloat16}


def test_final_curvature_gives_drift_and_lr_ratio() -> None:
    x, _ = _classes()
    result = scan(_net(outputs=1), "half_mse", (x, x[:, :1]), horizon=40, curvature="final")
    whole = result.run_table[result.run_table["status"] == "max_steps"]
    assert (whole["lr_ratio_final"] > 0).all()
    assert (whole["kernel_drift"] >= 0).all()
    assert whole["sparsity"].between(0.01, 0.99).all()
    dropped = result.run_table[result.run_table["status"] == "dropped"]
    assert dropped["lr_ratio_final"].isna().all()


def test_no_second_derivative_leaves_the_forward_rate() -> None:
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x.clone()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return grad

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = _net()

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = Once.apply(self.net(x))  # type: ignore[no-untyped-call]
            return out

    result = scan(Net(), lambda z, y: nn.functional.cross_entropy(z, y), _classes(), horizon=20)
    if np.isnan(result.lr_crit):
        assert any("no critical rate from curvature" in note for note in result.notes)
    assert result.lr_forward.low > 0
    assert result.suggestion.rate > 0


def test_batch_norm_statistics_are_those_of_training() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 3)
    ).double()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    result = scan(net, "cross_entropy", _classes(), "adam", batch_size=20, horizon=40)
    assert result.suggestion.expected_loss < 0.8 * result.settings["loss_first"]
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_model_in_eval_mode_is_trained_in_train_mode_and_left_in_eval() -> None:
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)).double().eval()
    scan(net, "cross_entropy", _classes(), horizon=20)
    assert not any(m.training for m in net.modules())


def test_progress_is_reported_and_ends() -> None:
    seen: list[tuple[int, int]] = []
    scan(
        _net(), "cross_entropy", _classes(), horizon=20,
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert seen[-1][0] == seen[-1][1]
    assert [d for d, _ in seen] == sorted(d for d, _ in seen)
    assert all(done < total for done, total in seen[:-1])


def test_runs_have_a_row_each_and_nothing_made_up(scanned: Scan) -> None:
    runs = scanned.run_table
    assert list(runs) == list(RUN_COLUMNS)
    dropped = runs[runs["status"] == "dropped"]
    assert dropped["loss_horizon"].isna().all()
    assert (dropped["steps"] < 60).all()
    assert (runs["steps"] > 0).all()
    whole = runs[runs["status"] == "max_steps"]
    assert whole["loss_horizon"].notna().all()


def test_stream_visits_every_sample_once_a_pass() -> None:
    x = torch.arange(10.0)[:, None]
    stream = make_stream((x, x), device=CPU, batch_size=4, accumulate=1, horizon=5)
    seen = torch.cat([stream.batches(0, t)[0].targets for t in range(5)]).flatten().tolist()
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    other = torch.cat([stream.batches(1, t)[0].targets for t in range(5)]).flatten().tolist()
    assert other != seen
    again = stream.batches(0, 3)[0].targets.flatten().tolist()
    assert again == seen[12:16]


def test_taking_samples_keeps_what_has_no_samples() -> None:
    x, scale = torch.arange(4.0), torch.tensor(2.0)
    stream = make_stream({"x": x, "scale": scale, "y": x}, device=CPU, batch_size=None,
                         accumulate=1, horizon=5)  # fmt: skip
    part = take(stream.pool[0], [1, 3])
    assert part.kwargs["x"].tolist() == [1, 3]
    assert part.kwargs["scale"] is scale
    assert part.size == 2
