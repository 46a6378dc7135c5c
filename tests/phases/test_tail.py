"""Cycles of the loss are found where a long plain loop has them, and nowhere else."""

from typing import Any

import numpy as np
import pytest

import trebuchet as tb
from trebuchet.phases.tail import consecutive, tail_of
from trebuchet.results.schema import make_dataset
from trebuchet.theory import quadratic_map

EPS = 2.0**-52
STEPS = 4000
EDGES = [*quadratic_map.doublings(6), 1.302283, 2.0]


def _rates() -> np.ndarray:
    """Crowded around every edge, and drawn at random between them."""
    away = np.geomspace(1e-6, 3e-2, 24)
    near = np.concatenate([edge + np.concatenate([-away, away]) for edge in EDGES])
    rates = np.concatenate([near, np.random.default_rng(1).uniform(0.5, 2, 60)])
    return rates[rates <= 2]


def _orbits(a: np.ndarray, x: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Losses x²/2 at every step, ``(steps + 1, N)``, and where they end."""
    losses = np.empty((steps + 1, a.size))
    for t in range(steps + 1):
        losses[t] = x * x / 2
        x = (x + a) * (1 - x) * (1 - x) - a
    return losses, x


def _true_period(loss: np.ndarray) -> int:
    """Of the end of a long loop; 1 for a fixed point, 0 for none up to 256."""
    if np.ptp(loss) < 1e-9:
        return 1
    apart = [np.abs(loss[p:] - loss[:-p]).max() for p in range(1, 257)]
    back = np.flatnonzero(np.array(apart) < 1e-7 * np.ptp(loss))
    return int(back[0]) + 1 if back.size else 0


def _labelled(losses: np.ndarray, **attrs: Any) -> Any:
    """Labels of runs given by their losses, ``(steps + 1, N)``."""
    runs = losses.shape[1]
    ds = make_dataset(
        {"learning_rate": np.ones((runs, 1)), "loss": losses.T[:, None]},
        lr=np.arange(runs), seed=[0], step=np.arange(len(losses)),
        attrs={"deterministic": 1, "dtype": "float64", **attrs},
    )  # fmt: skip
    return tb.label(ds).isel(seed=0)


def test_hundreds_of_runs_around_the_edges_against_a_loop_of_1e5_steps() -> None:
    a = _rates()
    assert a.size > 350
    losses, x = _orbits(a, np.full(a.size, -0.31), STEPS)
    found = _labelled(losses)
    for _ in range(100_000):
        x = (x + a) * (1 - x) * (1 - x) - a
    late, _ = _orbits(a, x, 2048)
    away = np.abs(a[:, None] - np.array(EDGES)).min(1)
    for i in range(a.size):
        true, period = _true_period(late[:, i]), found.period.values[i]
        if np.isfinite(period):
            assert period == true, a[i]
            assert found.phase.values[i] == "periodic"
            swing = np.ptp(late[:, i])
            assert found.amplitude.values[i] == pytest.approx(swing, rel=1e-3), a[i]
        else:  # where a cycle loses its stability it takes longer than any budget
            assert found.phase.values[i] in ("lazy", "catapult", "unsettled"), a[i]
            assert true in (0, 1) or true > 64 or away[i] < 1e-3, (a[i], true)
    assert (found.phase.values == "periodic").sum() > 100


def _swings(seed: int) -> dict[str, np.ndarray]:
    """Losses that swing, and settle on no cycle."""
    draw = np.random.default_rng(seed)
    t = np.arange(2001.0)
    sign = (-1.0) ** t
    rate, phase = 10 ** draw.uniform(-7.5, -1), draw.uniform(0, 2 * np.pi)
    height, level = 10 ** draw.uniform(-3, 0, 2)
    power = draw.uniform(0.1, 3)
    detuned = np.pi * draw.choice([1, 2 / 3, 1 / 2, 2 / 5]) + 10 ** draw.uniform(-6, -2)
    cycle = height * np.tile(draw.uniform(0, 1, 4), 501)[: t.size]
    return {
        "decays": level + height * sign * (1 - rate) ** t,
        "grows": level + height * 1e-3 * sign * np.minimum(1 + rate, 1.004) ** t,
        "decays by a power": level + height * sign * (1 + t) ** -power,
        "around a falling loss": level * (1 - min(rate, 1e-3)) ** t + height * (1 + sign),
        "around a loss that falls by a power": (1 + t) ** -min(power, 1) + height * (1 + sign),
        "two frequencies": level + height * np.cos(2.3999 * t + phase) * np.cos(0.7 * t),
        "a beat": 2 + np.cos(detuned * t + phase) + 0.3 * np.cos(2 * detuned * t),
        "noise": level + height * draw.standard_normal(t.size) ** 2,
        "a cycle with a little noise": cycle + 1e-2 * height * draw.standard_normal(t.size),
        "a cycle that drifts": cycle * (1 + rate * t),
        "a cycle of rounding": 1e-31 * (2 + sign),
        "in flight": level * np.exp(np.minimum(rate, 0.005) * t) * (1.5 + sign),
    }


@pytest.mark.parametrize("seed", range(12))
def test_what_merely_swings_is_never_periodic_nor_chaotic(seed: int) -> None:
    swings = _swings(seed)
    losses = np.stack([np.concatenate([[1.0], loss[1:]]) for loss in swings.values()], axis=1)
    found = _labelled(losses)
    assert found.phase.isin(["lazy", "catapult", "unsettled", "divergent"]).all(), found.phase
    assert np.isnan(found.period).all()


def test_only_exact_runs_with_their_end_recorded_are_judged() -> None:
    swing = np.concatenate([[1.0], np.tile([0.2, 0.5], 200)])
    assert tail_of(swing[200:], 1.0, EPS).period == 2
    assert _labelled(swing[:, None]).phase.values == ["periodic"]
    assert _labelled(swing[:, None]).amplitude.values == pytest.approx([0.3])
    for attrs in ({"deterministic": 0}, {"deterministic": "yes"}, {"dtype": "bfloat16"}):
        assert _labelled(swing[:, None], **attrs).phase.values == ["lazy"]
    step = np.arange(0, 802, 2)  # every other step: what is between is not known
    assert consecutive(step, swing, int(step[-1])).size == 1
    assert consecutive(np.arange(401), swing, 400).size == 200
    assert consecutive(np.arange(401), swing, 399).size == 199
    assert (
        consecutive(np.arange(401), np.where(np.arange(401) == 400, np.nan, swing), 400).size == 0
    )


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_cycles_to_rounding_in_either_type(dtype: str) -> None:
    kind = np.dtype(dtype).type
    for a, period in ((0.9, None), (1.1, 2), (1.25, 4), (1.295, 8), (1.4, None), (1.46, 3)):
        x, losses = kind(-0.3), []
        for _ in range(3001):
            losses.append(float(x * x / 2))
            x = kind((x + kind(a)) * (1 - x) * (1 - x) - kind(a))
        found = tail_of(np.array(losses)[-1500:], losses[0], float(np.finfo(dtype).eps)).period
        assert found == period if period else np.isnan(found), (a, found)
