"""Products with the Jacobian of convolutions: whichever way is taken first, the value is right."""

from typing import Any

import torch
from torch import Tensor, nn

from tests.curvature.reference import close, spectrum
from trebuchet.curvature import top_eigen


class _Cube(torch.autograd.Function):
    """x³, with a second derivative but no forward mode."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        out: Tensor = 3 * x * x * g
        return out


class _Cubes(nn.Module):
    def __init__(self, *, own: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv2d(2, 3, 3, padding=1), nn.Linear(3, 3)
        self.own = own

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        h = _Cube.apply(h) if self.own else h**3  # type: ignore[no-untyped-call]  # torch's
        out: Tensor = self.head(h.mean((2, 3)))
        return out


def test_convolutions_have_their_products_with_and_without_forward_mode() -> None:
    x = torch.randn(8, 2, 5, 5, generator=torch.Generator().manual_seed(1)).double()
    y, loss = torch.arange(8) % 3, nn.CrossEntropyLoss()
    truth = float(spectrum(_Cubes(own=False).double(), loss, x, y, "ggn")[0])
    for own in (False, True):
        net = _Cubes(own=own).double()
        top = top_eigen(net, loss, (x, y), method="lanczos", rtol=1e-8)
        assert close(top.value, truth, 1e-8)
        assert top.remarks == ()  # either way is exact
