import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from trebuchet.errors import InputError
from trebuchet.models import PureQuadratic
from trebuchet.theory import moments, two_variable_map


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
