"""How fast ``leviathan --help`` answers beside ``axolotl --help``: medians and their ratio.

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


def seconds(command: list[str]) -> float:
    """Wall time of one run, start of the process to its end."""
    environment = {**os.environ, "AXOLOTL_DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env=environment)
    return time.perf_counter() - began


def main() -> None:
    """Print both medians and their ratio."""
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


if __name__ == "__main__":
    main()
