"""Bias-free multilayer perceptrons in the paper's parametrisation."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from trebuchet import _torch_checks as checks
from trebuchet._checks import pair
from trebuchet._doors import door, rule
from trebuchet.models.draws import Draws, drawing

Slopes = tuple[float, float]
"""(a₊, a₋): σ(h) = a₊h for h > 0 and a₋h otherwise. ReLU is (1, 0), linear (1, 1)."""

RELU: Slopes = (1.0, 0.0)
LINEAR: Slopes = (1.0, 1.0)


class MLP(nn.Module):
    """z(x) = d^(−1/2) n^(−Lh/2) W_{Lh+1} σ(W_Lh … σ(W_1 x)), homogeneous of degree Lh + 1.

    The paper's parametrisation: weights are standard normal, and the scale stands outside, so that
    the NTK is of order one at any width n and any number of hidden layers Lh.

    Args:
        weights: W_1 … W_{Lh+1}, each of shape ``(out, in)`` as in ``nn.Linear``.
        slopes: (a₊, a₋) of σ.

    Raises:
        InputError: If fewer than two layers are given, or their shapes do not follow on.

    Example:
        >>> net = MLP.draw(d=3, width=8, generator=0)
        >>> net(torch.ones(5, 3, dtype=torch.float64)).shape
        torch.Size([5])

    References:
        Meltzer & Liu, arXiv 2301.07737, sections 3 and 4.
    """

    @door(weights=checks.layers, slopes=pair)
    def __init__(self, weights: list[Tensor], slopes: Slopes = RELU) -> None:
        super().__init__()
        self.weights = nn.ParameterList([w.detach().clone() for w in weights])
        self.slopes: Slopes = slopes

    @classmethod
    @door(
        d=checks.size, width=checks.size, hidden=checks.depth, outputs=checks.size, slopes=pair,
        generator=drawing, dtype=rule(checks.dtype, half=True),
    )  # fmt: skip
    def draw(
        cls,
        d: int,
        width: int,
        *,
        hidden: int = 1,
        outputs: int = 1,
        slopes: Slopes = RELU,
        generator: int | torch.Generator | Draws,
        dtype: torch.dtype = torch.float64,
    ) -> "MLP":
        """Draw standard normal weights in the paper's order.

        The paper's code builds ``nn.Linear`` layers, whose own initialisation uses up random
        numbers, and then overwrites every weight; an integer seed gives those very weights.

        Args:
            d: Number of inputs.
            width: Units in each hidden layer.
            hidden: Number of hidden layers.
            outputs: Number of outputs K.
            slopes: (a₊, a₋) of σ.
            generator: A seed (the paper's draws), a generator, or draws under way.
            dtype: Of the weights; the drawn numbers are float32 always.

        Returns:
            The network.

        Raises:
            InputError: If a size is not positive.
        """
        checks.sizes(width=width, hidden=hidden, inputs=max(d, outputs, width))
        draws = drawing("generator", generator)
        shapes = [(b, a) for a, b in pairwise([d, *[width] * hidden, outputs])]
        for shape in shapes:
            draws.skip_linear_init(*shape)
        return cls([draws.normal(*shape).to(dtype) for shape in shapes], slopes)

    @property
    def hidden(self) -> int:
        """Number of hidden layers."""
        return len(self.weights) - 1

    @property
    def degree(self) -> int:
        """The k with z(cθ) = cᵏz(θ) for c > 0: the number of layers."""
        return len(self.weights)

    @property
    def scale(self) -> float:
        """The factor d^(−1/2) n^(−Lh/2) in front, with n the width of each hidden layer."""
        return 1 / math.sqrt(math.prod(w.shape[1] for w in self.weights))

    def forward(self, x: Tensor) -> Tensor:
        """Outputs for inputs of shape ``(D, d)``; shape ``(D,)``, or ``(D, K)`` for K > 1."""
        checks.inputs(x, self.weights[0].shape[1], self.weights[0], rows=False)
        plus, minus = self.slopes
        *hidden, last = self.weights  # not a slice: a ParameterList would copy what it slices
        for w in hidden:
            h = x @ w.T
            x = torch.where(h > 0, plus * h, minus * h)
        z: Tensor = self.scale * (x @ last.T)  # (D, K)
        return z.squeeze(-1) if z.shape[-1] == 1 else z
