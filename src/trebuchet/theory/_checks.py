"""Checks shared by the closed forms: arrays of the right shape, finite, in float64."""

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trebuchet.errors import InputError

FloatArray = NDArray[np.float64]


def positive(name: str, value: float) -> float:
    """The value as a float, if finite and above zero; InputError otherwise."""
    number = float(value)
    if not (math.isfinite(number) and number > 0):
        msg = f"{name}: expected a positive finite number, got {number}"
        raise InputError(msg)
    return number


def fraction(name: str, value: float) -> float:
    """The value as a float, if in [0, 1); InputError otherwise."""
    number = float(value)
    if not 0 <= number < 1:
        msg = f"{name}: expected a number in [0, 1), got {number}"
        raise InputError(msg)
    return number


def array(name: str, value: ArrayLike, ndim: int | Iterable[int]) -> FloatArray:
    """The value as a finite float64 array of one of the given ranks; InputError otherwise."""
    ranks = (ndim,) if isinstance(ndim, int) else tuple(ndim)
    result = np.asarray(value, dtype=np.float64)
    if result.ndim not in ranks or result.size == 0:
        wanted = " or ".join(str(rank) for rank in ranks)
        msg = f"{name}: expected a non-empty array of rank {wanted}, got shape {result.shape}"
        raise InputError(msg)
    if not np.isfinite(result).all():
        msg = f"{name}: expected finite numbers, got NaN or infinity; clean the array first"
        raise InputError(msg)
    return result


def symmetric(name: str, value: ArrayLike) -> FloatArray:
    """The value as a symmetric matrix, symmetrised past rounding; InputError otherwise."""
    matrix = array(name, value, 2)
    if matrix.shape[0] != matrix.shape[1]:
        msg = f"{name}: expected a square matrix, got shape {matrix.shape}"
        raise InputError(msg)
    # float32 matrix products of symmetric matrices are symmetric to about 1e-6 of their scale
    if np.abs(matrix - matrix.T).max() > 1e-4 * np.abs(matrix).max():
        msg = f"{name}: expected a symmetric matrix; symmetrise it, (A + A.T) / 2"
        raise InputError(msg)
    return (matrix + matrix.T) / 2
