import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from trebuchet.errors import InputError
from trebuchet.models import MLP
from trebuchet.theory import weight_norm_law as law

Array = npt.NDArray[np.float64]
# Rounding of sums over a few hundred float64 weights and of a 2 × 2 cancellation.
ROUNDING = 1e-13


def gradient_step(
    net: MLP, x: Tensor, y: Tensor, lr: float, decay: float
) -> tuple[Array, Array, float, float]:
    """(H, residual, |θ|² before, |θ|² after) of one step of torch.optim.SGD."""
    rows = []
    z = net(x)
    for output in z.reshape(-1):
        grads = torch.autograd.grad(output, list(net.parameters()), retain_graph=True)
        rows.append(torch.cat([g.reshape(-1) for g in grads]))
    jacobian = torch.stack(rows)  # (DK, P)
    before = sum(float((p.detach() ** 2).sum()) for p in net.parameters())
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, weight_decay=decay)
    (((z - y) ** 2).sum() / (2 * len(x))).backward()
    optimizer.step()
    after = sum(float((p.detach() ** 2).sum()) for p in net.parameters())
    h = (jacobian @ jacobian.T / len(x)).numpy()
    return h, (z - y).detach().numpy(), before, after


@pytest.mark.parametrize("hidden", [1, 2, 3])
@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("slopes", [(1.0, 0.0), (1.0, 0.5)])
def test_law_holds_for_a_real_step(
    hidden: int, outputs: int, decay: float, slopes: tuple[float, float]
) -> None:
    generator = torch.Generator().manual_seed(7)
    net = MLP.draw(d=3, width=6, hidden=hidden, outputs=outputs, slopes=slopes, generator=generator)
    x = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    shape = (5,) if outputs == 1 else (5, outputs)
    y = torch.randn(*shape, generator=generator, dtype=torch.float64)
    for _ in range(5):
        h, residual, before, after = gradient_step(net, x, y, 0.4, decay)
        predicted = law.change_mse(
            h, residual, y.numpy(), net.degree, 0.4, weight_decay=decay, weight_norm=before
        )
        assert law.relative_violation(before, after, predicted) < ROUNDING
        # the same prediction with the wrong degree fails by far
        wrong = law.change_mse(
            h, residual, y.numpy(), net.degree + 1, 0.4, weight_decay=decay, weight_norm=before
        )
        assert law.relative_violation(before, after, wrong) > 1e-6
        net.zero_grad()


def test_a_perturbed_step_breaks_the_law() -> None:
    net = MLP.draw(d=2, width=8, generator=1)
    x = torch.tensor([[1.0, 0.5], [0.2, -1.0]], dtype=torch.float64)
    y = torch.tensor([1.0, -1.0], dtype=torch.float64)
    h, residual, before, after = gradient_step(net, x, y, 0.5 * (1 + 1e-6), 0.0)
    predicted = law.change_mse(h, residual, y.numpy(), 2, 0.5)
    assert law.relative_violation(before, after, predicted) > 1e-10


@pytest.mark.parametrize("degree", [2, 3])
def test_ceiling_is_where_the_sign_changes(degree: int) -> None:
    lr = 0.5
    for factor, sign in ((0.999, -1), (1.001, 1)):
        h = np.diag([factor * law.ceiling(degree) / lr, 0.0])
        assert np.sign(law.change_mse(h, [1.0, 0.0], [0.0, 0.0], degree, lr)) == sign


def test_general_form_is_elementwise() -> None:
    dot, square = np.array([1.0, -2.0]), np.array([3.0, 4.0])
    np.testing.assert_allclose(law.change(dot, square, 0.1), [-0.17, 0.44], rtol=1e-14)


def test_bad_input_names_the_argument() -> None:
    with pytest.raises(InputError, match="H"):
        law.change_mse(np.eye(3), [1.0, 2.0], [0.0, 0.0], 2, 0.1)
    with pytest.raises(InputError, match="labels"):
        law.change_mse(np.eye(2), [1.0, 2.0], [0.0], 2, 0.1)
    with pytest.raises(InputError, match="weight_norm"):
        law.change_mse(np.eye(1), [1.0], [0.0], 2, 0.1, weight_decay=0.1)
    with pytest.raises(InputError, match="degree"):
        law.ceiling(0)
