"""The draws themselves: private generators give what the global ones gave the authors."""

import math
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch

from trebuchet.errors import InputError
from trebuchet.models import MLP, Draws, MetaFeature, biased_teacher_student, pure_teacher_student
from trebuchet.paper import figure
from trebuchet.paper.beyond.width import WidthNet


@pytest.fixture(autouse=True)
def keep_global_generators() -> Iterator[None]:
    """The references below seed the global generators, as the authors did."""
    state = np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng():
        yield
    np.random.set_state(state)  # noqa: NPY002


def seed_globally(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002


def reference_matrices(n: int, d: int, low: float, high: float) -> torch.Tensor:
    """W as the paper draws it: all B in turn, then all eigenvalues; W = Σ λ_a q_am q_ap.

    Drawn in float32, as there; q in float64, which is where we depart from it.
    """
    normals = [torch.randn(n, n).double() for _ in range(d)]
    positive = (torch.rand(d, n // 2) * (high - low) + low).double()
    matrices = []
    for b, lam in zip(normals, positive, strict=True):
        q = torch.linalg.matrix_exp((b - b.T) / math.sqrt(2))
        matrices.append(torch.einsum("a,am,ap->mp", torch.cat([lam, -lam]), q, q))
    return torch.stack(matrices)


def test_pure_teacher_student_follows_the_order_of_draws() -> None:
    seed_globally(17)
    w = reference_matrices(20, 2, 0.5, 1.5)
    basis = np.random.choice(20, 20 - 6, replace=False)  # noqa: NPY002
    student_weights, teacher_weights = torch.randn(14), torch.randn(20)

    teacher, student = pure_teacher_student(
        20, 2, masked=6, eigenvalues=(0.5, 1.5), generator=17, dtype=torch.float32
    )
    # Rounded once, from float64: half a unit in the last place of entries below 2.
    torch.testing.assert_close(teacher.psi.matrices.double(), w, rtol=0, atol=2**-23)
    seen_by_student = w[:, basis][:, :, basis]
    torch.testing.assert_close(student.psi.matrices.double(), seen_by_student, rtol=0, atol=2**-23)
    assert torch.equal(student.theta.data, student_weights)
    assert torch.equal(teacher.theta.data, teacher_weights)
    assert teacher.zeta == pytest.approx((20 / 2) ** -0.5, rel=1e-14)
    assert student.zeta == pytest.approx((14 / 2) ** -0.5, rel=1e-14)


def test_biased_teacher_student_follows_the_order_of_draws() -> None:
    seed_globally(23)
    u = torch.randn(2, 8)
    seen = np.sort(np.random.choice(8, 5, replace=False))  # noqa: NPY002
    w = reference_matrices(10, 2, 1.0, 1.0)
    basis = np.random.choice(10, 6, replace=False)  # noqa: NPY002
    weights = [torch.randn(size) for size in (8, 10, 5, 6)]

    teacher, student = biased_teacher_student(
        10, 8, 2, masked=4, masked_features=3, generator=23, dtype=torch.float32
    )
    assert torch.equal(teacher.features, u)
    assert torch.equal(student.features, u[:, seen])
    seen_by_student = w[:, basis][:, :, basis]
    torch.testing.assert_close(student.psi.matrices.double(), seen_by_student, rtol=0, atol=2**-23)
    drawn = [teacher.theta_phi, teacher.theta_psi, student.theta_phi, student.theta_psi]
    assert all(torch.equal(a.data, b) for a, b in zip(drawn, weights, strict=True))
    x = torch.ones(1, 2)
    torch.testing.assert_close(student.phi(x), x @ u[:, seen] / math.sqrt(2 * 8))


@pytest.mark.parametrize("hidden", [1, 2])
def test_mlp_weights_follow_the_initialisation_that_linear_layers_use_up(hidden: int) -> None:
    seed_globally(120)
    sizes = [3, *[7] * hidden, 1]
    layers = [torch.nn.Linear(a, b, bias=False) for a, b in pairwise(sizes)]
    for layer in layers:
        torch.nn.init.normal_(layer.weight)
    net = MLP.draw(3, 7, hidden=hidden, generator=120, dtype=torch.float32)
    assert all(
        torch.equal(w.data, layer.weight.data) for w, layer in zip(net.weights, layers, strict=True)
    )


def test_drawing_leaves_the_global_generators_alone() -> None:
    seed_globally(1)
    expected = torch.rand(3), np.random.rand(3)  # noqa: NPY002
    seed_globally(1)
    pure_teacher_student(10, generator=5)
    MLP.draw(2, 4, generator=torch.Generator().manual_seed(3))
    assert torch.equal(torch.rand(3), expected[0])
    assert np.array_equal(np.random.rand(3), expected[1])  # noqa: NPY002


def test_a_generator_and_a_seed_both_draw_and_differ_by_seed() -> None:
    by_generator = MLP.draw(2, 4, generator=torch.Generator().manual_seed(3))
    by_seed = MLP.draw(2, 4, generator=3)
    assert not torch.equal(by_seed.weights[0], MLP.draw(2, 4, generator=4).weights[0])
    # A generator first seeds NumPy's stream, so its numbers are its own.
    assert not torch.equal(by_generator.weights[0], by_seed.weights[0])


def test_meta_feature_eigenvalues_come_in_pairs_within_the_range() -> None:
    psi = MetaFeature.draw(40, eigenvalues=(1.0, 2.0), generator=2)
    spectrum = torch.linalg.eigvalsh(psi.matrices[0])
    torch.testing.assert_close(spectrum, -spectrum.flip(0), rtol=0, atol=1e-12)
    assert bool(((spectrum.abs() >= 1 - 1e-12) & (spectrum.abs() <= 2 + 1e-12)).all())


def test_a_float32_model_is_the_float64_one_rounded() -> None:
    """A float32 exponential is short of orthogonal by 2ˢ times the rounding of a product."""
    for elementwise in ("identity", "tanh"):
        single, double = (
            pure_teacher_student(200, 2, masked=20, elementwise=elementwise, generator=9, dtype=t)[
                1
            ]
            for t in (torch.float32, torch.float64)
        )
        assert torch.equal(single.psi.matrices, double.psi.matrices.float())
    single_biased, double_biased = (
        biased_teacher_student(100, 10, masked=20, generator=9, dtype=t)[1]
        for t in (torch.float32, torch.float64)
    )
    assert torch.equal(single_biased.psi.matrices, double_biased.psi.matrices.float())
    matrix = MetaFeature.draw(200, generator=9, dtype=torch.float32).matrices[0].double()
    spectrum = torch.linalg.eigvalsh(matrix).abs()
    # Entries rounded to u = 2⁻²⁴: no eigenvalue moves by more than u·|W|_F = u·√200 (Weyl).
    assert float((spectrum - 1).abs().max()) < 2**-24 * math.sqrt(200)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: MetaFeature.draw(7, generator=0), "even"),
        (lambda: MetaFeature.draw(0, generator=0), "even"),
        (lambda: MetaFeature.draw(4, eigenvalues=(2, 1), generator=0), "eigenvalues"),
        (lambda: MetaFeature(torch.ones(2, 3, 4)), r"\(d, n, n\)"),
        (lambda: MetaFeature(torch.arange(4.0).reshape(1, 2, 2)), "symmetric"),
        (lambda: MetaFeature(torch.eye(2)[None], "cubic"), "elementwise"),  # type: ignore[arg-type]
        (lambda: pure_teacher_student(10, masked=10, generator=0), "masked"),
        (lambda: MLP.draw(0, 5, generator=0), "d:"),
        (lambda: MLP([torch.ones(3, 2)]), "two or more"),
        (lambda: MLP([torch.ones(3, 2), torch.ones(1, 4)]), "follow on"),
        (lambda: Draws(-1), "seed"),
        (lambda: Draws(1.5), "seed"),  # type: ignore[arg-type]
    ],
)
def test_bad_input_is_named(call, words: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match=words):
        call()


@pytest.fixture
def double_by_default() -> Iterator[None]:
    """A caller who works in float64 throughout."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def _drawn() -> list[torch.Tensor]:
    draws = Draws(7)
    draws.skip_linear_init(3, 2)
    found = [draws.normal(4), draws.uniform(2, 3, low=-1.0)]
    weight = MLP.draw(3, 5, generator=1).weights[0].detach()
    return [*found, weight, WidthNet(3, 4, "standard", False, 0).weights[0].detach()]


SINGLE = _drawn()


@pytest.mark.usefixtures("double_by_default")
def test_a_seed_means_the_same_whatever_torch_s_default_type_is() -> None:
    for ours, wanted in zip(_drawn(), SINGLE, strict=True):
        assert ours.dtype == wanted.dtype
        assert torch.equal(ours, wanted)
    assert figure(6).edges["upper"].lr_ratio == pytest.approx(3.28963, abs=1e-4)  # the reference's
