"""Which tests `.ci/run` runs again under other instruction sets, and on how many threads all do."""

import os
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
LINEAR_ALGEBRA = [
    *("curvature", "models", "paper", "theory"),
    *("engine/test_kernels.py", "sweeps/test_sweep.py"),  # the others are of files and signals
    *("phases/test_edges.py", "scans/test_critical.py", "scans/test_paper.py"),
]
"""Folders and files whose numbers come from sums that a CPU's kernels round."""
NO_NUMBERS = ["paper/test_experiments.py", "curvature/test_distributed.py"]
"""Files in them that are of pictures and files, or of processes."""


def pytest_configure(config: pytest.Config) -> None:
    """Give each of several workers one thread, and what it starts too, unless told otherwise.

    As many threads as cores in each of them wait for one another most of the time: the nets here
    are tiny, and the whole suite takes three times as long. Threads that are asked for wait asleep.
    """
    if (config.getoption("numprocesses", None) or 1) > 1:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {TESTS / place for place in LINEAR_ALGEBRA}
    beside = {TESTS / place for place in NO_NUMBERS}
    for item in items:
        if item.path not in beside and places & {item.path, *item.path.parents}:
            item.add_marker(pytest.mark.linear_algebra)
