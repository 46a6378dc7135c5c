import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from trebuchet.errors import InputError, NotApplicableError
from trebuchet.models import MLP
from trebuchet.models.teacher_student import biased_teacher_student, pure_teacher_student
from trebuchet.theory import edges

Array = npt.NDArray[np.float64]
REFERENCE = Path(__file__).parents[2] / "../shared/reference"
ONE = torch.ones(1, 1, dtype=torch.float64)


def reference(figure: int) -> dict[str, Any]:
    path = REFERENCE / f"fig{figure}.json"
    if not path.exists():
        pytest.skip(f"the authors' numbers for figure {figure} are not beside the project")
    numbers: dict[str, Any] = json.loads(path.read_text())
    return numbers


def random_symmetric(rng: np.random.Generator, *shape: int) -> Array:
    matrix = rng.standard_normal(shape)
    half: Array = (matrix + np.swapaxes(matrix, -1, -2)) / 2
    return half


def test_critical_both_ways() -> None:
    edge = edges.critical(0.25)
    assert (edge.name, edge.lr, edge.lr_ratio) == ("critical", 8.0, 2.0)
    assert not edge.opens_window
    for bad in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(InputError, match="top_eigenvalue"):
            edges.critical(bad)


def test_ratio_is_nan_without_a_top_eigenvalue() -> None:
    edge = edges.pure_quadratic_single(np.eye(2), [1.0, 0.0], 1.0)
    assert edge.lr == 4.0
    assert math.isnan(edge.lr_ratio)
    assert not edge.opens_window


def test_figure_1_edges_are_the_published_ones() -> None:
    published = reference(1)["pred"]
    _, student = pure_teacher_student(1000, eigenvalues=(1.0, 2.0), generator=13)
    psi = student.psi(ONE).numpy()  # (1, n, n)
    theta = student.theta.detach().numpy()
    top = student.zeta**2 * float(np.sum((psi[0] @ theta) ** 2))  # H for one sample
    single = edges.pure_quadratic_single(
        edges.effective([1.0], psi), theta, student.zeta, top_eigenvalue=top
    )
    multi = edges.pure_quadratic_multi(
        edges.omega_dual(psi, student.zeta), theta, top_eigenvalue=top
    )
    assert single.lr_ratio == pytest.approx(published["upper"], rel=1e-4)
    assert multi.lr_ratio == pytest.approx(published["upper_omega"], rel=1e-4)
    assert multi.lr == pytest.approx(single.lr, rel=1e-12)  # one sample: the same theorem


def test_figure_2_edge_is_the_published_one() -> None:
    published = reference(2)
    net = MLP.draw(d=1, width=1024, slopes=(1.0, 0.5), generator=120)
    norm = sum(float((w.detach() ** 2).sum()) for w in net.weights)
    edge = edges.two_layer_homogeneous(
        np.ones((1, 1)), norm, 1024, (1.0, 0.5), top_eigenvalue=published["ntk0"]
    )
    assert edge.lr_ratio == pytest.approx(published["pred"]["upper"], rel=1e-4)


def test_figure_6_edge_is_the_published_one() -> None:
    published = reference(6)
    _, student = biased_teacher_student(100, 10, generator=123)
    edge = edges.quadratic_with_bias(
        edges.effective([1.0], student.phi(ONE).numpy()),
        edges.effective([1.0], student.psi(ONE).numpy()),
        student.theta_phi.detach().numpy(),
        student.theta_psi.detach().numpy(),
        student.zeta,
        top_eigenvalue=published["ntk0"],
    )
    assert edge.lr_ratio == pytest.approx(published["pred"]["upper"], rel=1e-4)


@pytest.mark.parametrize("samples", [1, 4, 16])
def test_quadratic_with_bias_inside_the_window_keeps_its_promises(samples: int) -> None:
    """20 draws a D, y = 0, at 0.999 of the edge: the law, no rise of W, no divergence, catapults.

    A loop written out in numpy, of ψ as the paper draws it: eigenvalues about ±1.
    """
    rng = np.random.default_rng(samples)
    catapults = 0
    for _ in range(20):
        n, p = 20, int(rng.integers(2, 8))
        psi = random_meta_feature(rng, 0, samples, n)
        phi = rng.standard_normal((samples, p)) * rng.uniform(0.1, 0.4)
        pairs = rng.standard_normal(n), rng.standard_normal(p)
        psi_w, phi_w = pairs
        zeta = math.sqrt(2 / n)
        edge = edges.quadratic_with_bias_multi(phi, edges.omega_dual(psi, zeta), phi_w, psi_w)
        assert edge.proven
        assert edge.lr >= edges.quadratic_with_bias(
            edges.effective(np.ones(1), phi[:1]), edges.effective(np.ones(1), psi[:1]),
            phi_w, psi_w, zeta,
        ).lr * (samples == 1)  # fmt: skip
        project = np.linalg.pinv(phi) @ phi
        lr, losses = 0.999 * edge.lr, []

        def weighted(a: Array, b: Array, project: Array = project) -> float:
            return float(a @ a + b @ b + (project @ b) @ (project @ b))

        for _ in range(400):
            v = zeta * psi @ psi_w  # (D, n)
            z = phi @ phi_w + v @ psi_w / 2
            h = (phi @ phi.T + v @ v.T) / samples
            before = weighted(psi_w, phi_w)
            psi_w, phi_w = psi_w - lr / samples * z @ v, phi_w - lr / samples * z @ phi
            change = weighted(psi_w, phi_w) - before
            law = lr / samples * z @ (lr * (h + phi @ phi.T / samples) - 4 * np.eye(samples)) @ z
            assert abs(change - law) < 1e-12 * before
            assert change <= 1e-14 * before
            losses.append(float(z @ z))
        assert losses[-1] < losses[0]
        catapults += max(losses) > 1.01 * losses[0]
    assert catapults > 5


@pytest.mark.parametrize(("samples", "n"), [(1, 4), (3, 6), (7, 5)])
def test_omega_dual_has_the_spectrum_of_omega(samples: int, n: int) -> None:
    psi = random_symmetric(np.random.default_rng(samples), samples, n, n)
    zeta = math.sqrt(2 / n)
    # Ω as the paper writes it: ((a, m), (b, p)) ↦ (ζ²/D)(ψ_a ψ_b)_{mp}
    big = zeta**2 / samples * np.einsum("amk,bkp->ambp", psi, psi).reshape(samples * n, -1)
    dual = edges.omega_dual(iter(psi), zeta)
    expected = np.sort(np.linalg.eigvalsh(big))[-n:]
    np.testing.assert_allclose(np.linalg.eigvalsh(dual), expected, rtol=1e-11, atol=1e-12)


def test_single_sample_edge_is_never_below_the_proven_one() -> None:
    rng = np.random.default_rng(5)
    for _ in range(50):
        psi = random_symmetric(rng, 4, 6, 6)
        theta = rng.standard_normal(6)
        single = edges.pure_quadratic_single(
            edges.effective(rng.standard_normal(4), psi), theta, 0.5
        )
        multi = edges.pure_quadratic_multi(edges.omega_dual(psi, 0.5), theta)
        assert single.lr >= multi.lr
        assert multi.proven
        assert not single.proven


def quadratic_ntk(psi: Array, theta: Array, zeta: float) -> Array:
    g = zeta * psi @ theta  # (D, n)
    kernel: Array = g @ g.T / len(psi)
    return kernel


def random_meta_feature(rng: np.random.Generator, trial: int, samples: int, n: int) -> Array:
    """ψ of shape (samples, n, n): any symmetric matrices, or the paper's, eigenvalues about ±1."""
    if trial % 2:
        return random_symmetric(rng, samples, n, n)
    q, _ = np.linalg.qr(rng.standard_normal((n, n)))
    psi: Array = (q * rng.uniform(0.9, 1.1, n) * rng.choice([-1, 1], n)) @ q.T
    return rng.uniform(0.5, 1.0, samples)[:, None, None] * psi


def test_pure_quadratic_inside_the_window_keeps_its_promises() -> None:
    """120 problems, labels zero: under the edge |θ|² never grows and λ stays under its bound."""
    rng = np.random.default_rng(11)
    opened = 0
    for trial in range(120):
        samples, n = int(rng.integers(1, 6)), 2 * int(rng.integers(1, 7))
        psi = random_meta_feature(rng, trial, samples, n)
        theta = rng.standard_normal(n)
        zeta = math.sqrt(2 / n)
        first = np.linalg.eigvalsh(quadratic_ntk(psi, theta, zeta))[-1]
        edge = edges.pure_quadratic_multi(
            edges.omega_dual(psi, zeta), theta, top_eigenvalue=float(first)
        )
        opened += edge.opens_window
        lr = 0.999 * edge.lr
        bound = 4 / edge.lr / (theta @ theta)  # λ ≤ bound |θ|²
        norm = theta @ theta
        for _ in range(200):
            z = zeta / 2 * np.einsum("amk,m,k->a", psi, theta, theta)
            top = np.linalg.eigvalsh(quadratic_ntk(psi, theta, zeta))[-1]
            assert top <= bound * norm * (1 + 1e-12), trial
            theta = theta - lr / samples * zeta * np.einsum("a,amk,k->m", z, psi, theta)
            after = theta @ theta
            assert after <= norm * (1 + 1e-12), trial
            norm = after
    assert opened >= 40  # in so many of them the promise covers rates above the critical one


@pytest.mark.parametrize("span", [False, True])
@pytest.mark.parametrize("slopes", [(1.0, 1.0), (1.0, 0.5), (0.3, 1.0), (1.0, -1.0)])
def test_two_layer_inside_the_window_keeps_its_promises(
    slopes: tuple[float, float], span: bool
) -> None:
    """80 problems, labels zero; with the norm of all weights, and of those that can move."""
    rng = np.random.default_rng(3)
    opened = 0
    for trial in range(20):
        samples, d, width = (int(k) for k in rng.integers((1, 1, 2), (6, 5, 20)))
        x = rng.standard_normal((samples, d))
        u, v = rng.standard_normal((d, width)), rng.standard_normal(width)
        scale = 1 / math.sqrt(width * d)
        everything = float((u**2).sum() + (v**2).sum())
        norm = edges.span_weight_norm(x, u, v) if span else everything
        inert = everything - norm
        edge = edges.two_layer_homogeneous(x, norm, width, slopes)
        lr, bound = 0.999 * edge.lr, 4 / edge.lr / norm
        for t in range(100):
            h = x @ u
            slope = np.where(h >= 0, *slopes)
            z = scale * (slope * h) @ v
            inner = (slope * h) @ (slope * h).T + (x @ x.T) * ((slope * v**2) @ slope.T)
            top = np.linalg.eigvalsh(scale**2 / samples * inner)[-1]
            opened += t == 0 and edge.lr * top > 2
            assert top <= bound * norm * (1 + 1e-12), trial
            du = scale / samples * x.T @ (z[:, None] * slope * v)
            dv = scale / samples * (slope * h).T @ z
            u, v = u - lr * du, v - lr * dv
            after = float((u**2).sum() + (v**2).sum()) - inert
            assert after <= norm * (1 + 1e-12), trial
            norm = after
    assert opened > 0


def test_span_norm_restores_the_linear_nets_window_at_any_d() -> None:
    rng = np.random.default_rng(2)
    d, width = 30, 20_000
    x = rng.standard_normal((1, d))
    u, v = rng.standard_normal((d, width)), rng.standard_normal(width)
    top = float(((x @ u) ** 2).sum() + (x @ x.T).item() * (v @ v)) / (width * d)
    edge = edges.two_layer_homogeneous(
        x, edges.span_weight_norm(x, u, v), width, (1.0, 1.0), top_eigenvalue=top
    )
    # λ = |x|²(|PU|² + |v|²)/(nd) on one sample: the bound is met, and the edge is exactly 4
    assert edge.lr_ratio == pytest.approx(4, rel=1e-12)
    assert edges.span_weight_norm(rng.standard_normal((40, d)), u, v) == pytest.approx(
        float((u**2).sum() + v @ v), rel=1e-12
    )
    with pytest.raises(InputError, match="U: expected shape"):
        edges.span_weight_norm(x, u.T, v)


def test_two_layer_linear_one_sample_ratio_is_8_over_d_plus_1() -> None:
    width = 50
    for d in (1, 2, 3, 5):
        norm = width * d + width
        top = 2.0  # (|Uᵀx|² + |x|²|v|²)/(nd) = (nd + dn)/(nd) at its mean
        edge = edges.two_layer_homogeneous(
            np.ones((1, d)), norm, width, (1.0, 1.0), top_eigenvalue=top
        )
        assert edge.lr_ratio == pytest.approx(8 / (d + 1), rel=1e-12)
        assert edge.opens_window == (d < 3)


def test_relu_is_refused_with_the_reason() -> None:
    with pytest.raises(NotApplicableError, match=r"nothing is proven above the critical rate"):
        edges.two_layer_homogeneous(np.ones((3, 2)), 30.0, 10, (1.0, 0.0))
    with pytest.raises(NotApplicableError, match="relu_single_sample"):
        edges.two_layer_homogeneous(np.ones((1, 2)), 30.0, 10, (1.0, 0.0))
    edge = edges.relu_single_sample(0.5)
    assert (edge.lr, edge.lr_ratio, edge.proven) == (8.0, 4.0, True)


def relu_one_sample(
    ratio: float, seed: int, width: int, steps: int = 300
) -> tuple[list[float], list[float], bool]:
    """Losses, |θ|² and whether every unit died, of a two-layer ReLU net on x = 1, y = 0."""
    rng = np.random.default_rng(seed)
    u, v = rng.standard_normal((2, width))
    lr = ratio * width / float((np.maximum(u, 0) ** 2).sum() + (v[u > 0] ** 2).sum())
    losses, norms = [], []
    for _ in range(steps):
        z = float(np.maximum(u, 0) @ v) / math.sqrt(width)
        losses.append(z * z / 2)
        norms.append(float(u @ u + v @ v))
        active = u > 0
        step = lr * z / math.sqrt(width)
        u, v = u - step * v * active, v - step * np.maximum(u, 0)
    return losses, norms, not active.any()


def test_relu_single_sample_edge_on_both_sides() -> None:
    """Below 4 the weight norm falls at every step; past 4 it rises at once, and nets die."""
    dead = 0
    for seed in range(10):
        losses, norms, _ = relu_one_sample(0.9 * 4, seed, 2000)
        assert max(np.diff(norms)) <= 1e-12 * norms[0]
        assert losses[-1] < losses[0]
        losses, norms, died = relu_one_sample(1.1 * 4, seed, 2000)
        assert norms[1] > norms[0]
        assert np.isfinite(losses).all()  # collapse, not divergence
        dead += died
    assert dead > 0  # about a third of all seeds at 4.4, two thirds at 6


def test_relu_single_sample_edge_does_not_exclude_collapse() -> None:
    """Narrow nets die below the edge too, while their weight norm falls: documented, not wished."""
    runs = [relu_one_sample(3.8, seed, 20) for seed in range(40)]
    assert any(died for *_, died in runs)
    assert not all(died for *_, died in runs)
    for _, norms, _ in runs:
        assert max(np.diff(norms)) <= 1e-12 * norms[0]
    assert not any(relu_one_sample(2.5, seed, 20)[2] for seed in range(40))


def test_bias_edge_falls_back_to_the_models_it_contains() -> None:
    psi, theta = np.diag([1.0, -1.0]), np.array([1.0, 2.0])
    with pytest.raises(NotApplicableError, match="no bias"):
        edges.quadratic_with_bias([0.0], psi, [1.0], theta, 1.0)
    with pytest.raises(NotApplicableError, match="linear"):
        edges.quadratic_with_bias([1.0], np.zeros((2, 2)), [1.0], theta, 1.0)
    # as the bias's weight and feature vanish together, the pure quadratic edge is left
    small = edges.quadratic_with_bias([1e-9], psi, [0.0], theta, 1.0)
    assert small.lr == pytest.approx(edges.pure_quadratic_single(psi, theta, 1.0).lr, rel=1e-12)


def test_nothing_moves_nothing_is_an_edge() -> None:
    with pytest.raises(NotApplicableError, match="vanishes"):
        edges.pure_quadratic_single(np.eye(2), np.zeros(2), 1.0)
    with pytest.raises(NotApplicableError, match="vanishes"):
        edges.pure_quadratic_multi(np.zeros((2, 2)), np.ones(2))
    with pytest.raises(NotApplicableError, match="vanishes"):
        edges.two_layer_homogeneous(np.zeros((1, 1)), 3.0, 2, (1.0, 1.0))


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda: edges.pure_quadratic_single(np.ones((2, 3)), [1.0, 1.0], 1.0), "psi_eff"),
        (lambda: edges.pure_quadratic_single([[0.0, 1.0], [0.0, 0.0]], [1.0, 1.0], 1.0), "psi_eff"),
        (lambda: edges.pure_quadratic_single(np.eye(2), [1.0], 1.0), "theta"),
        (lambda: edges.pure_quadratic_single(np.eye(2), [1.0, math.nan], 1.0), "theta"),
        (lambda: edges.pure_quadratic_multi(-np.eye(2), [1.0, 1.0]), "omega_dual"),
        (lambda: edges.effective([1.0, 1.0], np.ones((3, 2))), "e: expected shape"),
        (lambda: edges.omega_dual([], 1.0), "psi"),
        (lambda: edges.two_layer_homogeneous(np.ones(3), 3.0, 2, (1.0, 1.0)), "X"),
        (lambda: edges.two_layer_homogeneous(np.ones((1, 1)), 3.0, 0, (1.0, 1.0)), "width"),
    ],
)
def test_bad_input_names_the_argument(call: Callable[[], object], argument: str) -> None:
    with pytest.raises(InputError, match=argument):
        call()
