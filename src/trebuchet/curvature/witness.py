"""An independent look at the Hessian's products, before anything is certified.

A certificate speaks of the operator it was given. Whether that operator is the Hessian is another
question, and symmetry (lanczos.py watches it) does not settle it: an operation whose backward pass
computes with detached numbers drops out of the second derivative on both sides.

- Operations that are doubted (suspects.py) are tried before any work is put into them: one product
  with a random vector, against a central difference of the gradient.
- In float64 every result is: A y, y the eigenvector that was found, against the same difference.
  That is two gradients more. In single precision kinks and rounding would hide what it looks for.
- Where a forward pass moves state of its own (a teacher that follows the weights), a difference of
  gradients follows that move and a derivative does not: they are of two functions, and only
  operations that are doubted are tried. The result says that the state is held constant.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from trebuchet.curvature.differences import DifferenceHessian
from trebuchet.curvature.distributed import Ranks
from trebuchet.curvature.evaluation import Evaluation
from trebuchet.curvature.hessian import Hessian
from trebuchet.curvature.operators import random_direction
from trebuchet.curvature.solve import Spectrum
from trebuchet.errors import InputError

AGREE = 1e-3
"""Relative difference between a product and its difference quotient that is none: the tolerance
that eigenvalues are asked for by default. Errors of differences are far below."""


class Witness:
    """Holds products of a Hessian against finite differences.

    Args:
        evaluation: The evaluation.
        ranks: The processes that share the samples.
        scale: The preconditioner's s.
        seed: Of the random vector.
    """

    def __init__(
        self, evaluation: Evaluation, ranks: Ranks, scale: Tensor | None, seed: int
    ) -> None:
        self.evaluation, self.ranks, self.scale, self.seed = evaluation, ranks, scale, seed
        self.moves = (
            False  # seen by differences alone: a teacher that equals its student stands still
        )

    def before(self, op: Hessian) -> str:
        """Try one product if an operation is doubted.

        Args:
            op: The Hessian by automatic differentiation.

        Returns:
            What is wrong, in words; empty if nothing is known to be.
        """
        doubted = op.doubts()
        if not doubted:
            return ""
        like = torch.empty(0, dtype=self.evaluation.dtype, device=self.evaluation.device)
        v = random_direction(op.dim, like, torch.Generator("cpu").manual_seed(self.seed))
        off = self._off(v, op.product(v.clone()), 0.0)
        named = ", ".join(doubted)
        return (
            ""
            if off is None or off <= AGREE
            else _said(f"the second derivative of {named} is wrong", off)
        )

    def after(self, found: Spectrum, shift: Tensor | None = None) -> str:
        """Try the eigenvector that was found, in float64, or where symmetry is broken.

        Args:
            found: What was found of the Hessian by automatic differentiation.
            shift: What was added to its diagonal, shape (P,).

        Returns:
            What is wrong, in words; empty if nothing is known to be.
        """
        said = "" if found.symmetric else f"{found.note} by automatic differentiation"
        if self.evaluation.dtype != torch.float64 or said or self.evaluation.autocast.enabled:
            return said
        # Σ_i y_i, whose product is Σ_i λ_i y_i up to the residuals.
        values = torch.as_tensor(found.values, dtype=torch.float64, device=found.vectors.device)
        v, hv = found.vectors.sum(0), values @ found.vectors
        off = self._off(v, hv if shift is None else hv - shift * v, float(found.values[0]))
        top = float(np.abs(found.values).max())
        slack = float(np.sum(found.residuals)) / top if top > 0 else 0.0
        if off is None or off <= AGREE + slack or self.evaluation.moves or self.moves:
            return ""
        return _said("automatic differentiation's is wrong", off)

    def _off(self, v: Tensor, hv: Tensor, size: float) -> float | None:
        try:
            differences = DifferenceHessian(self.evaluation, ranks=self.ranks, scale=self.scale)
            off = differences.disagreement(v, hv, size)
            self.moves |= differences.twin.moves
            return off
        except InputError:  # it cannot be evaluated elsewhere: no witness, no verdict
            return None


def _said(what: str, off: float) -> str:
    return f"{what} (a product is off by {100 * off:.2g} %)"


def unknown(found: Spectrum, why: str) -> Spectrum:
    """Return a spectrum of which nothing can be claimed.

    Args:
        found: What an operator gave that is not the Hessian.
        why: What is wrong with it.

    Returns:
        The values, without bounds.
    """
    return replace(
        found,
        residuals=np.full(len(found.values), np.inf),
        upper=float("inf"),
        converged=False,
        note=why,
    )
