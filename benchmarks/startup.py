"""How fast ``leviathan --help`` answers beside ``axolotl --help``; also doctor, plan, render.

    python benchmarks/startup.py [--runs 7]

Both are run in turn, so that a change of the machine's speed hits both alike.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

BIN = Path(sys.executable).parent
GOAL = 1 / 20
GOAL_S = 0.5


def seconds(command: list[str]) -> float:
    """Wall time of one run, start of the process to its end."""
    environment = {**os.environ, "AXOLOTL_DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
    began = time.perf_counter()
    done = subprocess.run(command, check=False, capture_output=True, env=environment)
    assert done.returncode in {0, 3}, done.stderr  # 3: the doctor found something amiss
    return time.perf_counter() - began


def main() -> None:
    """Print the medians, the ratio, and what they should be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args().runs
    ours, theirs = [str(BIN / "leviathan"), "--help"], [str(BIN / "axolotl"), "--help"]
    seconds(ours), seconds(theirs)  # warm the disk cache
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(runs)]
    leviathan, axolotl = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b in pairs)
    print(f"leviathan --help  {leviathan:.3f} s (median of {runs})")
    print(f"axolotl --help    {axolotl:.3f} s (median of {runs})")
    print(f"ratio             {ratio:.4f} (goal: below {GOAL:.4f})")
    for words in ("doctor", "doctor --profile a4000", "plan", "plan --fit-hours 36", "render"):
        command = [str(BIN / "leviathan"), *words.split()]
        median = statistics.median(seconds(command) for _ in range(runs))
        name = f"leviathan {words}"
        print(f"{name:<34}{median:.3f} s (goal: below {GOAL_S} s)")


if __name__ == "__main__":
    main()
