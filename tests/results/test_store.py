import math
import os
import string
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings, strategies as st
from hypothesis.extra import numpy as hnp

from trebuchet.errors import InputError
from trebuchet.results.schema import make_dataset
from trebuchet.results.store import check_writable, load, save


def dataset(loss: object = None) -> xr.Dataset:
    return make_dataset(
        {
            "learning_rate": [[0.1], [0.2]],
            "loss": np.ones((2, 1, 2)) if loss is None else loss,
            "status": [["converged"], ["non_finite"]],
            "steps": [[0], [2**62 + 1]],
        },
        lr=[0.1, 0.2],
        seed=[7],
        step=[0, 5],
        attrs={"weight_norm_degree": math.nan, "tolerance": math.inf, "model": "ψ, naïve"},
    )


def assert_same(read: xr.Dataset, written: xr.Dataset) -> None:
    xr.testing.assert_identical(read, written)
    for name in written.variables:
        a, b = read[name].values, written[name].values
        assert a.dtype == b.dtype, name
        assert a.tobytes() == b.tobytes(), name  # the sign of zero and the bits of NaN too


def test_round_trip_is_exact(tmp_path: Path) -> None:
    loss = [[[math.nan, math.inf]], [[-0.0, 5e-324]]]
    written = dataset(loss)
    assert_same(load(save(written, tmp_path / "runs.zarr")), written)


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    loss=hnp.arrays(st.sampled_from([np.float32, np.float64]), (2, 1, 2)),
    names=st.lists(st.text(string.printable + "λη₀", max_size=6), min_size=2, max_size=2),
    whole=hnp.arrays(np.int64, (2,)),
)
def test_round_trip_property(
    tmp_path: Path, loss: np.ndarray, names: list[str], whole: np.ndarray
) -> None:
    about = {"units": "1", "long_name": "extra"}
    # NumPy cannot hold trailing NULs in fixed-length strings, and no label has one
    written = dataset(loss).assign(
        names=xr.Variable(("lr",), np.array(names, dtype=np.str_), about),
        whole=xr.Variable(("lr",), whole, about),
        flag=xr.Variable(("lr",), whole > 0, about),
    )
    assert_same(load(save(written, tmp_path / "x.zarr", overwrite=True)), written)


def test_strings_of_any_kind_are_stored(tmp_path: Path) -> None:
    about = {"units": "", "long_name": "extra"}
    written = dataset().assign(o=xr.Variable(("lr",), np.array(["a", "bcd"], dtype=object), about))
    assert load(save(written, tmp_path / "x.zarr")).o.values.tolist() == ["a", "bcd"]
    mixed = dataset().assign(o=xr.Variable(("lr",), np.array(["a", 3], dtype=object), about))
    with pytest.raises(InputError, match="o: expected strings"):
        save(mixed, tmp_path / "y.zarr")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.zarr"]


def test_a_loaded_dataset_can_be_saved_again(tmp_path: Path) -> None:
    first = load(save(dataset(), tmp_path / "a.zarr"))
    assert_same(load(save(first, tmp_path / "b.zarr")), first)


def test_an_existing_result_is_replaced_only_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "runs.zarr"
    save(dataset(), path)
    other = dataset(np.full((2, 1, 2), 3.0))
    with pytest.raises(InputError, match="exists; pass overwrite=True"):
        save(other, path)
    assert float(load(path).loss[0, 0, 0]) == 1.0
    save(other, path, overwrite=True)
    assert float(load(path).loss[0, 0, 0]) == 3.0
    assert [p.name for p in tmp_path.iterdir()] == ["runs.zarr"]


def test_what_is_not_a_result_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="not a result"):
        save(dataset(), tmp_path / "notes", overwrite=True)
    assert (tmp_path / "notes" / "mine.txt").read_text() == "keep"


def test_an_interrupted_save_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "runs.zarr"
    whole = dataset()
    save(whole, path)

    def write_half(self: xr.Dataset, target: str, **_: object) -> None:
        Path(target).mkdir()
        Path(target, ".zmetadata").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(xr.Dataset, "to_zarr", write_half)
    for overwrite, place in ((True, path), (False, tmp_path / "new.zarr")):
        with pytest.raises(KeyboardInterrupt):
            save(dataset(np.zeros((2, 1, 2))), place, overwrite=overwrite)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["runs.zarr"]
    assert_same(load(path), whole)


def test_a_swap_that_fails_puts_the_old_result_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "runs.zarr"
    save(dataset(), path)
    rename = Path.rename

    def full_disk(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial"):
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", full_disk)
    with pytest.raises(InputError, match="No space left"):
        save(dataset(np.zeros((2, 1, 2))), path, overwrite=True)
    monkeypatch.undo()
    assert float(load(path).loss[0, 0, 0]) == 1.0
    assert [p.name for p in tmp_path.iterdir()] == ["runs.zarr"]


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is not a directory") as caught:
        save(dataset(), tmp_path / "file" / "deep" / "runs.zarr")
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_directory_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="no permission"):
        save(dataset(), tmp_path / "runs.zarr")


def test_no_permission_is_told_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(InputError, match="no permission"):
        check_writable(tmp_path / "runs.zarr")


def test_loading_nothing_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found nothing"):
        load(tmp_path / "missing.zarr")
    with pytest.raises(InputError, match="found something else"):
        load(tmp_path)
