"""Image files and OpenML: the real files where they lie beside the project, fakes elsewhere."""

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import HTTPError, URLError

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from trebuchet.data import images, load_images
from trebuchet.errors import InputError

SHARED = Path(__file__).parents[2] / "../shared/data"
FILES = {"mnist": "mnist01.npz", "fashion_mnist": "fmnist01.npz", "cifar10": "cifar01.npz"}


def good_arrays(shape: tuple[int, ...] = (28, 28), n: int = 12) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    y = np.where(np.arange(n) % 2, 1, -1).astype(np.int8)
    return {
        "x_train": rng.integers(0, 256, (n, *shape)).astype(np.uint8),
        "y_train": y,
        "x_test": rng.integers(0, 256, (4, *shape)).astype(np.uint8),
        "y_test": y[:4],
    }


def write(folder: Path, file: str = "mnist01.npz", **changes: Any) -> Path:
    arrays = good_arrays() | changes
    np.savez_compressed(folder / file, **{k: v for k, v in arrays.items() if v is not None})
    return folder / file


# ---------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("name", "pixels", "n_test"),
    [("mnist", 784, 2000), ("fashion_mnist", 784, 2000), ("cifar10", 3072, 798)],
)
def test_real_files(name: str, pixels: int, n_test: int) -> None:
    if not (SHARED / FILES[name]).is_file():
        pytest.skip(f"{FILES[name]} does not lie in a folder shared/data beside the project")
    data = load_images(name, SHARED)
    assert data.x_train.shape == (128, pixels)
    assert data.x_test.shape == (n_test, pixels)
    assert data.x_train.min() == 0
    assert data.x_train.max() == 1
    assert abs(data.y_test.mean()) < 0.1  # two classes of about one size
    with np.load(SHARED / FILES[name]) as archive:
        expected = archive["x_train"][7].ravel() / 255
    np.testing.assert_array_equal(data.x_train[7], expected)


def test_file_order_is_kept_and_n_train_takes_the_first(tmp_path: Path) -> None:
    write(tmp_path)
    arrays = good_arrays()
    data = load_images("mnist", tmp_path, n_train=5, dtype=np.float32)
    assert data.x_train.dtype == np.float32
    np.testing.assert_array_equal(data.y_train, arrays["y_train"][:5])
    np.testing.assert_allclose(data.x_train, arrays["x_train"][:5].reshape(5, 784) / 255, rtol=1e-7)
    assert len(data.x_test) == 4
    assert "mnist01.npz" in data.source
    assert len(data.sha256) == len(hashlib.sha256().hexdigest())


def test_checksum_is_of_what_was_used(tmp_path: Path) -> None:
    write(tmp_path)
    first = load_images("mnist", tmp_path, n_train=5).sha256
    changed = good_arrays()["x_train"]
    changed[6] = 0  # beyond the five that are used
    write(tmp_path, x_train=changed)
    assert load_images("mnist", tmp_path, n_train=5).sha256 == first
    assert load_images("mnist", tmp_path, n_train=7).sha256 != first
    changed[4, 0, 0] ^= 1
    write(tmp_path, x_train=changed)
    assert load_images("mnist", tmp_path, n_train=5).sha256 != first


def test_more_training_samples_than_the_file_holds(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(InputError, match=r"n_train: expected a whole number from 1 to 12.*got 13"):
        load_images("mnist", tmp_path, n_train=13)


def test_unknown_name() -> None:
    with pytest.raises(InputError, match="name: expected one of mnist, fashion_mnist, cifar10"):
        load_images("mnist01")


def test_no_file_names_both_ways(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"fmnist01.npz.*Fashion-MNIST from OpenML"):
        load_images("fashion_mnist", tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_test": None}, "expected arrays x_train, y_train, x_test, y_test, got x_test, x_tr"),
        (
            {"x_train": good_arrays()["x_train"].reshape(12, 784)},
            r"x_train: expected uint8 images N × 28 × 28, got uint8 of shape \(12, 784\)",
        ),
        (
            {"x_test": good_arrays()["x_test"] / 255},
            r"x_test: expected uint8 images N × 28 × 28, got float64",
        ),
        (
            {"x_train": np.full((12, 28, 28), np.nan)},
            r"x_train: expected uint8 images N × 28 × 28, got float64",
        ),
        ({"x_test": np.zeros((0, 28, 28), np.uint8)}, r"x_test: expected uint8.*\(0, 28, 28\)"),
        (
            {"y_train": good_arrays()["y_train"][:11]},
            r"y_train: expected one label for each of the 12 images, got shape \(11,\)",
        ),
        ({"y_train": np.arange(12)}, "y_train: expected whole-number labels −1 and .* 0, 1, 2"),
        ({"y_test": np.ones(4, np.int8)}, "y_test: expected whole-number .* int8 labels 1"),
        (
            {"y_test": np.array([1, -1, np.nan, 1])},
            "y_test: expected whole-number labels .* float64 labels -1.0, 1.0, nan",
        ),
        (
            {"y_test": np.array([1, -1, None, 1], object)},
            "expected an .npz archive .*cannot be read as one",
        ),
    ],
)
def test_wrong_archives(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write(tmp_path, **changes)
    with pytest.raises(InputError, match=message):
        load_images("mnist", tmp_path, n_train=4)


def test_wrong_data_set_under_the_right_name(tmp_path: Path) -> None:
    write(tmp_path, "cifar01.npz")
    with pytest.raises(InputError, match=r"expected uint8 images N × 3 × 32 × 32"):
        load_images("cifar10", tmp_path, n_train=4)


@pytest.mark.parametrize("kept", [0, 1, 3, 100, 0.3, 0.9, 0.999])
def test_truncated_archive(tmp_path: Path, kept: float) -> None:
    path = write(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept if isinstance(kept, int) else kept * len(whole))])
    with pytest.raises(InputError, match=r"mnist01.npz: expected an .npz archive"):
        load_images("mnist", tmp_path, n_train=4)


def test_flipped_byte_in_the_pixels(tmp_path: Path) -> None:
    path = write(tmp_path)
    torn = bytearray(path.read_bytes())
    torn[2000] ^= 0xFF
    path.write_bytes(torn)
    with pytest.raises(InputError, match=r"mnist01.npz: expected an .npz archive"):
        load_images("mnist", tmp_path, n_train=4)


@pytest.mark.parametrize("content", [b"<html>not found</html>", b"PK\x03\x04 and then nothing"])
def test_no_archive_at_all(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "mnist01.npz").write_bytes(content)
    with pytest.raises(InputError, match=r"mnist01.npz: expected an .npz archive"):
        load_images("mnist", tmp_path, n_train=4)


def test_single_array_instead_of_an_archive(tmp_path: Path) -> None:
    with (tmp_path / "mnist01.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(InputError, match=r"mnist01.npz: expected an .npz archive"):
        load_images("mnist", tmp_path, n_train=4)


# ---------------------------------------------------------------- OpenML


class FakeOpenML:
    """Stands in for fetch_openml: ten classes in turn, pixel (row, 0) = row % 251."""

    def __init__(self, rows: int, pixels: int, *, frame: bool = False) -> None:
        # zeros cost no memory until they are written, so full-size fakes are cheap; what a frame
        # copies is smaller than OpenML's own int64
        self.data: NDArray[Any] = np.zeros((rows, pixels), np.int16)
        self.data[:, 0] = np.arange(rows) % 251
        self.target = (np.arange(rows) % 10).astype(str).astype(object)
        self.frame = frame
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def __call__(self, *args: Any, **kwargs: Any) -> SimpleNamespace:
        self.calls.append((args, kwargs))
        if self.frame:
            return SimpleNamespace(
                data=pd.DataFrame(self.data), target=pd.Series(self.target, dtype="category")
            )
        return SimpleNamespace(data=self.data, target=self.target)


@pytest.mark.parametrize("frame", [False, True])
@pytest.mark.parametrize(
    ("name", "openml", "rows", "pixels"),
    [
        ("mnist", "mnist_784", 70_000, 784),
        ("fashion_mnist", "Fashion-MNIST", 70_000, 784),
        ("cifar10", "CIFAR_10", 60_000, 3072),
    ],
)
def test_openml(
    monkeypatch: pytest.MonkeyPatch, name: str, openml: str, rows: int, pixels: int, frame: bool
) -> None:
    fake = FakeOpenML(rows, pixels, frame=frame)
    monkeypatch.setattr(images, "fetch_openml", fake)
    data = load_images(name)
    (args, kwargs) = fake.calls[0]
    assert args == (openml,)
    assert kwargs["version"] == 1
    assert data.x_train.shape == (128, pixels)
    assert data.x_test.shape == (2000, pixels)  # two classes of ten among the last 10,000 rows
    # a row's first pixel and its class both follow from its index: 251 and 10 are coprime
    test_rows = np.array([r for r in range(rows - 10_000, rows) if r % 10 < 2])
    np.testing.assert_array_equal(data.x_test[:, 0], (test_rows % 251) / 255)
    np.testing.assert_array_equal(data.y_test, np.where(test_rows % 10 == 1, 1, -1))
    assert openml in data.source


def test_openml_training_rows_are_drawn_once_each_by_the_seed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake = FakeOpenML(70_000, 784)
    kept = np.arange(70_000) % 10 < 2
    fake.data[kept, 0], fake.data[kept, 1] = np.divmod(np.flatnonzero(kept) // 10, 128)
    fake.data[:, 0] %= 256
    monkeypatch.setattr(images, "fetch_openml", fake)
    data = load_images("mnist", n_train=1000, seed=3)
    index = np.rint(255 * data.x_train[:, :2]) @ [128, 1]  # of the ten a row is in; below 6000
    assert index.max() < 6000
    assert len(np.unique(np.column_stack([index, data.y_train]), axis=0)) == 1000
    assert abs(data.y_train.mean()) < 0.1
    assert load_images("mnist", n_train=1000, seed=3).sha256 == data.sha256
    assert load_images("mnist", n_train=1000, seed=4).sha256 != data.sha256


@pytest.mark.parametrize(
    "error",
    [
        URLError("Name or service not known"),
        HTTPError("https://www.openml.org", 503, "Service Unavailable", None, None),  # type: ignore[arg-type]
        ConnectionResetError("reset by peer"),
        TimeoutError("timed out"),
    ],
)
def test_offline_names_both_ways(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def offline(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(images, "fetch_openml", offline)
    with pytest.raises(InputError, match=r"cifar01.npz as data_root .*CIFAR_10 from OpenML") as got:
        load_images("cifar10")
    assert "\n" not in str(got.value)
    if isinstance(error, HTTPError):
        error.close()


@pytest.mark.parametrize(
    "error", [ValueError("md5 checksum does not match"), EOFError("Compressed file ended")]
)
def test_corrupt_download(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def corrupt(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(images, "fetch_openml", corrupt)
    with pytest.raises(InputError, match=r"mnist_784 cannot be read .*clear scikit-learn's cache"):
        load_images("mnist")


@pytest.mark.parametrize(("rows", "pixels"), [(69_999, 784), (70_000, 783), (60_000, 3072)])
def test_openml_of_wrong_size(monkeypatch: pytest.MonkeyPatch, rows: int, pixels: int) -> None:
    monkeypatch.setattr(images, "fetch_openml", FakeOpenML(rows, pixels))
    with pytest.raises(InputError, match=rf"expected 70000 × 784 pixels .*\({rows}, {pixels}\)"):
        load_images("mnist")


@pytest.mark.parametrize("value", [np.nan, -1.0, 256.0, 0.5])
def test_openml_with_impossible_pixels(monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    fake = FakeOpenML(70_000, 784)
    fake.data = fake.data.astype(float)
    fake.data[31, 5] = value
    monkeypatch.setattr(images, "fetch_openml", fake)
    with pytest.raises(InputError, match="expected whole-number pixels 0 to 255"):
        load_images("mnist")
    fake.data[31, 5] = 0
    fake.data[32, 5] = value  # a class that is not used
    assert load_images("mnist").x_train[:, 5].max() == 0


def test_openml_without_one_of_the_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeOpenML(70_000, 784)
    fake.target[fake.target == "0"] = "7"
    monkeypatch.setattr(images, "fetch_openml", fake)
    with pytest.raises(InputError, match="y_train: expected labels −1 and \\+1, both present"):
        load_images("mnist")
