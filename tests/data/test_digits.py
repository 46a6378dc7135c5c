"""The embedded digits, against scikit-learn's own arrays."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from trebuchet.data import load_digits01
from trebuchet.errors import InputError


def rows(x: np.ndarray, y: np.ndarray) -> set[bytes]:
    return {row.tobytes() for row in np.column_stack([x, y])}


def test_every_zero_and_one_is_used_once() -> None:
    data = load_digits01()
    pixels, digit = load_digits(n_class=2, return_X_y=True)
    used = np.vstack([data.x_train, data.x_test])
    labels = np.concatenate([data.y_train, data.y_test])
    assert used.shape == (360, 64)
    assert rows(used, labels) == rows(pixels / 16, 2.0 * digit - 1)
    assert (labels == -1).sum() == 178
    assert (labels == 1).sum() == 182


def test_same_samples_for_everyone() -> None:
    """The draw is part of every published number: it may not move."""
    assert load_digits01().sha256 == (
        "7cf8f2f6ebc9d44dd8777d171fe118f4869a0a6c7641de7f888162cc8a3174d4"
    )


def test_seed_changes_the_draw_and_dtype_does_not() -> None:
    data = load_digits01()
    assert load_digits01(seed=1).sha256 != data.sha256
    single = load_digits01(dtype=np.float32)
    assert single.sha256 == data.sha256
    assert single.x_train.dtype == single.y_test.dtype == np.float32
    assert data.x_train.dtype == data.y_test.dtype == np.float64
    np.testing.assert_array_equal(single.x_train, data.x_train)  # sixteenths are exact in both


@pytest.mark.parametrize("n_train", [0, -1, 360, 2.5, True])
def test_bad_n_train(n_train: int) -> None:
    with pytest.raises(InputError, match=r"n_train: expected a whole number from 1 to 359"):
        load_digits01(n_train)


def test_largest_n_train_leaves_one_class_to_test_on() -> None:
    assert len(load_digits01(350).x_test) == 10
    with pytest.raises(InputError, match="y_test: expected labels −1 and \\+1, both present"):
        load_digits01(359)


def test_bad_dtype() -> None:
    with pytest.raises(InputError, match="dtype: expected float32 or float64, got int64"):
        load_digits01(dtype=np.int64)
