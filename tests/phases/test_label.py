import math
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings, strategies as st

from trebuchet._types import Phase, Status
from trebuchet.errors import InputError
from trebuchet.phases.label import label
from trebuchet.results.schema import make_dataset, validate
from trebuchet.theory import two_variable_map

NAN, INF = math.nan, math.inf


def from_loss(loss: list[float], **variables: Any) -> xr.Dataset:
    """One run whose steps are all recorded."""
    attrs = variables.pop("attrs", {})
    given = {name: np.asarray([[value]]) for name, value in variables.items()}
    return make_dataset(
        {"learning_rate": [[0.5]], "loss": [[loss]], **given},
        lr=[0.5],
        seed=[0],
        step=range(len(loss)),
        attrs=attrs,
    )


def phase_of(loss: list[float], *, blowup: float | None = None, delta: float | None = None,
             **variables: Any) -> str:  # fmt: skip
    ds = label(from_loss(loss, **variables), blowup=blowup, delta=delta)
    validate(ds)
    return str(ds.phase.values[0, 0])


@pytest.mark.parametrize(
    ("loss", "status", "phase"),
    [
        ([1.0, 0.5, 0.1], "converged", "lazy"),
        ([1.0, 0.5, 0.1], "max_steps", "lazy"),
        ([1.0, 0.5, 0.9, 0.5], "max_steps", "lazy"),  # it may swing, below its start
        ([1.0, 9.0, 0.1], "converged", "catapult"),
        ([1.0, 0.5, 9.0, 0.1], "gradient_zero", "catapult"),
        ([1.0, 9.0] + [0.1] * 20, "max_steps", "catapult"),
        ([1.0, 9.0, 2.0], "max_steps", "unsettled"),
        ([1.0, 9.0, 1.0], "converged", "unsettled"),  # back to its start is not below it
        ([1.0, 9.0, 0.1] * 7, "max_steps", "unsettled"),  # still swinging
        ([1.0, 9.0, 0.1] * 7, "converged", "catapult"),
        ([1.0, INF], "non_finite", "divergent"),
        ([1.0, NAN], "non_finite", "divergent"),
        ([NAN, NAN], "non_finite", "divergent"),
        ([1.0, 0.5, INF, 0.1], "max_steps", "divergent"),
        ([1.0, 2e8, 0.1], "converged", "divergent"),
        ([1.0, 9e7, 0.1], "converged", "catapult"),
        ([1.0, 3.0], "blew_up", "divergent"),
        ([1.0, 0.5], "interrupted", "unsettled"),
        ([NAN, NAN], "interrupted", "unsettled"),
        ([1.0, INF], "interrupted", "divergent"),  # what it became before Ctrl-C counts
        ([1.0, 1.0, 1.0], "max_steps", "unsettled"),
        ([1.0, 1.0, 1.0], "converged", "unsettled"),
        ([1.0], "max_steps", "unsettled"),
    ],
)
def test_rules(loss: list[float], status: str, phase: str) -> None:
    assert phase_of(loss, status=status) == phase


@pytest.mark.parametrize(
    ("loss", "status", "phase"),
    [
        ([0.0, 0.0], "gradient_zero", "lazy"),
        ([0.0], "max_steps", "lazy"),
        ([0.0, 1e-300, 0.0], "max_steps", "unsettled"),  # nowhere to fall to, and it rose
        ([0.0, 1.0, 2.0], "max_steps", "unsettled"),  # no L₀ to measure a blow-up by
        ([1.0, 0.0], "gradient_zero", "lazy"),
        ([1.0, 0.0, 0.5, 0.0], "max_steps", "lazy"),
        ([1.0, 5.0, 0.0], "gradient_zero", "catapult"),
    ],
)
def test_losses_that_touch_zero(loss: list[float], status: str, phase: str) -> None:
    assert phase_of(loss, status=status) == phase


@pytest.mark.parametrize(
    ("loss", "status", "phase"),
    [
        ([1.0, 0.3], "max_steps", "lazy"),
        ([1.0, 3.0], "max_steps", "unsettled"),
        ([1.0, INF], "max_steps", "divergent"),
    ],
)
def test_runs_of_one_step(loss: list[float], status: str, phase: str) -> None:
    assert phase_of(loss, status=status) == phase


def test_collapse_needs_all_its_signs() -> None:
    signs: dict[str, Any] = {"status": "gradient_zero", "output_spread": 0.0}
    assert phase_of([1.0, 9.0, 0.5], **signs) == "collapsed"
    assert phase_of([0.4, 9.0, 0.5], **signs) == "collapsed"  # above its start just the same
    assert phase_of([1.0, 9.0, 0.0], **signs) == "catapult"  # nothing left over: it is trained
    assert phase_of([1.0, 9.0, 0.5], **{**signs, "status": "converged"}) == "catapult"
    assert phase_of([1.0, 9.0, 0.5], **{**signs, "output_spread": 1e-9}) == "catapult"
    assert phase_of([1.0, 9.0, 0.5], **{**signs, "output_spread": NAN}) == "catapult"


def test_thresholds_on_both_sides() -> None:
    assert phase_of([1.0, 1.0009, 0.5], status="converged") == "lazy"
    assert phase_of([1.0, 1.0011, 0.5], status="converged") == "catapult"
    assert phase_of([1.0, 1.05, 0.5], status="converged", delta=0.1) == "lazy"
    assert phase_of([1.0, 90.0, 0.5], status="converged", blowup=100) == "catapult"
    assert phase_of([1.0, 110.0, 0.5], status="converged", blowup=100) == "divergent"
    # the dataset's own thresholds are used unless others are given
    own = {"blowup": 50.0, "delta": 0.2}
    assert phase_of([1.0, 90.0, 0.5], status="converged", attrs=own) == "divergent"
    assert phase_of([1.0, 1.1, 0.5], status="converged", attrs=own) == "lazy"
    assert phase_of([1.0, 1.1, 0.5], status="converged", attrs=own, delta=0.05) == "catapult"


def test_last_tenth_on_both_sides() -> None:
    """100 steps: a loss last above its start at 89 has settled, at 90 it still swings."""
    for last, phase in ((89, "catapult"), (90, "unsettled")):
        loss = np.full(101, 0.5)
        loss[0] = 1.0
        loss[last] = 2.0
        assert phase_of(loss.tolist(), status="max_steps") == phase


def test_negative_losses_are_compared_by_size() -> None:
    assert phase_of([-1.0, -2.0], status="converged") == "lazy"
    assert phase_of([-1.0, -0.5, -2.0], status="converged") == "catapult"
    assert phase_of([-1.0, -0.9995, -2.0], status="converged") == "lazy"
    assert phase_of([-1.0, 2e8, -2.0], status="converged") == "divergent"


def test_numbers_behind_the_verdict() -> None:
    ds = label(
        from_loss(
            [2.0, 8.0, 6.0, 1.0, 0.5],
            status="converged",
            top_eigenvalue=[4.0, 9.0, 3.0, 2.0, 1.0],
        )
    )
    numbers = {
        name: float(ds[name].values[0, 0])
        for name in ("peak_ratio", "final_ratio", "recovery_step", "kernel_drift", "lr_ratio_max")
    }
    assert numbers == {
        "peak_ratio": 4.0,
        "final_ratio": 0.25,
        "recovery_step": 3.0,
        "kernel_drift": 0.75,
        "lr_ratio_max": 4.5,
    }
    assert ds.attrs["label_delta"] == 1e-3
    # what is not known is NaN
    bare = label(from_loss([0.0, 0.0]))
    for name in ("peak_ratio", "final_ratio", "recovery_step", "kernel_drift", "lr_ratio_max"):
        assert np.isnan(bare[name].values).all(), name


def test_recovery_is_not_claimed_for_what_never_came_back() -> None:
    for loss, status in (([1.0, 2.0, 3.0], "max_steps"), ([1.0, 2.0, INF], "non_finite")):
        assert np.isnan(label(from_loss(loss, status=status)).recovery_step.values).all()


def test_a_dataset_without_traces_is_labelled_from_its_numbers() -> None:
    traced = from_loss([1.0, 9.0] + [0.1] * 30, status="max_steps")
    bare = label(traced).drop_dims("step").drop_vars(["phase", "peak_ratio", "recovery_step"])
    assert label(bare).phase.values[0, 0] == "catapult"
    with pytest.raises(InputError, match="delta"):
        label(bare, delta=0.5)
    with pytest.raises(InputError, match="'loss_final' is missing"):
        label(bare.drop_vars("loss_final"))


def test_labels_are_per_run_and_order_free() -> None:
    losses = [[[1.0, 0.1], [1.0, INF]], [[1.0, 3.0], [1.0, 0.2]]]
    ds = make_dataset(
        {"learning_rate": np.ones((2, 2)), "loss": losses}, lr=[1.0, 2.0], seed=[0, 1], step=[0, 1]
    )
    expected = [["lazy", "divergent"], ["unsettled", "lazy"]]
    assert label(ds).phase.values.tolist() == expected
    turned = label(ds.transpose("step", "seed", "lr"))
    assert turned.phase.transpose("lr", "seed").values.tolist() == expected
    assert label(label(ds)).identical(label(ds))
    wide = xr.concat([ds, ds.isel(seed=[1, 0])], dim="width", data_vars="all", join="override")
    assert label(wide).phase.transpose("width", "lr", "seed").values.tolist()[0] == expected


def test_bad_thresholds_name_the_argument() -> None:
    ds = from_loss([1.0, 0.5])
    for bad in (1.0, -3.0, NAN):
        with pytest.raises(InputError, match="blowup"):
            label(ds, blowup=bad)
    for bad in (-0.1, NAN, INF):
        with pytest.raises(InputError, match="delta"):
            label(ds, delta=bad)


@pytest.mark.parametrize(
    ("v0", "phase"),
    [(1.8, "lazy"), (2.2, "catapult"), (3.6, "catapult"), (4.4, "divergent")],
)
def test_both_sides_of_the_maps_edges(v0: float, phase: str) -> None:
    """0.9 and 1.1 times the edges 2 and 4 of the two-variable map; its loss is ∝ u."""
    u, _ = two_variable_map.iterate(1e-4, v0, 1000)
    assert phase_of(u.tolist()) == phase


@settings(deadline=None, max_examples=80)
@given(
    st.lists(
        st.one_of(st.floats(allow_nan=True, allow_infinity=True), st.just(0.0)),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from(list(Status)),
    st.sampled_from([0.0, 1.0, NAN]),
)
def test_any_loss_gets_exactly_one_phase(loss: list[float], status: Status, spread: float) -> None:
    phase = phase_of(loss, status=status, output_spread=spread)
    if status is Status.NOT_RUN:
        assert phase == ""
        return
    assert phase in set(Phase)
    if status in {Status.NON_FINITE, Status.BLEW_UP} or INF in loss:
        assert phase == Phase.DIVERGENT
    if phase in {Phase.LAZY, Phase.CATAPULT} and loss[0] != 0:
        ended = [value for value in loss if not math.isnan(value)][-1]
        assert ended < loss[0]
