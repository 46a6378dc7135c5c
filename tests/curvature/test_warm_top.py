"""The warm top eigenvalue against LAPACK, on operators made to be missed.

Tolerances are those that are promised, 1e-7 and 1e-12 of λ₁; where the spectrum reaches further
below zero than above, LAPACK itself is only right to u of the largest |λ|, some dozens at m = 130.
"""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from trebuchet.curvature.warm_top import PROOFS, SMALL, SplitGram, WarmTop

Floats = NDArray[np.float64]
F64 = torch.float64
SIZES = (SMALL + 1, 90, 130)


def of_spectrum(rng: np.random.Generator, values: Floats) -> Floats:
    q, _ = np.linalg.qr(rng.standard_normal((values.size, values.size)))
    h: Floats = (q * values) @ q.T
    return (h + h.T) / 2


def rank_one(rng: np.random.Generator, m: int) -> Floats:
    v = rng.standard_normal(m)
    return np.outer(v, v)


def wishart(rng: np.random.Generator, m: int) -> Floats:
    a = rng.standard_normal((m, int(rng.integers(2, 2 * m))))
    h: Floats = a @ a.T
    return h


def equal_pair(rng: np.random.Generator, m: int) -> Floats:
    values = np.sort(rng.random(m))
    values[-2] = values[-1]
    return of_spectrum(rng, values)


def tiny_gap(rng: np.random.Generator, m: int) -> Floats:
    values = np.sort(rng.random(m))
    values[-2] = values[-1] * (1 - 10.0 ** -rng.integers(3, 15))
    return of_spectrum(rng, values)


def mostly_dead(rng: np.random.Generator, m: int) -> Floats:
    h, a = np.zeros((m, m)), rng.standard_normal((m // 8, 3))
    alive = rng.permutation(m)[: m // 8]
    h[np.ix_(alive, alive)] = a @ a.T
    return h


HARD: dict[str, Callable[[np.random.Generator, int], Floats]] = {
    "random": wishart,
    "rank 1": rank_one,
    "zero": lambda rng, m: np.zeros((m, m)),
    "identity": lambda rng, m: 3 * np.eye(m),
    "equal top pair": equal_pair,
    "tiny gap": tiny_gap,
    "mostly dead": mostly_dead,
    "huge or tiny": lambda rng, m: wishart(rng, m) * 10.0 ** rng.integers(-30, 30),
    "steep": lambda rng, m: of_spectrum(rng, np.logspace(0, 1 - m, m)),
    "not positive": lambda rng, m: of_spectrum(rng, rng.uniform(-1, 1, m)),
}


def largest(h: torch.Tensor) -> float:
    return float(np.linalg.eigvalsh(h.double().numpy())[-1])


@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize("kind", HARD)
def test_it_is_lapack_s_on_300_operators(kind: str, dtype: torch.dtype) -> None:
    """15 of each kind and dtype, each asked for where it was, turned a little and turned away."""
    rng = np.random.default_rng(sum(kind.encode()))
    for number in range(15):
        m = SIZES[number % 3]
        h = HARD[kind](rng, m)
        top = WarmTop(1, m)
        if number % 2:  # believed of nobody
            top.vectors[0] = np.linalg.qr(rng.standard_normal((m, 3)))[0].T
        for turn in (1e-6, 1e-3, 0.3):
            matrix = torch.as_tensor(h).to(dtype)
            expected = largest(matrix)
            (found,) = top.of(SplitGram(matrix[None]))
            assert found == pytest.approx(expected, rel=1e-12 if dtype == F64 else 1e-7, abs=0)
            about = np.eye(m) + turn * rng.standard_normal((m, m)) / math.sqrt(m)
            h = about @ h @ about.T
            h = (h + h.T) / 2
        assert top.proofs.sum() == 3


@pytest.mark.parametrize("second", [0.2, 0.7, 0.999, 1.0])
def test_a_perfect_eigenvector_that_is_not_the_top_one_is_not_believed(second: float) -> None:
    """Its residual is exactly zero, and no product with it ever leaves it."""
    values = torch.full((100,), 0.1 * second, dtype=F64)
    values[3], values[7] = 1.0, second
    top = WarmTop(1, 100)
    top.vectors[0, [0, 1, 2], [7, 8, 9]] = 1.0
    assert top.of(SplitGram(torch.diag(values)[None])) == [1.0]


def with_factor(values: Floats, seed: int = 0) -> SplitGram:
    """H of a spectrum as SSᵀ/2, and nothing beside it."""
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.standard_normal((values.size, values.size)))
    s = torch.as_tensor(q * np.sqrt(2 * values))
    return SplitGram(torch.zeros(1, values.size, values.size, dtype=F64), s[None], 0.5)


def spectrum(top: float, rest: float, m: int = 100) -> Floats:
    values = np.full(m, rest)
    values[0] = top
    return values


@pytest.mark.parametrize(
    ("values", "proof"),
    [
        (spectrum(1.0, 0.001), "trace"),
        (spectrum(1.0, 0.05), "frobenius"),  # of trace 5.95 and norm 1.12
        (spectrum(1.0, 0.6), "cholesky"),
        (np.full(100, 1.0), "cholesky"),
    ],
)
def test_each_proof_is_tried_where_the_one_before_fails(values: Floats, proof: str) -> None:
    matrices = with_factor(values)
    assert matrices.factor is not None
    single = SplitGram(matrices.dense.float(), matrices.factor.float(), matrices.weight)
    top = WarmTop(1, 100)
    for _ in range(2):  # the first from nowhere
        # Rounding of S in float32 moves λ₁ by some of its units, and parts equal eigenvalues.
        assert top.of(single)[0] == pytest.approx(1.0, rel=2e-6)
    expected = [0, 0, 0, 1]
    expected[PROOFS.index(proof)] += 1
    assert top.proofs[0].tolist() == expected


def test_parts_multiply_as_the_whole_does() -> None:
    rng = np.random.default_rng(0)
    b, s = (torch.as_tensor(rng.standard_normal((3, 80, n))) for n in (80, 40))
    matrices = SplitGram(b + b.mT, s, 0.3)
    whole = b + b.mT + 0.3 * s @ s.mT
    torch.testing.assert_close(matrices.whole(), whole, rtol=0, atol=1e-12)
    v = torch.as_tensor(rng.standard_normal((3, 80)))
    along = torch.einsum("ra,rab,rb->r", v, whole, v)
    torch.testing.assert_close(matrices.along(v), along, rtol=1e-12, atol=0)
    assert WarmTop(3, 80).of(matrices) == pytest.approx([largest(h) for h in whole], rel=1e-12)


@pytest.mark.parametrize("m", [1, SMALL + 1, 130])
def test_products_in_single_precision_cost_no_digits(m: int) -> None:
    """λ is that of the parts as they are, whatever their products round to."""
    rng = np.random.default_rng(m)
    b, s = (torch.as_tensor(np.abs(rng.standard_normal((2, m, n)))).float() for n in (m, 500))
    top = WarmTop(2, m)
    for _ in range(5):
        matrices = SplitGram((b + b.mT) / 50, s, 1 / 300)
        whole = matrices.dense.double() + s.double() @ s.double().mT / 300
        expected = [largest(h) for h in whole]
        assert top.of(matrices) == pytest.approx(expected, rel=5e-8, abs=0)
        s = s + 0.02 * torch.as_tensor(rng.standard_normal(s.shape)).float()


@pytest.mark.parametrize("size", [1e-24, 1e-20, 1e-15, 1e15, 1e18, 1e21])
def test_a_factor_whose_squares_leave_the_numbers(size: float) -> None:
    """In float32 1e-20 squared has few digits left, 1e-24 none, and 1e21 is infinite."""
    rng = np.random.default_rng(0)
    s = torch.as_tensor(size * rng.standard_normal((1, 80, 40))).float()
    matrices = SplitGram(torch.zeros(1, 80, 80), s)
    whole = matrices.whole()
    expected = largest(whole[0]) if bool(whole.isfinite().all()) else math.nan
    top = WarmTop(1, 80)
    for _ in range(2):
        assert top.of(matrices) == pytest.approx([expected], rel=2e-6, abs=0, nan_ok=True)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["dense", "factor"])
def test_one_matrix_that_is_not_finite_is_nan_and_no_other(bad: float, where: str) -> None:
    one = with_factor(spectrum(1.0, 0.001))
    assert one.factor is not None
    dense, factor = one.dense.repeat(3, 1, 1), one.factor.repeat(3, 1, 1)
    top = WarmTop(3, 100)
    top.of(SplitGram(dense, factor, 0.5))
    held = top.vectors.copy()
    (dense if where == "dense" else factor)[1, 4, 4] = bad
    found = top.of(SplitGram(dense, factor, 0.5))
    assert found[[0, 2]] == pytest.approx(1.0, rel=1e-12)
    assert math.isnan(found[1])
    np.testing.assert_array_equal(top.vectors[1], held[1])


def test_what_is_taken_or_saved_is_where_it_was() -> None:
    rng = np.random.default_rng(0)
    h = torch.as_tensor(np.stack([wishart(rng, 80) for _ in range(3)]))
    top = WarmTop(3, 80)
    values = top.of(SplitGram(h))
    part = top.take([2, 0])
    np.testing.assert_array_equal(part.vectors, top.vectors[[2, 0]])
    assert part.of(SplitGram(h[[2, 0]])) == pytest.approx(values[[2, 0]], rel=1e-12)
    assert top.proofs.sum() == 3  # of its own
    again = WarmTop.restored(top.state(), 3)
    assert again is not None
    np.testing.assert_array_equal(again.vectors, top.vectors)
    assert WarmTop.restored({}, 3) is None
    with pytest.raises(ValueError, match="for 2 runs"):
        WarmTop.restored(top.state(), 2)
