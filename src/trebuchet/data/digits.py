"""The handwritten digits that come with scikit-learn: real data, no download."""

import numpy as np
from numpy.typing import DTypeLike
from sklearn.datasets import load_digits

from trebuchet._checks import anything, seed as one_seed
from trebuchet._doors import door, rule
from trebuchet.data.two_class import (
    LARGEST_STATE,
    TwoClassData,
    check_n_train,
    float_dtype,
    from_pixels,
)


@door(
    n_train=anything,
    seed=rule(one_seed, most=LARGEST_STATE), dtype=float_dtype,
)  # fmt: skip
def load_digits01(
    n_train: int = 128, *, seed: int = 0, dtype: DTypeLike = np.float64
) -> TwoClassData:
    """Digits 0 (label −1) against 1 (label +1), 8 × 8 pixels scaled to [0, 1].

    scikit-learn embeds 178 zeros and 182 ones, in an order that groups writers; they are
    permuted by ``numpy.random.RandomState(seed).permutation(360)``, a stream that NumPy has
    frozen. The first `n_train` are for training, all the rest for testing.

    Args:
        n_train: Training samples, 1 to 359.
        seed: Of the permutation.
        dtype: Of pixels and labels, float32 or float64.

    Returns:
        Training pixels ``(n_train, 64)`` and test pixels ``(360 − n_train, 64)``, with labels.

    Raises:
        InputError: If `n_train` leaves no test sample, or misses a class.

    References:
        Alpaydin & Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning
        Repository, 1998 (the test part, as embedded in scikit-learn).

    Example:
        >>> data = load_digits01()
        >>> data.x_train.shape, data.x_test.shape, float(data.x_train.max())
        ((128, 64), (232, 64), 1.0)
    """
    pixels, digit = load_digits(n_class=2, return_X_y=True)
    n_train = check_n_train(n_train, len(pixels) - 1, "the digits, less one to test on")
    order = np.random.RandomState(seed).permutation(len(pixels))
    x = pixels[order].astype(np.uint8)  # whole numbers 0…16, stored as floats
    y = (2 * digit[order] - 1).astype(np.int8)
    return from_pixels(
        "digits",
        x[:n_train],
        y[:n_train],
        x[n_train:],
        y[n_train:],
        full_scale=16,
        source=f"scikit-learn's embedded digits, classes 0 and 1, permuted with seed {seed}",
        dtype=dtype,
    )
