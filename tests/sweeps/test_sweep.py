"""The engine: what it promises whatever the model.

Tolerances: one step rounds by some 10⁻¹⁵ (float64, sums of under 100 terms); 20 to 30 steps at ηλ
< 3 multiply it by 10³ to 10⁵ while the loss rises, which is 10⁻¹⁰ at most; and a loss, being
squared, by 2 more. Losses that run to zero are compared beside the largest, hence an absolute
part.
"""

import signal
import threading
from typing import Literal

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings, strategies as st
from torch import nn

from tests.zoo import F64, biased, inputs, mlp, pure, sequential
from trebuchet.engine import law
from trebuchet.engine.optimizers import GradientDescent
from trebuchet.engine.recording import Recording
from trebuchet.errors import InputError, LawViolationError
from trebuchet.problem.problem import Problem
from trebuchet.sweeps.sweep import sweep

RATIOS = [0.5, 1.5, 2.3]


def problem(kind: str, samples: int = 4) -> Problem:
    """A problem of each kind, labels not zero."""
    y = inputs(samples, 1, seed=3)[:, 0]
    if kind == "pure":
        return Problem(lambda s: pure(seed=s), "half_mse", (inputs(samples, 2), y))
    if kind == "biased":
        return Problem(lambda s: biased(seed=s), "half_mse", (inputs(samples, 2), y))
    if kind == "relu":
        return Problem(lambda s: mlp(hidden=2, seed=s), "half_mse", (inputs(samples, 5), y))
    if kind == "leaky":
        return Problem(lambda s: mlp(slopes=(1, 0.5), seed=s), "half_mse", (inputs(samples, 5), y))
    assert kind == "sequential"
    return Problem(sequential(), "half_mse", (inputs(samples, 5), y))


HOMOGENEOUS = ["pure", "relu", "leaky"]
KINDS = [*HOMOGENEOUS, "biased", "sequential"]


def assert_same_runs(a: xr.Dataset, b: xr.Dataset, rtol: float = 1e-9) -> None:
    """Equal to rounding."""
    for name in ("loss", "weight_norm", "top_eigenvalue", "loss_max", "loss_final"):
        np.testing.assert_allclose(a[name], b[name], rtol=rtol, atol=1e-13, err_msg=name)
    assert (a.status.values == b.status.values).all()
    assert (a.steps.values == b.steps.values).all()


@pytest.mark.parametrize("kind", KINDS)
def test_batched_equals_sequential(kind: str) -> None:
    seeds = 1 if kind == "sequential" else 2
    runs = [
        sweep(problem(kind), lr_ratio=RATIOS, seeds=seeds, steps=25, engine=engine)
        for engine in ("auto", "sequential")
    ]
    assert_same_runs(runs[0], runs[1])


@pytest.mark.parametrize("kind", ["pure", "relu", "sequential"])
@given(data=st.data())
@settings(max_examples=8, deadline=None)
def test_order_and_company_of_runs_are_irrelevant(kind: str, data: st.DataObject) -> None:
    ratios = [0.3, 0.9, 1.7, 2.1, 2.4]
    order = data.draw(st.permutations(ratios))
    keep = data.draw(st.integers(1, 5))
    chunk = data.draw(st.integers(1, 5))
    whole = sweep(problem(kind), lr_ratio=ratios, steps=20, chunk=5, workers=1)
    part = sweep(problem(kind), lr_ratio=order[:keep], steps=20, chunk=chunk, workers=2)
    assert_same_runs(part, whole.sel(lr=order[:keep]))


@pytest.mark.parametrize(
    "optimizer", [GradientDescent(0.8), GradientDescent(0.5, 0.01), GradientDescent(0, 0.1)]
)
@pytest.mark.parametrize("kind", ["pure", "relu", "sequential"])
def test_heavy_ball_and_weight_decay_are_torch_s(kind: str, optimizer: GradientDescent) -> None:
    p = problem(kind, samples=3)  # fewer samples than inputs: the span compression is at work
    test = inputs(4, p.x.shape[1], seed=8), inputs(4, 1, seed=9)[:, 0]
    p = Problem(p.model, "half_mse", (p.x, p.y), test=test)
    runs = sweep(p, lr_ratio=[0.4], steps=30, optimizer=optimizer, observables=["test_loss"])
    model = p.initial(0)
    reference = torch.optim.SGD(
        model.parameters(),
        lr=float(runs.learning_rate[0, 0]),
        momentum=optimizer.momentum,
        weight_decay=optimizer.weight_decay,
    )
    losses, norms, tests = [], [], []
    for _ in range(31):
        reference.zero_grad()
        loss = (model(p.x).reshape(-1) - p.y).square().mean() / 2
        torch.autograd.backward(loss)
        losses.append(loss.item())
        norms.append(sum(float(w.detach().square().sum()) for w in model.parameters()))
        with torch.no_grad():
            tests.append(float((model(test[0]).reshape(-1) - test[1]).square().mean() / 2))
        reference.step()
    np.testing.assert_allclose(runs.loss[0, 0], losses, rtol=1e-9)
    np.testing.assert_allclose(runs.weight_norm[0, 0], norms, rtol=1e-11)
    np.testing.assert_allclose(runs.test_loss[0, 0], tests, rtol=1e-9)


@pytest.mark.parametrize("kind", HOMOGENEOUS)
@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
def test_weight_norm_law_holds_at_every_step_of_every_run(kind: str, weight_decay: float) -> None:
    runs = sweep(
        problem(kind),
        lr_ratio=np.arange(0.25, 8.1, 0.25),
        seeds=3,
        steps=60,
        optimizer=GradientDescent(weight_decay=weight_decay),
    )
    violation = runs.law_residual.values
    assert np.nanmax(violation) < 1e-10
    # Every step that was taken from a recorded state was checked.
    assert (np.isfinite(violation).sum(-1) >= runs.steps.values - 1).all()
    assert (runs.status == "blew_up").any()


@pytest.mark.parametrize("kind", HOMOGENEOUS)
def test_the_law_catches_a_step_that_is_wrong_by_one_part_in_a_million(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = GradientDescent.step_

    def perturbed(self, kernel, dz, lr, velocity) -> None:  # type: ignore[no-untyped-def]
        step(self, kernel, dz, lr * (1 + 1e-6), velocity)

    monkeypatch.setattr(GradientDescent, "step_", perturbed)
    monkeypatch.setattr(law.Law, "allowed", 1e-10)
    with pytest.raises(LawViolationError, match="weight-norm law"):
        sweep(problem(kind), lr_ratio=[2.5], steps=60)


def test_a_model_that_states_a_degree_it_does_not_have_is_not_held_to_it() -> None:
    """Its gradients contradict it at the start: the word may mean something else to its author."""

    class Liar(nn.Linear):
        degree = 2

    net = Liar(5, 1).to(F64)
    problem = Problem(net, "half_mse", (inputs(4, 5), inputs(4, 1)[:, 0]))
    runs = sweep(problem, lr_ratio=[1.0], steps=3)
    assert runs.attrs["weight_norm_law"].startswith("not checked: by its gradients")


def test_loss_scaled_by_c_at_rate_over_c_is_the_same_trajectory() -> None:
    p = problem("sequential")
    scaled = Problem(p.model, lambda z, y: 7 * (z - y).square().mean() / 2, (p.x, p.y))
    rate = np.array([0.1, 0.3])
    a = sweep(p, lr=rate, steps=20)
    b = sweep(scaled, lr=rate / 7, steps=20)
    np.testing.assert_allclose(7 * a.loss.values, b.loss.values, rtol=1e-10)
    np.testing.assert_allclose(a.weight_norm.values, b.weight_norm.values, rtol=1e-12)


def test_rotating_the_data_of_a_bias_free_first_layer_changes_nothing() -> None:
    rotation = torch.linalg.qr(inputs(5, 5, seed=11)).Q
    net = mlp(slopes=(1.0, 0.0))
    turned = type(net)([net.weights[0].detach() @ rotation, net.weights[1].detach()], net.slopes)
    x, y = inputs(7, 5), inputs(7, 1, seed=2)[:, 0]
    a = sweep(Problem(net, "half_mse", (x, y)), lr_ratio=RATIOS, steps=20)
    b = sweep(Problem(turned, "half_mse", (x @ rotation, y)), lr_ratio=RATIOS, steps=20)
    np.testing.assert_allclose(a.loss.values, b.loss.values, rtol=1e-9)


def test_statuses_on_both_sides_of_the_edge_of_a_linear_model() -> None:
    """A linear model has one edge, 2/λ: 0.9 of it converges and 1.1 of it blows up."""
    net = nn.Linear(3, 1, bias=False).to(F64)
    p = Problem(net, "half_mse", (inputs(1, 3), torch.tensor([0.5], dtype=F64)))
    runs = sweep(p, lr_ratio=[1.8, 2.2], steps=2000, tolerance=1e-12)
    assert runs.status.values[:, 0].tolist() == ["converged", "blew_up"]
    assert runs.steps.values[0, 0] < 2000
    assert runs.loss_max.values[1, 0] > 1e8 * runs.loss_first.values[1, 0]
    assert np.isnan(runs.loss.values[1, 0, runs.steps.values[1, 0] + 1 :]).all()


def test_overflow_is_a_status_and_not_an_exception() -> None:
    p = problem("leaky")
    runs = sweep(p, lr_ratio=[1.0, 500.0], steps=60, blowup=1e300)
    assert runs.status.values[:, 0].tolist() == ["max_steps", "non_finite"]
    assert np.isfinite(runs.loss_max.values[0, 0])


def test_a_run_that_reaches_zero_loss_stops_with_a_zero_gradient() -> None:
    net = nn.Linear(1, 1, bias=False).to(F64)
    runs = sweep(Problem(net, "half_mse", ([[1.0]], [0.0])), lr_ratio=[1.0], steps=50)
    assert runs.status.item() == "gradient_zero"
    assert runs.loss_final.item() == 0
    assert runs.steps.item() < 5


def test_sparse_recording_keeps_the_peak_between_recorded_steps() -> None:
    p = problem("leaky")
    every = sweep(p, lr_ratio=[2.4], steps=200)
    sparse = sweep(p, lr_ratio=[2.4], steps=200, record=Recording(every=50))
    assert sparse.step.values.tolist() == [0, 50, 100, 150, 200]
    for name in ("loss_max", "loss_max_step", "loss_final", "last_above", "weight_norm_final"):
        assert sparse[name].item() == pytest.approx(every[name].item(), rel=1e-12)
    assert every.loss_max.item() == every.loss.max().item()


def test_user_losses_follow_the_module_s_own_training() -> None:
    net = sequential(outputs=3)
    x = inputs(6, 5)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    p = Problem(net, nn.functional.cross_entropy, (x, labels))
    runs = sweep(p, lr=[0.5], steps=10)
    reference = torch.optim.SGD(net.parameters(), lr=0.5)
    losses = []
    for _ in range(11):
        reference.zero_grad()
        loss = nn.functional.cross_entropy(net(x), labels)
        torch.autograd.backward(loss)
        losses.append(loss.item())
        reference.step()
    np.testing.assert_allclose(runs.loss[0, 0], losses, rtol=1e-10)
    assert runs.attrs["loss"] == "cross_entropy"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["pure", "relu", "sequential"])
def test_every_dtype_runs_and_keeps_its_own(kind: str, dtype: torch.dtype) -> None:
    """To the digits that the dtype has: bfloat16 has between two and three."""
    exact = problem(kind)
    model = exact.initial(0).to(dtype)
    runs = sweep(Problem(model, "half_mse", (exact.x, exact.y)), lr_ratio=[0.5], steps=5)
    assert runs.attrs["dtype"] == str(dtype).removeprefix("torch.")
    reference = sweep(problem(kind), lr_ratio=[0.5], steps=5)
    rtol = {torch.bfloat16: 0.1, torch.float32: 1e-4, torch.float64: 1e-12}[dtype]
    np.testing.assert_allclose(runs.loss[0, 0, 0], reference.loss[0, 0, 0], rtol=rtol)
    np.testing.assert_allclose(runs.top_eigenvalue_init, reference.top_eigenvalue_init, rtol=rtol)


def test_the_model_is_left_as_it_was() -> None:
    net = sequential()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    threads = torch.get_num_threads()
    state = torch.get_rng_state()
    sweep(Problem(net, "half_mse", (inputs(4, 5), inputs(4, 1))), lr_ratio=[1.0, 3.0], steps=5)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


def test_interruption_keeps_what_is_finished(request: pytest.FixtureRequest) -> None:
    """The first run is over in a step; Ctrl-C arrives while the second still has far to go."""
    p = problem("leaky")
    slow = 1e-6  # a rate at which nothing converges in the time
    sent: list[int] = []

    def interrupt(done: int, total: int) -> None:
        if done >= 300_000 and not sent:
            sent.append(done)
            signal.raise_signal(signal.SIGINT)

    # Workers of pytest-xdist ignore the signal; a terminal's Python does not.
    ignored = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, ignored))
    runs = sweep(
        p, lr_ratio=[100.0, slow], steps=300_000, chunk=1, workers=1, progress=interrupt,
        record=Recording(every=100_000),
    )  # fmt: skip
    assert runs.attrs["interrupted"] == 1
    assert runs.status.values[:, 0].tolist() == ["blew_up", "interrupted"]
    assert runs.steps.values[1, 0] < 300_000
    assert np.isfinite(runs.loss_first.values[0, 0])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"lr_ratio": [1.0, -1.0]}, "positive"),
        ({"lr_ratio": [0.0]}, "positive"),
        ({"lr_ratio": [float("nan")]}, "positive, finite"),
        ({"lr_ratio": []}, "one or more"),
        ({"lr_ratio": ["fast"]}, "numbers"),
        ({"lr_ratio": [1.0, 1.0]}, "distinct"),
        ({"lr_ratio": [1.0], "lr": [1.0]}, "either"),
        ({}, "either"),
        ({"lr": [1.0], "seeds": 0}, "seeds"),
        ({"lr": [1.0], "seeds": [1, 1]}, "seeds: expected .* different numbers"),
        ({"lr": [1.0], "steps": 0}, "steps"),
        ({"lr": [1.0], "tolerance": -1.0}, "tolerance"),
        ({"lr": [1.0], "blowup": 1.0}, "blowup"),
        ({"lr": [1.0], "chunk": 0}, "chunk"),
        ({"lr": [1.0], "observables": ["acuracy"]}, "observables"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        sweep(problem("pure"), **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        ([[1.0], [2.0]], [0.0], "one target a row"),
        ([[float("nan")]], [0.0], "finite"),
        ([[1.0]], [float("inf")], "finite"),
        ([], [], "one or more rows"),
        ([["a"]], [0.0], r"data\[0\]:"),
    ],
)
def test_bad_data_is_named(x: list[object], y: list[float], words: str) -> None:
    with pytest.raises(InputError, match=words):
        sweep(Problem(lambda s: mlp(d=1, seed=s), "half_mse", (x, y)), lr=[0.1], steps=2)


def test_labels_of_another_shape_than_the_outputs_are_refused() -> None:
    with pytest.raises(InputError, match="the outputs' shape"):
        sweep(
            Problem(sequential(outputs=3), "half_mse", (inputs(4, 5), torch.zeros(4, dtype=F64))),
            lr=[0.1],
        )


def test_several_seeds_of_one_module_are_refused() -> None:
    with pytest.raises(InputError, match="function of the seed"):
        sweep(Problem(sequential(), "half_mse", (inputs(4, 5), inputs(4, 1))), lr=[0.1], seeds=2)


def test_threads_do_not_leak() -> None:
    before = threading.active_count()
    sweep(problem("pure"), lr_ratio=[1.0], steps=3)
    assert threading.active_count() == before


@pytest.mark.parametrize("engine", ["auto", "sequential"])
@pytest.mark.parametrize("column", [True, False])
def test_a_loss_gets_outputs_in_the_shape_in_which_the_model_returns_them(
    engine: Literal["auto", "sequential"], column: bool
) -> None:
    """A norm along the last axis of a column is another loss than that of a row."""
    torch.manual_seed(0)
    net = nn.Linear(3, 1).double()
    x, y = torch.randn(6, 3, dtype=F64), torch.randn(6, 1, dtype=F64)

    def loss(z: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (z - target).square().sum(dim=-1).add(1).sqrt().mean()

    runs = sweep(
        Problem(net, loss, (x, y if column else y[:, 0]), test=(x[:4], y[:4])),
        lr=[0.1], steps=2, engine=engine,
    )  # fmt: skip
    by_hand = []
    for _ in range(3):
        value = loss(net(x), y)
        by_hand.append(value.item())
        steps = torch.autograd.grad(value, list(net.parameters()))
        tested = loss(net(x[:4]), y[:4]).item()
        with torch.no_grad():
            for p, step in zip(net.parameters(), steps, strict=True):
                p.sub_(0.1 * step)
    assert runs.loss.values.ravel() == pytest.approx(by_hand, rel=1e-12)
    assert runs.test_loss_final.item() == pytest.approx(tested, rel=1e-12)


def test_whole_number_labels_in_a_column_are_labels() -> None:
    net, x = nn.Linear(3, 1).double(), torch.randn(6, 3, dtype=F64)
    whole = torch.tensor([[0], [1], [0], [1], [1], [0]])
    of_ints, of_reals = (
        sweep(Problem(net, "half_mse", (x, y)), lr=[0.1], steps=2).loss.values
        for y in (whole, whole.double())
    )
    assert np.array_equal(of_ints, of_reals)


@pytest.mark.parametrize("made", [lambda: nn.Linear(3, 1), "net", lambda seed, width: None])
def test_a_factory_that_takes_no_seed_is_said_so(made: object) -> None:
    def run() -> None:
        problem = Problem(made, "half_mse", (torch.ones(2, 3), torch.ones(2, 1)))  # type: ignore[arg-type]
        sweep(problem, lr=[0.1], steps=2)

    with pytest.raises(InputError, match=r"^model: expected .* seed"):
        run()


def test_labels_may_be_a_column_of_something_larger() -> None:
    x = inputs(4, 5)
    column = sweep(Problem(mlp(), "half_mse", (x, x[:, :1])), lr=[0.1], steps=3)
    alone = sweep(Problem(mlp(), "half_mse", (x, x[:, :1].clone())), lr=[0.1], steps=3)
    xr.testing.assert_identical(column.drop_attrs(), alone.drop_attrs())
    assert column.attrs["config_hash"] == alone.attrs["config_hash"]
