import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from trebuchet.errors import InputError
from trebuchet.models import PureQuadratic
from trebuchet.theory import moments, quadratic_map, two_variable_map


@pytest.mark.parametrize(("v0", "v_last", "peak"), [(2.5, 1.280, 0.166), (3.0, 0.238, 0.672)])
def test_published_numbers(v0: float, v_last: float, peak: float) -> None:
    u, v = two_variable_map.iterate(1e-3, v0, 2000)
    assert v[-1] == pytest.approx(v_last, abs=5e-4)  # three digits are published
    assert u.max() == pytest.approx(peak, abs=5e-4)


def test_both_sides_of_the_upper_edge() -> None:
    u, v = two_variable_map.iterate(1e-3, 3.99, 2000)
    assert v[-1] < 2
    assert u[-1] < 1e-12
    u, _ = two_variable_map.iterate(1e-3, 4.01, 10)
    assert u[-1] > 1e8 * u[0]


def test_both_sides_of_the_critical_edge() -> None:
    u, _ = two_variable_map.iterate(1e-6, 1.99, 500)
    assert u.max() == u[0]
    u, v = two_variable_map.iterate(1e-6, 2.01, 5000)
    assert u.max() > 2 * u[0]
    assert v[-1] < 2


def test_overflow_is_infinite_and_stays_so() -> None:
    u, v = two_variable_map.iterate(1e-3, 5.0, 50)
    first = int(np.argmax(np.isinf(u)))
    assert 0 < first < 50
    assert np.isinf(u[first:]).all()
    assert np.isinf(v[first:]).all()
    assert not np.isnan([u, v]).any()


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.05, 3.9), st.sampled_from([2, 6, 20]))
def test_map_is_the_quadratic_model_with_eigenvalues_one(seed: int, v0: float, n: int) -> None:
    s = np.repeat([1.0, -1.0], n // 2)
    c = np.random.default_rng(seed).standard_normal(n)
    zeta = math.sqrt(2 / n)
    lr = v0 / (zeta**2 * float(c @ c))
    z, top, norm = moments.iterate(s, c, lr, 10)
    u, v = two_variable_map.iterate(float((zeta * lr * z[0]) ** 2), float(lr * top[0]), 10)
    # ten steps multiply rounding by at most |∂map|^10; the map's own slopes stay below ~20 here
    np.testing.assert_allclose(v, lr * top, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(u, (zeta * lr * z) ** 2, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(zeta**2 * norm, top, rtol=1e-12)


@pytest.mark.parametrize(("v0", "scaled"), [(1.2, 0.4), (2.6, 0.3), (2.4, -0.7), (2.3, 1.1)])
def test_map_with_a_label_is_the_model_step_by_step(v0: float, scaled: float) -> None:
    """Autograd on the model itself, whose ψ has eigenvalues ±1; labels on both sides of outputs."""
    model = PureQuadratic.draw(n=10, generator=6)
    x = torch.ones(1, 1, dtype=torch.float64)
    theta, zeta = model.theta, model.zeta
    lr = v0 / (zeta**2 * float((theta.detach() ** 2).sum()))
    y = scaled / (zeta * lr)
    starts = zeta * lr * (float(model(x)[0].detach()) - y), v0
    u, v = two_variable_map.iterate(starts[0] * abs(starts[0]), v0, 60, label=scaled)
    z, top, _ = moments.iterate(*_eigen(model, x), lr, 60, label=y)
    for t in range(60):
        out = model(x)[0]
        (slope,) = torch.autograd.grad(out, theta, retain_graph=True)
        residual = zeta * lr * (float(out.detach()) - y)
        now = residual * abs(residual), lr * float(slope @ slope)
        np.testing.assert_allclose((u[t], v[t]), now, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose((z[t], lr * top[t]), (float(out.detach()), now[1]), rtol=1e-11)
        # from where the model is, so that rounding does not grow from step to step
        after = two_variable_map.step(*now, label=scaled)
        (gradient,) = torch.autograd.grad((out - y) ** 2 / 2, theta)
        theta.data -= lr * gradient
        residual = zeta * lr * (float(model(x)[0].detach()) - y)
        top_after = lr * zeta**2 * float((theta.detach() ** 2).sum())
        np.testing.assert_allclose(
            after, (residual * abs(residual), top_after), rtol=1e-12, atol=1e-14
        )


def _eigen(model: PureQuadratic, x: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    s, q = np.linalg.eigh(model.psi(x)[0].numpy())
    return s, q.T @ model.theta.detach().numpy()


def test_without_a_label_the_sign_of_u_is_dropped_and_none_is_taken() -> None:
    assert two_variable_map.step(-0.5, 3.0)[1] == two_variable_map.step(0.5, 3.0)[1]
    with pytest.raises(InputError, match="u0"):
        two_variable_map.iterate(-0.5, 3.0, 3)
    assert two_variable_map.iterate(-0.5, 3.0, 3, label=0.1)[0][0] == -0.5


@settings(deadline=None)
@given(st.floats(0.05, 1.99), st.floats(-0.99, 0.99))
def test_quadratic_map_is_the_model_of_one_weight(a: float, start: float) -> None:
    x0 = start * a
    lr = 0.37
    z, top, _ = moments.iterate(
        [1.0], [math.sqrt((x0 + a) / lr / 2)], lr, 25, label=a / lr / 2, zeta=2
    )
    x = quadratic_map.iterate(x0, a, 25)
    # slopes of at most 3 (1 + a)², of which half cancels: rounding grows 10-fold a step at most
    np.testing.assert_allclose(x[:9], 2 * lr * z[:9] - a, atol=1e-7)
    np.testing.assert_allclose(2 * (x[:9] + a), lr * top[:9], atol=1e-7)
    for t in range(25):
        assert quadratic_map.step(x[t], a) == x[t + 1]


def test_loss_never_rises_up_to_the_monotone_edge() -> None:
    def rises(a: float) -> bool:
        x = np.linspace(-a, 2, 400_001)
        after = (x + a) * (1 - x) ** 2 - a
        return bool((np.abs(after) > np.abs(x) * (1 + 1e-12) + 1e-12).any())

    low, high = 0.5, 1.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (low, middle) if rises(middle) else (middle, high)
    assert low == pytest.approx(2 * math.sqrt(2) - 2, abs=1e-4)
    assert pytest.approx(2 * math.sqrt(2) - 2, abs=1e-15) == quadratic_map.MONOTONE


def test_doublings_by_plain_loops_and_in_the_literature() -> None:
    found = quadratic_map.doublings(8)
    assert found[0] == 1
    assert found[1] == pytest.approx(math.sqrt(5) - 1, abs=1e-12)
    assert found[1] == pytest.approx(quadratic_map.DOUBLED, abs=1e-12)
    np.testing.assert_allclose(found[2:4], [1.288, 1.299], atol=5e-4)  # published to three digits
    ratios = np.diff(found)[:-1] / np.diff(found)[1:]
    assert ratios[-1] == pytest.approx(4.669201609, abs=1e-3)  # Feigenbaum
    for k, edge in enumerate(found[:4]):
        for a, p in ((edge - 1e-4, 2**k), (edge + 1e-4, 2 ** (k + 1))):
            x, orbit = (1 - 2 * a) / 3, []
            for t in range(400_000):
                x = (x + a) * (1 - x) * (1 - x) - a
                if t >= 400_000 - 64:
                    orbit.append(x)
            apart = [abs(orbit[-1] - orbit[-1 - q]) for q in range(1, 33)]
            assert 1 + int(np.argmax(np.array(apart) < 1e-9)) == p
            assert quadratic_map.period(a, settle=400_000) == p


def test_exponent_on_cycles_at_the_onset_of_chaos_and_at_its_end() -> None:
    """On the cycle of two: half the log of its multiplier, in closed form."""
    for a in (1.05, 1.15, 1.2):
        x = quadratic_map.iterate(-0.3, a, 4000)[-2:]
        multiplier = np.prod((1 - x) * (1 - 2 * a - 3 * x))
        exponent = quadratic_map.lyapunov_exponent(a)
        assert exponent == pytest.approx(math.log(abs(multiplier)) / 2, rel=1e-6)
    onset = quadratic_map.doublings(9)[-1]
    assert quadratic_map.lyapunov_exponent(onset - 1e-3, steps=50_000) < 0
    assert quadratic_map.lyapunov_exponent(onset + 1e-3, steps=50_000) > 0.02
    # at a = 2 it is 2cos φ → 2cos 3φ
    exponent = quadratic_map.lyapunov_exponent(2 - 1e-12, steps=100_000)
    assert exponent == pytest.approx(math.log(3), abs=5e-3)
    phi = 0.7
    assert quadratic_map.step(2 * math.cos(phi), 2.0) == pytest.approx(2 * math.cos(3 * phi))


def test_bounded_up_to_two_and_divergent_beyond() -> None:
    x = quadratic_map.iterate(0.3, 1.9999, 200_000)
    assert (x >= -1.9999).all()
    assert (x <= 2).all()
    assert np.isinf(quadratic_map.iterate(0.3, 2.001, 200_000)[-1])
    assert math.isnan(quadratic_map.lyapunov_exponent(2.001, steps=200_000))
    assert quadratic_map.period(2.001) is None
    assert quadratic_map.period(1.5) is None


@pytest.mark.parametrize("label", [0.0, 0.7])
def test_moments_are_the_full_model_step_by_step(label: float) -> None:
    model = PureQuadratic.draw(n=12, eigenvalues=(1.0, 2.0), generator=4)
    x = torch.ones(1, 1, dtype=torch.float64)
    s, q = np.linalg.eigh(model.psi(x)[0].numpy())
    c = q.T @ model.theta.detach().numpy()
    lr, steps = 2.3 / float(2 / 12 * np.sum(s**2 * c**2)), 40  # ηλ₀ = 2.3: a catapult
    z, top, norm = moments.iterate(s, c, lr, steps, label=label)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    for t in range(steps + 1):
        optimizer.zero_grad()
        out = model(x)[0]
        (gradient,) = torch.autograd.grad(out, model.theta, retain_graph=True)
        assert z[t] == pytest.approx(float(out.detach()), rel=1e-9, abs=1e-12)
        assert top[t] == pytest.approx(float(gradient @ gradient), rel=1e-9)
        assert norm[t] == pytest.approx(float((model.theta.detach() ** 2).sum()), rel=1e-11)
        ((out - label) ** 2 / 2).backward()
        optimizer.step()


def test_moments_overflow_is_infinite() -> None:
    z, top, norm = moments.iterate([1.0, -1.0], [3.0, 1.0], 3.0, 60)
    assert np.isinf([z[-1], top[-1], norm[-1]]).all()
    assert not np.isnan([z, top, norm]).any()


def test_bad_input_names_the_argument() -> None:
    with pytest.raises(InputError, match="u0"):
        two_variable_map.iterate(-1.0, 1.0, 3)
    with pytest.raises(InputError, match="v0"):
        two_variable_map.iterate(1.0, math.nan, 3)
    with pytest.raises(InputError, match="steps"):
        two_variable_map.iterate(1.0, 1.0, -1)
    with pytest.raises(InputError, match="weights"):
        moments.iterate([1.0, -1.0], [1.0], 0.1, 3)
    with pytest.raises(InputError, match="lr"):
        moments.iterate([1.0, -1.0], [1.0, 1.0], 0.0, 3)
