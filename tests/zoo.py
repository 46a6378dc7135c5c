"""Small problems of every kind that tests share."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from trebuchet.models import MLP, MetaFeature, PureQuadratic, QuadraticWithBias

F64 = torch.float64


def inputs(samples: int, d: int, seed: int = 0) -> Tensor:
    """Standard normal inputs."""
    return torch.randn(samples, d, generator=torch.Generator().manual_seed(seed), dtype=F64)


def pure(n: int = 12, d: int = 2, elementwise: str = "identity", seed: int = 0) -> PureQuadratic:
    """A pure quadratic model with any meta-feature."""
    g = torch.Generator().manual_seed(seed)
    psi = MetaFeature.draw(n, d, eigenvalues=(0.5, 1.5), elementwise=elementwise, generator=g)  # type: ignore[arg-type]
    return PureQuadratic(psi, torch.randn(n, generator=g, dtype=F64))


def biased(n: int = 12, p: int = 5, d: int = 2, seed: int = 0) -> QuadraticWithBias:
    """A quadratic model with bias."""
    return QuadraticWithBias.draw(n, p, d, generator=seed, eigenvalues=(0.5, 1.5))


def mlp(
    d: int = 5,
    width: int = 16,
    hidden: int = 1,
    outputs: int = 1,
    slopes: tuple[float, float] = (1.0, 0.0),
    seed: int = 0,
) -> MLP:
    """A bias-free MLP."""
    return MLP.draw(d, width, hidden=hidden, outputs=outputs, slopes=slopes, generator=seed)


def sequential(d: int = 5, width: int = 16, hidden: int = 1, outputs: int = 1) -> nn.Sequential:
    """An ordinary net with biases and tanh."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for i in range(hidden):
        layers += [nn.Linear(d if i == 0 else width, width), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(width, outputs)).to(F64)


SLOPES = [(1.0, 0.0), (1.0, 0.5), (2.0, 0.5), (1.0, 1.0)]

MODELS: dict[str, Callable[[], nn.Module]] = {
    "pure": pure,
    "pure tanh": lambda: pure(elementwise="tanh"),
    "pure relu": lambda: pure(elementwise="relu"),
    "pure leaky": lambda: pure(elementwise="leaky_relu"),
    "biased": biased,
    **{
        f"mlp {slopes} {hidden}h {outputs}o": (
            lambda slopes=slopes, hidden=hidden, outputs=outputs: mlp(  # type: ignore[misc]
                hidden=hidden, outputs=outputs, slopes=slopes
            )
        )
        for slopes in SLOPES
        for hidden in (1, 2, 3)
        for outputs in (1, 3)
    },
}


def width_of_inputs(model: nn.Module) -> int:
    """How many inputs a model of the zoo takes."""
    return 5 if isinstance(model, MLP) else 2
