import math

import numpy as np
import pytest
import xarray as xr

from trebuchet._types import Status
from trebuchet.errors import InputError
from trebuchet.results.schema import COORDINATES, VARIABLES, config_hash, make_dataset, validate


def build(**changes: object) -> xr.Dataset:
    variables: dict[str, object] = {
        "learning_rate": [[0.1, 0.1], [0.2, 0.2]],
        "loss": np.ones((2, 2, 3)),
        "status": [[Status.CONVERGED, Status.MAX_STEPS], [Status.BLEW_UP, "non_finite"]],
        "steps": np.array([[3.0, 4.0], [5.0, 6.0]]),
        "sparsity": np.zeros((2, 2, 3, 2), dtype=np.float32),
        "top_eigenvalue_init": [1.0, 2.0],
    }
    return make_dataset({**variables, **changes}, lr=[0.1, 0.2], seed=[3, 5], step=[0, 1, 10])


def test_builder_obeys_the_table() -> None:
    ds = build()
    for name, variable in ds.variables.items():
        assert {"units", "long_name"} <= set(variable.attrs), name
    assert ds.sparsity.dims == ("lr", "seed", "step", "layer")
    assert ds.sparsity.dtype == np.float32  # a model's precision is kept
    assert ds.layer.values.tolist() == [1, 2]
    assert ds.steps.dtype == np.int64
    assert ds.status.values.tolist() == [["converged", "max_steps"], ["blew_up", "non_finite"]]
    assert ds["lr"].attrs["long_name"] == "learning rate η"
    assert "numpy " + np.__version__ in ds.attrs["versions"]
    validate(ds)


def test_every_row_of_the_table_is_complete() -> None:
    for name, row in VARIABLES.items():
        assert row.kind in {"f", "i", "U"}, name
        assert row.long_name, name
        assert set(row.dims) <= set(COORDINATES), name


def test_a_variable_beyond_the_table_brings_its_own_description() -> None:
    extra = xr.Variable(("lr",), [1.0, 2.0], {"units": "1", "long_name": "mine"})
    assert build(mine=extra)["mine"].values.tolist() == [1.0, 2.0]
    with pytest.raises(InputError, match="'mine' is not in the table"):
        build(mine=[1.0, 2.0])
    with pytest.raises(InputError, match="mine: expected attributes"):
        build(mine=xr.Variable(("lr",), [1.0, 2.0]))


def test_a_sweep_axis_beyond_the_table_is_allowed() -> None:
    ds = xr.concat([build(), build()], dim="width", data_vars="all").assign_coords(
        width=("width", [64, 128], {"units": "1", "long_name": "width"})
    )
    validate(ds)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": np.ones((2, 2))}, "loss: expected dims"),
        ({"loss": np.ones((2, 2, 4))}, "variables: expected arrays that fit"),
        ({"status": [["converged", "fine"], ["blew_up", "blew_up"]]}, "status: .* got 'fine'"),
        ({"steps": [[1.5, 2], [3, 4]]}, "steps: expected whole numbers, got 1.5"),
        ({"loss": xr.Variable(("seed", "lr", "step"), np.ones((2, 2, 3)))}, "loss: expected dims"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(**changes)


def test_coordinates_are_checked() -> None:
    data = {"learning_rate": [[0.1], [0.2]]}
    with pytest.raises(InputError, match="distinct values of 'lr'"):
        make_dataset(data, lr=[0.1, 0.1], seed=[0])
    with pytest.raises(InputError, match="increase from 0"):
        make_dataset(data, lr=[0.1, 0.2], seed=[0], step=[1, 2])
    with pytest.raises(InputError, match="'learning_rate'"):
        make_dataset({}, lr=[0.1], seed=[0])
    with pytest.raises(InputError, match="swept"):
        make_dataset(data, lr=[0.1, 0.2], seed=[0], swept="width")


def test_config_hash_follows_the_settings_alone() -> None:
    first, again = build(), build(loss=np.zeros((2, 2, 3)))
    assert first.attrs["config_hash"] == again.attrs["config_hash"]  # results do not enter
    settings = {"steps": 3, "rates": np.array([0.1]), "nan": math.nan, "status": Status.BLEW_UP}
    assert config_hash(settings) == config_hash(dict(reversed(list(settings.items()))))
    assert config_hash(settings) != config_hash({**settings, "steps": 4})
