"""What a stack of runs asks of its device at a step that is not recorded: its losses, and no more.

Whoever waits for a number of the device at every step waits for all that was asked of it before. A
run ends at the very step at which its loss says so, and the largest loss is that of every step, so
the losses themselves come to the host: R numbers, once a step.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.zoo import biased, inputs, mlp, pure, sequential, width_of_inputs
from trebuchet.engine.kernels import make_kernel
from trebuchet.engine.kernels.base import Kernel
from trebuchet.engine.kernels.descent import DescentKernel
from trebuchet.engine.losses import HalfMeanSquare
from trebuchet.engine.optimizers import GradientDescent
from trebuchet.engine.runner import Plan, Runner
from trebuchet.engine.stopping import StopRule
from trebuchet.observables.top_eigenvalue import TopEigenvalue
from trebuchet.observables.weight_norm import WeightNorm
from trebuchet.problem.problem import Problem

FETCHING = ("cpu", "numpy", "tolist", "item", "__bool__", "__float__", "__int__", "__index__")
"""Methods that wait for a tensor's numbers; on a CPU most never reach the dispatcher."""


class Calls(TorchFunctionMode):
    """Which methods of tensors are called."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in FETCHING and args and isinstance(args[0], Tensor):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


class Scalars(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types here
    """How many numbers are read out of tensors, by whoever."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # nor here
        self.seen = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


MAKE: dict[str, Callable[[], nn.Module]] = {
    "two layers": mlp,
    "three leaky layers": lambda: mlp(hidden=2, slopes=(1.0, 0.5)),
    "three outputs": lambda: mlp(outputs=3),
    "quadratic": pure,
    "with bias": biased,
    "any module": lambda: sequential(d=2),
}


def kernel_of(model: nn.Module, descent: GradientDescent) -> Kernel:
    x = inputs(4, width_of_inputs(model))
    net = make_kernel([model] * 3, x)
    with torch.no_grad():
        y = torch.ones_like(net.forward()[0])
    rates = torch.tensor([1e-3, 2e-3, 3e-3], dtype=x.dtype)
    problem = Problem(model, "half_mse", (x, y))
    return DescentKernel(problem, net, HalfMeanSquare(), y, descent, rates, x)


def asked_in(steps: int, kernel: Kernel) -> Counter[str]:
    """Of runs of so many steps, of which the first and the last are recorded."""
    plan = Plan(StopRule(steps), np.array([0, steps]), (TopEigenvalue(), WeightNorm()))
    history = plan.history(kernel.runs, kernel)
    runner = Runner(kernel, history, np.arange(kernel.runs), plan)
    with Calls() as calls, Scalars() as scalars:
        runner.run()
    assert (history.steps == steps).all()
    return Counter({**Counter(calls.seen), "read": scalars.seen})


@pytest.mark.parametrize(
    "descent",
    [GradientDescent(), GradientDescent(0.5), GradientDescent(0.0, 0.01)],
    ids=["plain", "heavy ball", "decay"],
)
@pytest.mark.parametrize("name", MAKE)
def test_a_step_fetches_the_losses_and_nothing_else(name: str, descent: GradientDescent) -> None:
    short = asked_in(10, kernel_of(MAKE[name](), descent))
    long = asked_in(37, kernel_of(MAKE[name](), descent))
    assert long - short == {"cpu": 27, "numpy": 27}


def test_the_counting_sees_what_it_is_there_to_see() -> None:
    t = torch.ones(2)
    with Calls() as calls, Scalars() as scalars:
        float(t[0])
        t.tolist()
        bool((t == 1).all())
        t.cpu().numpy()
        t[0].item()
    assert sorted(calls.seen) == ["__bool__", "__float__", "cpu", "item", "numpy", "tolist"]
    assert scalars.seen == 3
