"""Closed forms, the Linear-layer rule and dense autograd are three roads to one matrix.

Tolerances: entries are sums over P < 1000 parameters, of order 1 to 10: n·u of float64 is 10⁻¹³,
and its products and the layers above it leave a factor of ten.
"""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.zoo import F64, MODELS, inputs, sequential, width_of_inputs
from trebuchet.curvature.gram import gram, top_of_gram
from trebuchet.curvature.linear_rule import linear_rule_gram
from trebuchet.engine.kernels import make_kernel
from trebuchet.errors import InputError


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("samples", [1, 4])
def test_closed_form_of_every_model_is_the_dense_gram(name: str, samples: int) -> None:
    model = MODELS[name]()
    x = inputs(samples, width_of_inputs(model))
    kernel = make_kernel([model, model], x)
    with torch.no_grad():
        kernel.forward()
        closed = kernel.gram()
    dense = gram(model, x)
    scale = float(dense.abs().max())
    for run in closed:
        torch.testing.assert_close(run, dense, rtol=0, atol=1e-12 * max(1.0, scale))


@pytest.mark.parametrize("hidden", [1, 2, 3])
@pytest.mark.parametrize("outputs", [1, 3])
def test_linear_rule_is_the_dense_gram(hidden: int, outputs: int) -> None:
    net = sequential(hidden=hidden, outputs=outputs)
    x = inputs(4, 5)
    torch.testing.assert_close(linear_rule_gram(net, x), gram(net, x), rtol=0, atol=1e-12)


def test_linear_rule_leaves_frozen_parameters_out() -> None:
    net = sequential(hidden=2)
    first, second = net[0], net[2]
    assert isinstance(first, nn.Linear)
    assert isinstance(second, nn.Linear)
    first.weight.requires_grad_(False)
    second.bias.requires_grad_(False)
    x = inputs(4, 5)
    torch.testing.assert_close(linear_rule_gram(net, x), gram(net, x), rtol=0, atol=1e-12)


def test_linear_rule_survives_activations_in_place() -> None:
    net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(inplace=True), nn.Linear(8, 2)).to(F64)
    x = inputs(4, 5)
    torch.testing.assert_close(linear_rule_gram(net, x), gram(net, x), rtol=0, atol=1e-12)


def test_linear_rule_refuses_what_it_does_not_hold_for() -> None:
    with pytest.raises(InputError, match="BatchNorm1d"):
        linear_rule_gram(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), torch.ones(2, 2))
    tied = nn.Linear(2, 2)
    with pytest.raises(InputError, match="share"):
        linear_rule_gram(nn.Sequential(tied, nn.Tanh(), tied), torch.ones(2, 2))


def test_gram_in_chunks_is_the_gram() -> None:
    net, x = sequential(outputs=3), inputs(4, 5)
    torch.testing.assert_close(gram(net, x, chunk=2), gram(net, x), rtol=0, atol=1e-14)


def test_top_of_gram_is_nan_where_a_matrix_is_not_finite_and_right_beside_it() -> None:
    stack = torch.diag_embed(
        torch.tensor([[1.0, 3.0], [torch.nan, 1.0], [torch.inf, 1.0]], dtype=F64)
    )
    top = top_of_gram(stack)
    assert top[0] == 3
    assert bool(top[1:].isnan().all())
    single = top_of_gram(torch.tensor([3.0, torch.inf, torch.nan])[:, None, None])
    assert single[0] == 3
    assert bool(single[1:].isnan().all())


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_top_of_gram_where_most_units_are_dead(dtype: torch.dtype) -> None:
    """Low rank and many zero rows: float32 LAPACK fails on a quarter of these."""
    for seed in range(50):
        generator = torch.Generator().manual_seed(seed)
        alive = torch.randperm(128, generator=generator)[:15]
        a = torch.randn(15, 3, generator=generator, dtype=dtype)
        matrix = torch.zeros(128, 128, dtype=dtype)
        matrix[alive[:, None], alive] = a @ a.T
        small = (a.double().T @ a.double()).numpy()  # 3 × 3, with the same non-zero eigenvalues
        truth = torch.tensor(np.linalg.eigvalsh(small)[-1:], dtype=dtype)
        top = top_of_gram(matrix[None])
        assert top.dtype == dtype
        # An entry of aaᵀ sums 3 products, so that its rounding is 3u |a|_F² at most in norm, where
        # λ is |a|_F² / 3 at least: 9u. The solver adds u of float64 for each row that is not zero.
        rounding = (9 * torch.finfo(dtype).eps + 15 * torch.finfo(F64).eps) / 2
        torch.testing.assert_close(top, truth, rtol=rounding, atol=0)


@pytest.mark.parametrize("m", [1, 3])
def test_top_of_gram_of_half_precision_is_float32(m: int) -> None:
    top = top_of_gram(torch.eye(m, dtype=torch.bfloat16)[None])
    assert top.dtype == torch.float32
    assert top.tolist() == [1.0]


def test_one_matrix_that_lapack_gives_up_on_is_nan_and_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    solve = torch.linalg.eigvalsh

    def gives_up(matrices: Tensor) -> Tensor:
        if bool((matrices == 7).any()):
            raise torch.linalg.LinAlgError  # type: ignore[attr-defined]
        found: Tensor = solve(matrices)
        return found

    monkeypatch.setattr(torch.linalg, "eigvalsh", gives_up)
    stack = torch.diag_embed(torch.tensor([[[1.0, 3.0], [7.0, 1.0]], [[2.0, 1.0], [5.0, 4.0]]]))
    top = top_of_gram(stack)
    assert top.dtype == torch.float32
    assert torch.equal(top.nan_to_num(-1), torch.tensor([[3.0, -1.0], [2.0, 5.0]]))
