"""λ₁ of H = B + SSᵀ from a few vectors and their products with H, with a bound that proves it.

An orthonormal V, with W = HV, T = VᵀW and R = W − VT: in a basis that begins with V, H is
[[T, Rᵀ], [R, C]]. That θ = λ_max(T) ≤ λ₁ holds for every V. What has to be shown is that
λ₁ ≤ (1 + tol)θ, that nothing larger was missed.

**The bracket.** If λ_max(C) ≤ c < θ then λ₁ ≤ λ_max(T + RᵀR/(θ − c)). For H ⪯ [[T, Rᵀ], [R, c·1]],
and a z > c is no less than that matrix if T + RᵀR/(z − c) ⪯ z, as it is for the bound, which is no
less than θ. Of a single vector it is Temple's bound, whose c may be as large as λ₂; what V holds is
no longer in C, so that here c falls with the second and the third eigenvector, and with every
residual that V takes up. As R enters squared, |R|/θ = 10⁻⁴ will do for eight digits.

C is PHP on the complement of V, P = 1 − VVᵀ, so that c = ‖PBP‖_F + tr PSSᵀP serves. It needs the
products alone: neither SSᵀ, nor that H ⪰ 0.

Vectors, sums and products with B are float64; products with S are made in its own dtype, and their
rounding is part of R. θ is as good as they are: that of H + E, ‖E‖ some units of rounding of ‖H‖.

References:
    Temple, Proc. R. Soc. A 119 (1928) 276; Kato, J. Phys. Soc. Jpn. 4 (1949) 334.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]

KEPT, MOST = 3, 14
"""Eigenvectors that are kept from step to step, and vectors before it is given up."""

ROUNDING = 32
"""Rounding of a product in units of eps‖H‖, with room; as in lanczos.py."""

UNIT = 2.0**-53

SOUND = (1e-250, 1e250)
"""Squared norms between which the squares of entries that matter are normal numbers."""


class Products:
    """B and √c S of one run, and what is known of their norms."""

    def __init__(self, b: Tensor, s: Tensor | None = None, weight: float = 1.0) -> None:
        self.b, self.s, self.weight = b, s, weight
        flat = b.reshape(-1)
        self.square, self.trace = float(flat @ flat), 0.0  # ‖B‖_F², tr c SSᵀ or a little more
        self.eps, normal = 2 * UNIT, True
        if s is not None:
            flat, kind = s.reshape(-1), torch.finfo(s.dtype)
            squared, self.eps = float(flat @ flat), float(kind.eps)
            self.trace = weight * squared * (1 + flat.numel() * kind.eps)  # summed in any order
            normal = squared > flat.numel() * kind.tiny / kind.eps or not bool(s.any())
        total = self.square + self.trace**2
        self.sound = normal and SOUND[0] < total < SOUND[1]
        self.zero = total == 0 and not bool(b.any()) and (s is None or not bool(s.any()))

    def times(self, v: Floats) -> tuple[Floats, Floats]:
        """Bv and c SSᵀv of every row of v."""
        at = torch.from_numpy(v).to(self.b.device)
        bv = _numpy(at @ self.b)
        if self.s is None:
            return bv, np.zeros_like(bv)
        u = at.to(self.s.dtype)
        if len(v) == 1:  # half the time of a product of matrices
            sv = torch.mv(self.s, torch.mv(self.s.T, u[0])).unsqueeze(0)
        else:
            sv = u @ self.s @ self.s.T
        return bv, np.multiply(_numpy(sv), self.weight, dtype=np.float64)

    def climb(self, start: Floats, tol: float) -> tuple[float, Floats, bool]:
        """The best θ and top vectors that a few products give, and whether θ is λ₁."""
        # Memory of torch's, always aligned alike: its products round by that.
        v, bv, sv = torch.empty((3, MOST, start.shape[1]), dtype=torch.float64).numpy()
        noise = ROUNDING * self.eps * (math.sqrt(self.square) + self.trace)
        v[0], others = start[0], start[1:]
        done, k, before = 0, 1, math.inf
        while True:
            bv[done:k], sv[done:k] = self.times(v[done:k])
            basis, w = v[:k], bv[:k] + sv[:k]
            t, of_b = basis @ w.T, basis @ bv[:k].T
            if not math.isfinite(t.sum()):
                return math.nan, start, False
            ritz, rotation = np.linalg.eigh(t)  # reads the lower half
            theta, top = float(ritz[-1]), rotation[:, -1]
            r = top @ w - theta * (top @ basis)
            squared = float(r @ r)
            inside = self.square - 2 * float(np.vdot(bv[:k], bv[:k])) + float(np.vdot(of_b, of_b))
            c = math.sqrt(max(inside, 0.0) + 1e-13 * self.square)  # ‖PBP‖_F
            c += max(self.trace - float(np.vdot(basis, sv[:k])), 0.0)
            c += ROUNDING * self.eps * self.trace
            # The bound is no less than θ + r²/(θ − c).
            proven = (
                c < theta
                and squared <= tol * theta * (theta - c)
                and _bounded(t, w - t.T @ basis, theta, theta - c, noise, tol)
            )
            # θ's own error is about r²/θ, and c falls ever more slowly.
            hopeless = squared <= 0.1 * tol * theta**2 and c - theta > (MOST - k) * (before - c)
            spent = k + len(others) >= MOST
            if proven or hopeless or spent:
                return theta, _kept(rotation, basis, others), proven
            done = k
            # What is not orthogonal to V after all is rounding.
            k = _extended(v, k, r, max(0.5 * math.sqrt(squared), 1e-3 * noise))
            if c >= theta:  # it takes more than the top one to bring it down
                for other in others:
                    k = _extended(v, k, other, 1e-6)
                others = others[:0]
            if k == done:
                return theta, _kept(rotation, basis, others), False
            before = c


def quotient(b: Tensor, s: Tensor, weight: float, v: Floats) -> float:
    """Of a unit v, vᵀ(B + cSSᵀ)v in float64: where S is float32, θ is off by 10⁻⁷ of it.

    Args:
        b: B, float64 ``(m, m)``.
        s: S, ``(m, n)``. One product of float32 in place of two leaves 3 · 10⁻⁷ at times.
        weight: c.
        v: Shape ``(m,)``.

    Returns:
        The quotient.
    """
    at = torch.from_numpy(v).to(b.device)
    inner = torch.mv(s.double().T, at)
    return float(at @ (b @ at)) + weight * float(inner @ inner)


def _kept(rotation: Floats, basis: Floats, others: Floats) -> Floats:
    """The top Ritz vector and the others that were not made use of; else the top Ritz vectors."""
    found = np.zeros((KEPT, basis.shape[1]))
    ritz = rotation[:, ::-1][:, : KEPT - len(others)].T @ basis
    found[: len(ritz)] = ritz
    found[KEPT - len(others) :] = others
    found[0] /= math.sqrt(found[0] @ found[0])
    return found


def _extended(v: Floats, k: int, row: Floats, least: float) -> int:
    """Add a row to the k orthonormal ones, if more than `least` is new; how many there are then."""
    basis = v[:k]
    row = row - (basis @ row) @ basis
    left = math.sqrt(row @ row)
    if left <= least:
        return k
    row /= left
    row -= (basis @ row) @ basis
    v[k] = row / math.sqrt(row @ row)
    return k + 1


def _bounded(t: Floats, rest: Floats, theta: float, gap: float, noise: float, tol: float) -> bool:
    """Whether λ_max(T + RᵀR/gap) ≤ (1 + tol)θ, R being known to within a rounding of `noise`."""
    # Of (a + b)² ≤ 1.1a² + 11b²; a rounding of 1e-6θ adds 1e-11θ.
    most = (1 + tol) * theta - 11 * noise**2 / gap
    return float(np.linalg.eigvalsh(t + 1.1 / gap * (rest @ rest.T))[-1]) <= most


def _numpy(t: Tensor) -> Floats:
    array: Floats = t.cpu().numpy()
    return array
