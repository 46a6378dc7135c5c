"""Results with names that would be dangerous if a page took them for markup."""

from typing import Any

import numpy as np
import xarray as xr

import trebuchet as tb
from trebuchet.results.schema import make_dataset

EVIL = "<script>window.hacked = 1</script></script><img src=x onerror='window.hacked=1'>&amp;\"'"
"""As a title, a model, a loss, an optimizer, an axis or one of its values."""


def runs(rates: int = 9, seeds: int = 3, steps: int = 40, **attrs: Any) -> xr.Dataset:
    """Runs that are lazy below η = 1, catapults up to 4 and divergent above, without training."""
    lr = np.geomspace(0.25, 8.0, rates)
    step = np.arange(steps + 1)
    loss = np.exp(-0.2 * np.minimum(lr, 1.0)[:, None, None] * step) * np.ones((rates, seeds, 1))
    loss = loss * (1 + 0.01 * np.arange(seeds)[:, None])
    rising = (lr > 1.0) & (lr <= 4.0)
    loss[rising, :, 1:4] += 20.0
    loss[lr > 4.0, :, 5] = np.inf
    loss[lr > 4.0, :, 6:] = np.nan
    learning_rate = np.repeat(lr[:, None], seeds, axis=1)
    known = {"model": "Net", "loss": "mse", "optimizer": "adam", "n_samples": 64, "batch_size": 8}
    ds = make_dataset(
        {"learning_rate": learning_rate, "loss": loss, "lr_ratio": 2 * learning_rate},
        lr=lr, seed=np.arange(seeds), step=step, attrs={**known, **attrs},
    )  # fmt: skip
    return tb.label(ds)


def over(ds: xr.Dataset, axis: str, values: list[Any]) -> xr.Dataset:
    """The same runs at every value of another axis."""
    named = xr.DataArray(values, dims=axis, name=axis, attrs={"units": "1", "long_name": "an axis"})
    return xr.concat([ds] * len(values), named, combine_attrs="override", data_vars="all")


def negative() -> xr.Dataset:
    """Runs whose losses are below zero."""
    ds = runs().drop_vars("phase")
    losses = [str(name) for name in ds if str(name).startswith("loss") and "step" not in str(name)]
    return tb.label(ds.assign({name: ds[name] - 30 for name in losses}))


def above() -> xr.Dataset:
    """Runs that all end above their start."""
    ds = runs().drop_vars("phase")
    return tb.label(ds.assign(loss_final=ds["loss_final"] + 1e4))
