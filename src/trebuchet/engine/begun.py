"""How far a sweep on disk has come, seen without taking it: somebody may be writing to it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trebuchet._whole import DamagedError
from trebuchet.engine.arrayfile import unpack
from trebuchet.engine.checkpoint import Checkpoint, Identity, parse
from trebuchet.engine.chunkfile import read
from trebuchet.results.growing import Growing


@dataclass(frozen=True, slots=True)
class Begun:
    """How far a saved sweep has come.

    Attributes:
        settings: What decides its runs.
        ended: Runs that have ended.
        begun: Others that were saved on their way.
    """

    settings: Mapping[str, Any]
    ended: int
    begun: int

    @property
    def runs(self) -> int:
        """All that were asked for."""
        return len(self.settings["rates"]) * len(self.settings["seeds"])


def look(folder: Path) -> Begun | None:
    """Look into the folder of a sweep without taking it: somebody may be writing to it.

    Args:
        folder: The folder.

    Returns:
        How far it has come; None if it holds no sweep.

    Raises:
        InputError: If a file of it is damaged.
    """
    checkpoint = Checkpoint(folder, Identity({}, "", np.zeros(0), 0.0))
    path = checkpoint.state / "sweep.json"
    data = read(path)
    if data is None:
        return None
    try:
        settings = parse(data)["settings"]
        begun = 0
        files = [(path, read(path)) for path in sorted(checkpoint.begun())]
        path = folder  # after the files: what is in both by then is counted once
        there = Growing(folder).ended()
        ended = int(there.sum())
        for path, found in files:  # noqa: B007  # for the errors below
            if found is None:
                continue
            header, _ = unpack(found)
            runs, left = header["of"]["runs"], len(header["left"])
            if not all(there[tuple(run)] for run in runs):
                ended, begun = ended + len(runs) - left, begun + left
        result = Begun(settings, ended, begun)
        result.runs  # noqa: B018  # there are rates and seeds
    except DamagedError as error:
        raise checkpoint.damaged(path, str(error)) from error
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise checkpoint.damaged(path, "it does not hold what it should") from error
    return result
