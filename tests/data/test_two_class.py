"""What TwoClassData refuses."""

import numpy as np
import pytest

from trebuchet.data import TwoClassData
from trebuchet.data.two_class import from_pixels
from trebuchet.errors import InputError


def build(**changes: np.ndarray) -> TwoClassData:
    parts = {
        "x_train": np.linspace(0, 1, 12).reshape(4, 3),
        "y_train": np.array([-1.0, 1, 1, -1]),
        "x_test": np.full((2, 3), 0.5),
        "y_test": np.array([1.0, -1]),
    }
    return TwoClassData(name="made up", source="here", sha256="", **(parts | changes))


def test_whole_data_is_accepted() -> None:
    assert build().x_train.shape == (4, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_train": np.zeros(4)}, r"x_train: expected samples × pixels.*\(4,\)"),
        ({"x_train": np.zeros((0, 3)), "y_train": np.zeros(0)}, "x_train: expected samples"),
        ({"x_test": np.zeros((2, 4))}, r"x_test: expected samples × pixels.*\(2, 4\)"),
        ({"y_train": np.array([1.0, -1])}, r"y_train: expected one label for each of the 4"),
        ({"y_test": np.array([[1.0], [-1]])}, r"y_test: expected one label .* \(2, 1\)"),
        ({"x_test": np.zeros((2, 3), int)}, "x_test: expected float32 or float64, got int64"),
        ({"x_train": np.full((4, 3), np.nan)}, r"x_train: expected pixels in \[0, 1\], got nan"),
        ({"x_train": np.full((4, 3), 1.01)}, r"x_train: expected pixels in \[0, 1\], got 1.01"),
        ({"x_test": np.full((2, 3), -0.01)}, r"x_test: expected pixels in \[0, 1\], got -0.01"),
        ({"y_train": np.array([0.0, 1, 1, 0])}, "y_train: expected labels .* got 0, 1"),
        ({"y_test": np.array([1.0, 1])}, "y_test: expected labels .* both present, got 1"),
        ({"y_test": np.array([1.0, np.nan])}, "y_test: expected labels .* got 1, nan"),
    ],
)
def test_refused(changes: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(**changes)


def test_from_pixels_scales_and_flattens() -> None:
    x = np.array([[[0, 51], [102, 255]], [[255, 0], [0, 0]]], np.uint8)  # (2, 2, 2)
    y = np.array([-1, 1], np.int8)
    data = from_pixels("p", x, y, x, y, full_scale=255, source="here")
    np.testing.assert_allclose(data.x_train, np.array([[0, 0.2, 0.4, 1], [1, 0, 0, 0]]), rtol=1e-15)
    changed = x.copy()
    changed[1, 1, 1] = 1
    other = from_pixels("p", x, y, changed, y, full_scale=255, source="here")
    assert other.sha256 != data.sha256
