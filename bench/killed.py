"""Stop long work at random moments by signals, resume it, and compare with undisturbed work.

    python bench/killed.py figure --data-root DIR [--number 3] [--quick] [--times 6] [--rounds 1]
    python bench/killed.py sweep [--runs 300] [--kills 100] [--backend threads|loky|dask]

A figure of the paper gets Ctrl-C (SIGINT), SIGTERM and SIGKILL in turn. Prints when each came and
how the command ended, and whether every bit of the two results is the same and nothing else is left
in the folder. A sweep is killed only: killed_sweep.py.
"""

import argparse
import itertools
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import killed_sweep
from trebuchet.results.store import load

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)


def command(options: argparse.Namespace, out: Path) -> list[str]:
    """The same command a user would type, and type again."""
    words = ["paper", options.number, "--data-root", options.data_root, "--out", out, "--resume"]
    words += ["--quick"] if options.quick else []
    return [sys.executable, "-m", "trebuchet", *map(str, words)]


def differing(figure: int, whole: Path, broken: Path) -> list[str]:
    """What is not the same to the last bit, and what should not be there."""
    a, b = (load(out / f"fig{figure}.zarr") for out in (whole, broken))
    names = set(a.variables) ^ set(b.variables)
    names |= {n for n in a.variables if a[n].values.tobytes() != b[n].values.tobytes()}
    told = [json.loads((out / f"fig{figure}.json").read_text()) for out in (whole, broken)]
    names |= {"json"} if told[0] != told[1] else set()
    left = {p.name for p in broken.iterdir()} - {p.name for p in whole.iterdir()}
    return sorted(map(str, names | left))


def stopped(options: argparse.Namespace, out: Path, moment: float, number: signal.Signals) -> str:
    """Start the command, send the signal after so many seconds, and say how it ended."""
    process = subprocess.Popen(
        command(options, out), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        _, error = process.communicate(timeout=moment)
    except subprocess.TimeoutExpired:
        process.send_signal(number)
        _, error = process.communicate()
    if "Traceback" in error:
        print(error)
    return f"{number.name} after {moment:.1f} s: exit code {process.returncode}"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of a figure."""
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--number", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--times", type=int, default=6, help="signals a round")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)


def run(options: argparse.Namespace) -> bool:
    """Make a figure once whole, then with signals, and compare.

    Args:
        options: As `add_options` has them.

    Returns:
        Whether anything was wrong.
    """
    rng = np.random.default_rng(options.seed)
    turns = itertools.cycle(SIGNALS)
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole"
        start = time.monotonic()
        subprocess.run(command(options, whole), check=True)
        length = time.monotonic() - start
        print(f"uninterrupted: {length:.1f} s")
        for turn in range(options.rounds):
            broken = Path(folder) / f"broken-{turn}"
            for _ in range(options.times):
                moment = float(rng.uniform(0.2, 0.9)) * length
                print(stopped(options, broken, moment, next(turns)), flush=True)
            subprocess.run(command(options, broken), check=True, stdout=subprocess.DEVNULL)
            differ = differing(options.number, whole, broken)
            wrong += bool(differ)
            print("every bit is the same" if not differ else f"these differ: {differ}", flush=True)
    return bool(wrong)


def main() -> None:
    """Do what is asked for; the exit code says whether anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    kinds = parser.add_subparsers(required=True)
    for name, add, does in (
        ("figure", add_options, run), ("sweep", killed_sweep.add_options, killed_sweep.run),
    ):  # fmt: skip
        kind = kinds.add_parser(name)
        add(kind)
        kind.set_defaults(does=does)
    options = parser.parse_args()
    raise SystemExit(options.does(options))


if __name__ == "__main__":
    main()
