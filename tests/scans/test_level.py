"""Where a loss stands at the end of a stretch."""

import numpy as np
import pytest

from trebuchet.scans.level import level, scatter

AT = np.arange(100, 200, 5)


def test_a_line_is_followed_to_its_end_and_beyond() -> None:
    falling = np.asarray(3.0 - 0.01 * AT, dtype=np.float64)
    assert level(AT, falling, 200) == pytest.approx(1.0, abs=1e-12)
    assert scatter(AT, falling) == pytest.approx(0, abs=1e-12)


def test_noise_without_a_trend_is_averaged() -> None:
    rng = np.random.default_rng(0)
    off_mean, off_line = [], []
    for _ in range(400):
        noise = rng.standard_normal(AT.size)
        off_mean.append(level(AT, noise, 195.0))
        off_line.append(np.polyval(np.polyfit(AT, noise, 1), 195.0))
    # The mean's own deviation is 1/√20 = 0.22, the line's end twice that.
    assert np.std(off_mean) < 0.75 * np.std(off_line)


def test_a_steep_trend_is_believed_through_noise() -> None:
    noise = 0.05 * np.random.default_rng(1).standard_normal(AT.size)
    falling = 3.0 - 0.01 * AT + noise
    assert abs(level(AT, falling, 195) - 1.05) < 0.1 < abs(falling.mean() - 1.05)
    assert scatter(AT, falling) == pytest.approx(noise.std(ddof=2), rel=0.1)


@pytest.mark.parametrize("values", [[2.0], [2.0, 1.0], [2.0, 2.0, 2.0, 2.0]])
def test_too_few_or_a_level_one(values: list[float]) -> None:
    assert level(np.arange(len(values)), np.array(values), 10) == np.mean(values)
    assert scatter(np.arange(len(values)), np.array(values)) == 0


def test_a_run_that_diverged_has_no_level() -> None:
    values = np.array([1.0, 2.0, 3.0, np.inf])
    assert level(np.arange(4), values, 3) == np.inf
    assert scatter(np.arange(4), values) == 0
