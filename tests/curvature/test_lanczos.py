"""The solver on matrices of known spectrum."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from trebuchet.curvature.distributed import Ranks
from trebuchet.curvature.lanczos import Goal, LanczosResult, Start, _Run, lanczos
from trebuchet.curvature.solve import Solver
from trebuchet.errors import InputError

F64 = torch.float64


def normal(n: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def run(d: Tensor, seed: int = 0, **goal: float) -> LanczosResult:
    start = Start(normal(len(d), seed, d.dtype), lambda _: 1.0)
    return lanczos(lambda v: d * v, start, Goal(**goal))  # type: ignore[arg-type]


class Matrix:
    """A dense operator, on its own, for the solver."""

    side = "parameters"
    metric = None

    def __init__(self, a: Tensor) -> None:
        self.a, self.dim = a, len(a)

    def product(self, v: Tensor) -> Tensor:
        return self.a @ v

    def random_start(self, generator: torch.Generator):  # type: ignore[no-untyped-def]
        return torch.randn(self.dim, generator=generator, dtype=self.a.dtype), lambda _: 1.0

    def to_parameters(self, y: Tensor, value: float) -> Tensor:
        return y


def solve(a: Tensor, seed: int = 0, **goal: float):  # type: ignore[no-untyped-def]
    op, like = Matrix(a), torch.empty(0, dtype=a.dtype)
    generator = torch.Generator().manual_seed(seed)
    return Solver(op, like, Goal(**goal), generator, Ranks(None, like.device)).solve()  # type: ignore[arg-type]


SPECTRA = {
    "geometric": 2.0 ** -torch.arange(400, dtype=F64),
    "harmonic": 1 / (1 + torch.arange(400, dtype=F64)),
    "uniform": torch.linspace(0, 1, 400, dtype=F64),
    "indefinite": torch.cat([torch.tensor([1.0, -7.0]), torch.linspace(-3, 0.9, 398)]).to(F64),
    "negative": -torch.linspace(1, 5, 400, dtype=F64),
    "two values": torch.tensor([1.0] * 3 + [0.5] * 397, dtype=F64),
    "outlier": torch.cat([torch.tensor([2.0], dtype=F64), torch.ones(399, dtype=F64)]),
}  # fmt: skip


@pytest.mark.parametrize("cap", [6, 12, 64])
@pytest.mark.parametrize("name", list(SPECTRA))
def test_value_bounds_and_certificate_hold(name: str, cap: int) -> None:
    d = SPECTRA[name]
    top = float(d.max())
    for rtol in (1e-2, 1e-6):
        result = run(d, rtol=rtol, basis_cap=cap, max_products=3000)
        assert result.certified
        assert result.close
        assert abs(float(result.values[0]) - top) <= rtol * abs(top)
        assert float((d - float(result.values[0])).abs().min()) <= result.residuals[0]
        assert result.values[0] - 1e-12 <= top <= result.upper + 1e-12
        y = result.vectors[0]
        true_residual = float((d * y - result.values[0] * y).norm())
        assert true_residual <= result.residuals[0] * 1.001 + 1e-12
        assert math.isclose(float(y.norm()), 1, rel_tol=1e-10)


def test_float32_residual_bound_covers_rounding() -> None:
    d = SPECTRA["harmonic"].float()
    for seed in range(50):
        result = run(d, seed, rtol=1e-5)
        y = result.vectors[0].double()
        y = y / y.norm()
        true_residual = float((d.double() * y - result.values[0] * y).norm())
        assert true_residual <= result.residuals[0]
        assert result.certified


@pytest.mark.many_seeds
def test_certificate_is_calibrated() -> None:
    """With failure = 0.2, a claim may be wrong one time in five; it must not be more often.

    At `failure` = 1 − tiny the certificate asks for next to nothing, and claims are wrong often:
    both sides, so that the test can fail.
    """
    d = torch.cat([torch.tensor([1.02], dtype=F64), torch.linspace(0, 1, 3000, dtype=F64)])
    wrong = {}
    for failure in (0.2, 0.9999):
        results = [run(d, s, rtol=1e-2, failure=failure) for s in range(200)]
        wrong[failure] = sum(r.values[0] * 1.01 < 1.02 for r in results) / len(results)
    assert wrong[0.2] <= 0.2 + 3 * math.sqrt(0.2 * 0.8 / 200)
    assert wrong[0.9999] > wrong[0.2]


@pytest.mark.parametrize("cap", [5, 9, 40])
def test_certificate_replays_the_run(cap: int) -> None:
    """F(λ) at an eigenvalue λ is Σ_j ⟨x, v_j⟩² / ⟨x, v_0⟩²: by hand, over restarts."""
    n = 60
    d = torch.cat([torch.linspace(0, 1, n - 1, dtype=F64), torch.tensor([1.3], dtype=F64)])
    v = normal(n)
    v[-1] = 1e-9  # nearly blind to the top, so that θ stays below λ = 1.3 for a while
    norm = float(v.norm())
    state = _Run(lambda w: d * w, None, Goal(basis_cap=cap), Start(v, lambda _: 1.0), norm, v)
    for _ in range(14):
        state.step()
        state.look()
        if state.full:
            state.restart()
    state.step()
    state.look()
    assert state.theta[0] < 1.2
    overlaps = state.basis.combine(np.eye(len(state.basis)))[:, -1] / (v[-1] / norm)
    want = math.sqrt(2 / 3 / float(overlaps.square().sum()))
    got = state.certificate.miss(1.3, state.first, state.t) / norm  # share is 1/norm
    assert math.isclose(got, want, rel_tol=1e-5) or got * norm == 1.0
    assert float(overlaps.square().sum()) > 1e6


@pytest.mark.parametrize("cap", [8, 64])
def test_several_values_with_multiplicity(cap: int) -> None:
    d = torch.tensor([5.0, 5, 5, 3, 2, 2] + [1 / (1 + i) for i in range(60)], dtype=F64)
    q = torch.linalg.qr(
        torch.randn(66, 66, generator=torch.Generator().manual_seed(0), dtype=F64)
    ).Q
    spectrum = solve((q * d) @ q.T, k=6, rtol=1e-8, basis_cap=cap)
    assert spectrum.converged
    np.testing.assert_allclose(spectrum.values, [5, 5, 5, 3, 2, 2], rtol=1e-8)
    assert spectrum.upper >= 1
    assert spectrum.upper <= 2 * (1 + 1e-7)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("n", [1, 2, 3, 10])
def test_identity_zero_and_tiny(n: int, dtype: torch.dtype) -> None:
    for scale in (0.0, 1.0, -2.0):
        spectrum = solve(scale * torch.eye(n, dtype=dtype), k=n)
        assert spectrum.converged
        np.testing.assert_allclose(spectrum.values, scale, rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-300, 1e-252, 1e-160, 1e160, 1e250])
def test_squares_that_no_double_holds(scale: float) -> None:
    """The length of a product is found without its square."""
    spectrum = solve(scale * torch.diag(SPECTRA["uniform"]), rtol=1e-4)
    assert spectrum.converged
    want = float(SPECTRA["uniform"].max())
    assert spectrum.values[0] / scale == pytest.approx(want, rel=2e-4)


@pytest.mark.parametrize("scale", [1e-30, 1e-22, 1e22, 1e30])
def test_squares_that_no_single_holds(scale: float) -> None:
    d = torch.linspace(0, 1, 5000) * scale  # so many are multiplied in their own precision
    spectrum = run(d.float(), rtol=1e-3)
    assert spectrum.values[0] / scale == pytest.approx(1, rel=2e-3)


def test_hidden_outlier_in_float32() -> None:
    """The identity with one larger eigenvalue: the space looks used up after a step or two."""
    d = torch.ones(400)
    d[17] = 2.0
    for seed in range(50):
        spectrum = solve(torch.diag(d), seed=seed)
        assert spectrum.converged
        assert math.isclose(spectrum.values[0], 2.0, rel_tol=1e-3)


def test_running_out_of_products_is_said() -> None:
    result = solve(torch.diag(SPECTRA["uniform"]), rtol=1e-4, max_products=8)
    assert not result.converged
    assert result.products == 8
    assert "max_products" in result.note


def test_rounding_that_forbids_the_tolerance_is_said() -> None:
    a = torch.diag(SPECTRA["harmonic"].float())
    result = solve(a, rtol=1e-7)
    assert not result.converged
    assert "rounding" in result.note


def test_nan_products_are_refused() -> None:
    with pytest.raises(InputError, match="NaN"):
        lanczos(lambda v: v * math.nan, Start(normal(5), lambda _: 1.0))


@given(
    st.lists(st.floats(-10, 10), min_size=1, max_size=40),
    st.integers(0, 10**6),
    st.integers(1, 3),
)
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_any_spectrum(values: list[float], seed: int, k: int) -> None:
    d = torch.tensor(values, dtype=F64)
    k = min(k, len(d))
    n = len(d)
    q = torch.linalg.qr(torch.randn(n, n, generator=torch.Generator().manual_seed(1), dtype=F64)).Q
    a = (q * d) @ q.T
    spectrum = solve((a + a.T) / 2, seed=seed, k=k, rtol=1e-4)
    want = d.sort(descending=True).values[:k].numpy()
    size = float(d.abs().max())
    if spectrum.converged:
        np.testing.assert_allclose(spectrum.values, want, rtol=2e-4, atol=1e-12 * size + 1e-300)
    assert spectrum.converged or abs(want).min() < 1e-9 * size


@pytest.mark.xfail(strict=False, reason="the second of two equal tops ends just short of rtol")
def test_a_double_top_of_a_small_matrix_converges() -> None:
    """Found by drawing spectra: the values are right to 1e-8, and it says not converged."""
    d = [0.0, 4.0, -3.0, 0.0, 4.5, -1.0, 2.0, 10.0, 8.0, -6.0, 1.0, 10.0, -4.0]
    n = len(d)
    q = torch.linalg.qr(torch.randn(n, n, generator=torch.Generator().manual_seed(1), dtype=F64)).Q
    a = (q * torch.tensor(d, dtype=F64)) @ q.T
    assert solve((a + a.T) / 2, seed=2, k=2, rtol=1e-4).converged
