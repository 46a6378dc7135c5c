"""How an eigenvalue is looked for: what it costs and how sure it is, not what it is."""

from dataclasses import dataclass
from typing import Literal, TypedDict, get_args

from trebuchet._checks import between_0_and_1, choice, seed as one_seed, whole
from trebuchet._doors import door, maybe, rule

Method = Literal["auto", "lanczos", "dense"]


@door(
    method=rule(choice, get_args(Method)), max_products=rule(whole, "a positive integer"),
    basis_cap=maybe(whole, "a positive number of vectors"),
    failure=rule(between_0_and_1, "probability"), seed=one_seed,
)  # fmt: skip
@dataclass(frozen=True, slots=True)
class Lanczos:
    """How the top eigenvalues are looked for.

    Args:
        method: ``"lanczos"`` or ``"dense"`` on demand; ``"auto"`` takes what is cheaper.
        max_products: Give up after so many products with the operator.
        basis_cap: Keep at most so many Lanczos vectors (of length P or D·K, whichever is shorter);
            by default 64, or what fits into 1 GiB, or into half of a large model's own memory.
        failure: Failure probability of the certificate. The cost is logarithmic in it.
        seed: Of the random start, so that a measurement can be repeated.

    Raises:
        InputError: If a setting is not what was expected.

    Example:
        >>> import torch, trebuchet as tb
        >>> net = torch.nn.Linear(1, 1, bias=False).double()
        >>> x = torch.tensor([[1.0], [3.0]], dtype=torch.float64)
        >>> search = tb.Lanczos(method="lanczos", failure=1e-9)
        >>> top = tb.top_eigen(net, "half_mse", (x, x), lanczos=search)
        >>> top.method, round(top.value, 6)
        ('lanczos', 5.0)
    """

    method: Method = "auto"
    max_products: int = 1000
    basis_cap: int | None = None
    failure: float = 1e-6
    seed: int = 0


class LanczosKeywords(TypedDict, total=False):
    """The same, as keywords of ``top_eigen``."""

    method: Method
    max_products: int
    basis_cap: int | None
    failure: float
    seed: int
