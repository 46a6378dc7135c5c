"""Kill a figure with SIGKILL at random moments, resume it, and compare with an uninterrupted run.

    python bench/killed.py --data-root DIR [--figure 3] [--kills 5]

Prints when each kill came, and whether every number of the two results is the same.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from trebuchet.results.store import load


def command(figure: int, data_root: Path, out: Path) -> list[str]:
    """The same command a user would type, and type again."""
    arguments = ["paper", figure, "--data-root", data_root, "--out", out, "--resume"]
    return [sys.executable, "-m", "trebuchet", *map(str, arguments)]


def main() -> None:
    """Run once whole, once with kills, and compare."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--figure", type=int, default=3)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        whole, broken = Path(folder) / "whole", Path(folder) / "broken"
        start = time.monotonic()
        subprocess.run(command(arguments.figure, arguments.data_root, whole), check=True)
        length = time.monotonic() - start
        print(f"uninterrupted: {length:.1f} s")
        for kill in range(arguments.kills):
            process = subprocess.Popen(command(arguments.figure, arguments.data_root, broken))
            moment = float(rng.uniform(0.1, 0.6)) * length
            time.sleep(moment)
            ended = process.poll() is not None
            process.kill()
            process.wait()
            print(f"kill {kill + 1}: after {moment:.1f} s{' (it had ended)' if ended else ''}")
        subprocess.run(command(arguments.figure, arguments.data_root, broken), check=True)
        a, b = (load(out / f"fig{arguments.figure}.zarr") for out in (whole, broken))
        differ = [name for name in a.data_vars if not a[name].equals(b[name])]
        print("every number is the same" if not differ else f"these differ: {differ}")
        raise SystemExit(bool(differ))


if __name__ == "__main__":
    main()
