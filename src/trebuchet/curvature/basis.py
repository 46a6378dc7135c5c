"""Orthonormal vectors on the operator's device, in blocks, with their inner product."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from trebuchet.curvature.certificate import Floats


def dot(u: Tensor, v: Tensor) -> Tensor:
    """uᵀv in float64 without a float64 copy: dot products of 2¹⁶ entries are added in float64."""
    if u.dtype == torch.float64 or u.numel() < 1 << 12:
        return torch.dot(u.double(), v.double())
    parts = [
        torch.dot(a, b)
        for a, b in zip(torch.split(u, 1 << 16), torch.split(v, 1 << 16), strict=True)
    ]
    return torch.stack(parts).sum(dtype=torch.float64)


def normal(
    shape: Iterable[int], like: Tensor, seed: int = 0, generator: torch.Generator | None = None
) -> Tensor:
    """Normal numbers from a seed, drawn on the CPU, so that they are the same everywhere.

    Args:
        shape: Their shape.
        like: Gives dtype and device.
        seed: Of the numbers, unless there is a generator.
        generator: On the CPU.

    Returns:
        The numbers.
    """
    generator = generator or torch.Generator("cpu").manual_seed(seed)
    numbers = torch.randn(tuple(shape), generator=generator, dtype=torch.float64, device="cpu")
    return numbers.to(like)


def length(w: Tensor, image: Tensor) -> Tensor:
    """√(w·Mw), also where no number of their type holds w·Mw: by a power of four, exactly."""
    if w.device.type == "cpu":  # elsewhere a look at the plain sum would wait for the device
        plain = dot(w, image)
        if 1e-20 < float(plain) < 1e20:
            return plain.sqrt()
    _, exponent = torch.frexp(torch.linalg.vector_norm(image, math.inf))
    most = 500 if image.dtype == torch.float64 else 60
    half = torch.div(exponent, 2, rounding_mode="floor").clamp(-most, most)
    scaled = dot(w, torch.ldexp(image, -2 * half))
    return torch.ldexp(scaled.clamp_min(0).sqrt(), half)


class Basis:
    """Orthonormal vectors as rows of a few blocks, grown as needed; with a metric, also M times."""

    def __init__(self, n: int, cap: int, like: Tensor, *, paired: bool) -> None:
        self.n, self.cap, self.paired = n, cap, paired
        self.rows = 8 if n > 1 << 16 else min(cap, 32)
        self.like, self.count = like, 0
        self.blocks: list[Tensor] = []
        self.images: list[Tensor] = []

    def __len__(self) -> int:
        return self.count

    def append(self, v: Tensor, image: Tensor | None, divisor: Tensor) -> None:
        """Add v / divisor, and M times it if there is a metric."""
        block, row = divmod(self.count, self.rows)
        if block == len(self.blocks):
            rows = min(self.rows, self.cap - self.count)
            self.blocks.append(self.like.new_empty((rows, self.n)))
            if self.paired:
                self.images.append(self.like.new_empty((rows, self.n)))
        torch.div(v, divisor, out=self.blocks[block][row])
        if image is not None:
            torch.div(image, divisor, out=self.images[block][row])
        self.count += 1

    def last_image(self) -> Tensor:
        """Return M times the last vector: what the next product is taken of."""
        block, row = divmod(self.count - 1, self.rows)
        return (self.images if self.paired else self.blocks)[block][row]

    def _filled(self, blocks: list[Tensor]) -> list[Tensor]:
        left = self.count
        out = []
        for block in blocks:
            out.append(block[: min(left, len(block))])
            left -= len(out[-1])
        return out

    def orthogonalise(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Return Vᵀ M w and w − V Vᵀ M w, overwriting w.

        By two subtractions: one is not enough (Parlett 6.9).
        """
        total = w.new_zeros(self.count, dtype=torch.float64)
        vectors = self._filled(self.blocks)
        duals = self._filled(self.images) if self.paired else vectors
        # A large part of w lies along the last two vectors: taken off first, so that one pass over
        # all of them is left with nothing but rounding to remove.
        for i in range(max(0, self.count - 2), self.count):
            block, row = divmod(i, self.rows)
            part = dot(duals[block][row], w)
            w.addcmul_(vectors[block][row], part.to(w.dtype), value=-1)
            total[i] += part
        parts = [dual @ w for dual in duals]
        for part, rows in zip(parts, vectors, strict=True):
            w.addmv_(rows.T, part, alpha=-1)
        total += torch.cat(parts).double()
        return total, w

    def combine(self, s: Floats) -> Tensor:
        """Return Sᵀ V, shape (columns of S, n)."""
        weights = torch.as_tensor(s, dtype=self.like.dtype, device=self.like.device)
        blocks = self._filled(self.blocks)
        out = self.like.new_zeros((weights.shape[1], self.n))
        at = 0
        for block in blocks:
            rows = min(len(block), len(weights) - at)
            if rows > 0:
                out.addmm_(weights[at : at + rows].T, block[:rows])
            at += len(block)
        return out

    def restart(self, s: Floats) -> None:
        """Keep V S and the last vector, in place, a stripe of 2¹⁶ entries at a time."""
        weights = torch.as_tensor(s, dtype=self.like.dtype, device=self.like.device)
        m, keep = weights.shape
        for blocks in (self.blocks, self.images) if self.paired else (self.blocks,):
            for at in range(0, self.n, 1 << 16):
                stripe = slice(at, min(at + (1 << 16), self.n))
                old = torch.cat([b[:, stripe] for b in blocks])
                new = torch.cat([weights.T @ old[:m], old[m : m + 1]])
                row = 0
                for block in blocks:
                    rows = min(len(block), keep + 1 - row)
                    if rows <= 0:
                        break
                    block[:rows, stripe] = new[row : row + rows]
                    row += rows
        self.count = keep + 1
