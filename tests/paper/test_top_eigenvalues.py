"""λ of the paper's figures beside LAPACK's, through the first catapults of a few rates.

All of their quick grids are in bench/top_eigenvalue_check.py; this is the part that takes seconds.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

import trebuchet as tb
from trebuchet.paper import FIGURES, paper_problem
from trebuchet.paper.settings import Images

SHARED = Path(__file__).parents[2] / "../shared/data"
FILES = {"mnist": "mnist01.npz", "fashion_mnist": "fmnist01.npz", "cifar10": "cifar01.npz"}


class ByLapack(tb.Observable):
    """All eigenvalues of H, formed anew."""

    name = "by_lapack"
    cheap = True

    def of(self, runs: tb.observables.Runs) -> np.ndarray:
        gram = runs.gram().double().numpy()
        known = [bool(np.isfinite(h).all()) for h in gram]
        top = [np.linalg.eigvalsh(h)[-1] if k else np.nan for h, k in zip(gram, known, strict=True)]
        return np.array(top)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("number", [2, 4, 9, 10, 3, 12, 13, 14])
def test_lambda_is_lapack_s_at_every_recorded_step(number: int, dtype: torch.dtype) -> None:
    setting = FIGURES[number]
    if isinstance(setting.data, Images) and not (SHARED / FILES[setting.data.name]).is_file():
        pytest.skip("the pictures do not lie in a folder shared/data beside the project")
    problem = paper_problem(setting, dtype=dtype, data_root=SHARED)
    pictures = isinstance(setting.data, Images)
    steps = 10 if pictures else 40
    runs = tb.sweep(
        problem, lr_ratio=[1.0, 3.5, 8.0], steps=steps,
        seeds=[setting.seed], chunk=setting.chunk, workers=1, progress=False,
        observables=["top_eigenvalue", ByLapack()],
    )  # fmt: skip
    # In float32 H is rounded where it is formed, and here it is formed by another road.
    rtol = 1e-12 if dtype == torch.float64 else 3e-7
    for name in ("", "_final"):
        found, wanted = runs[f"top_eigenvalue{name}"], runs[f"by_lapack{name}"]
        np.testing.assert_allclose(found, wanted, rtol=rtol, atol=0)
    assert int(np.isfinite(runs.by_lapack).sum()) > steps
