"""λ at every recorded step of runs, beside LAPACK's of the matrix that is never formed for it."""

from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor, nn

import trebuchet as tb
from trebuchet.models import MLP

RATES = [0.5, 2.5, 3.7, 6.0, 20.0]  # lazy, catapults in which the eigenvector turns, and lost


class ByLapack(tb.Observable):
    """All eigenvalues of H, formed anew."""

    name = "by_lapack"

    def of(self, runs: tb.observables.Runs) -> np.ndarray:
        gram = runs.gram().double()
        top = [
            float(torch.linalg.eigvalsh(h)[-1]) if bool(h.isfinite().all()) else np.nan
            for h in gram
        ]
        return np.array(top)


def bright(samples: int, d: int = 30) -> tuple[Tensor, Tensor]:
    """Two classes of pictures: positive pixels, a few of which tell them apart."""
    generator = torch.Generator().manual_seed(0)
    y = 2.0 * torch.randint(2, (samples,), generator=generator) - 1
    x = torch.rand(samples, d, generator=generator, dtype=torch.float64)
    x[:, :8] *= 1 + 0.5 * y[:, None]
    return x, y.double()


def nets(seed: int, slopes: tuple[float, float], hidden: int, dtype: torch.dtype) -> nn.Module:
    return MLP.draw(30, 64, hidden=hidden, slopes=slopes, generator=seed, dtype=dtype)


def proofs(runs: xr.Dataset) -> dict[str, int]:
    """How often each was needed."""
    parts = runs.attrs["top_eigenvalue_proofs"].split(", ")
    return {kind: int(count) for kind, count in (part.split() for part in parts)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("slopes", "hidden"), [((1.0, 0.0), 1), ((1.0, 0.0), 2), ((1.0, 0.5), 1)])
def test_lambda_is_lapack_s_through_catapults(
    slopes: tuple[float, float], hidden: int, dtype: torch.dtype
) -> None:
    x, y = (t.to(dtype) for t in bright(100))
    runs = tb.sweep(
        lambda seed: nets(seed, slopes, hidden, dtype), "half_mse", (x, y), lr_ratio=RATES,
        seeds=2, steps=40, observables=["top_eigenvalue", ByLapack()], workers=1,
    )  # fmt: skip
    found, expected = runs.top_eigenvalue.values, runs.by_lapack.values
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    # H is rounded where it is formed, to some u of float32: as far as two roads can agree.
    rtol = 1e-12 if dtype == torch.float64 else 3e-7
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=0)
    counts = proofs(runs)
    total = int(np.isfinite(runs.loss.values).sum()) + int(runs.status.size)
    assert sum(counts.values()) >= total - 10
    assert counts["trace"] > 0.5 * total


def test_a_net_that_dies_has_a_lambda_of_zero() -> None:
    """Four units die one after the other, and what is left of H has few rows that are not zero."""
    x, y = bright(80)
    runs = tb.sweep(
        lambda seed: MLP.draw(30, 4, generator=seed, dtype=torch.float64), "half_mse", (x, y),
        lr_ratio=np.linspace(1.0, 12.0, 12), seeds=6, steps=60, workers=1,
        observables=["top_eigenvalue", ByLapack()],
    )  # fmt: skip
    dead = (runs.by_lapack == 0).any("step").values
    assert dead.any()
    found, expected = runs.top_eigenvalue.values, runs.by_lapack.values
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=0)


def test_other_losses_and_several_outputs() -> None:
    """Gauss–Newton of cross-entropy, whose matrix has no parts; two of its eigenvalues are near."""
    x, y = bright(40)

    class ByEigen(tb.Observable):
        name = "by_eigen"

        def of(self, runs: tb.observables.Runs) -> np.ndarray:
            top = []
            for model in runs.models():
                found = tb.top_eigen(model, "cross_entropy", (x, labels), "ggn", rtol=1e-10)
                top.append(found.value)
            return np.array(top)

    labels = (y > 0).long()

    def make(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(30, 12), nn.Tanh(), nn.Linear(12, 2)).double()

    runs = tb.sweep(
        make, "cross_entropy", (x, labels), lr_ratio=[1.0, 3.0], steps=6, engine="batched",
        observables=["top_eigenvalue", ByEigen()],
    )  # fmt: skip
    np.testing.assert_allclose(runs.top_eigenvalue, runs.by_eigen, rtol=1e-9, atol=0)
    assert "lapack" in runs.attrs["top_eigenvalue_proofs"]


@pytest.mark.parametrize("engine", ["sequential", "module"])
def test_runs_that_differentiate_find_it_in_the_same_way(engine: Any) -> None:
    """Of a matrix that is formed anyway its norm is known, and proves nearly all."""
    x, y = bright(70)
    runs = tb.sweep(
        lambda seed: nets(seed, (1.0, 0.5), 1, torch.float64), "half_mse", (x, y), steps=12,
        lr_ratio=[0.5, 2.5], engine=engine, observables=["top_eigenvalue", ByLapack()],
    )  # fmt: skip
    np.testing.assert_allclose(runs.top_eigenvalue, runs.by_lapack, rtol=1e-12, atol=0)
    counts = proofs(runs)
    assert counts["lapack"] == 2  # the first of each run
    assert counts["frobenius"] > 0.5 * sum(counts.values())


def made(seed: int) -> nn.Module:
    """A net that can be made in another process."""
    return nets(seed, (1.0, 0.0), 1, torch.float32)


def test_other_processes_and_chunks_change_nothing() -> None:
    """Bit for bit in another process, and as far as the stack's products go in other company."""
    x, y = (t.float() for t in bright(70))
    problem = tb.Problem(made, "half_mse", (x, y))
    given: dict[str, Any] = {"lr_ratio": RATES[:4], "seeds": 2, "steps": 15, "workers": 2}
    here = tb.sweep(problem, **given, chunk=3, backend="threads")
    there = tb.sweep(problem, **given, chunk=3, backend="loky")
    np.testing.assert_array_equal(here.top_eigenvalue, there.top_eigenvalue)
    assert here.attrs["top_eigenvalue_proofs"] == there.attrs["top_eigenvalue_proofs"]
    alone = tb.sweep(problem, **given, chunk=1)
    np.testing.assert_allclose(here.top_eigenvalue, alone.top_eigenvalue, rtol=1e-3)
    assert sum(proofs(alone).values()) == sum(proofs(here).values())
