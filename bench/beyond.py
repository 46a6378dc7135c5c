"""The experiments beyond the paper at full size, recorded.

    python bench/beyond.py [--data-root DIR] [--out bench/results/beyond] [NAME ...]

Each is a few minutes on two cores (`trebuchet beyond` lists them), keeps its parts as they end, and
is written to NAME.json when it is done. docs/beyond.md draws its pictures from these files.
"""

import argparse
import json
import shutil
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from trebuchet._environment import environment
from trebuchet.paper.beyond import EXPERIMENTS
from trebuchet.paper.experiment import to_json


def main() -> None:
    """Run, time, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", choices=[[], *EXPERIMENTS], default=list(EXPERIMENTS))
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--out", type=Path, default=Path("bench/results/beyond"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.names:
        row, wall, cpu = EXPERIMENTS[name], time.perf_counter(), time.process_time()
        root = {"data_root": arguments.data_root} if row.takes("data_root") else {}
        parts = arguments.out / f".{name}-unfinished"
        found = row.run(checkpoint=parts, progress=True, **root)
        told = {
            **to_json(found),
            "seconds": round(time.perf_counter() - wall, 1),
            "process_seconds": round(time.process_time() - cpu, 1),
            "environment": {"created": datetime.now(UTC).isoformat(timespec="seconds"),
                            **environment()},
            "command": f"python bench/beyond.py {name}",
        }  # fmt: skip
        text = json.dumps(told, ensure_ascii=False) + "\n"
        (arguments.out / f"{name}.json").write_text(text, encoding="utf-8")
        shutil.rmtree(parts)
        print(f"{name}: {told['seconds']} s, {told['process_seconds']} s of process time")
        print(*row.tell(found), sep="\n", file=sys.stdout)


if __name__ == "__main__":
    main()
