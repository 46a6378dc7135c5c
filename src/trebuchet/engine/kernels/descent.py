"""Full-batch descent of a stack of runs whose outputs and pullbacks are written out."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trebuchet._types import Status
from trebuchet.curvature.gram import curved
from trebuchet.curvature.warm_top import SplitGram, WarmTop
from trebuchet.engine import law
from trebuchet.engine.kernels.base import FloatArray, Kernel
from trebuchet.engine.kernels.outputs import OutputKernel
from trebuchet.engine.lawful import coarse
from trebuchet.engine.losses import Loss
from trebuchet.engine.optimizers import GradientDescent
from trebuchet.errors import LawViolationError
from trebuchet.observables.base import UnavailableError
from trebuchet.problem.problem import Problem

ZERO_GRADIENT_BACKOFF = 4
"""A loss that stands still is checked for a zero gradient at once; after a false alarm, not again
until this many times as many steps have been made: at the rounding floor losses often stand still.
"""

DIVERGED = frozenset({Status.NON_FINITE, Status.BLEW_UP})


class DescentKernel(Kernel):
    """Runs of gradient descent on outputs z(θ), each with a rate of its own.

    Args:
        problem: What is trained.
        net: The runs, as outputs and pullbacks.
        loss: From outputs to losses and ∂L/∂z.
        y: Targets.
        optimizer: Gradient descent, heavy ball, weight decay.
        lr: η of every run, ``(R,)``.
        x: Inputs.
        test: Test inputs and targets.
    """

    def __init__(
        self,
        problem: Problem,
        net: OutputKernel,
        loss: Loss,
        y: Tensor,
        optimizer: GradientDescent,
        lr: Tensor,
        x: Tensor,
        test: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        self.problem, self.net, self.loss, self.y = problem, net, loss, y
        self.optimizer, self.lr, self.x, self.test = optimizer, lr, x, test
        self.samples, self.layers = x.shape[0], net.sparsity_layers
        self.velocity = optimizer.start(net)
        self.check_after = np.zeros(net.runs, dtype=np.int64)  # step of the next such check
        self._known: law.Law | None = None
        self._looked = False
        self.top: WarmTop | None = None
        self._mark: list[Tensor] = []
        self._shares = False
        self._fresh()

    def _fresh(self) -> None:
        """Forget what belongs to one θ."""
        self._norm: FloatArray | None = None
        self._forget_outputs()

    def _forget_outputs(self) -> None:
        self._z: Tensor | None = None
        self._dz: Tensor | None = None
        self._gram: Tensor | None = None
        self._split: SplitGram | None = None

    @property
    def runs(self) -> int:
        """R."""
        return self.net.runs

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.net.params[0].dtype

    def losses(self, step: int, *, last: bool = False, watched: Collection[str] = ()) -> FloatArray:
        """L(θ_t), in one forward pass with what observables need of it.

        Args:
            step: t.
            last: Whether no step follows.
            watched: Names of observables.

        Returns:
            The losses, ``(R,)``.
        """
        del step, last
        shares = "sparsity" in watched
        if self._z is None or (shares and not self._shares):
            self._shares = shares
            self._forget_outputs()
            self._forward()
        loss, self._dz = self.loss(self._outputs(), self.y)
        return loss.double().cpu().numpy()

    def ready(self, watched: Collection[str]) -> None:
        """Evaluate the runs that are left, or that have ended.

        Args:
            watched: Names of observables.
        """
        self._shares = "sparsity" in watched
        self._forward()

    def _forward(self) -> None:
        """Evaluate θ, with the shares of sparsity where they were asked for last."""
        self._z = self.net.forward(sparsity=self._shares)

    def _outputs(self) -> Tensor:
        if self._z is None:
            self._forward()
        assert self._z is not None
        return self._z

    def _slope(self) -> Tensor:
        if self._dz is None:
            _, self._dz = self.loss(self._outputs(), self.y)
        return self._dz

    def step_(self, step: int) -> NDArray[np.bool_]:
        """One step of the optimizer."""
        del step
        slope = self._slope()
        self._outputs()  # the buffers are those of these runs, also where others have just left
        self.optimizer.step_(self.net, slope, self.lr, self.velocity)
        self._fresh()
        return np.ones(self.runs, dtype=np.bool_)

    def at_rest(self, step: int, losses: FloatArray, previous: FloatArray) -> list[int]:
        """Runs whose gradient, and velocity, are exactly zero, where the loss stands still."""
        still = (losses == previous) & (step >= self.check_after)
        suspects = np.flatnonzero(still).tolist()
        if not suspects or self.optimizer.weight_decay:
            return []
        some = self.net.subset(suspects)
        some.forward()
        # ∂L/∂z as the whole stack had it: fewer rows round differently, to an exact zero at times.
        dz = self._slope()[suspects]
        gradient = [torch.zeros_like(p) for p in some.params]
        some.add_vjp_(gradient, dz)
        zero = torch.ones(some.runs, dtype=torch.bool, device=dz.device)
        for g in [*gradient, *(v[suspects] for v in self.velocity)]:
            zero &= (g == 0).flatten(1).all(1)
        self.check_after[suspects] = ZERO_GRADIENT_BACKOFF * step
        return [int(i) for i, at_rest in zip(suspects, zero.tolist(), strict=True) if at_rest]

    def finals(self, statuses: Sequence[Status]) -> dict[str, FloatArray]:
        """The spread of outputs of runs whose gradient vanished."""
        if Status.GRADIENT_ZERO not in statuses:
            return {}
        return {"output_spread": self._spread()}

    def tallies(self) -> dict[str, FloatArray]:
        """What proved the top eigenvalues."""
        return {} if self.top is None else self.top.tallies()

    def _spread(self) -> FloatArray:
        """How far outputs differ over the inputs and the inputs doubled: 0 when nothing is seen."""
        # One sample alone cannot tell a dead net from a live one; its double can.
        probes = torch.cat([self.x, 2 * self.x]) if self.x.is_floating_point() else self.x
        z = self.net.outputs(probes)
        spread: FloatArray = (
            (z.amax(1) - z.amin(1)).reshape(self.runs, -1).amax(1).double().cpu().numpy()
        )
        return spread

    def subset(self, index: Sequence[int]) -> "DescentKernel":
        """The runs `index`."""
        rows = list(index)
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other.net = self.net.subset(rows)
        other._known, other._looked, other._mark = None, False, []
        other._fresh()
        other.lr, other.velocity = self.lr[rows], [v[rows] for v in self.velocity]
        other.check_after = self.check_after[rows]
        other.top = None if self.top is None else self.top.take(rows)
        other._dz = None if self._dz is None else self._dz[rows]
        return other

    def state(self) -> dict[str, Tensor | NDArray[Any]]:
        """Weights, velocities and rates, and the eigenvectors that λ is found from."""
        found: dict[str, Tensor | NDArray[Any]] = {"check_after": self.check_after, "lr": self.lr}
        found |= {} if self.top is None else self.top.state()
        found |= {f"params/{i}": p for i, p in enumerate(self.net.params)}
        return found | {f"velocity/{i}": v for i, v in enumerate(self.velocity)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up weights, velocities and rates.

        Args:
            state: As ``state`` returned it.
        """
        device = self.lr.device
        self.check_after, self.lr = state["check_after"], state["lr"].to(device)
        # Tensors of their own, in the strides of the saved ones: copies would lie differently.
        self.net.params = [_like(state[f"params/{i}"], p) for i, p in enumerate(self.net.params)]
        self.velocity = [
            _like(state[f"velocity/{i}"], p)
            for i, p in zip(range(len(self.velocity)), self.net.params, strict=False)
        ]
        self.top, self._mark = WarmTop.restored(state, self.runs), []
        self._fresh()

    def _law(self) -> law.Law | None:
        """The law of these runs, put together once."""
        if not self._looked:
            found, self._looked = self.net.scaling, True
            if not isinstance(found, str):
                one = [p[0] for p in self.net.params]
                of = law.Law.of(found.degree, self.net.alphas(), one, self.x.numel())
                self._known = None if coarse(of, self.lr.device) else of
        return self._known

    @np.errstate(over="ignore", invalid="ignore")
    def predict(self, step: int) -> law.Prediction | None:
        """The law of gradient descent, heavy ball and weight decay, without a gradient.

        With u = βv + ∇L + wθ, Σ α θ·u is βΣ α θ·v + k z·∂L/∂z + wW by Euler; |u|² comes from the
        Gram matrix where there is one, D ∂L/∂zᵀ H ∂L/∂z being |∇L|², and from the step elsewhere.

        Args:
            step: t.

        Returns:
            The prediction; None for a net without a law.
        """
        del step
        of, optimizer = self._law(), self.optimizer
        if of is None:
            return None
        eta, decay = _numpy(self.lr.double()), optimizer.weight_decay
        weight = self._weighted_norm(of)
        slope = self._slope().flatten(1).double()
        q, z = _numpy(slope), _numpy(self._outputs().flatten(1).double())
        terms = of.degree * z * q
        along, size = terms.sum(1) + decay * weight, np.abs(terms).sum(1) + decay * weight
        if optimizer.momentum:
            pull = optimizer.momentum * self.net.along(of, self.velocity)
            along, size = along + pull, size + np.abs(pull)
        expected, scale = weight - 2 * eta * along, weight + 2 * eta * size
        if self._split is None or optimizer.momentum or not self.net.counts_every_weight_once:
            self._mark = self.net.mark(self._mark)
            return law.Prediction(expected, scale, mark=self._mark)
        squared = self.samples * _numpy(self._split.along(slope))
        squared = squared + decay * (2 * terms.sum(1) + decay * weight)
        square = eta**2 * squared
        return law.Prediction(expected + square, scale + square)

    def violation(self, prediction: law.Prediction, step: int) -> FloatArray:
        """Of the step just made.

        Args:
            prediction: As made before it.
            step: t.

        Returns:
            The violation.

        Raises:
            LawViolationError: If it is beyond rounding.
            UnavailableError: If the net has changed its form meanwhile.
        """
        of, found = self._law(), self.net.scaling
        assert of is not None
        assert not isinstance(found, str)
        after = self._weighted_norm(of)
        square = self.net.moved(of, prediction.mark) if prediction.mark else 0.0
        try:
            return law.residual(of, prediction, after, square, step=step)
        except LawViolationError:
            reason = self.net.unlike(found)  # its form may have changed meanwhile
            if not reason:
                raise
            self._known = None
            raise UnavailableError(f"{reason}, from some step on") from None

    def _weighted_norm(self, of: law.Law) -> FloatArray:
        """W; |θ|², which is kept for who asks next, where that is the same."""
        if not self.net.counts_every_weight_once:
            return law.norm(of, self.net.params, self.runs)
        return self.weight_norm()

    def gram(self) -> Tensor:
        """H, once for all observables of a step."""
        if self._gram is None:
            self._outputs()
            self._gram = self.net.gram()
        return self._gram

    def _split_gram(self) -> SplitGram:
        """H in the parts that are fastest to multiply with."""
        if self._split is None:
            self._outputs()
            self._split = self.net.split_gram()
        return self._split

    def top_eigenvalue(self) -> FloatArray:
        """λ of Gauss–Newton, which for the half mean squared error is the NTK."""
        matrices, curvature = self._split_gram(), self.loss.curvature(self._outputs(), self.y)
        if curvature is not None:
            matrices = SplitGram(self.samples * curved(self.gram(), curvature))
        if self.top is None:
            self.top = WarmTop(self.runs, matrices.dense.shape[-1])
        return self.top.of(matrices)

    def residual(self) -> Tensor:
        """∂L/∂z."""
        return self._slope().flatten(1)

    def weight_norm(self) -> FloatArray:
        """|θ|²."""
        if self._norm is None:
            self._outputs()
            self._norm = self.net.weight_norm().cpu().numpy()
        return self._norm

    def sparsity(self) -> FloatArray:
        """Of each hidden ReLU layer."""
        if not self.layers:
            return super().sparsity()
        if self._z is None or not self._shares:
            self._shares = True
            self._forward()
        assert self.net.sparsity is not None
        return self.net.sparsity.cpu().numpy()

    def gradient_norm(self) -> FloatArray:
        """|∇L|, by |∇L|² = D ∂L/∂zᵀ H ∂L/∂z, so that no gradient is formed."""
        squared = self.samples * self._split_gram().along(self.residual())
        norm: FloatArray = squared.clamp_min(0).sqrt().cpu().numpy()
        return norm

    def test_loss(self) -> FloatArray:
        """On the test data."""
        if self.test is None:
            return super().test_loss()
        x, y = self.test
        loss, _ = self.loss(self.net.outputs(x), y)
        return loss.double().cpu().numpy()

    def outputs_and_targets(self) -> Iterator[tuple[Tensor, Tensor]]:
        """On the test data, or else on the training data."""
        x, y = (self.x, self.y) if self.test is None else self.test
        z = self.net.outputs(x)
        for run in range(self.runs):
            yield z[run].reshape(z[run].shape), y

    def descent(self) -> tuple[FloatArray, tuple[float, float] | None]:
        """As for the step."""
        rates: FloatArray = self.lr.double().cpu().numpy()
        return rates, (self.optimizer.momentum, self.optimizer.weight_decay)

    def models(self) -> Iterator[nn.Module]:
        """Modules with the runs' weights."""
        for run in range(self.runs):
            yield self.net.model_of(run)


def _numpy(t: Tensor) -> FloatArray:
    array: FloatArray = t.cpu().numpy()
    return array


def _like(saved: Tensor, like: Tensor) -> Tensor:
    """The saved tensor on the device of the other, whose shape and dtype it must have."""
    if saved.shape != like.shape or saved.dtype != like.dtype:
        msg = f"{saved.dtype} of shape {tuple(saved.shape)} for {tuple(like.shape)}"
        raise ValueError(msg)
    return saved.to(like.device)


__all__ = ["DIVERGED", "DescentKernel", "UnavailableError"]
