"""A teacher that makes the labels, and a student that sees part of its weights."""

import torch

from trebuchet import _torch_checks as checks
from trebuchet._checks import LONGEST, choice, whole
from trebuchet._doors import door, rule
from trebuchet.errors import InputError
from trebuchet.models.draws import Draws, drawing
from trebuchet.models.meta_feature import (
    ELEMENTWISE,
    ElementwiseName,
    MetaFeature,
    even,
    spectrum,
)
from trebuchet.models.quadratic import PureQuadratic, QuadraticWithBias

_MASKED = rule(whole, "0 or more", least=0, most=LONGEST)
_COMMON = {
    "n": even, "d": checks.size, "masked": _MASKED, "eigenvalues": spectrum,
    "elementwise": rule(choice, ELEMENTWISE, quoted=False), "generator": drawing,
    "dtype": checks.dtype,
}  # fmt: skip


@door(**_COMMON)
def pure_teacher_student(
    n: int,
    d: int = 1,
    *,
    masked: int = 0,
    eigenvalues: tuple[float, float] = (1.0, 1.0),
    elementwise: ElementwiseName = "identity",
    generator: int | torch.Generator | Draws,
    dtype: torch.dtype = torch.float64,
) -> tuple[PureQuadratic, PureQuadratic]:
    """A pure quadratic teacher and its student, in the paper's order of draws.

    The order is: meta-feature, the student's basis, student weights, teacher weights. The basis
    permutes the indices even where nothing is masked.

    Args:
        n: Number of teacher weights; even.
        d: Number of inputs.
        masked: How many of the teacher's dimensions the student does not see.
        eigenvalues: (low, high) of the positive eigenvalues of each W.
        elementwise: The function g of the meta-feature.
        generator: A seed (the paper's draws), a generator, or draws under way.
        dtype: Of weights and matrices.

    Returns:
        (teacher, student).

    Raises:
        InputError: If `masked` leaves no weight, or n is odd.

    References:
        Meltzer & Liu, arXiv 2301.07737, appendix B; figures 1, 4 and 5.
    """
    _check_masked("masked", masked, n)
    draws = drawing("generator", generator)
    psi = MetaFeature.draw(
        n, d, eigenvalues=eigenvalues, elementwise=elementwise, generator=draws, dtype=dtype
    )
    basis = draws.choice(n, n - masked)
    student = PureQuadratic(psi.select(basis), draws.normal(n - masked).to(dtype))
    teacher = PureQuadratic(psi, draws.normal(n).to(dtype))
    return teacher, student


@door(**_COMMON, p=checks.size, masked_features=_MASKED)
def biased_teacher_student(
    n: int,
    p: int,
    d: int = 1,
    *,
    masked: int = 0,
    masked_features: int = 0,
    eigenvalues: tuple[float, float] = (1.0, 1.0),
    elementwise: ElementwiseName = "identity",
    generator: int | torch.Generator | Draws,
    dtype: torch.dtype = torch.float64,
) -> tuple[QuadraticWithBias, QuadraticWithBias]:
    """A quadratic teacher with bias and its student, in the paper's order of draws.

    The order is: U, the student's features (sorted), meta-feature, the student's basis, then
    teacher feature weights, teacher meta weights, student feature weights, student meta weights.
    φ keeps the teacher's p in its scale.

    Args:
        n: Number of teacher meta weights; even.
        p: Number of teacher features.
        d: Number of inputs.
        masked: Meta dimensions the student does not see.
        masked_features: Features the student does not see.
        eigenvalues: (low, high) of the positive eigenvalues of each W.
        elementwise: The function g of the meta-feature.
        generator: A seed (the paper's draws), a generator, or draws under way.
        dtype: Of weights and matrices.

    Returns:
        (teacher, student).

    Raises:
        InputError: If masking leaves no weight, or n is odd.

    References:
        Meltzer & Liu, arXiv 2301.07737, appendix B; figures 6 and 7.
    """
    _check_masked("masked", masked, n)
    _check_masked("masked_features", masked_features, p)
    draws = drawing("generator", generator)
    checks.sizes(p=p, d=d)
    features = draws.normal(d, p).to(dtype)
    seen = draws.choice(p, p - masked_features).sort().values
    psi = MetaFeature.draw(
        n, d, eigenvalues=eigenvalues, elementwise=elementwise, generator=draws, dtype=dtype
    )
    basis = draws.choice(n, n - masked)
    teacher_phi, teacher_psi = draws.normal(p).to(dtype), draws.normal(n).to(dtype)
    teacher = QuadraticWithBias(features, psi, teacher_phi, teacher_psi)
    student_phi = draws.normal(p - masked_features).to(dtype)
    student_psi = draws.normal(n - masked).to(dtype)
    student = QuadraticWithBias(
        features[:, seen], psi.select(basis), student_phi, student_psi, n_features=p
    )
    return teacher, student


def _check_masked(name: str, masked: int, n: int) -> None:
    if masked >= n:
        msg = f"{name}: expected 0 <= {name} < {n}, got {masked}"
        raise InputError(msg)
