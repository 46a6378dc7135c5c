"""Datasets that several tests look at, made once."""

import numpy as np
import pytest
import xarray as xr

from tests.plots.synthetic import relu_net, two_variable_map


@pytest.fixture(scope="session")
def catapults() -> xr.Dataset:
    """One seed, ηλ₀ from 0.5 to 4.4: lazy, catapult and divergent, no sparsity."""
    return two_variable_map(np.arange(0.5, 4.45, 0.1))


@pytest.fixture(scope="session")
def seeds_apart() -> xr.Dataset:
    """Three seeds that disagree on the last rates before every one diverges."""
    return two_variable_map(np.arange(3.0, 4.45, 0.1), seeds=3)


@pytest.fixture(scope="session")
def relu() -> xr.Dataset:
    """Two seeds of a small ReLU net with test loss and sparsity."""
    return relu_net([0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 9.0, 12.0], seeds=2, steps=200)
