"""Two classes of flattened pixels, labelled −1 and +1: what every image experiment trains on."""

import hashlib
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import DTypeLike, NDArray

from trebuchet._checks import as_index, instance, refuse, shown, text
from trebuchet._doors import door, rule
from trebuchet.errors import InputError

LARGEST_STATE = 2**32 - 1
"""Seeds of ``numpy.random.RandomState`` go up to here."""

_ARRAY = rule(instance, np.ndarray, "an array of float32 or float64", "convert it first")


@door(
    name=text, x_train=_ARRAY, y_train=_ARRAY, x_test=_ARRAY, y_test=_ARRAY, source=text,
    sha256=text,
)  # fmt: skip
@dataclass(frozen=True, slots=True, eq=False)
class TwoClassData:
    """A training and a test set of two classes, checked when it is made.

    Args:
        name: What the samples are, ``"digits"``, ``"mnist"``…
        x_train: Pixels in [0, 1], float32 or float64, ``(D, d)``.
        y_train: Labels −1 or +1, same dtype, ``(D,)``. Both classes must be there.
        x_test: Test pixels, ``(T, d)``.
        y_test: Test labels, ``(T,)``: the same two classes, never ten.
        source: Where the samples came from, for a person to read.
        sha256: Checksum of the raw bytes that were used (:func:`checksum`), the same whatever
            the dtype.

    Raises:
        InputError: If an array has the wrong shape or dtype, if lengths disagree, or if a pixel
            or a label is not what is said above.
    """

    name: str
    x_train: NDArray[np.floating[Any]]
    y_train: NDArray[np.floating[Any]]
    x_test: NDArray[np.floating[Any]]
    y_test: NDArray[np.floating[Any]]
    source: str
    sha256: str

    def __post_init__(self) -> None:
        for part in ("train", "test"):
            x, y = getattr(self, f"x_{part}"), getattr(self, f"y_{part}")
            if x.ndim != 2 or len(x) == 0 or x.shape[1:] != self.x_train.shape[1:]:
                raise InputError(
                    f"{self.name}: x_{part}: expected samples × pixels, at least one sample and "
                    f"the pixels of x_train, got shape {x.shape}"
                )
            if y.shape != (len(x),):
                raise InputError(
                    f"{self.name}: y_{part}: expected one label for each of the {len(x)} samples, "
                    f"got shape {y.shape}"
                )
            for label, array in ((f"x_{part}", x), (f"y_{part}", y)):
                if array.dtype not in (np.float32, np.float64):
                    raise InputError(
                        f"{self.name}: {label}: expected float32 or float64, got {array.dtype}"
                    )
            if x.size == 0:
                raise InputError(f"{self.name}: x_{part}: expected pixels, got shape {x.shape}")
            low, high = float(x.min()), float(x.max())
            if not (low >= 0 and high <= 1):  # NaN fails both
                raise InputError(
                    f"{self.name}: x_{part}: expected pixels in [0, 1], got {low:g} to {high:g}"
                )
            found = np.unique(y)
            if not np.array_equal(found, [-1, 1]):
                shown = ", ".join(f"{value:g}" for value in found[:12])
                raise InputError(
                    f"{self.name}: y_{part}: expected labels −1 and +1, both present, got {shown}"
                )


def checksum(*arrays: NDArray[Any]) -> str:
    """SHA-256 over the dtype, shape and bytes of each array in turn.

    Args:
        arrays: In the order they are digested.

    Returns:
        64 hexadecimal digits.

    Example:
        >>> a = np.arange(3, dtype=np.uint8)
        >>> checksum(a) == checksum(a.copy()), checksum(a) == checksum(a[::-1])
        (True, False)
    """
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def from_pixels(
    name: str,
    x_train: NDArray[np.uint8],
    y_train: NDArray[np.int8],
    x_test: NDArray[np.uint8],
    y_test: NDArray[np.int8],
    *,
    full_scale: int,
    source: str,
    dtype: DTypeLike = np.float64,
) -> TwoClassData:
    """Flatten whole-number pixels, divide by `full_scale`, and keep the checksum of the bytes.

    Args:
        name: Of the data set.
        x_train: Pixels 0…`full_scale`, uint8, ``(D, …)``.
        y_train: −1 or +1, int8, ``(D,)``.
        x_test: As `x_train`, ``(T, …)``.
        y_test: As `y_train`, ``(T,)``.
        full_scale: The pixel value that becomes 1.
        source: Where the samples came from.
        dtype: float32 or float64.

    Returns:
        The data, flattened to ``(D, d)`` and ``(T, d)``.

    Raises:
        InputError: If `dtype` is neither, or if the samples are not what TwoClassData asks.
    """
    kind = float_dtype("dtype", dtype)
    flat = [x.reshape(len(x), int(np.prod(x.shape[1:]))) for x in (x_train, x_test)]  # (D, d)
    return TwoClassData(
        name=name,
        x_train=(flat[0] / full_scale).astype(kind),
        y_train=y_train.astype(kind),
        x_test=(flat[1] / full_scale).astype(kind),
        y_test=y_test.astype(kind),
        source=source,
        sha256=checksum(flat[0], y_train, flat[1], y_test),
    )


def check_n_train(n_train: object, available: int, where: str) -> int:
    """Refuse a training set that is empty or larger than what `where` holds.

    Returns:
        The number of its samples.

    Raises:
        InputError: If `n_train` is not a whole number from 1 to `available`.
    """
    count = as_index(n_train)
    if count is None or not 1 <= count <= available:
        expected = f"a whole number from 1 to {available}, the samples in {where}"
        refuse("n_train", expected, n_train)
    return count


def float_dtype(name: str, value: object) -> np.dtype[Any]:
    """NumPy's float32 or float64, by any of their names, torch's among them."""
    known: list[np.dtype[Any]] = [np.dtype(np.float32), np.dtype(np.float64)]
    kind: np.dtype[Any] | None = None
    if value is not None:
        try:
            kind = np.dtype(cast("DTypeLike", value))  # whatever it is, that is tried
        except Exception:  # NumPy says so in many ways
            named = str(value).removeprefix("torch.") if type(value).__module__ == "torch" else ""
            kind = next((one for one in known if one.name == named), None)
    if kind is None or kind not in known:
        raise InputError(f"{name}: expected float32 or float64, got {kind or shown(value)}")
    return kind
