"""Labels of the authors' own runs: lazy to 2, catapult above, divergent where they print inf."""

import json
from pathlib import Path

import numpy as np
import pytest

from trebuchet.phases.label import label
from trebuchet.results.schema import make_dataset

REFERENCE = Path(__file__).parents[2] / "../shared/reference"


@pytest.mark.parametrize("figure", [1, 2, 6])
def test_published_runs_get_the_phase_they_show(figure: int) -> None:
    path = REFERENCE / f"fig{figure}.json"
    if not path.exists():
        pytest.skip(f"the authors' numbers for figure {figure} are not beside the project")
    runs = json.loads(path.read_text())["runs"]
    ratios = [float(ratio) for ratio in runs]
    traces = np.full((len(runs), 1, 40), np.nan)
    for i, run in enumerate(runs.values()):
        traces[i, 0, : len(run["loss"])] = run["loss"]
    ds = make_dataset(
        {
            "learning_rate": np.array(ratios)[:, None],
            "loss": traces,
            "loss_max": [[float(run["loss_max"])] for run in runs.values()],
            "loss_final": [[float(run["loss_last"])] for run in runs.values()],
            "steps": [[run["steps"]] for run in runs.values()],
        },
        lr=ratios,
        seed=[0],
        step=range(40),
    )
    for ratio, run, phase in zip(ratios, runs.values(), label(ds).phase.values[:, 0], strict=True):
        if not np.isfinite(float(run["loss_last"])):
            expected = "divergent"
        else:
            expected = "lazy" if ratio <= 2 else "catapult"  # at 2.0 these three do not rise
        assert phase == expected, ratio
