import math

import numpy as np
import pytest
import xarray as xr

from trebuchet._types import Phase
from trebuchet.errors import InputError
from trebuchet.results.schema import RUN, make_dataset, validate
from trebuchet.results.summary import PHASE_LETTERS, summarise, table

NAN, INF = math.nan, math.inf


def from_losses(*runs: list[float], **variables: object) -> xr.Dataset:
    """One seed; the recorded steps are 0, 10, 20, …"""
    rates = [0.1 * (i + 1) for i in range(len(runs))]
    return make_dataset(
        {"learning_rate": [[rate] for rate in rates], "loss": [[run] for run in runs], **variables},
        lr=rates,
        seed=[0],
        step=10 * np.arange(len(runs[0])),
    )


def column(ds: xr.Dataset, name: str) -> list[object]:
    values: list[object] = ds[name].values[:, 0].tolist()
    return values


def test_numbers_come_from_the_traces() -> None:
    ds = summarise(from_losses([2.0, 5.0, 1.0, NAN], [2.0, 1.0, 0.0, 0.5], [2.0, NAN, NAN, NAN]))
    validate(ds)
    assert column(ds, "loss_first") == [2.0, 2.0, 2.0]
    assert column(ds, "loss_max") == [5.0, 2.0, 2.0]
    assert column(ds, "loss_max_step") == [10.0, 0.0, 0.0]
    assert column(ds, "loss_min") == [1.0, 0.0, 2.0]
    assert column(ds, "loss_final") == [1.0, 0.5, 2.0]
    assert column(ds, "last_above") == [10, -1, -1]
    assert column(ds, "steps") == [20, 30, 0]
    assert column(ds, "status") == ["max_steps"] * 3


def test_a_run_that_ends_in_infinity() -> None:
    ds = summarise(from_losses([1.0, 7.0, INF, NAN]))
    assert column(ds, "status") == ["non_finite"]
    assert column(ds, "loss_max") == [INF]
    assert column(ds, "loss_final") == [INF]
    # the engine may say non_finite where the trace ends on a finite loss
    ds = summarise(from_losses([1.0, 7.0, NAN, NAN], status=[["non_finite"]]))
    assert column(ds, "loss_final") == [INF]
    assert column(ds, "loss_max") == [INF]


def test_a_run_never_recorded_has_no_numbers() -> None:
    ds = summarise(from_losses([NAN, NAN]))
    for name in ("loss_first", "loss_max", "loss_max_step", "loss_min", "loss_final"):
        assert np.isnan(ds[name].values).all(), name


def test_what_the_dataset_has_is_kept() -> None:
    ds = from_losses([1.0, 2.0], loss_max=[[50.0]], status=[["converged"]])
    assert column(summarise(ds), "loss_max") == [50.0]  # a peak between two recorded steps
    assert column(summarise(ds), "status") == ["converged"]


def test_another_delta_counts_afresh() -> None:
    ds = from_losses([1.0, 1.05, 1.2, 1.05, 0.5], last_above=[[30]])
    ds.attrs["delta"] = 1e-3
    assert column(summarise(ds), "last_above") == [30]
    again = summarise(ds, delta=0.1)
    assert column(again, "last_above") == [20]
    assert again.attrs["delta"] == 0.1
    assert ds.attrs["delta"] == 1e-3
    with pytest.raises(InputError, match="delta"):
        summarise(ds.drop_vars("loss"), delta=0.1)


def test_other_traces_give_first_last_and_largest() -> None:
    ds = from_losses(
        [1.0, 0.5, 0.2],
        top_eigenvalue=[[[4.0, 9.0, NAN]]],
        weight_norm=[[[10.0, 8.0, 7.0]]],
        sparsity=[[[[0.5, 0.4], [NAN, NAN], [0.9, 0.8]]]],
        top_eigenvalue_init=[4.0],
    )
    ds = summarise(ds)
    validate(ds)
    assert ds.sparsity_final.dims == (*RUN, "layer")
    numbers = [column(ds, f"top_eigenvalue_{which}")[0] for which in ("first", "final", "max")]
    assert numbers == [4.0, 9.0, 9.0]
    assert column(ds, "weight_norm_final") == [7.0]
    assert ds.sparsity_final.values.tolist() == [[[0.9, 0.8]]]
    assert column(ds, "lr_ratio") == [pytest.approx(0.4)]


def test_table_has_a_row_a_rate() -> None:
    ds = make_dataset(
        {
            "learning_rate": [[0.1, 0.2, 0.3], [1.0, 1.0, 1.0]],
            "loss": [[[1.0, 0.1], [1.0, 0.3], [1.0, 0.2]], [[1.0, INF], [1.0, INF], [1.0, NAN]]],
            "weight_norm": np.full((2, 3, 2), [4.0, 2.0]),
            "sparsity": np.full((2, 3, 2, 2), 0.25),
            "top_eigenvalue": np.full((2, 3, 2), 5.0),
            "test_loss_final": [[0.5, NAN, 0.7], [NAN, NAN, NAN]],
            "phase": [["lazy", "catapult", "collapsed"], ["divergent", "divergent", "unsettled"]],
        },
        lr=[0.1, 1.0],
        seed=[0, 1, 2],
        step=[0, 1],
    )
    frame = table(ds)
    assert list(frame.columns) == [
        "lr", "phases", "loss_max", "loss_final", "test_loss_final", "ratio_final",
        "weight_norm_ratio", "sparsity_1", "sparsity_2",
    ]  # fmt: skip
    assert frame["phases"].tolist() == ["L C X", "D D ?"]
    assert frame["lr"].tolist() == [0.2, 1.0]
    assert frame["loss_final"].tolist() == [0.2, INF]
    assert frame["test_loss_final"].tolist()[0] == 0.6
    assert math.isnan(frame["test_loss_final"].tolist()[1])  # missing is NaN, never 0
    assert frame["ratio_final"].tolist() == [1.0, 5.0]
    assert frame["weight_norm_ratio"].tolist() == [0.5, 0.5]


def test_every_phase_has_its_letter() -> None:
    assert set(PHASE_LETTERS) == set(Phase)
    assert len(set(PHASE_LETTERS.values())) == len(Phase)
