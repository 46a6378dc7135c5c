"""Every row of the table against PyTorch's own optimizer on a one-dimensional quadratic."""

import math

import pytest
import torch

from trebuchet.errors import InputError, NotApplicableError
from trebuchet.theory import second_catapult, stability
from trebuchet.theory.stability import OptimizerName

CURVATURE = 2.5


def optimizer_of(
    name: OptimizerName, theta: torch.Tensor, lr: float, beta: float
) -> torch.optim.Optimizer:
    match name:
        case "sgd":
            return torch.optim.SGD([theta], lr=lr)
        case "momentum":
            return torch.optim.SGD([theta], lr=lr, momentum=beta)
        case "nesterov":
            return torch.optim.SGD([theta], lr=lr, momentum=beta, nesterov=True)
        case "adam":
            # eps = 1 dwarfs √v for the tiny gradients below: P is held at 1, and P⁻¹H = H
            return torch.optim.Adam([theta], lr=lr, betas=(beta, 0.999), eps=1.0)
        case "adamw":
            return torch.optim.AdamW([theta], lr=lr, betas=(beta, 0.999), eps=1.0, weight_decay=0.0)
        case _:  # the others: tests/problem/test_optimizers_edge.py
            raise ValueError(name)


def growth(name: OptimizerName, lr: float, beta: float) -> float:
    """Largest |θ| late in the run over its largest early, after the transient."""
    theta = torch.tensor([1e-80], dtype=torch.float64, requires_grad=True)
    optimizer = optimizer_of(name, theta, lr, beta)
    trace = []
    for _ in range(3000):
        theta.grad = CURVATURE * theta.detach()
        optimizer.step()
        trace.append(abs(float(theta.detach())))
    return max(trace[-100:]) / max(trace[1000:1100])


@pytest.mark.parametrize("beta", [0.5, 0.9])
@pytest.mark.parametrize("name", ["sgd", "momentum", "nesterov", "adam", "adamw"])
def test_both_sides_of_every_edge(name: OptimizerName, beta: float) -> None:
    lr = stability.critical_lr(name, CURVATURE, momentum=beta, beta1=beta)
    # at β₁ = 0.9 the root passes −1 slowly: 1 % past the edge is a factor of 12 in 1900 steps
    assert growth(name, 0.99 * lr, beta) < 0.1
    assert growth(name, 1.01 * lr, beta) > 10


@pytest.mark.parametrize("name", list(stability.TABLE))
def test_the_two_forms_are_inverse(name: OptimizerName) -> None:
    lr = stability.critical_lr(name, 7.0, momentum=0.3, beta1=0.6)
    assert stability.max_stable_curvature(name, lr, momentum=0.3, beta1=0.6) == pytest.approx(7.0)


def test_known_values() -> None:
    assert stability.max_stable_curvature("adam", 1e-3) == pytest.approx(38e3)
    assert stability.max_stable_curvature("momentum", 0.1) == pytest.approx(38)
    assert stability.max_stable_curvature("nesterov", 0.1) == pytest.approx(3.8 / 0.28)
    for name in ("momentum", "nesterov"):
        assert stability.critical_lr(name, 5.0, momentum=0.0) == stability.critical_lr("sgd", 5.0)
    assert stability.empirical_ceiling("tanh") == 4.0


def test_a_second_catapult_needs_a_second_eigenvalue_above_half_the_first() -> None:
    # Zhu et al.'s figure 3: 2/λ₁ = 0.37, 2/λ₂ = 0.39.
    assert second_catapult([2 / 0.39, 2 / 0.37, 0.1]) == pytest.approx((0.37, 0.39, 0.74))
    assert second_catapult([1.0, 0.51])[1] < second_catapult([1.0, 0.51])[2]
    for second in (0.5, 0.2):
        with pytest.raises(NotApplicableError, match=r"eigenvalues: there is no second catapult"):
            second_catapult([1.0, second])
    for wrong in ([1.0], [1.0, 0.0], [1.0, -1.0]):
        with pytest.raises(InputError, match="eigenvalues: expected two or more positive"):
            second_catapult(wrong)


def test_free_adam_hovers_at_its_edge() -> None:
    """With its own P, Adam on a quadratic is driven to λ(P⁻¹H) ≈ 38/η, and stays about it."""
    lr, beta1, beta2 = 1e-2, 0.9, 0.99
    theta = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([theta], lr=lr, betas=(beta1, beta2), eps=1e-30)
    preconditioned = []
    for t in range(1, 6001):
        theta.grad = CURVATURE * theta.detach()
        optimizer.step()
        v = float(optimizer.state[theta]["exp_avg_sq"])
        preconditioned.append(CURVATURE / (math.sqrt(v / (1 - beta2**t)) + 1e-30))
    late = sorted(preconditioned[3000:])
    edge = stability.max_stable_curvature("adam", lr)
    assert late[len(late) // 2] == pytest.approx(edge, rel=0.1)


def test_bad_input_names_the_argument() -> None:
    with pytest.raises(InputError, match="optimizer: expected one of sgd, momentum"):
        stability.critical_lr("lion", 1.0)  # type: ignore[arg-type]
    for bad in (-1.0, 0.0, math.nan, math.inf):
        with pytest.raises(InputError, match="lr"):
            stability.max_stable_curvature("sgd", bad)
    with pytest.raises(InputError, match="momentum"):
        stability.critical_lr("momentum", 1.0, momentum=1.0)
    with pytest.raises(InputError, match="beta1"):
        stability.critical_lr("adam", 1.0, beta1=-0.1)
    with pytest.raises(InputError, match="activation"):
        stability.empirical_ceiling("gelu")


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("kept", [0.5, 6.0, 2.0**70, 1e300])
def test_dampening_of_any_size_moves_the_first_rise(beta: float, kept: float) -> None:
    """By a plain loop on x = 1 from rest: no rise just below, one just above."""

    def rises(product: float) -> bool:
        x, v = 1.0, 0.0
        for t in range(400):
            v = beta * v + (kept if t else 1.0) * x
            x -= product * v
            if abs(x) > 1 + 1e-9:
                return True
        return False

    found = stability.earliest_rise("momentum", momentum=beta, dampening=1 - kept)
    if kept > 1e15:  # all steps but the first are as without dampening, at η · kept
        plain = stability.earliest_rise("momentum", momentum=beta)
        assert found * kept == pytest.approx(plain, rel=1e-9)
    assert not any(rises(share * found) for share in (0.9, 0.99, 0.9999))
    assert rises(1.0001 * found)
