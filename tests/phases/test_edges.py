"""What theory promises, run."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from tests.zoo import F64, inputs, mlp, pure
from trebuchet.errors import NotApplicableError
from trebuchet.models import MLP, MetaFeature, PureQuadratic, QuadraticWithBias
from trebuchet.paper.problems import paper_problem
from trebuchet.paper.settings import FIGURES
from trebuchet.phases.edges import edges
from trebuchet.phases.label import label
from trebuchet.problem.problem import Problem
from trebuchet.sweeps.sweep import sweep
from trebuchet.theory.two_variable_map import iterate


def random_problem(kind: str, rng: np.random.Generator) -> Problem:
    """A problem that one of the two theorems covers, labels zero."""
    samples, d = int(rng.integers(1, 7)), int(rng.integers(1, 4))
    seed = int(rng.integers(2**31))
    x = inputs(samples, d, seed=seed)
    y = torch.zeros(samples, dtype=F64)
    if kind == "pure":
        g = torch.Generator().manual_seed(seed)
        n = 2 * int(rng.integers(5, 40))
        elementwise = ["identity", "tanh", "relu", "leaky_relu"][rng.integers(4)]
        low = float(rng.uniform(0.2, 1))
        high = low + float(rng.uniform(0, 1))
        psi = MetaFeature.draw(
            n,
            d,
            eigenvalues=(low, high),
            elementwise=elementwise,  # type: ignore[arg-type]
            generator=g,
        )
        return Problem(
            PureQuadratic(psi, torch.randn(n, generator=g, dtype=F64)), "half_mse", (x, y)
        )
    slopes = (float(rng.uniform(0.5, 1.5)), float(rng.uniform(0.1, 1.5)))
    width = int(rng.integers(10, 100))
    return Problem(MLP.draw(d, width, slopes=slopes, generator=seed), "half_mse", (x, y))


@pytest.mark.parametrize("kind", ["pure", "two-layer"])
def test_no_run_inside_the_proven_window_diverges(kind: str) -> None:
    """Over 200 random problems; and λ never exceeds the bound that the theorem rests on."""
    rng = np.random.default_rng(7)
    opened = 0
    for _ in range(100):
        problem = random_problem(kind, rng)
        found = edges(problem)
        proven = found["upper_omega" if kind == "pure" else "upper"]
        assert proven.proven
        # Up to the edge itself, below the critical rate or above it.
        ratios = np.unique([0.5 * proven.lr_ratio, 0.9 * proven.lr_ratio, 0.999 * proven.lr_ratio])
        opened += proven.lr_ratio > 2
        runs = label(sweep(problem, lr_ratio=ratios, steps=60, workers=1, chunk=3))
        assert not (runs.phase == "divergent").any()
        # η · (bound on λ in terms of |θ|²) < 4 at the edge, so λ ≤ (4/η_edge) |θ_t|²/|θ_0|².
        bound = 4 / proven.lr * runs.weight_norm / runs.weight_norm_first
        assert (runs.top_eigenvalue.fillna(0) <= bound.fillna(0) * (1 + 1e-12)).all()
        norm = runs.weight_norm.values
        change = np.diff(norm, axis=-1)
        assert (change[np.isfinite(change)] <= 1e-12 * np.nanmax(norm)).all()
    assert opened >= 20  # many of the windows reach into the catapult phase


def test_past_the_edges_of_figure_2_runs_do_diverge() -> None:
    """Both sides: the measured edge lies above the proven one, and divergence above that."""
    problem = Problem(MLP.draw(1, 256, slopes=(1, 0.5), generator=1), "half_mse", ([[1.0]], [0.0]))
    proven = edges(problem)["upper"].lr_ratio
    runs = label(sweep(problem, lr_ratio=[0.9 * proven, 1.1 * proven, 9.0], steps=200))
    assert runs.phase.values[:, 0].tolist() == ["catapult", "catapult", "divergent"]


@given(v0=st.floats(0.2, 3.9), seed=st.integers(0, 2**20))
@settings(max_examples=20, deadline=None)
def test_the_map_is_the_model_with_eigenvalues_one(v0: float, seed: int) -> None:
    """ψ² = 1, D = 1, y = 0: u = ζ²η²z² and v = ηλ follow the map step by step."""
    model = PureQuadratic.draw(40, generator=seed)
    steps = 12
    run = sweep(Problem(model, "half_mse", ([[1.0]], [0.0])), lr_ratio=[v0], steps=steps).isel(
        lr=0, seed=0
    )
    eta = run.learning_rate.item()
    u = 2 * run.loss.values * (model.zeta * eta) ** 2
    expected_u, expected_v = iterate(float(u[0]), v0, steps)
    reached = np.isfinite(u)
    v = eta * run.top_eigenvalue.values
    # A step multiplies the rounding in u by up to (1−v+u)² < 16 at these rates.
    np.testing.assert_allclose(v[reached], expected_v[: reached.sum()], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(u[reached], expected_u[: reached.sum()], rtol=1e-6, atol=1e-12)


def test_one_relu_sample_grows_sparser_and_then_collapses() -> None:
    """Figure 10: x = 4, y = 2, width 1024; past about 4.4 every unit is dead."""
    problem = Problem(MLP.draw(1, 1024, generator=123), "half_mse", ([[4.0]], [2.0]))
    ratios = np.array([1.0, 2.5, 3.0, 3.5, 4.0, 4.6, 4.8, 5.0, 6.0])
    runs = label(sweep(problem, lr_ratio=ratios, steps=100, seeds=[123]))
    phase = runs.phase.values[:, 0]
    collapsed = ratios > 4.5
    assert (phase[collapsed] == "collapsed").all()
    assert phase[~collapsed].tolist() == ["lazy", *["catapult"] * 4]
    sparsity = runs.sparsity_final.values[:, 0, 0]
    assert (np.diff(sparsity[~collapsed]) >= 0).all()
    assert (sparsity[collapsed] == 1).all()
    np.testing.assert_allclose(runs.loss_final.values[collapsed, 0], 2.0)  # ½·y²
    assert edges(problem)["upper"].lr_ratio == pytest.approx(4, rel=1e-12)


def test_edges_are_refused_where_they_do_not_apply() -> None:
    x, y = inputs(4, 5), torch.zeros(4, dtype=F64)
    assert list(edges(Problem(mlp(), "half_mse", (x, y)))) == [
        "critical"
    ]  # ReLU on several samples
    assert list(edges(Problem(mlp(hidden=2, slopes=(1, 0.5)), "half_mse", (x, y)))) == ["critical"]
    three = Problem(mlp(outputs=3, slopes=(1, 0.5)), "half_mse", (x, torch.zeros(4, 3)))
    assert list(edges(three)) == ["critical"]
    with pytest.raises(NotApplicableError, match="half_mse"):
        edges(Problem(mlp(), torch.nn.functional.mse_loss, (x, y)))


def test_single_and_multi_sample_edges_agree_for_one_sample() -> None:
    found = edges(Problem(pure(d=1), "half_mse", ([[1.5]], [0.0])))
    assert found["upper"].lr == pytest.approx(found["upper_omega"].lr, rel=1e-12)
    biased = QuadraticWithBias.draw(20, 4, generator=0)
    both = edges(Problem(biased, "half_mse", ([[1.0]], [0.0])))
    assert [e.proven for e in both.values()] == [False, False, True]
    assert both["upper_omega"].lr >= both["upper"].lr  # which counts weights that never move


def test_the_edges_of_figures_6_and_7() -> None:
    """The sharper edge was worked out by others, in float32: four digits."""
    for number, coded, proven in ((6, 3.2896, 3.4052), (7, 2.5691, 2.6810)):
        found = edges(paper_problem(FIGURES[number]))
        assert found["upper"].lr_ratio == pytest.approx(coded, abs=2e-4)
        assert found["upper_omega"].lr_ratio == pytest.approx(proven, abs=2e-4)


def test_edges_of_a_problem_or_of_its_parts() -> None:
    x, y = inputs(4, 5), torch.zeros(4, dtype=F64)

    def model(seed: int) -> MLP:
        return mlp(slopes=(1, 0.5), seed=seed)

    whole = edges(Problem(model, "half_mse", (x, y)), seed=3)
    assert edges(model, "half_mse", (x, y), seed=3) == whole
    assert edges(model(3), "half_mse", (x, y)) == whole
    assert edges(model, "half_mse", (x, y))["critical"] != whole["critical"]
    assert set(whole) == {"critical", "upper"}


@pytest.mark.parametrize(
    "how",
    [
        {"optimizer": "adam"},
        {"optimizer": "momentum"},
        {"optimizer": torch.optim.AdamW},
        {"batch_size": 2},
        {"schedule": lambda t: 0.5},
        {"clip_grad_norm": 1.0},
        {"clip_grad_value": 1.0},
    ],
)
def test_edges_are_of_gradient_descent_on_all_data(how: dict[str, Any]) -> None:
    """2/λ₀ of a problem that is trained otherwise would be a wrong number."""
    x, y = inputs(4, 5), torch.zeros(4, dtype=F64)
    with pytest.raises(NotApplicableError, match=f"^{next(iter(how))}: the edges are for gradient"):
        edges(Problem(mlp(), "half_mse", (x, y), **how))
    known = edges(Problem(mlp(), "half_mse", (x, y)))
    assert edges(Problem(mlp(), "half_mse", (x, y), optimizer="SGD", batch_size=4)) == known
