"""MNIST, Fashion-MNIST and CIFAR-10, classes 0 and 1, from files or through OpenML."""

import warnings
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from sklearn.datasets import fetch_openml

from trebuchet._checks import anything, choice, path as a_path, seed as one_seed
from trebuchet._doors import door, maybe, rule
from trebuchet.data.two_class import (
    LARGEST_STATE,
    TwoClassData,
    check_n_train,
    float_dtype,
    from_pixels,
)
from trebuchet.errors import InputError

ARRAYS = ("x_train", "y_train", "x_test", "y_test")


@dataclass(frozen=True, slots=True)
class _ImageSet:
    """Where one data set lies, and what it must look like to be believed."""

    title: str
    file: str  # under data_root
    shape: tuple[int, ...]  # of one image, as in the file
    openml: str  # OpenML's name; version 1 of each
    n_train_rows: int  # OpenML keeps MNIST's own order: training rows first, then test
    n_rows: int


IMAGE_SETS = {
    "mnist": _ImageSet("MNIST", "mnist01.npz", (28, 28), "mnist_784", 60_000, 70_000),
    "fashion_mnist": _ImageSet(
        "Fashion-MNIST", "fmnist01.npz", (28, 28), "Fashion-MNIST", 60_000, 70_000
    ),
    "cifar10": _ImageSet("CIFAR-10", "cifar01.npz", (3, 32, 32), "CIFAR_10", 50_000, 60_000),
}


@door(
    name=rule(choice, IMAGE_SETS, quoted=False), data_root=maybe(a_path), n_train=anything,
    seed=rule(one_seed, most=LARGEST_STATE), dtype=float_dtype,
)  # fmt: skip
def load_images(
    name: str,
    data_root: str | Path | None = None,
    *,
    n_train: int = 128,
    seed: int = 0,
    dtype: DTypeLike = np.float64,
) -> TwoClassData:
    """Classes 0 (label −1) and 1 (label +1) of an image data set, pixels scaled to [0, 1].

    With `data_root`, reads ``mnist01.npz``, ``fmnist01.npz`` or ``cifar01.npz`` there: arrays
    ``x_train`` (D × 28 × 28, or D × 3 × 32 × 32, uint8), ``y_train`` (whole numbers, −1 for
    class 0 and +1 for class 1), ``x_test``, ``y_test``. The first `n_train` training samples
    are used in file order, and every test sample.

    Without, asks OpenML through scikit-learn, which downloads once and keeps a cache
    (``SCIKIT_LEARN_DATA`` moves it). `n_train` samples of the two classes are drawn from the
    first 60,000 rows (CIFAR-10: 50,000) with ``numpy.random.RandomState(seed)``; the test set
    is the two classes among the last 10,000, as in the original split. The authors' notebook
    tested Fashion-MNIST on all ten classes: here a test set always has the two.

    Args:
        name: ``"mnist"``, ``"fashion_mnist"`` or ``"cifar10"``.
        data_root: Folder of the files; None for OpenML.
        n_train: Training samples.
        seed: Of the draw from OpenML. A file's samples are drawn already: it is not used.
        dtype: Of pixels and labels, float32 or float64.

    Returns:
        Training pixels ``(n_train, d)`` and test pixels ``(T, d)``, d = 784 or 3072, with labels.

    Raises:
        InputError: If the name is unknown; if there is neither a file nor a network; or if the
            file or the download is not exactly what is described above.
    """
    spec = IMAGE_SETS[name]
    if data_root is not None:
        parts, source = _from_file(spec, Path(data_root), n_train)
    else:
        parts, source = _from_openml(spec, n_train, seed)
    return from_pixels(name, *parts, full_scale=255, source=source, dtype=dtype)


# x_train (D, …) uint8, y_train (D,) int8, x_test (T, …) uint8, y_test (T,) int8
_Parts = tuple[NDArray[np.uint8], NDArray[np.int8], NDArray[np.uint8], NDArray[np.int8]]


def _from_file(spec: _ImageSet, root: Path, n_train: int) -> tuple[_Parts, str]:
    path = root / spec.file
    if not path.is_file():
        raise InputError(
            f"data_root: expected {spec.title} in {path}, found no such file; put it there, or "
            f"leave data_root out to fetch {spec.openml} from OpenML"
        )
    try:
        # opened here, so that a bad archive leaves no file open behind it
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            missing = [key for key in ARRAYS if key not in archive]
            found = sorted(archive)
            arrays = {} if missing else {key: archive[key] for key in ARRAYS}
    # NumPy and zipfile name a torn or foreign file in all these ways; TypeError and
    # AttributeError come from a plain .npy file, which is no archive to enter
    except (
        zipfile.BadZipFile,
        zlib.error,
        OSError,
        EOFError,
        ValueError,
        TypeError,
        AttributeError,
        NotImplementedError,
    ) as error:
        raise InputError(
            f"{path}: expected an .npz archive of {', '.join(ARRAYS)}, got a file that cannot be "
            f"read as one ({error}); replace it"
        ) from error
    if missing:
        raise InputError(
            f"{path}: expected arrays {', '.join(ARRAYS)}, got {', '.join(found) or 'none'}"
        )
    for part in ("train", "test"):
        _check_part(path, spec, arrays[f"x_{part}"], arrays[f"y_{part}"], part)
    n_train = check_n_train(n_train, len(arrays["x_train"]), str(path))
    return (
        arrays["x_train"][:n_train],
        arrays["y_train"][:n_train].astype(np.int8),
        arrays["x_test"],
        arrays["y_test"].astype(np.int8),
    ), f"{spec.title} classes 0 and 1 from {path.name}, first {n_train} training samples"


def _check_part(path: Path, spec: _ImageSet, x: NDArray[Any], y: NDArray[Any], part: str) -> None:
    expected = " × ".join(str(size) for size in spec.shape)
    if x.dtype != np.uint8 or x.shape[1:] != spec.shape or len(x) == 0:
        raise InputError(
            f"{path}: x_{part}: expected uint8 images N × {expected}, got {x.dtype} of shape "
            f"{x.shape}"
        )
    if y.shape != (len(x),):
        raise InputError(
            f"{path}: y_{part}: expected one label for each of the {len(x)} images, got shape "
            f"{y.shape}"
        )
    if y.dtype.kind not in "iu" or not np.array_equal(np.unique(y), [-1, 1]):
        shown = ", ".join(str(value) for value in np.unique(y)[:12])
        raise InputError(
            f"{path}: y_{part}: expected whole-number labels −1 and +1, both present, got "
            f"{y.dtype} labels {shown}"
        )


def _from_openml(spec: _ImageSet, n_train: int, seed: int) -> tuple[_Parts, str]:
    pixels, target = _fetch(spec)
    n_pixels = int(np.prod(spec.shape))
    if pixels.shape != (spec.n_rows, n_pixels) or target.shape != (spec.n_rows,):
        raise InputError(
            f"OpenML's {spec.openml}: expected {spec.n_rows} × {n_pixels} pixels and "
            f"{spec.n_rows} labels, got shapes {pixels.shape} and {target.shape}"
        )
    kept = np.flatnonzero((target == "0") | (target == "1"))
    x = pixels[kept]  # (kept, d); the other classes go before anything is converted
    if not np.all((x >= 0) & (x <= 255) & (x == np.floor(x))):  # NaN fails too
        raise InputError(
            f"OpenML's {spec.openml}: expected whole-number pixels 0 to 255, got values from "
            f"{np.min(x):g} to {np.max(x):g}, with NaN or fractions among them"
        )
    whole = x.astype(np.uint8)
    y = np.where(target[kept] == "1", 1, -1).astype(np.int8)
    early = kept < spec.n_train_rows
    train = np.flatnonzero(early)
    n_train = check_n_train(n_train, len(train), f"the two classes of {spec.title}")
    drawn = np.random.RandomState(seed).permutation(train)[:n_train]
    return (
        (
            whole[drawn],
            y[drawn],
            whole[~early],
            y[~early],
        ),
        f"{spec.title} classes 0 and 1 from OpenML's {spec.openml}, version 1, drawn with seed "
        f"{seed}",
    )


def _fetch(spec: _ImageSet) -> tuple[NDArray[Any], NDArray[np.str_]]:
    """OpenML's rows ``(rows, d)`` and labels as text ``(rows,)``, or one sentence why not."""
    try:
        with warnings.catch_warnings():
            # scikit-learn warns before each retry; the sentence below says it once
            warnings.filterwarnings("ignore", message=".*network error", category=UserWarning)
            bunch = fetch_openml(spec.openml, version=1, as_frame=False, parser="auto", n_retries=1)
    except OSError as error:  # URLError, ConnectionError, TimeoutError and a torn cache
        raise InputError(
            f"{spec.title}: found neither a file nor a network: give a folder that holds "
            f"{spec.file} as data_root (--data-root DIR), or connect, so that scikit-learn can "
            f"fetch {spec.openml} from OpenML into its cache ({error})"
        ) from error
    except (ValueError, EOFError, zlib.error) as error:  # a wrong checksum; a torn archive
        raise InputError(
            f"OpenML's {spec.openml} cannot be read ({error}): clear scikit-learn's cache and "
            f"fetch again, or give a folder that holds {spec.file} as data_root (--data-root DIR)"
        ) from error
    return np.asarray(bunch.data), np.asarray(bunch.target).astype(str)
