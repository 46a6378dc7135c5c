"""Every experiment beyond the paper on its quick grid: what becomes of it, whatever its numbers."""

import json
from pathlib import Path

import pytest
import xarray as xr

import trebuchet as tb
from trebuchet.paper.beyond import EXPERIMENTS
from trebuchet.paper.experiment import from_json


@pytest.mark.parametrize(
    "name", [n for n in EXPERIMENTS if n not in ("sparsity_mnist", "test_loss_images")]
)
def test_every_experiment_is_drawn_told_saved_and_read_back(name: str, tmp_path: Path) -> None:
    row = EXPERIMENTS[name]
    seen: list[float] = []
    found = row.run(quick=True, progress=lambda done, total: seen.append(done / total))
    assert seen == sorted(seen)
    assert seen[-1] == 1
    data, picture, numbers = row.save(found, tmp_path)
    xr.testing.assert_identical(tb.load(data).drop_attrs(deep=False), found.drop_attrs(deep=False))
    told = from_json(json.loads(numbers.read_text()))
    assert told.sizes == found.sizes
    assert [s.strip() for s in row.tell(told)] == list(row.tell(found))
    assert row.tell(found)
    assert picture.stat().st_size > 10_000
