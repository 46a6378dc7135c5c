"""The paper's q is a matrix exponential: in float64 a number, in float32 the CPU's opinion."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest
import scipy.linalg
import torch
from numpy.typing import NDArray

from tests.paper.authors import FIGURE_1, FIGURE_1_AS_PRINTED, SCATTER
from trebuchet.models import Draws
from trebuchet.paper.problems import paper_problem
from trebuchet.paper.settings import FIGURES
from trebuchet.phases.edges import edges


def figure_1_by_hand(q: NDArray[np.float64]) -> float:
    """λ₀ = ζ²|Wθ|² of figure 1 from a given exponential, in float64, by the order of draws."""
    draws = Draws(13)
    draws.normal(1000, 1000)  # B, which made q
    positive = draws.uniform(500, low=1.0, high=2.0).double().numpy()
    basis = draws.choice(1000, 1000).numpy()
    theta = draws.normal(1000).double().numpy()
    w = (q.T * np.concatenate([positive, -positive])) @ q
    return 2 / 1000 * float(np.sum((w[np.ix_(basis, basis)] @ theta) ** 2))


def test_figure_1_in_float64_is_the_same_on_every_cpu() -> None:
    """By SciPy's exponential, and by the eigenvectors of iB: 4.620303."""
    b = Draws(13).normal(1000, 1000).double().numpy()
    skew = (b - b.T) / math.sqrt(2)
    values, vectors = np.linalg.eigh(1j * skew)
    by_eigenvectors = ((vectors * np.exp(-1j * values)) @ vectors.conj().T).real
    # The exponential adds 2⁹·√n·u = 2e-12 in float64. But the numbers drawn are float32, and their
    # last bit is that of the CPU's logarithm and cosine: u = 6e-8 each, of which 4e-9 is left.
    assert figure_1_by_hand(scipy.linalg.expm(skew)) == pytest.approx(FIGURE_1, rel=6e-8)
    assert figure_1_by_hand(by_eigenvectors) == pytest.approx(FIGURE_1, rel=6e-8)
    double = edges(paper_problem(FIGURES[1], dtype=torch.float64))["critical"]
    assert double.top_eigenvalue_init == pytest.approx(FIGURE_1, rel=6e-8)
    single = edges(paper_problem(FIGURES[1]))["critical"]
    # W, θ and the sums of 1000 terms in float32: n·u = 6e-5 at worst, √n·u = 2e-6 as a rule.
    assert single.top_eigenvalue_init == pytest.approx(FIGURE_1, rel=1e-5)


def test_a_float32_exponential_gives_the_authors_figure_1() -> None:
    b = Draws(13).normal(1000, 1000)
    q = torch.linalg.matrix_exp((b - b.T) / math.sqrt(2)).double().numpy()
    lam = figure_1_by_hand(q)
    # Its rows have lost length, on average by the share that λ₀ ∝ |q|⁴ has lost twice; the rest,
    # in which rows differ, averages out over n of them.
    length = float(np.mean(np.sum(q**2, axis=1)))
    assert lam / FIGURE_1 == pytest.approx(length**2, abs=SCATTER / math.sqrt(1000))
    # On the instruction set they ran on, the authors' very digits; on another, within the scatter.
    theirs = "(AVX2)" in mkl_kernels()
    assert lam == pytest.approx(FIGURE_1_AS_PRINTED, rel=1e-5 if theirs else SCATTER)


def mkl_kernels() -> str:
    """What MKL says of its kernels, such as "… (Intel(R) AVX2) …"; empty where PyTorch has none."""
    code = "import torch; torch.ones(9, 9) @ torch.ones(9, 9)"
    environment = {**os.environ, "MKL_VERBOSE": "1"}
    said = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout
    return said.partition("\n")[0] if said.startswith("MKL_VERBOSE") else ""
